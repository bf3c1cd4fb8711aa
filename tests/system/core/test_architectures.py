"""Models of other kinds than the embedded one: layers with a window, learned positions, heads of
another size, recurrent layers."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from batcher_harness import PLENTY, CheckedBatcher, Job, at_random, finish, report, run_solo
from conftest import Boot
from helpers import STORY
from models import tiny_model, with_tokenizer, write_bert

from aios.agents import Generation, connect
from aios.kernel.core import fit
from aios.kernel.core.certify import certify
from aios.kernel.core.disk import Disk
from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.llama import PAD_FROM_TOKENS, LlamaEngine
from aios.kernel.core.protocol import Halt
from aios.kernel.llm.scheduler.scheduler import Dispatch, Preempt, Scheduler
from aios.kernel.llm.scheduler.task import Task
from aios.syscalls.errors import ModelError
from aios.syscalls.llm import Decoding

SLOTS, WINDOW, SLIDING = 4, 1024, 256
WINDOWED = ["gemma2", "gemma3"]

Load = Callable[..., LlamaEngine]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """load(arch, slots=..., window=..., ...): an engine on a tiny model."""
    engines: list[LlamaEngine] = []

    def make(arch: str, *, slots: int = SLOTS, ctx: int = WINDOW, **shape: Any) -> LlamaEngine:
        path = tiny_model(tmp_path / f"{arch}-{len(engines)}.gguf", arch, **shape)
        engines.append(LlamaEngine(path, slots=slots, window=ctx, threads=2))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def prompt(engine: LlamaEngine, length: int, seed: int = 1) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(300, engine.n_vocab) for _ in range(length)]


def some(max_tokens: int) -> Decoding:
    return Decoding(max_tokens=max_tokens, ignore_eos=True, digest=True)


def check_the_same(engine: LlamaEngine, jobs: list[Job]) -> None:
    for job in jobs:
        solo = run_solo(engine, job.prompt, job.decoding)
        assert (job.tokens, job.digests) == (solo.tokens, solo.digests)


# --- layers with a window ------------------------------------------------------------------------


@pytest.mark.parametrize("arch", WINDOWED)
def test_a_context_beyond_the_window_that_moves_goes_on_the_same(load: Load, arch: str) -> None:
    """The short one ends while the long one is prefilled, which then takes its slot."""
    engine = load(arch, window=SLIDING)
    assert certify(engine) == (SLOTS, None)
    batcher = CheckedBatcher(engine, SLOTS, PLENTY)
    short, long = Job(1, prompt(engine, 20), some(6)), Job(2, prompt(engine, 705), some(12))
    by_ctx = {1: short, 2: long}
    batcher.run(short.run())
    batcher.run(long.run())
    while 1 in {run.sequence.ctx for run in batcher.running.values()}:
        report(batcher, by_ctx)
    assert not long.tokens
    assert engine.length(1) > 3 * CHUNK_TOKENS
    while batcher.running:
        report(batcher, by_ctx)
        assert 1 not in batcher.running
    check_the_same(engine, [short, long])


@pytest.mark.parametrize("arch", [*WINDOWED, "qwen2vl"])
@pytest.mark.parametrize("seed", [1, 2])
def test_no_schedule_can_be_told_from_the_output(
    load: Load, tmp_path: Path, arch: str, seed: int
) -> None:
    """Nor from where its snapshots were: in memory, or, where that has room for few, on disk."""
    engine = load(arch, window=SLIDING, slots=3)
    lengths = [20, 705, SLIDING - 5, 3, 590, SLIDING + CHUNK_TOKENS]
    jobs = [Job(at, prompt(engine, n, at), some(10)) for at, n in enumerate(lengths, 1)]
    disk = Disk(tmp_path / "kv", engine.fingerprint(3), PLENTY, "plain", None)
    batcher = CheckedBatcher(
        engine, engine.slots, PLENTY if seed == 1 else 700 * engine.row_bytes, disk
    )
    at_random(batcher, jobs, seed)
    assert batcher.saves and batcher.restores
    assert (batcher.prefix_cache.tiers.written > 0) == (seed == 2)
    assert batcher.prefix_cache.check() == []
    for job in jobs:
        batcher.drop(job.ctx)
    check_the_same(engine, jobs)


@pytest.mark.parametrize("arch", [*WINDOWED, "qwen2vl"])  # whose positions have several parts
def test_many_contexts_on_few_slots_compute_nothing_again(load: Load, arch: str) -> None:
    engine = load(arch, window=SLIDING)
    jobs = [Job(at, prompt(engine, 40 * at + 5, at), some(24)) for at in range(1, 12)]
    batcher = CheckedBatcher(engine, SLOTS, PLENTY)
    by_ctx, waiting = {job.ctx: job for job in jobs}, [job.ctx for job in jobs]
    while waiting or batcher.running:
        while waiting and len(batcher.running) < SLOTS:
            batcher.run(by_ctx[waiting.pop(0)].run())
        for _ in range(6):
            waiting += [h.ctx for h in report(batcher, by_ctx) if h.why == "preempted"]
        for ctx in [run.sequence.ctx for run in batcher.running.values()]:
            batcher.halt(Halt(ctx, "preempted"))
        waiting += [h.ctx for h in report(batcher, by_ctx) if h.why == "preempted"]
    assert batcher.restores
    assert batcher.replayed == 0
    assert batcher.computed == sum(len(job.prompt) + len(job.tokens) - 1 for job in jobs)
    for job in jobs:
        batcher.drop(job.ctx)
    check_the_same(engine, jobs)


def test_what_begins_alike_shares_the_rows_behind_the_window(load: Load) -> None:
    """A fork from the middle needs rows that had left the window when they were saved."""
    engine = load("gemma3", window=SLIDING, slots=2)
    batcher = CheckedBatcher(engine, 2, PLENTY)
    long = Job(1, prompt(engine, 12 * CHUNK_TOKENS), some(3))
    finish(batcher, long)
    fork = Job(2, [*long.prompt[: 5 * CHUNK_TOKENS], *prompt(engine, 30, 9)], some(8))
    before = batcher.computed
    finish(batcher, fork)
    assert batcher.computed - before == 30 + 8 - 1
    batcher.drop(1)
    batcher.drop(2)
    check_the_same(engine, [fork])


def test_a_turn_is_worth_what_it_takes_to_resume(load: Load) -> None:
    """Nothing is kept of a context that leaves its slot."""
    engine = load("llama", slots=2)
    engine.row_bytes = 0
    jobs = {at: Job(at, prompt(engine, 100 * at, at), some(80)) for at in range(1, 6)}
    batcher, scheduler = CheckedBatcher(engine, 2, 0), Scheduler("rr", 4, slots=2)
    waiting = deque(decision for ctx in jobs for decision in scheduler.add(Task(ctx), 0.0))
    while scheduler.tasks:
        while waiting:
            match waiting.popleft():
                case Dispatch(ctx):
                    batcher.run(jobs[ctx].run())
                case Preempt(ctx):
                    batcher.halt(Halt(ctx, "preempted"))
        step = batcher.step()
        for out in step.outs:
            jobs[out.ctx].take(out)
            scheduler.served(out.ctx, 0.0, decoded=out.fed, again=out.again)
        for halted in step.halted:
            if halted.why == "preempted":
                scheduler.halted(halted.ctx, 0.0)
            else:
                waiting += scheduler.remove(halted.ctx, 0.0)
        waiting += scheduler.decide(0.0)
    useful = sum(len(job.prompt) + len(job.tokens) for job in jobs.values())
    # Each turn is worth it but the last, which the end of the answer cuts.
    assert 0 < batcher.replayed <= 2 * useful
    check_the_same(engine, [jobs[1], jobs[5]])


# --- the self-test -------------------------------------------------------------------------------


def swap_as_llama_cpp_has_it(engine: LlamaEngine) -> Callable[[int, int], None]:
    """A swap where only what is in a layer's window goes along, as in the state of a sequence."""

    def swap(one: int, other: int) -> None:
        kept, length = engine._state(one).copy(), engine.length(one)
        engine.clear(one)
        if engine.length(other):
            engine._put_state(one, engine._state(other))
            engine.clear(other)
        if length:
            engine._put_state(other, kept)

    return swap


