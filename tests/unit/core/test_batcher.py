"""The batcher: whatever is run when and where, the same bits come out."""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import sqrt

import numpy as np
import pytest
from batcher_harness import (
    PLENTY,
    CheckedBatcher,
    Job,
    at_random,
    finish,
    report,
    run_all_solo,
    run_solo,
    some,
    text,
)
from deterministic_engine import DeterministicEngine

from aios.kernel.core.engine import CHUNK_TOKENS, Engine
from aios.kernel.core.protocol import Halt
from aios.kernel.core.sampler import Sampler
from aios.syscalls.llm import Decoding

WINDOW = 320


@pytest.fixture(scope="module")
def engine() -> Engine:
    return DeterministicEngine(slots=3, window=WINDOW)


@pytest.fixture
def batcher(engine: Engine) -> Iterator[CheckedBatcher]:
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    yield batcher
    for ctx in list(batcher.sequences):
        batcher.drop(ctx)
    assert [engine.length(slot) for slot in range(engine.streams)] == [0] * engine.streams
    assert batcher.prefix_cache.check() == []


@pytest.fixture(scope="module")
def solo(engine: Engine) -> list[Job]:
    return run_all_solo(engine)


def new_jobs(solo: list[Job]) -> list[Job]:
    return [Job(ctx, job.prompt, job.decoding) for ctx, job in enumerate(solo, 1)]


# --- exactness ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(1, 8))
def test_no_schedule_can_be_told_from_the_output(
    batcher: CheckedBatcher, solo: list[Job], seed: int
) -> None:
    jobs = new_jobs(solo)
    at_random(batcher, jobs, seed)
    assert [job.result for job in jobs] == [job.result for job in solo]
    assert batcher.saves and batcher.restores
    assert batcher.replayed == 0


def test_without_room_for_snapshots_all_is_replayed(engine: Engine, solo: list[Job]) -> None:
    batcher = CheckedBatcher(engine, engine.slots, snapshot_bytes=0)
    jobs = new_jobs(solo)[1:]
    at_random(batcher, jobs, seed=3)
    assert [job.result for job in jobs] == [job.result for job in solo[1:]]
    assert batcher.replayed > 0
    assert batcher.prefix_cache.tiers.ram == 0
    for job in jobs:
        batcher.drop(job.ctx)


def test_batches_cut_to_one_are_the_same(engine: Engine, solo: list[Job]) -> None:
    batcher = CheckedBatcher(engine, 1, PLENTY)
    jobs = new_jobs(solo)[2:5]
    finish(batcher, *jobs)
    assert [job.result for job in jobs] == [job.result for job in solo[2:5]]
    assert batcher.steps == sum(len(job.tokens) - 1 for job in jobs)
    for job in jobs:
        batcher.drop(job.ctx)


def test_a_preempted_context_stays_where_it_is_until_its_slot_is_needed(
    batcher: CheckedBatcher, solo: list[Job]
) -> None:
    job = new_jobs(solo)[1]
    batcher.run(job.run())
    while len(job.tokens) < 5:
        report(batcher, {job.ctx: job})
    batcher.halt(Halt(job.ctx, "preempted"))
    finish(batcher, job)
    assert job.result == solo[1].result
    assert batcher.saves == batcher.replayed == 0


def test_a_turn_waits_for_no_stream_of_short_calls(engine: Engine, batcher: CheckedBatcher) -> None:
    """Each of them is shorter than it; but each step that it waits makes up for a chunk."""
    talk = Job(1, text(engine, 30), some(5))
    finish(batcher, talk)
    batcher.step_count += 1000  # much happened meanwhile
    turn = Job(1, [*talk.context.tokens, *text(engine, 3 * CHUNK_TOKENS)], some(1))
    jobs, steps = {1: turn}, 0
    batcher.run(turn.run())
    while not turn.tokens:
        steps += 1
        call = Job(1 + steps, text(engine, 5, steps), some(1))
        jobs[call.ctx] = call
        batcher.run(call.run())
        report(batcher, jobs)
        for ctx in (
            {*batcher.sequences} - {1} - {run.sequence.ctx for run in batcher.running.values()}
        ):
            batcher.drop(ctx)
        if len(batcher.running) == engine.slots:
            batcher.halt(Halt(call.ctx, "cancelled"))
            batcher.drop(call.ctx)
        assert steps <= 10  # its 4 chunks, and as many for those that came before they counted


def test_a_second_answer_rolls_back_to_what_both_histories_share(
    engine: Engine, batcher: CheckedBatcher, solo: list[Job]
) -> None:
    other = [*text(engine, CHUNK_TOKENS + 3), *text(engine, CHUNK_TOKENS, start=200)]
    second = Job(1, other, some(6, temperature=0.8, seed=5))
    expected = run_solo(engine, other, second.decoding)
    finish(batcher, Job(1, text(engine, 2 * CHUNK_TOKENS + 9), some(6)))
    batcher.computed = 0
    finish(batcher, second)
    assert second.result == expected.result
    assert (
        batcher.computed == second.context.used - 1 - CHUNK_TOKENS
    )  # the last token was not computed
    assert batcher.replayed == 0  # what was rolled back is another text


