"""The messages of the ABI: what each system call takes, and what it answers.

Units: times in seconds, memory in bytes, everything about the model in tokens.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

from .rules import Manifest

Pid = Annotated[int, Meta(ge=0, le=2**31)]
CtxId = Annotated[int, Meta(ge=1, le=2**31)]
Nice = Annotated[int, Meta(ge=-20, le=19)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^(?!\.{1,2}\Z)[\w.+-]+\Z")]
Address = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"^([\w.+-]+|(/[\w.+-]+)+)\Z")]
Kind = Literal["agent", "client", "remote"]  # client: a person's; remote: an agent elsewhere
Seconds = Annotated[float, Meta(ge=0, le=1e9)]
Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Signal = Literal["TERM", "KILL", "STOP", "CONT"]
ProcessState = Literal["starting", "running", "stopped", "ending", "zombie"]
GRAMMAR = 49152  # characters of one
Finish = Literal["stop", "length", "context_full", "cancelled"]


class Message(Struct, forbid_unknown_fields=True):
    """Base of every call's arguments: a field that the table does not know is an error."""


class Reply(Struct, kw_only=True):
    """Base of every reply's body."""


class Empty(Message):
    pass


class Done(Reply):
    pass


# --- process ---------------------------------------------------------------------------------


class Limits(Message):
    """What one agent may use; None is no limit. Going past one ends in the error `limit`.

    Tokens, memory's bytes and children are a budget that all below it draw from as well.
    """

    tokens: Annotated[int, Meta(ge=0)] | None = None  # prefilled plus decoded, all calls
    wall: Seconds | None = None  # since the start of the process
    memory: Annotated[int, Meta(ge=0)] | None = None  # resident set
    mem_bytes: Annotated[int, Meta(ge=0)] | None = 64 << 20  # of keys and values in its memory
    contexts: Annotated[int, Meta(ge=0)] | None = 64  # open at once
    queue: Annotated[int, Meta(ge=0)] | None = 256  # messages waiting, and calls waiting
    children: Annotated[int, Meta(ge=0)] | None = 512  # alive at once, theirs too


AbsolutePath = Annotated[str, Meta(pattern=r"^/[^\0]*\Z", max_length=4096)]


class Reach(Message, kw_only=True):
    """What an agent's process reaches outside of itself, through the walls around it."""

    read: Annotated[list[AbsolutePath], Meta(max_length=256)] = []  # files and folders
    write: Annotated[list[AbsolutePath], Meta(max_length=256)] = []
    ports: Annotated[list[Annotated[int, Meta(ge=1, le=65535)]], Meta(max_length=256)] = []  # TCP
    processes: bool = False  # whether it may start any itself
    all_walls: bool = False  # it does not start where this Linux has not all of them


class Return(Message):
    """Who comes back, after the kernel has died and another has taken its place."""

    pid: Pid
    secret: bytes  # of the welcome


class Hello(Message):
    version: int
    token: bytes | None = None  # the one-time token of a spawned agent
    name: Name | None = None  # how a client wants to be listed; an agent's name is given at spawn
    back: Return | None = None


class Welcome(Reply):
    pid: Pid
    name: str
    kind: Kind
    version: int
    boot: str  # changes with each start of the kernel
    program: str  # what was spawned, and its task; empty for a client
    task: Any
    contexts: list[CtxId]  # the forks that it was spawned with
    secret: bytes  # to come back with, should the kernel die


class Spawn(Message):
    """Start `program`: a registered name, a path to a .py file that has an Agent, or an executable.

    An executable gets `args`; an agent gets `task` as the argument of `run`.
    """

    program: Annotated[str, Meta(min_length=1, max_length=4096)]
    args: Annotated[list[str], Meta(max_length=256)] = []
    task: Any = None
    name: Name | None = None
    limits: Limits | None = None
    nice: Nice | None = None  # the parent's unless given
    cwd: Annotated[str, Meta(max_length=4096)] | None = None  # its own folder unless given
    contexts: Annotated[list[CtxId], Meta(max_length=64)] = []  # of the caller: it gets forks
    manifest: Manifest | None = None  # what it may do, of what the caller may
    reach: Reach | None = None  # besides what all agents reach; of an agent, part of its own