def test_what_cannot_be_moved_is_found_out_and_stays(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load("gemma3", window=SLIDING)
    monkeypatch.setattr(engine, "swap", swap_as_llama_cpp_has_it(engine))
    assert certify(engine) == (SLOTS, None)
    assert engine.row_bytes == 0
    assert [engine.length(slot) for slot in range(engine.streams)] == [0] * engine.streams
    lengths = [20, 705, SLIDING - 5, 3, 590, SLIDING + CHUNK_TOKENS]
    jobs = [Job(at, prompt(engine, n, at), some(10)) for at, n in enumerate(lengths, 1)]
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    at_random(batcher, jobs, 3)
    assert batcher.restores == 0
    for job in jobs:
        batcher.drop(job.ctx)
    check_the_same(engine, jobs)


def test_the_self_test_goes_beyond_the_window(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load("gemma3", window=600, layers=6)
    longest = 0
    swap = engine.swap

    def watched(one: int, other: int) -> None:
        nonlocal longest
        longest = max(longest, engine.length(one), engine.length(other))
        swap(one, other)

    monkeypatch.setattr(engine, "swap", watched)
    certify(engine)
    assert engine.row_bytes
    assert longest > 600 + CHUNK_TOKENS


# --- windows and sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize(("arch", "trained", "window"), [
    ("gpt2", 64, 63), ("gpt2", 1024, 1023), ("gpt2", 4096, 2048),
    ("llama", 64, 64), ("llama", 1000, 1000), ("llama", 8192, 2048),
])  # fmt: skip
def test_no_window_is_larger_than_what_the_model_was_trained_for(
    load: Load, arch: str, trained: int, window: int
) -> None:
    engine = load(arch, trained=trained, ctx=2048, slots=2)
    assert engine.window == window
    assert certify(engine) == (2, None)
    batcher = CheckedBatcher(engine, 2, PLENTY)
    # Both are full at the end, and the one that goes on longer has a full one beside it.
    jobs = [
        Job(1, prompt(engine, window - 30), some(99)),
        Job(2, prompt(engine, window - 3), some(99)),
    ]
    finish(batcher, *jobs)
    assert [(len(job.prompt) + len(job.tokens), job.why) for job in jobs] == [
        (window, "context_full")
    ] * 2


