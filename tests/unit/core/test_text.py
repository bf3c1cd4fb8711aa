"""Text out of tokens, and chat messages into text: the stream, stop strings, the template."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.config import embedded_model
from aios.kernel.core.chat import ControlTokens, PromptPart
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.protocol import DetokenizeRequest, TokenizeRequest, decode_tokenized, encode
from aios.kernel.core.template import TemplateRenderer
from aios.kernel.core.text import TextStream, answer, parts_after
from aios.syscalls.errors import BY_CODE, AiosError, BadInput, Internal

# --- the stream ---------------------------------------------------------------------------------

letters = st.text("ab\N{GREEK SMALL LETTER BETA}\N{ROCKET}", max_size=12)
stop_lists = st.lists(
    st.text("ab\N{GREEK SMALL LETTER BETA}", min_size=1, max_size=4), min_size=1, max_size=3
)


@st.composite
def cut(draw: st.DrawFn, data: st.SearchStrategy[bytes]) -> list[bytes]:
    """Bytes in pieces that end anywhere, also inside of a character."""
    whole = draw(data)
    cuts = sorted(draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    return [whole[i:j] for i, j in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


def read(pieces: list[bytes], count: int) -> str:
    """Return the whole characters in the first pieces of a valid text."""
    return b"".join(pieces[:count]).decode(errors="ignore")


def before_stop(pieces: list[bytes], stops: list[str]) -> tuple[str, int]:
    """Return the text before the first complete stop string (of several that one piece completes,
    the one that begins first) and the number of pieces until then; without a stop string, all."""
    for count in range(1, len(pieces) + 1):
        text = read(pieces, count)
        found = [text.index(stop) for stop in stops if stop in text]
        if found:
            return text[: min(found)], count
    return read(pieces, len(pieces)), len(pieces) + 1


def shown(stream: TextStream, pieces: list[bytes]) -> list[str]:
    """Return the text that a stream shows with each piece, and at its end."""
    out = []
    for piece in pieces:
        out.append(stream.feed(piece))
        if stream.stopped:
            assert stream.flush() == ""
            return out
    return [*out, stream.flush()]


@given(cut(letters.map(str.encode)), stop_lists)
def test_the_text_ends_before_the_first_stop_string(pieces: list[bytes], stops: list[str]) -> None:
    text, steps = before_stop(pieces, stops)
    stream = TextStream(stops)
    out = shown(stream, pieces)
    assert "".join(out) == text
    assert len(out) == steps  # it stops with the piece that completes the stop string
    assert stream.stopped == (steps <= len(pieces))
    assert not any(stop in text for stop in stops)


@given(cut(letters.map(str.encode)), stop_lists)
def test_all_is_shown_at_once_that_may_not_begin_a_stop_string(
    pieces: list[bytes], stops: list[str]
) -> None:
    text, steps = before_stop(pieces, stops)
    out = shown(TextStream(stops), pieces)
    for count in range(1, min(steps, len(pieces) + 1)):
        so_far = "".join(out[:count])
        assert text.startswith(so_far)  # nothing of a stop string, ever
        held = read(pieces, count)[len(so_far) :]
        assert held == "" or any(stop.startswith(held) for stop in stops)


@given(cut(letters.map(str.encode)), stop_lists, st.integers(0, 9))
def test_a_stream_rebuilt_from_what_it_was_fed_goes_on_the_same(
    pieces: list[bytes], stops: list[str], at: int
) -> None:
    first = TextStream(stops)
    out = shown(first, pieces)
    at = min(at, len(out) - 1)
    again = TextStream(stops)
    for piece in pieces[:at]:
        again.feed(piece)
    assert shown(again, pieces[at:]) == out[at:]


@given(cut(st.binary(max_size=16) | st.text().map(str.encode)))
def test_any_bytes_come_out_as_text(pieces: list[bytes]) -> None:
    assert "".join(shown(TextStream([]), pieces)) == b"".join(pieces).decode(errors="replace")


def test_half_a_character_is_shown_at_the_end_only() -> None:
    stream = TextStream(["."])
    assert [stream.feed(b"ok\xf0\x9f"), stream.flush()] == ["ok", "\N{REPLACEMENT CHARACTER}"]


# --- the chat template of the model -------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(embedded_model(), slots=1, window=64, threads=1)
    yield engine
    engine.close()


ODD = [
    "",
    " \n\t ",
    "{{ messages }}{% raise %}",
    "\0\x01\x7f",
    "\N{OBJECT REPLACEMENT CHARACTER}\N{REPLACEMENT CHARACTER}\N{RIGHT-TO-LEFT OVERRIDE}",
    "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}e\N{COMBINING ACUTE ACCENT}",
    "'\"\\ </s> <b>&amp;",
]


def render_behind(engine: LlamaEngine, question: TokenizeRequest) -> str:
    (text,) = parts_after(engine, question)  # nothing in it reads like a control token
    assert isinstance(text, str)
    return text


def render(engine: LlamaEngine, turns: list[tuple[str, str]], *, reply: bool) -> str:
    messages = [{"role": role, "content": content} for role, content in turns]
    return engine.render(messages, reply=reply)


@pytest.mark.parametrize("content", ODD)
def test_turn_by_turn_is_the_same_as_all_at_once(engine: LlamaEngine, content: str) -> None:
    turns = [("system", content), ("user", "Hi"), ("assistant", "Yes"), ("user", content)]
    parts = [
        render_behind(engine, TokenizeRequest(1, messages=turns[at : at + 1], turns=[*turns[:at]]))
        for at in range(len(turns))
    ]
    assert "".join(parts) == render(engine, turns, reply=False)
    assert content in parts[0]
    assert content in parts[-1]


@pytest.mark.parametrize("content", ODD)
def test_behind_a_generated_answer_comes_what_the_template_puts_there(
    engine: LlamaEngine, content: str
) -> None:
    """The answer is in the context as tokens, so what is rendered goes on right behind it."""
    first = render_behind(engine, TokenizeRequest(1, messages=[("user", content)], reply=True))
    question = TokenizeRequest(
        2,
        messages=[("user", content)],
        turns=[("user", content), ("assistant", None)],
        reply=True,
    )
    turns = [("user", content), ("assistant", "An answer."), ("user", content)]
    assert first + "An answer." + render_behind(engine, question) == render(
        engine, turns, reply=True
    )


def test_behind_the_second_answer_comes_only_what_is_new(engine: LlamaEngine) -> None:
    dialog: list[tuple[str, str | None]] = [("user", "Hi"), ("assistant", None)] * 2
    text = render_behind(engine, TokenizeRequest(1, messages=[("user", "Bye")], turns=dialog))
    assert text.count("Bye") == 1
    assert "Hi" not in text


def test_an_answer_is_opened_behind_what_was_only_appended(engine: LlamaEngine) -> None:
    question = TokenizeRequest(1, turns=[("user", "Hi")], reply=True)
    opened = render_behind(engine, question)
    assert opened
    assert render(engine, [("user", "Hi")], reply=False) + opened == render(
        engine, [("user", "Hi")], reply=True
    )


def test_a_template_that_refuses_is_the_callers_error(engine: LlamaEngine) -> None:
    """The template indexes each message; this one has no role that it could."""
    with pytest.raises(BadInput, match="template failed"):
        engine.render([{"content": "no role"}], reply=True)


# --- questions ----------------------------------------------------------------------------------


@given(
    text=st.text(
        st.characters(
            categories=["L", "M", "N", "P", "S", "Z"], max_codepoint=0x1FFFF, exclude_characters="<"
        ),
        max_size=40,
    )
)
def test_text_survives_tokens(engine: LlamaEngine, text: str) -> None:
    """The vocabulary lacks a few bytes (control characters, rare planes), and "<" may begin one of
    its control tokens, which have no text: such texts are not tried."""
    encoded = answer(engine, TokenizeRequest(1, text=text, start=False))
    assert answer(engine, DetokenizeRequest(2, encoded.tokens)).text == text


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (BadInput("this model carries no chat template"), BadInput),
        (IndexError("a defect"), Internal),
    ],
)
def test_an_error_is_an_answer_too(error: Exception, told: type[AiosError]) -> None:
    """A defect as well: whoever generates meanwhile has no part in it."""

    class NoTemplate:
        controls = ControlTokens([])

        @property
        def template(self) -> TemplateRenderer:
            raise error

        def tokenize_parts(self, parts: Sequence[PromptPart], *, start: bool) -> list[int]:
            return []

        def piece(self, token: int) -> bytes:
            return b""

    encoded = answer(NoTemplate(), TokenizeRequest(7, messages=[("user", "Hi")]))
    assert encoded.req == 7
    assert encoded.error is not None
    assert BY_CODE[encoded.error["code"]] is told


numbers = st.integers(0, 2**31 - 1) | st.integers(0, 300)
dialogs = st.lists(
    st.tuples(st.sampled_from(["system", "user", "assistant", "tool", "tools"]), st.text()),
    max_size=3,
)
questions = st.one_of(
    st.builds(DetokenizeRequest, st.just(1), st.lists(numbers, max_size=5)),
    st.builds(TokenizeRequest, st.just(1), text=st.text(), start=st.booleans()),
    st.builds(TokenizeRequest, st.just(1), messages=dialogs, reply=st.booleans()),
)


@given(questions)
def test_every_question_has_an_answer(
    engine: LlamaEngine, question: TokenizeRequest | DetokenizeRequest
) -> None:
    """Any other exception would end the core, and with it all generations."""
    encoded = decode_tokenized(encode(answer(engine, question)))
    assert encoded.error is None or BY_CODE[encoded.error["code"]] is BadInput