def test_a_dialog_goes_on_from_the_cache(engine: Engine, batcher: CheckedBatcher) -> None:
    job = Job(1, text(engine, 30), some(5))
    finish(batcher, job)
    job.context.append(text(engine, 40, start=60), WINDOW)
    job.context.seal()
    job.tokens, job.digests = [], []
    finish(batcher, job)
    assert batcher.replayed == 0
    again = Job(2, [], some(5))
    again.context.history = job.run().history[:-1]  # as the kernel sends it after a restart
    finish(batcher, again)
    assert (again.tokens, again.digests) == (job.tokens, job.digests)
    assert batcher.sequences[2].ops == batcher.sequences[1].ops


def test_dropped_while_it_runs_it_starts_anew(batcher: CheckedBatcher, solo: list[Job]) -> None:
    _, job, other, *_ = new_jobs(solo)
    for each in (job, other):
        batcher.run(each.run())
    report(batcher, {job.ctx: job, other.ctx: other})
    batcher.drop(job.ctx)
    assert job.ctx not in batcher.sequences
    again = Job(job.ctx, job.prompt, job.decoding)
    batcher.halted.clear()
    batcher.run(again.run())
    while batcher.running:
        report(batcher, {again.ctx: again, other.ctx: other})
    assert [again.result, other.result] == [solo[1].result, solo[2].result]


# --- how a generation ends ----------------------------------------------------------------------


def test_max_tokens_of_one(engine: Engine, batcher: CheckedBatcher) -> None:
    job = Job(1, text(engine, 9), some(1))
    finish(batcher, job)
    assert (len(job.tokens), job.why) == (1, "length")


def test_a_context_ends_when_its_window_is_full(engine: Engine, batcher: CheckedBatcher) -> None:
    job = Job(1, text(engine, WINDOW - 3), some(99))
    finish(batcher, job)
    assert (len(job.tokens), job.why) == (3, "context_full")


def test_the_end_of_the_answer_is_not_a_token_of_it(
    engine: Engine, batcher: CheckedBatcher
) -> None:
    asked = text(engine, 9, start=8)  # its answer comes to an end by itself
    job = Job(1, asked, Decoding(max_tokens=40, digest=True))
    finish(batcher, job)
    assert job.why == "stop"
    assert len(job.digests) == len(job.tokens) + 1  # the end was drawn, too
    assert not any(engine.is_end(token) for token in job.tokens)
    on = Job(2, asked, Decoding(max_tokens=len(job.tokens) + 3, ignore_eos=True))
    finish(batcher, on)
    assert on.tokens[: len(job.tokens)] == job.tokens
    assert engine.is_end(on.tokens[len(job.tokens)])
    assert on.why == "length"


def test_a_stop_string_ends_it_and_is_not_shown(engine: Engine, batcher: CheckedBatcher) -> None:
    free = run_solo(engine, text(engine, 40), some(16))
    words = free.text.split()
    stop = f"{words[3]} {words[4]}"  # spans several tokens
    job = Job(1, free.prompt, some(16, stop=["nowhere in it", stop]))
    batcher.run(job.run())
    while batcher.running:
        report(batcher, {1: job})
        if batcher.running:  # also in the middle of the stop string, and its text is rebuilt
            batcher.halt(Halt(1, "preempted"))
            batcher.halted.clear()
            batcher.run(job.run())
    assert job.why == "stop"
    assert job.text == free.text[: free.text.index(stop)]
    assert job.tokens == free.tokens[: len(job.tokens)]


def test_what_was_held_back_for_a_stop_string_comes_at_the_end(
    engine: Engine, batcher: CheckedBatcher
) -> None:
    free = run_solo(engine, text(engine, 40), some(6))
    job = Job(1, free.prompt, some(6, stop=[free.text + "and more"]))
    batcher.run(job.run())
    while batcher.running:
        assert job.text == ""
        report(batcher, {1: job})
    assert (job.text, job.why) == (free.text, "length")


def test_cancelled_it_keeps_what_it_has(engine: Engine, batcher: CheckedBatcher) -> None:
    job = Job(1, text(engine, 9), some(50))
    batcher.run(job.run())
    while len(job.tokens) < 4:
        report(batcher, {1: job})
    batcher.halt(Halt(1, "cancelled"))
    report(batcher, {1: job})
    assert (len(job.tokens), job.why, batcher.running) == (4, "cancelled", {})


def test_to_halt_what_does_not_run_does_nothing(engine: Engine, batcher: CheckedBatcher) -> None:
    batcher.halt(Halt(1, "preempted"))
    job = Job(1, text(engine, 5), some(1))
    finish(batcher, job)
    batcher.halt(Halt(1, "cancelled"))
    step = batcher.step()
    assert (step.outs, step.halted) == ([], [])
    batcher.drop(99)


