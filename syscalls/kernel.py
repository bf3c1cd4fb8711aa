"""The messages about the system as a whole: the `kernel.` calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import Meta

from .base import Message, Name, Reply


class Fitted(Reply):
    """The file that stands in for the model asked for, in a format that is quicker here."""

    original: str  # path of that model
    format: str
    kl: float  # mean Kullback-Leibler divergence from the original, nats a token
    same_top: float  # share of tokens after which both find the same one likeliest


class ModelInfo(Reply):
    path: str  # of the file that is loaded
    id: str  # of both ends of that file, and its size
    description: str
    params: int
    size: int
    vocab: int
    window: int  # tokens a context can hold
    certified: int  # exact for batches of 1 to this many sequences; 0: not exact at all
    exact_cost: float | None  # time of a full batch cut to `certified`, over the same uncut
    cache_bytes: int  # of the KV cache, all slots
    cache: str  # format of keys and values
    paged: bool  # whether contexts can leave their slots without being computed again
    engine: str
    fitted: Fitted | None = None
    refused: str = ""  # why the original is loaded although `fitted` is set
    measured: bool = False  # `aios model fit` has measured it in other formats


class AuditInfo(Reply):
    records: int  # ever
    signed: int  # of these, by the newest checkpoint
    kept: int  # the first that was not removed
    trouble: str  # what was wrong with the log when the kernel started


GatewayState = Literal["off", "starting", "listening", "failed"]


class Status(Reply):
    version: str
    abi: int
    boot: str
    home: str
    os_pid: int
    uptime: float
    core: Literal["loading", "ready", "failed"]
    core_error: dict[str, str] | None
    core_restarts: int
    model: ModelInfo | None
    slots: int
    policy: str
    quantum: int
    policies: list[str]
    agents: int
    contexts: int
    running: int  # generations that have a slot
    ready: int  # generations that wait for one
    walls: dict[str, str]  # around agents: by what is kept in, how; "" where this Linux cannot
    audit: AuditInfo
    missing: dict[str, str] = {}  # what is not there for want of a package: how to install it
    gateway: GatewayState = "off"  # for callers from elsewhere
    gateway_error: dict[str, str] | None = None  # why it cannot listen


class Summary(Reply):
    """The distribution of one quantity over all finished generations of this boot."""

    count: int
    mean: float
    p50: float
    p99: float
    max: float


class Stats(Reply):
    calls: dict[str, int]  # by name, served or failed
    errors: dict[str, int]  # by code
    generations: int
    prompt_tokens: int
    completion_tokens: int
    switches: int
    saves: int  # contexts that had to leave a slot
    restores: int  # from snapshots
    replayed: int  # tokens computed again for want of a snapshot
    shared: int  # tokens not computed, because another context begins alike
    extents: int  # pieces of snapshots
    snapshot_bytes: int  # in RAM
    disk_bytes: int
    written: int  # bytes to disk
    read: int  # bytes from disk
    lost: int  # extents in use for which RAM and disk had no room
    bad_snapshots: int  # files that were damaged or missing
    disk_failures: int
    steps: int  # llama_decode calls of the core's decode batches
    commits: int  # of memory and storage
    mem_resident: int  # bytes of agents' memory in the kernel's RAM
    mem_evicted: int  # items that moved out of it
    mem_fetched: int  # items that came back
    waiting: Summary
    turnaround: Summary
    ttft: Summary


class SetPolicy(Message):
    policy: Name | None = None
    quantum: Annotated[int, Meta(ge=1, le=2**20)] | None = None


class Policy(Reply):
    policy: str
    quantum: int


EventKind = Literal["process", "generation", "core", "policy", "index", "gateway"]


class Events(Message):
    """Follow what happens: one piece per event until cancelled."""

    kinds: list[EventKind] = []  # empty: all


class Event(Reply):
    time: float  # Unix time
    kind: str
    what: str
    pid: int
    detail: dict[str, Any]


class CheckReport(Reply):
    problems: list[str]  # empty: every invariant of the kernel holds
