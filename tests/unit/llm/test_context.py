"""The record of a context, and the operations that the core makes out of it."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.core.engine import CHUNK_TOKENS
from aios.kernel.core.history import Op, plan
from aios.kernel.core.protocol import DECODED, PREFILLED
from aios.kernel.llm.context_state import MAX_DROPPED_CHARS, STATE_BYTES, ContextState
from aios.kernel.llm.context_state import Turn as Message
from aios.kernel.llm.contexts import MAX_NAMED, ContextManager
from aios.kernel.process import Process
from aios.syscalls.errors import BadInput, ContextBusy, ContextFull, LimitReached, NotFound
from aios.syscalls.proc import Limits

WINDOW = 400


def process(pid: int = 1, contexts: int | None = None) -> Process:
    return Process(pid, 0, "x", "agent", 0, 0, Limits(contexts=contexts), 0.0, "running")


def manager() -> tuple[ContextManager, list[int]]:
    dropped: list[int] = []
    contexts = ContextManager(dropped.append)
    contexts.window, contexts.vocab = WINDOW, 100
    return contexts, dropped


# --- what enters, and how -----------------------------------------------------------------------


def test_what_is_appended_before_a_generation_is_one_prefill() -> None:
    context = ContextState()
    context.append([1, 2], WINDOW)
    context.append([], WINDOW)
    context.append([3], WINDOW)
    assert (context.history, context.used) == ([(PREFILLED, [1, 2, 3])], 3)


def test_the_last_token_drawn_joins_the_next_prefill() -> None:
    context = ContextState()
    context.append([1, 2], WINDOW)
    context.seal()
    for token in (7, 8, 9):
        context.draw(token)
    context.append([3, 4], WINDOW)
    assert context.history == [(PREFILLED, [1, 2]), (DECODED, [7, 8]), (PREFILLED, [9, 3, 4])]
    assert context.used == 7


def test_an_only_token_drawn_leaves_no_empty_segment() -> None:
    context = ContextState()
    context.append([1, 2], WINDOW)
    context.seal()
    context.draw(7)
    context.append([3], WINDOW)
    assert context.history == [(PREFILLED, [1, 2]), (PREFILLED, [7, 3])]


def test_a_generation_that_goes_on_goes_on_decoding() -> None:
    context = ContextState()
    context.append([1], WINDOW)
    context.seal()
    context.draw(7)
    context.append([], WINDOW)
    context.seal()
    context.draw(8)
    assert context.history == [(PREFILLED, [1]), (DECODED, [7, 8])]


def test_a_sealed_prefill_grows_no_more() -> None:
    """A generation that drew nothing has computed with it all the same."""
    context = ContextState()
    context.append([1, 2], WINDOW)
    context.seal()
    context.append([3], WINDOW)
    assert context.history == [(PREFILLED, [1, 2]), (PREFILLED, [3])]


def test_what_does_not_fit_changes_nothing() -> None:
    context = ContextState()
    context.append([1] * (WINDOW - 1), WINDOW)
    context.seal()
    context.draw(7)
    with pytest.raises(ContextFull, match=f"1 tokens do not fit: {WINDOW} of {WINDOW} are used"):
        context.append([2], WINDOW)
    assert context.history == [(PREFILLED, [1] * (WINDOW - 1)), (DECODED, [7])]
    assert context.used == WINDOW
    context.append([], WINDOW)


# --- whose contexts -----------------------------------------------------------------------------


def test_a_context_of_another_process_is_not_found() -> None:
    contexts, _ = manager()
    mine, other = process(1), process(2)
    context = contexts.open(mine, None)
    assert contexts.get(mine, context.id) is context
    for caller, ctx in ((other, context.id), (mine, 99)):
        with pytest.raises(NotFound):
            contexts.get(caller, ctx)


def test_a_busy_context_is_refused_until_it_is_idle() -> None:
    contexts, _ = manager()
    owner = process()
    context = contexts.open(owner, None)
    context.busy = True
    with pytest.raises(ContextBusy):
        contexts.get(owner, context.id)
    context.busy = False
    assert contexts.get(owner, context.id) is context


def test_the_limit_on_open_contexts() -> None:
    contexts, _ = manager()
    owner = process(contexts=2)
    first = contexts.open(owner, None)
    contexts.open(owner, None)
    with pytest.raises(LimitReached):
        contexts.open(owner, None)
    contexts.close(first)
    assert contexts.open(owner, None).id == 3  # ids are never used again


def test_closing_drops_the_context_at_the_core() -> None:
    contexts, dropped = manager()
    owner = process()
    context = contexts.open(owner, "be brief")
    assert context.prelude == [Message("system", "be brief")]
    contexts.close(context)
    assert (dropped, owner.contexts, contexts.contexts) == ([context.id], set(), {})


def test_tokens_out_of_the_vocabulary_are_refused() -> None:
    contexts, _ = manager()
    context = contexts.open(process(), None)
    contexts.append(context, [0, 99])
    with pytest.raises(BadInput):
        contexts.append(context, [100])
    assert context.history == [(PREFILLED, [0, 99])]


def test_check_sees_what_is_wrong() -> None:
    contexts, _ = manager()
    owner = process()
    context = contexts.open(owner, None)
    contexts.append(context, [1, 2])
    assert contexts.check([owner]) == []
    assert contexts.check([]) == ["context 1 is owned or open, not both"]
    context.used += 1
    assert contexts.check([owner]) == ["context 1 has 2 tokens, counts 3"]


# --- operations ---------------------------------------------------------------------------------


class Turn(NamedTuple):
    """Do as a caller does: append in parts, then generate so many tokens."""

    parts: list[int]
    drawn: int


TURNS = st.lists(
    st.builds(
        Turn,
        parts=st.lists(st.integers(0, 90), min_size=1, max_size=3),
        drawn=st.integers(0, 5),
    ),
    min_size=1,
    max_size=4,
)


def plans_of(turns: list[Turn], *, whole: bool = False) -> list[list[Op]]:
    """The operations wherever a generation may be dispatched: at its start, and behind each token
    but its last. With `whole`, what is appended comes in one part."""
    context = ContextState()
    plans = []
    token = 0
    for parts, drawn in turns:
        for size in [sum(parts)] if whole else parts:
            context.append(list(range(token, token + size)), 10**6)
            token += size
        if context.used == 0:
            continue
        context.seal()
        plans.append(plan(context.history))
        for left in reversed(range(drawn)):
            context.draw(token)
            token += 1
            if left:
                plans.append(plan(context.history))
    return plans


@given(TURNS)
def test_what_was_computed_stays_so_wherever_it_was_preempted(turns: list[Turn]) -> None:
    """The core enters all of a plan before it draws a token, so each plan must begin with the one
    before: else what is in the KV cache would depend on when the context was dispatched."""
    plans = plans_of(turns)
    for before, after in pairwise(plans):
        assert after[: len(before)] == before


@given(TURNS)
def test_how_an_append_was_split_into_calls_changes_nothing(turns: list[Turn]) -> None:
    assert plans_of(turns) == plans_of(turns, whole=True)


@given(TURNS)
def test_a_plan_is_the_history_cut_at_absolute_multiples(turns: list[Turn]) -> None:
    for ops in plans_of(turns):
        pos = 0
        for how, at, tokens in ops:
            assert at == pos
            assert len(tokens) == 1 if how == DECODED else 1 <= len(tokens) <= CHUNK_TOKENS
            assert (
                at // CHUNK_TOKENS == (at + len(tokens) - 1) // CHUNK_TOKENS
            )  # crosses no multiple
            pos += len(tokens)
        # Tokens are numbered in the order in which they came.
        assert [token for _, _, tokens in ops for token in tokens] == list(range(pos))


def test_a_prefill_is_cut_only_where_it_must_be() -> None:
    ops = plan([("p", list(range(CHUNK_TOKENS + 6))), ("d", [1, 2]), ("p", [3] * CHUNK_TOKENS)])
    assert [(how, pos, len(tokens)) for how, pos, tokens in ops] == [
        ("p", 0, CHUNK_TOKENS),
        ("p", CHUNK_TOKENS, 6),
        ("d", CHUNK_TOKENS + 6, 1),
        ("d", CHUNK_TOKENS + 7, 1),
        ("p", CHUNK_TOKENS + 8, CHUNK_TOKENS - 8),
        ("p", 2 * CHUNK_TOKENS, 8),
    ]


def test_contexts_with_a_name_have_a_bound() -> None:
    """They sleep in the kernel's memory, and what is open alone is counted by a limit."""
    contexts = ContextManager(lambda _: None)
    owner = process()
    for number in range(MAX_NAMED):
        contexts.close(contexts.open(owner, None, f"n{number}"))
    with pytest.raises(LimitReached, match="forget"):
        contexts.open(owner, None, "one-more")
    with pytest.raises(LimitReached):
        contexts.fork(contexts.open(owner, None, "n0"), owner, "one-more")
    contexts.close(contexts.open(owner, None, "n1"), forget=True)
    contexts.open(owner, None, "one-more")


