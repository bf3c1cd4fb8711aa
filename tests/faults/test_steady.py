"""Calls that were served leave nothing in the kernel."""

from __future__ import annotations

import psutil
import pytest
from conftest import Boot
from raw import Raw

BATCH = 500


def serve(raw: Raw, batches: int) -> None:
    """Messages to itself, each received by a call that would have waited for a day."""
    for _ in range(batches):
        last = 0
        for n in range(BATCH):
            raw.start("msg.recv", timeout=86400.0)
            last = raw.start("msg.send", to=raw.pid, body=n)
        raw.final(last)


@pytest.mark.faults
def test_calls_that_were_served_leave_nothing(boot: Boot, full: bool) -> None:
    with Raw(boot(slots=1, ctx=256).home) as raw:
        kernel = psutil.Process(raw.done("kernel.status")["os_pid"])
        serve(raw, 10)
        before = kernel.memory_info().rss, kernel.num_fds()
        serve(raw, 200 if full else 40)
        grown = kernel.memory_info().rss - before[0]
        assert grown < 16 << 20  # a timer that is kept costs 2 KB
        # The audit log has a file made ahead, and one that is full and not yet synced, or not.
        assert abs(kernel.num_fds() - before[1]) <= 2
        assert raw.done("kernel.check")["problems"] == []
