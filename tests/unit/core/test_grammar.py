"""Grammars and schemas on the embedded model: enforced, exact whatever interrupts the answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema
import numpy as np
import pytest
from batcher_harness import PLENTY, CheckedBatcher, Job, at_random, finish, report, run_solo
from byte_grammar import takes
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_cpp import llama_grammar

from aios.kernel.config import embedded_model
from aios.kernel.core.grammar import Grammars
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.protocol import Compile, Halt
from aios.syscalls.llm import Decoding

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["poet", "queen", 7, None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def engine() -> Iterator[LlamaEngine]:
    engine = LlamaEngine(embedded_model(), slots=3, window=320, threads=1)
    yield engine
    engine.close()


def ask(engine: LlamaEngine, text: str) -> list[int]:
    return engine.tokenize(
        engine.render([{"role": "user", "content": text}], reply=True), start=True
    )


def refusal(engine: LlamaEngine, **asked: Any) -> str:
    error = engine.grammars.answer(Compile(7, **({"schema": None, "grammar": None} | asked))).error
    assert error is not None
    assert error["code"] == "llm.bad_grammar"
    return error["message"]


# --- GBNF ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("ARITHMETIC_GBNF", "x = (1 +y2 *3)\n"),
        ("C_GBNF", "int f(int x){return x+1;}"),
        ("JSON_GBNF", '{"a":[1,-2.5e3,"é\\n"],"b":{}}'),
        ("LIST_GBNF", "- one\n- two\n"),
    ],
)
def test_grammars_that_llama_cpp_ships(engine: LlamaEngine, name: str, text: str) -> None:
    gbnf = getattr(llama_grammar, name)
    assert engine.grammars.answer(Compile(1, None, gbnf)).error is None
    assert takes(text, grammar=gbnf)
    assert not takes(text[:1] + "\0", grammar=gbnf)


@pytest.mark.parametrize(
    ("gbnf", "why"),
    [
        ("", "no rule 'root'"),
        ('x ::= "a"', "no rule 'root'"),
        ("root ::= x", "no rule 'x'"),
        ('root ::= "a"\nroot ::= "b"', "'root' twice"),
        ('root ::= "a', "line 1"),
        ('root ::= "a"\n\n  "\\q"', "line 3"),
        ("root ::= [a", "line 1"),
        ("root ::= <[5]>", "line 1"),
        ('root ::= "\\ud800"', "cannot be compiled"),
        ("root ::= *", "cannot be compiled"),
        ('root ::= ("a"', "cannot be compiled"),
        ('"a" root ::= "b"', "cannot be compiled"),
        ("root ::= " + "(" * 7000 + ")" * 7000, "too deeply nested"),
        ("root ::= root", "no answer can begin"),
        ("root ::= x\nx ::= x x", "no answer can begin"),
        ("root ::= " + '"a"? ' * 3000, "no answer can begin"),
    ],
)
def test_a_grammar_that_is_none(engine: LlamaEngine, gbnf: str, why: str) -> None:
    assert why in refusal(engine, grammar=gbnf)


def test_a_defect_of_the_compiler_is_an_answer_too(
    engine: LlamaEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the core ends, and with it all that generates."""

    def fail(_gbnf: str) -> str:
        raise IndexError("a defect")

    monkeypatch.setattr("aios.kernel.core.grammar.to_lark", fail)
    error = engine.grammars.answer(Compile(1, None, "root ::= [0-9]")).error
    assert error is not None
    assert error["code"] == "internal"


def test_text_that_is_forced_is_written_in_the_vocabulary_s_own_tokens(engine: LlamaEngine) -> None:
    """Also where the tokenizer adds a blank in front, as those of some models do."""
    blank = Grammars([bytes([byte]) for byte in range(256)], [0], lambda text: [32, *text])
    grammar = blank.start(Decoding(grammar='root ::= "ab"'), [])
    for letter in b"ab":
        assert grammar.allowed().tolist() == [letter]
        grammar.accept(letter)
    assert grammar.complete
    for control in ("<|im_end|>", "<|im_start|>"):
        decoding = Decoding(grammar=f'root ::= "{control}"', max_tokens=20)
        assert run_solo(engine, ask(engine, "Go"), decoding).text == control


