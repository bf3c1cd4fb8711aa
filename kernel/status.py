"""The state of the whole kernel, as `kernel.status` and `kernel.stats` tell it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from msgspec.structs import asdict

from aios.syscalls import VERSION, wire
from aios.syscalls.base import Empty
from aios.syscalls.kernel import Stats, Status

from .entry.call import Call
from .llm.scheduler.policies import POLICIES

if TYPE_CHECKING:
    from .boot import Kernel


def status(k: Kernel, call: Call, args: Empty) -> Status:
    """Tell what runs: the model, its slots, the policy, the agents."""
    return Status(
        version=VERSION,
        abi=wire.ABI_VERSION,
        boot=k.boot,
        home=k.config.home,
        os_pid=k.os_pid,
        uptime=time.monotonic() - k.began,
        core=k.core.state,
        core_error=k.core.error.to_wire() if k.core.error else None,
        core_restarts=k.core.service.restarts,
        model=k.core.model,
        slots=k.config.slots,
        policy=k.scheduler.policy_name,
        quantum=k.scheduler.quantum,
        policies=sorted(POLICIES),
        agents=len(k.lifecycle.agents_alive()),
        contexts=k.contexts.open_count(),
        running=len(k.scheduler.in_state("running")),
        ready=len(k.scheduler.in_state("ready")),
        walls=k.walls,
        audit=k.audit.info(),
        missing=k.config.missing,
        gateway=k.gateway.state,
        gateway_error=k.gateway.error,
    )


def stats(k: Kernel, call: Call, args: Empty) -> Stats:
    """Tell the counters and timings since the kernel's boot."""
    s = k.stats
    return Stats(
        calls=dict(k.trap.calls),
        errors=dict(k.trap.errors),
        generations=s.generations,
        prompt_tokens=s.prompt_tokens,
        completion_tokens=s.completion_tokens,
        switches=s.switches,
        **asdict(s.core),
        commits=k.store.commits,
        **k.owners.counts(),
        waiting=s.waiting.summary(),
        turnaround=s.turnaround.summary(),
        ttft=s.ttft.summary(),
    )