def test_a_system_starts_on_a_model_with_a_short_window(boot: Boot, tmp_path: Path) -> None:
    system = boot(model=str(tiny_model(tmp_path / "tiny.gguf", "gpt2", trained=64)), ctx=2048)
    with connect(system.home) as aios:
        model = aios.status().model
        assert model is not None
        assert (model.window, model.certified) == (63, 2)
        with aios.open() as context:
            answer = context.generate("Hi.", ignore_eos=True, max_tokens=99).result()
        assert (answer.finish, answer.usage.context) == ("context_full", 63)


def test_contexts_of_a_windowed_model_are_exact_beside_others(boot: Boot, tmp_path: Path) -> None:
    model = str(tiny_model(tmp_path / "tiny.gguf", "gemma3", window=SLIDING))
    system = boot(model=model, slots=4, ctx=2048)
    prompts = [STORY * count for count in (60, 1, 30, 45, 20, 2)]
    with connect(system.home) as aios:

        def ask(text: str) -> Generation:
            return aios.generate(text, max_tokens=12, ignore_eos=True, digest=True)

        solo = [ask(text).result().digest for text in prompts]
        assert [each.result().digest for each in [ask(text) for text in prompts]] == solo
        assert aios.stats().replayed == 0


def test_a_solo_context_is_padded_beside_full_ones(load: Load) -> None:
    """Where positions are learned, there is none behind the last."""
    engine = load("gpt2", trained=PAD_FROM_TOKENS + CHUNK_TOKENS, slots=3)
    batcher = CheckedBatcher(engine, 3, PLENTY)
    full = [Job(at, prompt(engine, engine.window - 2, at), some(99)) for at in (1, 2)]
    finish(batcher, *full)
    assert [job.why for job in full] == ["context_full"] * 2
    last = Job(3, prompt(engine, PAD_FROM_TOKENS), some(20))
    finish(batcher, last)
    batcher.drop(3)
    check_the_same(engine, [last])


