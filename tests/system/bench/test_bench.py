"""Each bench in a short form: the shape of its report, and that broken exactness shows.

Nothing here asserts a speed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import Boot, eventually
from models import tiny_model

from aios.agents import connect
from aios.bench import (
    attacks,
    audit,
    common,
    decide,
    exact,
    memory,
    retrieval,
    seal,
    swap,
    switch,
    syscall,
    tools,
)
from aios.bench.chats import ANSWER_TOKENS, our_side
from aios.bench.load import AGENTS, make_prompts, our_system, tokens_per_second
from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.llm.scheduler.policies import POLICIES
from aios.syscalls.errors import BadInput

ROW = 256  # bytes of KV a token, of the tiny model
PROMPTS = (5, 20, 33, 64, 70, 280)  # tokens; the last makes attention cross 512 cells


@pytest.fixture(scope="module", autouse=True)
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Benches that are otherwise measured on the embedded model."""
    model = tiny_model(tmp_path_factory.mktemp("bench") / "tiny.gguf")
    before = common.MODEL.set(model)
    yield
    common.MODEL.reset(before)


def quiet(_said: str) -> None:
    pass


def check_shape(report: dict[str, Any]) -> None:
    assert report.keys() == {"ratio", "ours", "peer"}
    assert isinstance(report["ratio"], float)


def test_syscall_measures_both_sides() -> None:
    report = syscall.run(quiet, calls=20, pipelined=200)
    check_shape(report)
    for side in ("ours", "peer"):
        assert report[side]["round_trip"] > 0
        assert report[side]["pipelined_per_second"] > 0


def test_memory_measures_both_sides() -> None:
    report = memory.run(quiet, puts=1280, lone=20)
    check_shape(report)
    ours, peer = report["ours"], report["peer"]
    assert ours["puts_a_commit"] > 1
    assert peer["puts_a_commit"] == round(ours["puts_a_commit"])
    for side in (ours, peer):
        assert 0 < side["single_p50"] <= side["single_p99"]
        assert side["puts_per_second"] > 0


def test_tools_measures_both_sides_and_what_the_model_writes() -> None:
    report = tools.run(quiet, calls=20, written=2, tasks=tools.TASKS[:1])
    check_shape(report)
    assert report["ours"]["valid"] == report["ours"]["written"] >= 2


def test_seal_measures_both_sides() -> None:
    report = seal.run(quiet, puts=640, rounds=1, pages=3)
    check_shape(report)
    for side in ("ours", "peer"):
        assert all(figure > 0 for figure in report[side].values())
    assert report["ours"].keys() - report["peer"].keys() == {"write_ratio", "read_ratio"}


def test_audit_measures_both_sides() -> None:
    report = audit.run(quiet, records=2000, calls=5)
    check_shape(report)
    ours, peer = report["ours"], report["peer"]
    assert report["ratio"] == ours["change"] / peer["change"]
    assert ours["read_ratio"] == ours["read"] / peer["read"]
    assert 100 < ours["bytes_a_record"] < 300
    for side, rate in ((ours, "verified_per_second"), (peer, "hashed_per_second")):
        assert side["durable_per_second"] > 0
        assert side[rate] > 0


def test_decide_measures_each_policy_at_each_size() -> None:
    report = decide.run(quiet, sizes=(5, 50), rounds=1, steps=20)
    check_shape(report)
    ours = report["ours"]
    assert ours.keys() == {f"{policy}_us_{size}" for policy in POLICIES for size in (5, 50)}
    assert report["ratio"] == max(ours[f"{each}_us_50"] / ours[f"{each}_us_5"] for each in POLICIES)
    assert report["peer"]["heap_us_50"] > 0


def test_attacks_measures_each_and_names_what_is_missed() -> None:
    report = attacks.run(
        quiet, seconds=0.5, processes=6, queued=12, window=0.2, turns=2, floods=("big_replies",)
    )
    targets, missed = report.pop("targets"), report.pop("missed")
    check_shape(report)
    ours = report["ours"]
    assert missed == [name for name, most in targets.items() if ours[name] > most]
    assert report["ratio"] == len(missed) / len(targets)
    assert (ours["pids_tried"], ours["pids_taken"], ours["pids_refused"]) == (6, 0, 0)
    assert ours["big_replies_sent"] > 0
    assert (ours["big_replies_unanswered"], ours["deeds_lost"]) == (0, 0)
    assert ours["audit_refused"] > 0 < ours["audit_records"]
    for name in ("queue_cpu_us", "ttft", "pattern_ns"):
        assert ours[name] > 0 < report["peer"][name]