# --- JSON Schema --------------------------------------------------------------------------------


def _tower(patterns: int) -> dict[str, Any]:
    tower: dict[str, Any] = {}
    for size in range(patterns):
        tower = {"type": "string", "pattern": f"^(a|b)*a(a|b){{{size}}}", "anyOf": [tower]}
    return tower


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"not": {"type": "string"}}, 'Unimplemented keys: ["not"]'),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "int"}, "Invalid type"),
        ({"properties": 5}, "properties must be an object"),
        ({"enum": []}, "empty"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "greater than maximum"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "oneOf"),
        ({"$ref": "#/nowhere"}, "does not exist"),
        ({"$ref": "https://example.org/schema.json"}, "failed"),
        ({"$ref": "#"}, "no answer can begin"),
        ({"type": "string", "pattern": "("}, "unclosed group"),
        ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
        ({"type": "string", "format": "no such"}, "Unknown format"),
        ({"const": b"bytes"}, "not JSON"),
        ({"maximum": float("inf")}, "not JSON"),
        ({"type": "integer", "multipleOf": 999_983}, "takes too much to compile"),
        ({"type": "object", "properties": {f"p{i}": {} for i in range(5500)}}, "takes too much"),
        (_tower(30), "takes too much to compile"),
    ],
)
def test_a_schema_that_cannot_be_held_to(
    engine: LlamaEngine, schema: dict[str, Any], why: str
) -> None:
    assert why in refusal(engine, schema=schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"const": 'a"\n\\é🗼'}, ['"a\\"\\n\\\\é🗼"'], ['"a']),
        ({"enum": [1, "a", None, [True]]}, ["1", '"a"', "null", "[true]"], ["2", "[]"]),
        ({"type": ["string", "null"], "maxLength": 2}, ['"ab"', "null"], ['"abc"', "1"]),
        ({"type": "integer", "minimum": 3, "maximum": 17}, ["3", "17"], ["2", "18", "03"]),
        ({"type": "number", "multipleOf": 0.5}, ["1.5", "2"], ["1.3"]),
        ({"type": "string", "format": "date"}, ['"2024-02-29"'], ['"2024-13-01"']),
        ({"type": "string"}, ['"\\n"'], ['"\n"', '"']),
        (
            {"type": "object", "properties": {"": {"type": "null"}}, "required": ["a"]},
            ['{"": null, "a": 1}', '{"a": []}'],
            ["{}", '{"": 1, "a": 1}'],
        ),
        (
            {
                "$defs": {"char": {"type": "array", "items": {"$ref": "#/$defs/char"}}},
                "$ref": "#/$defs/char",
            },
            ["[]", "[[], [[]]]"],
            ["[1]", "[[]"],
        ),
        ({"type": "array", "items": {"type": "null"}}, ["[null, null]"], ["[null,  null]", "[\n]"]),
    ],
)
def test_a_schema_takes_what_it_says(
    engine: LlamaEngine, schema: dict[str, Any], good: list[str], bad: list[str]
) -> None:
    assert engine.grammars.answer(Compile(1, schema, None)).error is None
    for text in good + bad:
        assert takes(text, schema=schema) == (text in good), text


# The vocabulary of this model lacks some bytes, of control characters and of private planes.
WORDS = st.text(st.characters(max_codepoint=0xFFFF, exclude_categories=["C"]), max_size=4)
LEAVES: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.integers(-50, 50).map(lambda low: {"type": "integer", "minimum": low, "maximum": low + 99}),
    st.integers(0, 12).map(lambda size: {"type": "string", "maxLength": size}),
    st.lists(WORDS | st.integers(-9, 9), min_size=1, max_size=3).map(
        lambda values: {"enum": values}
    ),
    st.sampled_from(
        [
            {"type": "number", "minimum": 0, "exclusiveMaximum": 1, "multipleOf": 0.01},
            {"type": "string", "pattern": "^[A-Z]{2}[0-9]{3}$"},
            {"type": "string", "format": "date"},
        ]
    ),
)


