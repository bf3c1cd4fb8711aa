"""Each bench in a short form: the shape of its report, and that broken exactness shows.

Nothing here asserts a speed.
"""

from __future__ import annotations

from typing import Any

import pytest

from aios.bench import exact, memory, swap, switch, syscall
from aios.bench.chats import ANSWER, our_side
from aios.bench.load import AGENTS, make_prompts, our_system, tokens_per_second
from aios.kernel.core.llama import CHUNK

PROMPTS = (5, 20, 33, 64, 70, 280)  # tokens; the last makes attention cross 512 cells


def quiet(_said: str) -> None:
    pass


def check_shape(report: dict[str, Any], name: str) -> None:
    assert report.keys() == {"bench", "ratio", "target", "ours", "peer"}
    assert report["bench"] == name
    assert isinstance(report["ratio"], float)
    assert isinstance(report["target"], float)


def test_syscall_measures_both_sides() -> None:
    report = syscall.run(quiet, calls=20, pipelined=200)
    check_shape(report, "syscall")
    for side in ("ours", "peer"):
        assert report[side]["round_trip"] > 0
        assert report[side]["pipelined_per_second"] > 0


def test_memory_measures_both_sides() -> None:
    report = memory.run(quiet, puts=1280, lone=20)
    check_shape(report, "memory")
    ours, peer = report["ours"], report["peer"]
    assert ours["puts_a_commit"] > 1
    assert peer["puts_a_commit"] == round(ours["puts_a_commit"])
    for side in (ours, peer):
        assert 0 < side["single_p50"] <= side["single_p99"]
        assert side["puts_per_second"] > 0


def test_switch_measures_the_engine_and_the_system() -> None:
    report = switch.run(quiet, tokens=150, new=20)
    check_shape(report, "switch")
    assert report["ours"]["bytes"] > 150 * 20_000  # 23 KB of KV a token, and no logits
    assert report["ours"]["system"]["restores"] >= 2


def test_our_side_of_throughput_generates_every_token() -> None:
    with our_system(quiet) as (aios, play):
        spans = play(make_prompts(aios)[:3] + [[1, 2, 3]] * (AGENTS - 3), 4)
    assert [tokens for _, _, tokens in spans] == [4] * AGENTS
    assert tokens_per_second(spans) > 0


def test_our_side_of_agents_talks_every_turn() -> None:
    chats, found = our_side(quiet, agents=3, turns=2, slots=2)
    assert [len(chat.user) for chat in chats] == [2] * 3
    assert len({said for chat in chats for said in chat.user}) == 6
    assert found["generated"] == 6 * ANSWER
    assert 400 + 6 * 30 < found["prefilled"] < 2 * 400  # the system prompt, once, and the messages
    assert found["makespan"] > 0.5  # the tool's time
    assert 0 < found["turn_p50"] < found["makespan"]


def test_every_context_comes_back_from_disk() -> None:
    report = swap.run(quiet, contexts=14, tokens=70, slots=2, ram=12 << 20)
    check_shape(report, "swap")
    ours = report["ours"]
    assert report["ratio"] == ours["differing"] == 0
    assert ours["replayed"] <= ours["lost"] * CHUNK  # nothing but what the disk was too slow for
    assert ours["restores"] >= 14 - 2
    assert ours["read"] > 4 * 70 * 20_000
    assert ours["peak_ram"] <= 12 << 20


def test_random_schedules_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "DIE", 0.1)  # the schedules are short
    report = exact.run(quiet, steps=20, prompts=PROMPTS, room=0.3)
    check_shape(report, "exact")
    ours = report["ours"]
    assert ours["differing"] == ours["kernel"]["differing"] == report["ratio"] == 0
    assert ours["steps"] >= 20
    assert ours["compared"] == ours["schedules"] * report["peer"]["solo_steps"]
    counters = ("kills", "restores", "replayed", "shared", "written", "read")
    for put_to_the_test in counters:
        assert ours[put_to_the_test] > 0, put_to_the_test
    # Kernel and core are killed at moments of their own: how often it switches is not sure here.
    assert 0 < ours["kernel"]["compared"] < ours["compared"]


@pytest.mark.parametrize("sabotage", ["unified", "lost-token"])
def test_what_breaks_exactness_is_seen(sabotage: exact.Sabotage) -> None:
    report = exact.run(quiet, steps=20, prompts=PROMPTS, sabotage=sabotage)
    assert (report["ours"]["restores"] > 0) == (sabotage == "lost-token")
    assert report["ratio"] > 0