def test_each_kind_of_flood_is_sent(boot: Boot) -> None:
    with connect(boot().home) as aios:
        for kind in (*attacks.FLOODS, "one_token"):
            assert sum(attacks.flood(aios, kind, 0.3, attacks.ALL, lambda: None)) > 0, kind
        assert aios.check() == []


def test_what_a_flood_has_taken_goes_back_to_linux(boot: Boot) -> None:
    """glibc keeps blocks that are free between others: 50 MiB of this flood."""
    with connect(boot().home) as aios:
        kernel = psutil.Process(aios.status().os_pid)

        def own() -> int:
            size = kernel.memory_info()
            return int(size.rss - size.shared)

        attacks.answers(aios)
        before = own()
        attacks.flood(aios, "big_arguments", 4.0, attacks.ALL, lambda: None)
        eventually(lambda: own() - before < 20 << 20)


def test_switch_measures_the_engine_and_the_system() -> None:
    """The tiny model would have said all before the kernel had told it to stop."""
    token = common.MODEL.set(None)
    report = switch.run(quiet, tokens=150, new=20)
    common.MODEL.reset(token)
    check_shape(report)
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
    assert found["generated"] == 6 * ANSWER_TOKENS
    assert 400 + 6 * 30 < found["prefilled"] < 2 * 400  # the system prompt, once, and the messages
    assert found["makespan"] > 0.5  # the tool's time
    assert 0 < found["turn_p50"] < found["makespan"]


def test_every_context_comes_back_from_disk() -> None:
    report = swap.run(quiet, contexts=14, tokens=70, slots=2, ram=500 * ROW)
    check_shape(report)
    ours = report["ours"]
    assert report["ratio"] == ours["differing"] == 0
    assert (
        ours["replayed"] <= ours["lost"] * CHUNK_TOKENS
    )  # nothing but what the disk was too slow for
    assert ours["restores"] >= 14 - 2
    assert ours["read"] > 4 * 70 * ROW
    assert ours["peak_ram"] <= 500 * ROW


def test_random_schedules_are_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact, "P_DIE", 0.1)  # the schedules are short
    report = exact.run(quiet, steps=20, prompts=PROMPTS, room=0.3)
    check_shape(report)
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


def collection(folder: Path) -> Path:
    """Thirty queries; one document of each has its words, another its meaning, a third is judged
    not relevant."""
    things = ["car", "boat", "bread", "doctor", "music", "river"]
    others = ["automobile", "ship", "toast", "physician", "song", "stream"]
    docs = [
        f'{{"id": {n}, "title": "{thing}", "text": "{thing} {"and more of it " * 20}"}}'
        for n, thing in enumerate([*things, *others], 1)
    ]
    queries = [
        f'{{"id": {n}, "text": "what {thing} {n}"}}' for n, thing in enumerate(things * 5, 1)
    ]
    qrels = [
        f"{n}\t{at}\t{grade}"
        for n in range(1, 31)
        for at, grade in [((n - 1) % 6 + 1, 1), ((n - 1) % 6 + 7, -1), (n % 6 + 1, 5)]
    ]
    for name, lines in [("docs.jsonl", docs), ("queries.jsonl", queries), ("qrels.tsv", qrels)]:
        (folder / name).write_text("\n".join(lines))
    return folder


def test_retrieval_measures_quality_and_time(tmp_path: Path) -> None:
    report = retrieval.run(quiet, collection(tmp_path), sizes=(700,))
    check_shape(report)
    ours, peer = report["ours"], report["peer"]
    assert ours["recall@10_words"] == 0.5 < ours["recall@10"]  # only meaning finds the other half
    assert ours["ndcg@10_words"] == pytest.approx(1 / (1 + 1 / math.log2(3)))
    assert report["ratio"] == min(
        ours[measure] / max(ours[f"{measure}_words"], ours[f"{measure}_meaning"])
        for measure in ("recall@10", "ndcg@10")
    )
    for mode in ("words", "meaning", "fused"):
        name = f"{mode}_ms_700"
        assert ours[f"{mode}_ratio_700"] == ours[name] / peer[name] > 0


@pytest.mark.parametrize("name", ["docs.jsonl", "qrels.tsv"])
def test_retrieval_needs_its_collection(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadInput, match="not given") as caught:
        retrieval.run(quiet)
    assert "--data FOLDER" in caught.value.hint
    (collection(tmp_path) / name).write_text("1 2\n")
    with pytest.raises(BadInput, match="cannot be read"):
        retrieval.run(quiet, tmp_path)
