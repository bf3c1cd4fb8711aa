"""More contexts than slots: who waits for whom, and that nobody can tell from the answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest
from conftest import EMBEDDED, Boot, core_stopped, eventually, of_core
from helpers import SAMPLED, STORY, first_piece, run

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import BadInput


def prompts(count: int) -> list[str]:
    return [f"{STORY} It has {i} legs." for i in range(count)]


def test_round_robin_switches_and_nobody_can_tell(talking: Aios) -> None:
    """A tiny model would have ended before the kernel can preempt it."""
    aios = talking
    options = {"max_tokens": 60, "digest": True, **SAMPLED}
    alone = [run(aios, prompt, **options) for prompt in prompts(7)]
    before = aios.stats()
    assert all(result.timings.switches == 0 for result in alone)
    together = [aios.generate(prompt, **options) for prompt in prompts(7)]
    results = [generation.result() for generation in together]
    assert sum(result.timings.switches for result in results) >= 7
    assert [result.tokens for result in results] == [result.tokens for result in alone]
    assert [result.digest for result in results] == [result.digest for result in alone]
    assert any(result.timings.waiting > 0 for result in results)
    stats = aios.stats()
    assert stats.restores > before.restores
    assert stats.replayed == before.replayed


def test_nobody_can_tell_from_the_answers_which_policy_runs(aios: Aios) -> None:
    said, before = prompts(9), aios.policy()
    options: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "digest": True}
    alone = [run(aios, prompt, **options).digest for prompt in said]
    try:
        for policy in aios.status().policies:
            aios.policy(policy, 4)
            together = [aios.generate(prompt, **options) for prompt in said]
            assert [call.result().digest for call in together] == alone, policy
            assert aios.check() == []
    finally:
        aios.policy(before.policy, before.quantum)


def test_turns_get_on_where_no_snapshot_is_kept(boot: Boot) -> None:
    """Each turn replays all that was there: it must still come to something new."""
    system = boot(model=EMBEDDED, slots=1, quantum=8, snapshot_bytes=0, disk_bytes=0)
    with connect(system.home) as aios:
        options: dict[str, Any] = {"max_tokens": 24, "ignore_eos": True, "digest": True}
        said = [aios.tokenize(prompt) for prompt in prompts(2)]
        alone = [run(aios, tokens, **options) for tokens in said]
        with core_stopped(system):  # or the first may end before the second has begun
            together = [aios.generate(tokens, **options) for tokens in said]
            eventually(lambda: aios.status().running + aios.status().ready == 2)
        assert [call.result().digest for call in together] == [end.digest for end in alone]
        assert aios.stats().replayed > 0


def test_the_policy_changes_while_it_runs(talker: System) -> None:
    with connect(talker.home) as aios:
        _change_the_policy(aios)


def _change_the_policy(aios: Aios) -> None:
    before = aios.policy()
    try:
        assert aios.policy("fifo").policy == "fifo"
        calls = [aios.generate(p, max_tokens=60, ignore_eos=True) for p in prompts(6)]
        first_piece(calls[0])
        assert aios.status().ready == 2
        calls[3].result()
        assert [call.result().timings.switches for call in calls] == [0] * 6
        calls = [aios.generate(p, max_tokens=90, ignore_eos=True) for p in prompts(6)]
        first_piece(calls[0])
        assert aios.policy("rr", 5).quantum == 5
        assert sum(call.result().timings.switches for call in calls) > 6
        with pytest.raises(BadInput, match="fair, fifo, las"):
            aios.policy("none")
    finally:
        aios.policy(before.policy, before.quantum)


def test_a_long_prompt_delays_others_by_a_chunk_at_a_time(talker: System) -> None:
    """While it is prefilled in n chunks, whoever decodes gets about n tokens."""
    with connect(talker.home) as aios:
        other = aios.generate(STORY, max_tokens=100, ignore_eos=True)
        pieces = other.pieces()
        next(pieces)
        long = aios.start("llm.generate", tokens=[7] * 900, max_tokens=1)
        seen = 0
        while not long.ended:
            next(pieces)
            seen += 1
        assert seen >= 900 // 64 - 2
        assert long.wait()["usage"]["prompt"] == 900
        other.cancel()


def test_a_greedy_agent_delays_others_by_a_turn(boot: Boot, program: Callable[[str], str]) -> None:
    """However many of its calls wait, and of what it has started."""
    greedy = program("""
if task:
    aios.spawn(aios.welcome.program, name="child")
calls = [aios.generate([5, 6], max_tokens=20, ignore_eos=True) for _ in range(40)]
return [call.result().finish for call in calls]
""")
    system = boot(slots=1)
    with connect(system.home) as aios:
        with core_stopped(system):
            pid = aios.spawn(greedy, "begin")
            eventually(lambda: aios.status().ready == 79)
            events = aios.start("kernel.events", kinds=["generation"])
            own = aios.generate([5, 6], max_tokens=1)
        own.result()
        ends = [event["pid"] for event in events.pieces if event["what"] == "length"]
        assert ends.index(aios.welcome.pid) <= 2  # behind the one that ran, and one in its turn
        events.connection.cancel_later(events.id)
        assert aios.wait(pid).result == ["length"] * 40


def test_two_hundred_agents_on_eight_slots(boot: Boot, program: Callable[[str], str]) -> None:
    path = program(
        "aios.recv()\n"
        "result = aios.generate(task, raw=True, max_tokens=3, ignore_eos=True).result()\n"
        "return len(result.tokens)"
    )
    system = boot(slots=8, ctx=512)
    kernel = psutil.Process(system.ready().os_pid)
    with connect(system.home) as aios:
        run(aios, max_tokens=2)
        core = of_core(system)
        before = kernel.memory_info().rss, core.memory_info().rss, kernel.num_fds()
        pids = [aios.spawn(path, f"Say {i}.") for i in range(200)]
        eventually(lambda: sum(row.state == "running" for row in aios.ps()) == 200)
        for pid in pids:
            aios.send(pid, "go")
        ends = [aios.wait(pid, timeout=120) for pid in pids]
        assert [end.result for end in ends] == [3] * 200
        status = aios.status()
        assert (status.agents, status.contexts, status.ready, status.running) == (0, 0, 0, 0)
        assert aios.stats().generations == 201
        assert aios.stats().snapshot_bytes == 0
        eventually(lambda: kernel.num_fds() <= before[2] + 1)
        after = kernel.memory_info().rss, core.memory_info().rss
        assert after[0] - before[0] < 40 << 20
        assert after[1] - before[1] < 100 << 20
        assert aios.check() == []