class Spawned(Reply):
    pid: Pid


class Exit(Message):
    code: Annotated[int, Meta(ge=0, le=255)] = 0
    result: Any = None


class Wait(Message):
    pid: Pid | None = None  # None: any child
    timeout: Seconds | None = None


class Exited(Reply):
    pid: Pid
    name: str
    code: int  # as a shell gives it: 128 + signal for a death by signal
    reason: str  # "exit", "signal KILL", "limit wall", "parent gone", "not reading", ...
    result: Any = None


class Kill(Message):
    pid: Pid
    signal: Signal = "TERM"


class SetNice(Message):
    nice: Nice
    pid: Pid | None = None


class NiceReply(Reply):
    nice: int


class SetLimits(Message):
    """Read limits; with `limits`, replace them. An agent can only tighten its own."""

    pid: Pid | None = None
    limits: Limits | None = None


class Ps(Message):
    all: bool = False  # clients and the dead as well


class ProcessInfo(Reply):
    pid: Pid
    parent: Pid
    name: str
    kind: Kind
    state: ProcessState
    os_pid: int
    nice: int
    age: float
    cpu: float  # user + system
    memory: int  # resident set
    contexts: int
    queue: int  # messages waiting
    tokens: int  # prefilled plus decoded
    calls: int  # system calls made
    generations: int  # finished
    waiting: float  # total of all generations
    switches: int
    code: int | None
    reason: str
    turnaround: float = 0.0  # total of the generations that came to their end
    ttft: float | None = None  # mean over the generations that drew a token
    principal: str = ""  # its name below those of the agents that started it; "": a client
    tool: str = ""  # the toolbox that it serves as a worker; "": it is none


class Log(Message):
    """Read what an agent wrote to stdout and stderr, from `offset` (negative: from the end)."""

    pid: Pid
    offset: int = 0
    wait: Seconds = 0.0  # for more to come, when there is nothing to read


class LogPart(Reply):
    data: bytes
    offset: int  # where to read on
    ended: bool  # the process has ended and all is read


# --- llm -------------------------------------------------------------------------------------


Role = Literal["system", "developer", "user", "assistant", "tool", "tools"]


class ChatMessage(Message):
    """With the role "tools" it has, in front of all but a system message, a JSON list of functions
    ({"type": "function", "function": {"name", "description", "parameters"}}) for the model's chat
    template; `bad_input` where that knows no tools."""

    role: Role
    content: str


class PastMessage(Reply):
    role: str  # as in ChatMessage; of text that was no message "text"
    content: str


# What happens when the window has no room: the call fails; the oldest turns go; they go, and the
# model sums them up; they go, and come back when a message is about them. What comes first, stays.
OnFull = Literal["error", "slide", "summarize", "recall"]
Messages = Annotated[list[ChatMessage], Meta(min_length=1)]
TokenIds = Annotated[list[Token], Meta(min_length=1)]


class Open(Message):
    """Open a context; one with a `name` outlives its process, and is opened again by that name.

    It belongs to the principal, as memory and storage do; a person opens another's by its `owner`.
    """

    system: str | None = None  # enters a new context only
    name: Name | None = None
    on_full: OnFull | None = None  # error, unless the context had another
    owner: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None  # of the one named


class Opened(Reply):
    ctx: CtxId
    window: int
    used: int = 0  # tokens that are in it


class Fork(Message):
    """A copy that goes on by itself; what both have in common is computed once."""

    ctx: CtxId
    name: Name | None = None


class Checkpoint(Message):
    """Remember the state of a context as `name`, in place of an earlier one."""

    ctx: CtxId
    name: Name


class Rollback(Message):
    """Go back to a checkpoint, which is kept."""

    ctx: CtxId
    name: Name


class Used(Reply):
    used: int
    window: int


class ContextInfo(Reply):
    ctx: CtxId
    owner: str  # the principal whose it is; of a person's program, its name
    pid: Pid  # 0: nobody has it open
    name: str | None
    used: int
    state: Literal["idle", "busy", "asleep"]
    on_full: OnFull
    checkpoints: list[str]