def test_what_aborts_in_llama_cpp_dies(tmp_path: Path) -> None:
    """Several threads come upon the position that the model does not have."""
    path = tiny_model(tmp_path / "tiny.gguf", "gpt2", trained=64)
    code = f"""
from pathlib import Path
from aios.kernel.core.disk import Disk
from aios.kernel.core.llama import LlamaEngine
engine = LlamaEngine(Path({str(path)!r}), slots=2, window=64, threads=4)
engine.prefill(0, tuple(range(64)), 0)
engine.prefill(0, tuple(range(64)), 64)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=60, check=False
    )
    assert done.returncode == -signal.SIGABRT


@pytest.mark.parametrize(("arch", "shape", "values"), [
    ("llama", {}, 2 * 32 * 2),
    ("qwen3", {"head": 96}, 2 * 96 * 2),
    ("gpt2", {}, 2 * 64 * 2),
    ("gemma3", {"window": SLIDING, "head": 64}, 2 * 64 * 6),
    ("gemma2", {"window": SLIDING, "head": 96}, 2 * 96 * 2),
])  # fmt: skip
@pytest.mark.parametrize("cache", ["f16", "q8_0"])
def test_the_cache_is_as_large_as_said(
    tmp_path: Path, arch: str, shape: dict[str, Any], values: int, cache: str
) -> None:
    """Keys and values of a token, in all layers: whatever the heads, and with a window or not."""
    path = tiny_model(tmp_path / "tiny.gguf", arch, **shape)
    engine = LlamaEngine(path, slots=3, window=600, threads=1, cache=cache)  # type: ignore[arg-type]
    token = values * 2 if cache == "f16" else values * 34 // 32
    assert engine.cache_bytes == token * 768 * 3
    engine.close()


@pytest.mark.parametrize("arch", ["mamba", "mamba2", "jamba"])
def test_recurrent_layers_are_refused_in_one_sentence(load: Load, arch: str) -> None:
    with pytest.raises(ModelError, match="has recurrent layers") as caught:
        load(arch)
    assert "\n" not in str(caught.value)


def test_a_model_that_only_embeds_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, ["what is this"])
    with pytest.raises(ModelError, match="cannot generate") as caught:
        LlamaEngine(path, slots=2, window=60, threads=1)
    assert "--embedder" in caught.value.hint


@pytest.mark.parametrize(("arch", "says"), [
    ("gemma-embedding", "keeps nothing of what it has read"),
    ("t5", "reads prompts by an encoder"),
    ("llada", "writes the tokens of an answer all at once"),
])  # fmt: skip
def test_what_does_not_write_token_by_token_is_refused(load: Load, arch: str, says: str) -> None:
    """To compute a token with it ends the process."""
    with pytest.raises(ModelError, match=says) as caught:
        load(arch, window=SLIDING)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("tokenizer", "says"), [
    ("none", "has no vocabulary"), ("rwkv", "has no token that ends an answer"),
])  # fmt: skip
def test_a_vocabulary_that_serves_no_answer_is_refused(
    tmp_path: Path, tokenizer: str, says: str
) -> None:
    """To tokenize a text without one ends the process, as does a grammar that cannot end."""
    with_tokenizer(tiny_model(tmp_path / "tiny.gguf"), tmp_path / "other.gguf", tokenizer)
    with pytest.raises(ModelError, match=says):
        LlamaEngine(tmp_path / "other.gguf", slots=2, window=60, threads=1)


def test_a_cache_that_does_not_fit_the_heads_is_named(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.gguf", "qwen3", head=48)
    with pytest.raises(ModelError, match="with keys and values in q8_0") as caught:
        LlamaEngine(path, slots=2, window=60, threads=1, cache="q8_0")
    assert 'cache = "f16"' in caught.value.hint


def test_a_window_too_short_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = tiny_model(tmp_path / "tiny.gguf", "gpt2", trained=64)
    settings = {"model": str(path), "slots": 2}
    with pytest.raises(ModelError, match="holds 63 tokens"):
        fit.serve(fit.FitRequest("measure", str(tmp_path), settings, ("q4_0",)))
