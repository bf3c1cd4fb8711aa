"""System calls to the model: what goes in, what comes out, and who waits for whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import core_stopped, eventually
from helpers import SAMPLED, STORY, first_piece, run

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import (
    BadInput,
    Cancelled,
    ContextBusy,
    ContextFull,
    LimitReached,
    Malformed,
    NotFound,
)

# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["Name three colors.", "Repeat: 東京タワー🗼、日本語 👩‍🚀 ñ"])
def test_the_pieces_are_the_result(aios: Aios, prompt: str) -> None:
    generation = aios.generate(prompt, max_tokens=40, logprobs=2)
    pieces = list(generation.pieces())
    result = generation.result()
    assert "".join(piece.text for piece in pieces) == result.text
    assert [token for piece in pieces for token in piece.tokens] == result.tokens
    assert [p for piece in pieces for p in piece.logprobs or []] == result.logprobs
    assert result.text == aios.detokenize(result.tokens)


def test_a_character_of_several_tokens_comes_whole(aios: Aios) -> None:
    generation = aios.generate("Go", grammar='root ::= "🗼🗼"')
    pieces = list(generation.pieces())
    assert any(not piece.text for piece in pieces)  # bytes of a character that goes on
    assert generation.text == "🗼🗼"
    assert "".join(piece.text for piece in pieces) == generation.text


@pytest.mark.parametrize("stream", [True, False])
def test_without_a_stream_there_are_no_pieces(aios: Aios, stream: bool) -> None:
    generation = aios.generate(STORY, max_tokens=5, stream=stream)
    assert len(list(generation.pieces())) == (5 if stream else 0)
    assert generation.usage.completion == 5


def test_a_stop_string_ends_the_text_and_is_no_part_of_it(aios: Aios) -> None:
    whole = run(aios, max_tokens=40).text
    stop = whole[15:22]
    generation = aios.generate(STORY, max_tokens=40, stop=["never in there", stop])
    shown = "".join(generation)
    assert generation.finish == "stop"
    assert shown == generation.text == whole[: whole.index(stop)]


def test_what_began_like_a_stop_string_is_shown_at_the_end(aios: Aios) -> None:
    whole = run(aios).text
    generation = aios.generate(STORY, max_tokens=12, stop=[whole[-3:] + "\0"])
    assert "".join(generation) == whole
    assert generation.finish == "length"


def test_the_answer_ends_by_itself_unless_that_is_ignored(aios: Aios) -> None:
    prompt = "What is 1+1? Answer with one word."
    ended = run(aios, prompt, max_tokens=200)
    assert ended.finish == "stop"
    assert ended.usage.completion < 200
    more = run(aios, prompt, max_tokens=ended.usage.completion + 5, ignore_eos=True)
    assert more.finish == "length"
    assert more.tokens[: ended.usage.completion] == ended.tokens


def test_the_seed_and_nothing_else_decides_the_draw(aios: Aios) -> None:
    texts = [run(aios, temperature=1.2, seed=seed).text for seed in (1, 2, 1, 3)]
    assert texts[0] == texts[2]
    assert len(set(texts)) == 3
    assert run(aios, temperature=1.2, seed=1, top_k=1).text == run(aios).text
    assert run(aios, temperature=1.2, seed=1, min_p=1.0).text == run(aios).text
    assert run(aios, temperature=1.2, seed=1, top_p=1e-6).text == run(aios).text


@pytest.mark.parametrize(
    "penalty", [{"repeat_penalty": 5.0}, {"frequency_penalty": 2.0}, {"presence_penalty": 2.0}]
)
def test_a_penalty_makes_for_more_different_tokens(aios: Aios, penalty: dict[str, float]) -> None:
    def different(**options: Any) -> int:
        prompt = "la la la la la la"
        result = run(aios, prompt, max_tokens=200, ignore_eos=True, penalty_last=200, **options)
        return len(set(result.tokens))

    assert different(**penalty) > different()


def test_logprobs_are_those_of_the_greedy_choice(aios: Aios) -> None:
    result = run(aios, logprobs=3)
    assert result.logprobs
    assert [entry.token for entry in result.logprobs] == result.tokens
    for entry in result.logprobs:
        assert entry.top[0] == (entry.token, entry.logprob)
        values = [value for _, value in entry.top]
        assert len(values) == 3
        assert values == sorted(values, reverse=True)
        assert values[0] <= 0


def test_the_digest_tells_histories_apart(aios: Aios) -> None:
    one, same, other = (run(aios, p, digest=True) for p in ("Hello.", "Hello.", "Hello!"))
    assert one.digest == same.digest != other.digest
    assert one.digest
    assert len(bytes.fromhex(one.digest)) == 32
    assert run(aios).digest is None


def test_a_stream_that_nobody_can_read_any_more_is_cancelled(
    aios: Aios, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection, cancelled = aios.connection, []
    start = connection._start

    def watched(name: str, args: dict[str, Any]) -> Any:
        if name == "call.cancel":
            cancelled.append(args["call"])
        return start(name, args)

    monkeypatch.setattr(connection, "_start", watched)
    for _ in aios.generate(STORY, max_tokens=900, ignore_eos=True):
        break
    assert cancelled == [connection.last - 1]
    with aios.open() as context:  # of this one the context has the answer
        context.generate("Hi", max_tokens=2, ignore_eos=True).result()
        kept = aios.generate("Hi", max_tokens=2, ignore_eos=True)
        assert kept.result().tokens and len(cancelled) == 1


def test_usage_and_timings_add_up(aios: Aios) -> None:
    with aios.open() as context:
        result = context.generate(STORY, max_tokens=10).result()
        appended = context.append([5, 6, 7])
    assert result.usage.completion == len(result.tokens) == 10
    assert result.usage.context == result.usage.prompt + 10
    assert appended.used == result.usage.context + 3
    times = result.timings
    assert times.ttft is not None
    assert 0 <= times.waiting + times.prefill + times.decode <= times.turnaround + 1e-6
    assert 0 < times.ttft <= times.turnaround


def test_a_process_sums_up_its_generations(aios: Aios) -> None:
    assert aios.whoami().ttft is None
    times = [aios.generate(STORY, max_tokens=5).timings for _ in range(2)]
    row = aios.whoami()
    assert row.generations == 2
    assert row.turnaround == pytest.approx(sum(time.turnaround for time in times))
    assert row.ttft == pytest.approx(sum(time.ttft or 0.0 for time in times) / 2)
    assert row.waiting == pytest.approx(sum(time.waiting for time in times))


# --- text, tokens, contexts --------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " a  b\n", "Ünïcödé 漢字 🦊", "<b>&amp;</b>", "\t\x07\x7f"])
def test_tokens_of_a_text_are_the_text(aios: Aios, text: str) -> None:
    assert aios.detokenize(aios.tokenize(text)) == text


def test_text_tokens_and_messages_are_the_same_to_the_model(aios: Aios) -> None:
    given = aios.tokenize([{"role": "user", "content": STORY}])
    answer = aios.tokenize("<|im_start|>assistant\n")
    with aios.open() as context:
        context.append(given)
        context.append("<|im_start|>assistant\n", raw=True)
        appended = context.generate(digest=True, max_tokens=8).result()
    at_once = [
        run(aios, prompt, digest=True, max_tokens=8) for prompt in (STORY, [*given, *answer])
    ]
    assert [result.digest for result in at_once] == [appended.digest] * 2
    assert [result.tokens for result in at_once] == [appended.tokens] * 2


@pytest.mark.parametrize("call", ["append", "generate", "detokenize"])
def test_a_token_out_of_the_vocabulary_is_refused(aios: Aios, call: str) -> None:
    model = aios.status().model
    assert model is not None
    acts: dict[str, Callable[[list[int]], Any]] = {
        "append": lambda tokens: aios.open().append(tokens),
        "generate": lambda tokens: run(aios, tokens),
        "detokenize": aios.detokenize,
    }
    acts[call]([model.vocab - 1])
    with pytest.raises(BadInput, match="vocabulary"):
        acts[call]([5, model.vocab])
    with pytest.raises(BadInput, match="vocabulary"):
        acts[call]([2**31 - 1])
    assert aios.status().core_restarts == 0


def test_no_messages_are_refused(aios: Aios) -> None:
    with pytest.raises(Malformed):
        aios.start("llm.tokenize", messages=[]).wait()
    assert aios.status().core_restarts == 0


def test_a_conversation_goes_on_as_if_it_was_given_at_once(aios: Aios) -> None:
    """Turn by turn, and from the tokens that all turns made of it."""
    with aios.open("You are terse.") as context:
        context.append("My name is Ada.")
        one = context.generate(max_tokens=10).result()
        two = context.generate("What is my name?", max_tokens=10).result()
    before = [
        {"role": "system", "content": "You are terse."},
        {"role": "user", "content": "My name is Ada."},
    ]
    assert one.tokens == run(aios, before, max_tokens=10).tokens
    after = [
        *before,
        {"role": "assistant", "content": one.text},
        {"role": "user", "content": "What is my name?"},
    ]
    assert two.usage.context == run(aios, after, max_tokens=10).usage.context
    assert two.usage.prompt < one.usage.context  # only what was new


def test_going_on_without_a_prompt_goes_on(aios: Aios) -> None:
    whole = run(aios, max_tokens=24, digest=True, **SAMPLED)
    with aios.open() as context:
        parts = [context.generate(STORY, max_tokens=8, **SAMPLED).result()]
        parts += [context.generate(max_tokens=8, **SAMPLED).result() for _ in range(2)]
    assert [token for part in parts for token in part.tokens] == whole.tokens


def test_a_system_text_waits_for_the_first_message(aios: Aios) -> None:
    system = aios.open("Speak like a pirate, always.")
    raw = system.generate("Once upon", raw=True, max_tokens=4).result()
    plain = aios.generate("Once upon", raw=True, max_tokens=4).result()
    assert raw.tokens == plain.tokens
    told = system.generate("Hi", max_tokens=2).result()
    fresh = aios.open("Speak like a pirate, always.").generate("Hi", max_tokens=2).result()
    assert told.usage.prompt == fresh.usage.prompt


def test_a_context_is_its_owners_and_ends_when_closed(aios: Aios, system: Any) -> None:
    context = aios.open()
    with connect(system.home) as other:
        for act in (other.append, lambda ctx, _: other.generate("a", ctx=ctx).result()):
            with pytest.raises(NotFound):
                act(context.id, "a")
        with pytest.raises(NotFound):
            other.close_context(context.id)
    context.close()
    with pytest.raises(NotFound):
        context.append("a")
    with pytest.raises(NotFound):
        context.close()


def test_a_busy_context_takes_nothing_else(aios: Aios) -> None:
    context = aios.open()
    generation = context.generate(STORY, max_tokens=900, ignore_eos=True)
    first_piece(generation)
    for act in (
        lambda: context.append("a"),
        lambda: aios.close_context(context.id),
        lambda: aios.generate("b", ctx=context.id).result(),
    ):
        with pytest.raises(ContextBusy):
            act()
    generation.cancel()
    assert generation.finish == "cancelled"
    context.append("a")
    context.close()


def test_a_context_holds_its_window_and_not_a_token_more(aios: Aios) -> None:
    context = aios.open()
    window = context.append([5]).window
    assert context.append([5] * (window - 1)).used == window
    with pytest.raises(ContextFull):
        context.append([5])
    with pytest.raises(ContextFull):
        context.generate(max_tokens=1).result()
    with pytest.raises(ContextFull, match=str(window)):
        run(aios, [5] * (window + 1))
    nearly = aios.open()
    nearly.append([5] * (window - 4))
    result = nearly.generate(max_tokens=50, ignore_eos=True).result()
    assert (result.finish, result.usage.context) == ("context_full", window)
    assert result.usage.completion == 4


@pytest.mark.parametrize(
    "args", [{}, {"text": ""}, {"text": "a", "tokens": [5]}, {"ctx": 2**30, "text": "a"}]
)
def test_unusable_input_is_refused(aios: Aios, args: dict[str, Any]) -> None:
    with pytest.raises((BadInput, NotFound)):
        aios.start("llm.generate", **args).wait()


# --- cancelling --------------------------------------------------------------------------------


def test_a_cancelled_answer_is_the_beginning_of_the_whole(aios: Aios, system: System) -> None:
    whole = run(aios, max_tokens=900, **SAMPLED)
    generation = aios.generate(STORY, max_tokens=900, **SAMPLED)
    first_piece(generation)
    with core_stopped(system):
        generation.cancel()
        aios.status()  # the kernel has heard of it
    result = generation.result()
    assert result.finish == "cancelled"
    assert 1 <= result.usage.completion < 900
    assert whole.tokens[: result.usage.completion] == result.tokens
    assert whole.text.startswith(result.text)


def test_cancelling_at_any_time_ends_the_call(aios: Aios) -> None:
    calls = [
        aios.start("llm.generate", text=STORY, max_tokens=500, ignore_eos=True) for _ in range(8)
    ]
    assert [aios.cancel(call.id) for call in calls] == [True] * 8
    for call in calls:
        try:
            assert call.wait()["finish"] == "cancelled"
        except Cancelled as error:  # it was not a generation yet
            assert "llm.generate" in error.message
    eventually(lambda: aios.status().contexts == 0)


def test_a_client_that_leaves_ends_its_generations(talking: Aios, talker: System) -> None:
    with connect(talker.home) as other:
        calls = [other.generate(STORY, max_tokens=900, ignore_eos=True) for _ in range(6)]
        eventually(lambda: talking.status().contexts == len(calls))
    eventually(lambda: talking.status().contexts == 0)
    assert talking.check() == []


def test_the_limit_of_a_client_is_its_queue(aios: Aios) -> None:
    calls = [aios.start("msg.recv") for _ in range(1024)]
    with pytest.raises(LimitReached):
        aios.status()
    assert aios.cancel(calls[0].id)
    assert aios.status().agents == 0
    for call in calls[1:]:
        aios.start("call.cancel", call=call.id)