class Append(Message):
    """What enters a context is exactly one of chat messages, raw text, token ids.

    What reads like a control token is one in raw text alone: for that, and for token ids, the right
    `llm.raw` is asked for, which rules about `llm` cover.
    """

    ctx: CtxId
    messages: Messages | None = None
    text: str | None = None
    tokens: TokenIds | None = None


class Moved(Reply):
    """What left a full window for this call, and what came back."""

    tokens: int  # in the context before, less those that are in it now
    dropped: list[PastMessage]  # the oldest
    summary: str | None  # of all that was ever dropped
    recalled: list[PastMessage]


class Appended(Reply):
    added: int
    used: int
    window: int
    moved: Moved | None = None


class Sampling(Message):
    """How the next token is drawn from the logits; the draw depends on (seed, position) alone."""

    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0  # 0: greedy
    top_k: Annotated[int, Meta(ge=0, le=2**20)] = 0  # 0: off
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    penalty_last: Annotated[int, Meta(ge=0, le=4096)] = 64  # tokens that the penalties look back
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Decoding(Sampling):
    """Sampling, and when to stop, and what to report of each token."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**20)] = 256
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)
    ] = []
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # alternatives listed per token
    digest: bool = False  # chain a hash of each step's raw logits
    schema: dict[str, Any] | None = None  # JSON Schema that the answer fits
    grammar: Annotated[str, Meta(min_length=1, max_length=GRAMMAR)] | None = None  # or this GBNF


class Generate(Decoding):
    """Generate in context `ctx`, or in one that lives for this call only.

    What `messages`, `text` or `tokens` hold is appended first, as by llm.append.
    """

    ctx: CtxId | None = None
    messages: Messages | None = None
    text: str | None = None
    tokens: TokenIds | None = None
    stream: bool = True


class Logprob(Reply):
    token: int
    logprob: float
    top: list[tuple[int, float]]


class Piece(Reply):
    text: str  # complete UTF-8, never part of a stop string
    tokens: list[int]
    logprobs: list[Logprob] | UnsetType = UNSET


class Usage(Reply):
    prompt: int  # tokens that this call appended
    completion: int
    context: int  # tokens in the context at the end


class Timings(Reply):
    waiting: float  # ready to run, but not in a slot's turn
    prefill: float
    decode: float
    ttft: float | None  # from the call to its first token
    turnaround: float  # from the call to its end
    switches: int  # times the context was preempted


class Result(Reply):
    text: str
    tokens: list[int]
    finish: Finish
    usage: Usage
    timings: Timings
    digest: str | None = None  # hex of the 32-byte chained hash
    moved: Moved | None = None
    logprobs: list[Logprob] | UnsetType = UNSET


class Tokenize(Message):
    text: str | None = None
    messages: list[ChatMessage] | None = None  # as the model's chat template renders them


class Tokens(Reply):
    tokens: list[int]


class Detokenize(Message):
    tokens: list[Token]


class Text(Reply):
    text: str


class Close(Message):
    ctx: CtxId
    forget: bool = False  # else a context with a name is kept, asleep


class Cancel(Message):
    call: Annotated[int, Meta(ge=1)]


class Cancelled(Reply):
    found: bool  # False: the call had ended already


# --- messages between agents -----------------------------------------------------------------


class Send(Message):
    """To a pid, a principal ("/ann/helper"), or a name: that of a child of the caller, else of one
    beside it, else of one beside an agent above it. The oldest that is alive is meant."""

    to: Pid | Address
    body: Any


class Recv(Message):
    sender: Pid | None = None  # None: anyone's
    timeout: Seconds | None = None


class Mail(Reply):
    sender: Pid
    name: str  # which anybody may have been given
    body: Any
    labels: list[str] = []  # where it comes from, but for a person: "msg:/writer", "tool:web"
    principal: str = ""  # who the sender is, as the kernel knows; "": a person


# --- kernel ----------------------------------------------------------------------------------


class Fitted(Reply):
    """A file in a format that this machine is quick with stands in for the model asked for."""

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


class Summary(Reply):
    """Of one quantity over all finished generations of this boot."""

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