def _object(parts: list[tuple[str, dict[str, Any], bool]]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: schema for name, schema, _ in parts},
        "required": sorted({name for name, _, required in parts if required}),
        "additionalProperties": False,
    }


SCHEMAS = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.builds(
            lambda items, least: {
                "type": "array", "items": items, "minItems": least, "maxItems": 2
            },
            inner,
            st.integers(0, 2),
        ),
        st.lists(st.tuples(WORDS, inner, st.booleans()), max_size=3).map(_object),
        st.lists(inner, min_size=1, max_size=2).map(lambda parts: {"anyOf": parts}),
    ),
    max_leaves=4,
)  # fmt: skip


@settings(max_examples=30)
@given(SCHEMAS, st.sampled_from([0.0, 0.8, 1.8]), st.integers(0, 99), st.booleans())
def test_what_is_generated_parses_and_validates(
    engine: LlamaEngine, schema: dict[str, Any], temperature: float, seed: int, ignore_eos: bool
) -> None:
    decoding = Decoding(
        schema=schema, temperature=temperature, seed=seed, max_tokens=250, ignore_eos=ignore_eos
    )
    job = run_solo(engine, ask(engine, "Invent some data."), decoding)
    assert job.why == "stop", job.text
    jsonschema.validate(json.loads(job.text), schema, jsonschema.Draft202012Validator)


# --- how an answer ends -------------------------------------------------------------------------


def test_it_ends_with_the_last_token_that_fits(engine: LlamaEngine) -> None:
    """An answer of exactly max_tokens is whole, and ignore_eos has nothing to go on to."""
    whole = run_solo(engine, ask(engine, "Ada?"), Decoding(schema=PERSON, digest=True))
    assert whole.why == "stop"
    assert len(whole.digests) == len(whole.tokens)
    count = len(whole.tokens)
    exact = Decoding(schema=PERSON, max_tokens=count, ignore_eos=True, digest=True)
    assert run_solo(engine, whole.prompt, exact).result == whole.result
    cut = run_solo(engine, whole.prompt, Decoding(schema=PERSON, max_tokens=count - 1))
    assert (cut.tokens, cut.why) == (whole.tokens[:-1], "length")


def test_an_end_is_drawn_only_where_the_answer_is_whole(engine: LlamaEngine) -> None:
    prompt = ask(engine, "What is 1+1? Answer with one word.")
    ended = run_solo(engine, prompt, Decoding(grammar="root ::= [A-Z] [a-z]*", max_tokens=40))
    assert ended.why == "stop"
    assert re.fullmatch("[A-Z][a-z]*", ended.text)
    on = Decoding(grammar="root ::= [A-Z] [a-z]*", max_tokens=40, ignore_eos=True)
    assert run_solo(engine, prompt, on).why == "length"
    longer = Decoding(grammar=f"root ::= [A-Z] [a-z]{{{len(ended.text)},}}", max_tokens=40)
    assert len(run_solo(engine, prompt, longer).text) > len(ended.text)


@pytest.mark.parametrize("ignore_eos", [False, True])
def test_where_only_the_empty_text_fits(engine: LlamaEngine, ignore_eos: bool) -> None:
    job = run_solo(
        engine, ask(engine, "Hi"), Decoding(grammar='root ::= ""', ignore_eos=ignore_eos)
    )
    assert (job.tokens, job.text, job.why) == ([], "", "stop")


def test_a_stop_string_still_ends_it(engine: LlamaEngine) -> None:
    job = run_solo(engine, ask(engine, "Ada?"), Decoding(schema=PERSON, stop=['", "age']))
    assert job.why == "stop"
    assert job.text.startswith('{"name": "')
    assert "age" not in job.text