def test_more_than_the_slots_are_refused(engine: Engine, batcher: CheckedBatcher) -> None:
    jobs = [Job(ctx, text(engine, 5, ctx), some(9)) for ctx in (1, 2, 3, 4)]
    expected = run_solo(engine, jobs[0].prompt, some(9))
    for job in jobs:
        batcher.run(job.run())
    by_ctx = {job.ctx: job for job in jobs}
    assert [(h.ctx, h.why) for h in report(batcher, by_ctx)] == [(4, "failed")]
    batcher.run(jobs[0].run())  # it runs already
    assert [(h.ctx, h.why) for h in report(batcher, by_ctx)] == [(1, "failed")]
    while batcher.running:
        report(batcher, by_ctx)
    assert jobs[0].tokens == expected.tokens


def test_a_long_prompt_delays_others_by_a_chunk_a_step(
    engine: Engine, batcher: CheckedBatcher
) -> None:
    short, long = Job(1, text(engine, 5), some(9)), Job(2, text(engine, 4 * CHUNK_TOKENS), some(1))
    by_ctx = {1: short, 2: long}
    batcher.run(short.run())
    report(batcher, by_ctx)
    batcher.run(long.run())
    for _ in range(4):
        assert long.tokens == []
        before = len(short.tokens)
        report(batcher, by_ctx)
        assert len(short.tokens) == before + 1
    assert len(long.tokens) == 1


# --- what is reported of each token -------------------------------------------------------------


def test_digests_and_log_probabilities_are_those_of_the_logits(
    engine: Engine, batcher: CheckedBatcher
) -> None:
    job = Job(1, text(engine, 20), some(5, logprobs=4))
    finish(batcher, job)
    digest = b""
    assert len(batcher.logits) == len(job.logprobs) == len(job.digests) == 5
    for step, logits in enumerate(batcher.logits):
        digest = blake2b(logits.tobytes(), key=digest, digest_size=32).digest()
        assert job.digests[step] == digest
        wide = logits.astype(np.float64)
        logs = wide - np.logaddexp.reduce(wide)
        got = job.logprobs[step]
        assert got.token == job.tokens[step] == got.top[0][0] == wide.argmax()
        assert got.logprob == got.top[0][1] == pytest.approx(logs.max(), abs=1e-9)
        best = np.argsort(-logs, kind="stable")[:4]
        assert [token for token, _ in got.top] == best.tolist()
        assert [value for _, value in got.top] == pytest.approx(logs[best], abs=1e-9)


def test_log_probabilities_of_the_drawn_token_alone(
    engine: Engine, batcher: CheckedBatcher
) -> None:
    job = Job(1, text(engine, 20), some(2, logprobs=0))
    finish(batcher, job)
    assert [got.top for got in job.logprobs] == [[], []]
    assert all(got.logprob < 0 for got in job.logprobs)


# --- sampling -----------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_and_another_draws_others(
    engine: Engine, batcher: CheckedBatcher
) -> None:
    jobs = [Job(n, text(engine, 9), some(12, temperature=1.0, seed=n // 2)) for n in (2, 3, 4)]
    finish(batcher, *jobs)
    assert jobs[0].tokens == jobs[1].tokens != jobs[2].tokens


def test_a_draw_depends_on_seed_and_position_alone(engine: Engine) -> None:
    engine.prefill(0, tuple(text(engine, 20)), 0)
    one = Sampler(engine, Decoding(temperature=1.2, seed=1), [], None)
    other = Sampler(engine, Decoding(temperature=1.2, seed=2), [], None)
    ahead = [one.draw(19, position) for position in range(30)]
    back = [one.draw(19, position) for position in reversed(range(30))]
    assert ahead == back[::-1]
    assert len(set(ahead)) > 1
    others = [other.draw(19, position) for position in range(30)]
    assert ahead != others
    assert ahead[1:] != others[:-1]  # neighbouring seeds are not one sequence, shifted
    for sampler in (one, other):
        sampler.close()
    engine.clear(0)


def test_draws_over_positions_are_as_likely_as_the_logits_say(engine: Engine) -> None:
    engine.prefill(0, tuple(text(engine, 20)), 0)
    logits = engine.logits(19).astype(np.float64)
    kept = np.argsort(-logits)[:8]
    likely = np.exp(logits[kept] - np.logaddexp.reduce(logits[kept]))
    sampler = Sampler(engine, Decoding(temperature=1.0, top_k=8, seed=3), [], None)
    count = 1500
    drawn = [sampler.draw(19, position) for position in range(count)]
    for token, p in zip(kept.tolist(), likely.tolist(), strict=True):
        assert abs(drawn.count(token) / count - p) < 4 * sqrt(p * (1 - p) / count)
    sampler.close()
    engine.clear(0)
