"""The cost of encryption at rest: durable puts a second, and snapshots to and from disk, with it
(ours) and without (peer), in turns. `ratio` is that of the puts.

Snapshots are random bytes of a page of 64 tokens, through the core's own files; what is read was
just written, so it comes from the page cache.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from aios.kernel.core.disk import BlockName, Disk
from aios.kernel.lib.encryption import AeadCodec, KeyRing

from .common import Progress, Target, system
from .memory import together

TARGET = Target(0.9, at_least=True)
PUTS, ROUNDS = 32_000, 3
PAGE_BYTES, PAGES = 64 * 23_040, 100  # of one snapshot; how many


def run(
    progress: Progress, puts: int = PUTS, rounds: int = ROUNDS, pages: int = PAGES
) -> dict[str, Any]:
    ours, peer = puts_per_second(progress, puts, rounds)
    progress("snapshots")
    kept, kept_by_peer = snapshots(pages)
    ours, peer = ours | kept, peer | kept_by_peer
    ratio = ours["puts_per_second"] / peer["puts_per_second"]
    for what in ("write", "read"):
        ours[f"{what}_ratio"] = ours[f"{what}_gb_per_second"] / peer[f"{what}_gb_per_second"]
    return {"ratio": ratio, "ours": ours, "peer": peer}


def puts_per_second(
    progress: Progress, puts: int, rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Return puts a second of 64 writers, to a sealed system and to one in clear, in turns."""
    with ExitStack() as stack:
        key = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aios-"))) / "key"
        key.write_bytes(os.urandom(32))
        rates: list[list[float]] = []
        settings: dict[str, Any] = {"slots": 1, "ctx": 256}
        sealed = settings | {"encrypt": True, "key_file": str(key)}
        homes = [stack.enter_context(system(progress, **each)) for each in (sealed, settings)]
        for number in range(rounds):
            progress(f"puts, {number + 1} of {rounds}")
            rates.append([together(home, puts, 1) for home in homes])
        ours, peer = (rounds / sum(1 / rate for rate in side) for side in zip(*rates, strict=True))
        return {"puts_per_second": ours}, {"puts_per_second": peer}


def snapshots(pages: int) -> tuple[dict[str, float], dict[str, float]]:
    """Return the gigabytes a second to disk and back, sealed and in clear, page by page in
    turns."""
    rows = np.frombuffer(os.urandom(PAGE_BYTES), np.uint8)
    names = [BlockName(number.to_bytes(16), 0, 64) for number in range(pages)]
    seconds: dict[str, list[float]] = {"write": [0.0, 0.0], "read": [0.0, 0.0]}
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        disks = [
            Disk(Path(folder) / str(at), bytes(16), pages * PAGE_BYTES * 2, seal=seal)
            for at, seal in enumerate((AeadCodec(KeyRing.new()), None))
        ]
        for what, both in seconds.items():
            for name in names:
                for at, disk in enumerate(disks):
                    begin = time.perf_counter()
                    disk.write(name, rows) if what == "write" else disk.read(name, PAGE_BYTES)
                    both[at] += time.perf_counter() - begin
    size = pages * PAGE_BYTES / 1e9
    ours, peer = (
        {f"{what}_gb_per_second": size / both[at] for what, both in seconds.items()}
        for at in range(2)
    )
    return ours, peer