def test_log_probabilities_are_of_the_model_s_own_logits(engine: LlamaEngine) -> None:
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    job = Job(1, ask(engine, "Ada?"), Decoding(schema=PERSON, logprobs=1))
    finish(batcher, job)
    batcher.drop(1)
    for entry, logits, token in zip(job.logprobs, batcher.logits, job.tokens, strict=True):
        wide = logits.astype(np.float64)
        assert entry.token == token
        assert entry.logprob == pytest.approx(wide[token] - np.logaddexp.reduce(wide), abs=1e-9)
        assert entry.top[0][0] == wide.argmax()
    assert any(entry.top[0][0] != entry.token for entry in job.logprobs)


def test_an_answer_that_outgrows_the_limits_fails_alone(engine: LlamaEngine) -> None:
    """Each step of this grammar is bounded, but no answer can come to an end."""
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    other = Job(2, ask(engine, "Ada?"), Decoding(schema=PERSON, digest=True))
    batcher.run(Job(1, ask(engine, "a"), Decoding(grammar='root ::= "a" root')).run())
    batcher.run(other.run())
    halted = []
    bad = Job(1, [5], Decoding())
    while batcher.running:
        halted += report(batcher, {1: bad, 2: other})
    assert [(each.ctx, each.why) for each in halted] == [(1, "failed"), (2, "stop")]
    assert halted[0].error
    assert halted[0].error["code"] == "llm.bad_grammar"
    assert other.result == run_solo(engine, other.prompt, other.decoding).result
    for ctx in (1, 2):
        batcher.drop(ctx)


# --- exactness ----------------------------------------------------------------------------------

JOBS = [
    ("Ada?", Decoding(schema=PERSON, digest=True)),
    ("Bob?", Decoding(schema=PERSON, temperature=1.3, seed=4, repeat_penalty=1.2, digest=True)),
    ("List", Decoding(grammar=llama_grammar.LIST_GBNF, temperature=0.9, top_k=40, max_tokens=40)),
    ("Go", Decoding(schema={"type": "object"}, temperature=1, seed=2, max_tokens=50, digest=True)),
    ("Run", Decoding(grammar='root ::= [a-z]+ (", " [a-z]+)*', max_tokens=30, ignore_eos=True)),
]


@pytest.fixture(scope="module")
def solo(engine: LlamaEngine) -> list[Job]:
    return [run_solo(engine, ask(engine, text), decoding) for text, decoding in JOBS]


def again(solo: list[Job]) -> list[Job]:
    return [Job(ctx, job.prompt, job.decoding) for ctx, job in enumerate(solo, 1)]


@pytest.mark.parametrize("quantum", [1, 2, 3])
def test_preempted_in_the_middle_it_goes_on_the_same(
    engine: LlamaEngine, solo: list[Job], quantum: int
) -> None:
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    for job in again(solo):
        while not job.why or job.why == "preempted":
            batcher.run(job.run())
            while batcher.running:
                report(batcher, {job.ctx: job})
                if batcher.running and len(job.tokens) % quantum == 0:
                    batcher.halt(Halt(job.ctx, "preempted"))
        assert job.result == solo[job.ctx - 1].result
        batcher.drop(job.ctx)


@pytest.mark.parametrize("seed", [1, 2])
def test_no_schedule_can_be_told_from_the_answers(
    engine: LlamaEngine, solo: list[Job], seed: int
) -> None:
    batcher = CheckedBatcher(engine, engine.slots, PLENTY)
    jobs = again(solo)
    at_random(batcher, jobs, seed)
    assert [job.result for job in jobs] == [job.result for job in solo]
    for job in jobs:
        batcher.drop(job.ctx)


def test_the_choice_at_each_token_is_a_function_of_the_answer_so_far(
    engine: LlamaEngine, solo: list[Job]
) -> None:
    for job in solo:
        one = engine.grammars.start(job.decoding, [])
        for count, token in enumerate(job.tokens):
            rebuilt = engine.grammars.start(job.decoding, job.tokens[:count])
            assert rebuilt.allowed().tolist() == one.allowed().tolist()
            one.accept(token)