def test_the_oldest_turns_that_were_dropped_are_forgotten() -> None:
    state = ContextState()
    for number in range(300):
        state.drop([Message("user", f"{number} " + "x" * 1000), Message("assistant", "yes")])
        held = sum(len(turn.text) + 64 for turn in state.dropped)
        assert held <= MAX_DROPPED_CHARS
    assert held > MAX_DROPPED_CHARS - 2000
    assert state.dropped[-2].text.startswith("299 ")


def test_an_answer_that_is_cut_within_a_character_keeps_its_tokens() -> None:
    state = ContextState(
        turns=[Message("user", "Hi")], history=[("p", [1, 2]), ("d", [3, 4])], used=4
    )
    state.answered("ok\N{REPLACEMENT CHARACTER}", 2)
    assert state.turns[-1].tokens == [3, 4]
    state.history[-1][1].extend([5, 6])
    state.answered("\N{REPLACEMENT CHARACTER}!", 2)  # it went on from there
    assert (state.turns[-1].tokens, state.turns[-1].drawn) == ([3, 4, 5, 6], 4)
    state.turns.append(Message("user", "And?"))
    state.history.append(("d", [7]))
    state.answered("Yes.", 1)
    assert state.turns[-1].tokens == []


def test_what_a_tree_holds_in_contexts_is_bounded_by_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints, forks and sleeping contexts of all its agents are one budget."""
    monkeypatch.setattr("aios.kernel.llm.contexts.MAX_TREE_BYTES", 200_000)
    contexts = ContextManager(lambda _: None)
    contexts.window = contexts.vocab = 10_000
    owner, child, other = process(1), process(2), process(3)
    owner.principal, child.principal, other.principal = "/ann", "/ann/child", "/other"
    context = contexts.open(owner, "You are terse.", "kept")
    contexts.append(context, list(range(1000)))
    own = contexts.trees.total("/ann")
    assert own >= 16_000
    contexts.checkpoint(context, "one")
    contexts.checkpoint(context, "one")
    assert contexts.trees.total("/ann") == 2 * own
    made = [contexts.fork(context, child)]
    assert contexts.trees.total("/ann") == 3 * own
    with pytest.raises(LimitReached, match=r"/ann and all below it have \d+ bytes of contexts"):
        while len(made) < 100:
            made.append(contexts.fork(made[-1], child))
    for grow in (
        lambda: contexts.append(made[0], [1]),
        lambda: contexts.checkpoint(made[0], "more"),
        lambda: contexts.open(owner, None),
    ):
        with pytest.raises(LimitReached):
            grow()
    empty = contexts.open(other, None)
    contexts.checkpoint(empty, "nothing")
    assert contexts.trees.total("/other") == 2 * STATE_BYTES
    contexts.append(empty, [1])  # another tree's
    contexts.rollback(context, "one")
    contexts.close(context)  # it sleeps
    assert contexts.trees.total("/ann") >= 200_000
    for fork in made:
        contexts.close(fork)
    assert contexts.trees.total("/ann") == 2 * own
    contexts.close(contexts.open(owner, None, "kept"), forget=True)
    assert contexts.trees.held.keys() == {"/other"}
