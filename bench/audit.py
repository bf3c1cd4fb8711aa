"""The audit log: durable records a second, verified records a second, and what the gate costs.

The peer of both rates is this disk and this processor with the same bytes: raw appends with a sync
for as many as ours has, and SHA-256 over them. The gate's cost is the round trip of a system call
to a kernel that checks and records it, over the same to one that does neither; both kernels run
side by side, and take turns. `ratio` is that of a call that changes something, which is recorded
twice.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from aios.agents import Aios, connect
from aios.kernel.audit.checkpoint import Signer
from aios.kernel.audit.log import AuditLog
from aios.kernel.audit.verify import verify
from aios.kernel.config import Config
from aios.kernel.init.protocol import Takeover, encode
from aios.kernel.lib.files import make_ahead

from .common import Progress, Target, timed

TARGET = Target(1.3)
RECORDS, GROUP = 400_000, 256
ROUNDS, CALLS = 9, 400
KERNEL_TIMEOUT_S = 60.0


def run(progress: Progress, records: int = RECORDS, calls: int = CALLS) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        home = Path(folder)
        progress(f"{records} records")
        appended, size = ours_appended(home, records)
        progress("the same bytes, raw")
        raw = raw_appended(home / "raw", records, size)
        progress("verifying")
        verified, hashed = records / ours_verified(home, records), records / hash_all(records, size)
    trips = round_trips(progress, calls)
    ours = {
        "durable_per_second": records / appended,
        "bytes_a_record": size,
        "verified_per_second": verified,
        "change": trips["gated", "change"],
        "read": trips["gated", "read"],
        "read_ratio": trips["gated", "read"] / trips["ungated", "read"],
    }
    peer = {
        "durable_per_second": records / raw,
        "hashed_per_second": hashed,
        "change": trips["ungated", "change"],
        "read": trips["ungated", "read"],
    }
    ratio = ours["change"] / peer["change"]
    return {"ratio": ratio, "ours": ours, "peer": peer}


# --- the log -------------------------------------------------------------------------------------


def ours_appended(home: Path, records: int) -> tuple[float, float]:
    """Append records to an audit log. Return the seconds it took, and the bytes of a record."""
    log = AuditLog(home / "audit", Signer(home / "key"), lambda run: run(), boot=b"boot" * 2)
    args = sha256(b"").digest()
    begin = time.perf_counter()
    for number in range(records):
        fields = (7, "/writer", "intent", number, "mem.put", "space=main items=k1", args, "", "", 0)
        log.append(fields)
        if number % GROUP == GROUP - 1:
            log.sync()
    log.sync()
    seconds = time.perf_counter() - begin
    log.close()
    held = sum(log.sizes.values()) - log.sizes[max(log.sizes)] + log.at
    return seconds, held / records


def raw_appended(path: Path, records: int, size: float) -> float:
    """Write as many times `size` bytes into a file made ahead, with as many syncs. Return the
    seconds."""
    data = bytes(round(size))
    file = make_ahead(path, len(data) * records)
    begin = time.perf_counter()
    for number in range(records):
        os.pwrite(file, data, number * len(data))
        if number % GROUP == GROUP - 1:
            os.fdatasync(file)
    os.fdatasync(file)
    seconds = time.perf_counter() - begin
    os.close(file)
    return seconds


def ours_verified(home: Path, records: int) -> float:
    begin = time.perf_counter()
    report = verify(home / "audit")
    seconds = time.perf_counter() - begin
    assert (report.records, report.problems) == (records, [])
    return seconds


def hash_all(records: int, size: float) -> float:
    """Compute a SHA-256 for each record, in one process. Return the seconds."""
    data = bytes(round(size))
    begin = time.perf_counter()
    for _ in range(records):
        sha256(data).digest()
    return time.perf_counter() - begin


# --- the gate ------------------------------------------------------------------------------------


def round_trips(progress: Progress, calls: int) -> dict[tuple[str, str], float]:
    """Return the median seconds of a call, by kernel and kind."""
    kinds: dict[str, Callable[[Aios], object]] = {
        "change": lambda aios: aios.limits(limits={}),  # both are decided by a rule
        "read": lambda aios: aios.ps(),
    }
    taken: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        sides = {gate: stack.enter_context(kernel(gate)) for gate in ("gated", "ungated")}
        for number in range(ROUNDS):
            progress(f"round {number + 1} of {ROUNDS}")
            for gate, aios in sides.items():
                for kind, call in kinds.items():
                    seconds = timed(partial(call, aios), calls)
                    taken.setdefault((gate, kind), []).append(median(seconds))
    return {which: median(each) for which, each in taken.items()}


@contextmanager
def kernel(gate: str) -> Iterator[Aios]:
    """Yield a connection to a kernel without a model, whose init is this process."""
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for name in ("agents", "log", "run"):
            (Path(folder) / name).mkdir()
        config = msgspec.json.encode(Config(home=folder)).decode()
        ours.send(encode(Takeover("bench", {}, [], [], more=False)))
        process = subprocess.Popen(
            [sys.executable, "-m", "aios.bench.ungated", config, str(theirs.fileno()), gate],
            pass_fds=[theirs.fileno()],
        )
        theirs.close()
        with ours, process:
            try:
                wait_for(Path(folder) / "run" / "kernel.sock")
                with connect(Path(folder), "bench") as aios:
                    yield aios
            finally:
                process.kill()  # it would wait for its init to end the agent, which is us


def wait_for(path: Path) -> None:
    """Wait until a kernel listens at `path`; the file appears a moment before."""
    limit = time.monotonic() + KERNEL_TIMEOUT_S
    with socket.socket(socket.AF_UNIX) as probe:
        while probe.connect_ex(str(path)):
            if time.monotonic() > limit:
                raise TimeoutError(f"no kernel at {path}")
            time.sleep(0.01)
