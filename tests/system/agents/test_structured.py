"""Answers held to a schema or a grammar: the SDK, the command line, the death of the core."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from commands import answer, run
from conftest import EMBEDDED, Boot, eventually, of_core
from helpers import STORY, first_piece

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, BadGrammar, BadInput, Malformed, NotJson
from aios.syscalls.llm import MAX_GRAMMAR_CHARS

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["poet", "queen"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
YES_OR_NO = 'root ::= "yes" | "no"'

# --- the SDK ------------------------------------------------------------------------------------


def test_a_schema_gives_a_value(aios: Aios) -> None:
    answered = aios.generate("Who was Ada Lovelace?", schema=PERSON)
    assert set(answered.json) == {"name", "age", "tags"}
    assert 0 <= answered.json["age"] <= 120
    assert (answered.finish, json.loads(answered.text)) == ("stop", answered.json)


def test_a_grammar_in_a_context_that_goes_on(aios: Aios) -> None:
    with aios.open("You are terse.") as talk:
        for question in ("Is the sky blue?", "Is it green?"):
            assert talk.generate(question, grammar=YES_OR_NO, ignore_eos=True).text in ("yes", "no")
        assert talk.generate("Say more.", max_tokens=5).result().usage.completion


def test_a_cut_answer_is_no_value(aios: Aios) -> None:
    cut = aios.generate("Who was Ada Lovelace?", schema=PERSON, max_tokens=9)
    with pytest.raises(NotJson, match=r"cut after 9 tokens \(length\)"):
        _ = cut.json
    number = aios.generate("Pi:", schema={"type": "integer", "minimum": 10**8}, max_tokens=2)
    assert number.text.isdigit()
    with pytest.raises(NotJson, match="length"):
        _ = number.json
    with pytest.raises(NotJson, match="not JSON: Expecting"):
        _ = aios.generate("Is the sky blue?", grammar=YES_OR_NO).json


def test_cancelled_it_is_no_value(aios: Aios) -> None:
    endless = {"type": "array", "items": {"const": 1}, "minItems": 900}
    answered = aios.generate("Go", schema=endless, max_tokens=900)
    next(answered.pieces())
    answered.cancel()
    with pytest.raises(NotJson, match="cancelled"):
        _ = answered.json


# --- what cannot be held to ---------------------------------------------------------------------

DEEP: dict[str, Any] = {}
for _ in range(40):
    DEEP = {"items": DEEP}


@pytest.mark.parametrize(
    ("options", "error", "why"),
    [
        ({"schema": PERSON, "grammar": YES_OR_NO}, BadInput, "exclude each other"),
        ({"schema": {"not": {}}}, BadGrammar, "Unimplemented"),
        ({"schema": {"$ref": "#/nowhere"}}, BadGrammar, "does not exist"),
        ({"schema": {"type": "integer", "multipleOf": 999_983}}, BadGrammar, "takes too much"),
        ({"grammar": "root ::= word"}, BadGrammar, "no rule 'word'"),
        ({"grammar": "root ::= root"}, BadGrammar, "no answer can begin"),
        ({"grammar": 'root ::= "' + "a" * MAX_GRAMMAR_CHARS}, Malformed, "grammar"),
        ({"grammar": ""}, Malformed, "grammar"),
        ({"schema": True}, Malformed, "schema"),
        ({"schema": DEEP}, Malformed, "nested deeper"),
        ({"schema": {"minimum": float("nan")}}, Malformed, "not plain"),
    ],
)
def test_it_is_refused_before_anything_enters_the_context(
    aios: Aios, options: dict[str, Any], error: type[AiosError], why: str
) -> None:
    with aios.open() as context:
        before = context.append("Remember 42.").used
        generated = aios.stats().generations
        with pytest.raises(error, match=why):
            context.generate("And this.", **options).result()
        assert context.append([5]).used == before + 1
        assert context.generate("Go on.", max_tokens=2).result().usage.completion
        assert aios.stats().generations == generated + 1  # no slot was asked for


def test_while_a_grammar_is_compiled_other_questions_are_answered(aios: Aios) -> None:
    """Each of these takes half a second of processor time to be refused, one after the other."""
    slow = [
        aios.generate("Hi", schema={"type": "integer", "multipleOf": 999_983 - number})
        for number in range(4)
    ]
    assert aios.tokenize("one two three")
    assert not slow[-1].ended
    for call in slow:
        with pytest.raises(BadGrammar, match="takes too much"):
            call.result()
    assert aios.status().core_restarts == 0


def test_an_answer_that_outgrows_the_limits_ends_with_the_reason(aios: Aios) -> None:
    other = aios.generate("Who was Ada Lovelace?", schema=PERSON)
    with pytest.raises(BadGrammar, match=r"cannot go on: .*Too many items"):
        aios.generate("Go", grammar='root ::= "a" root').result()
    assert other.json["name"]
    assert aios.status().core_restarts == 0


# --- exactness ----------------------------------------------------------------------------------


def test_preempted_after_every_few_tokens(boot: Boot) -> None:
    system = boot(model=EMBEDDED, slots=1)  # a token takes longer than to ask for a preemption
    options: dict[str, Any] = {"schema": PERSON, "digest": True, "temperature": 0.8}
    with connect(system.home) as aios:
        alone = [aios.generate("Who?", seed=seed, **options).result() for seed in (1, 2)]
        for quantum in (1, 3):
            aios.policy("fifo")
            before = aios.generate(STORY, max_tokens=400, ignore_eos=True)
            first_piece(before)
            calls = [aios.generate("Who?", seed=seed, **options) for seed in (1, 2)]
            eventually(lambda: aios.status().ready == 2)  # so that neither runs alone
            aios.policy("rr", quantum)
            before.cancel()
            for call, one in zip(calls, alone, strict=True):
                assert (call.text, call.tokens, call.digest) == (one.text, one.tokens, one.digest)
                assert call.json == json.loads(one.text)
            assert calls[0].timings.switches > len(calls[0].tokens) // quantum // 3


def test_the_core_killed_in_the_middle_of_an_answer(boot: Boot) -> None:
    system = boot(model=EMBEDDED, slots=2)  # the tiny one has said all before it is killed
    numbers = {"type": "array", "items": {"type": "integer"}, "minItems": 25, "maxItems": 25}
    options: dict[str, Any] = {"schema": numbers, "digest": True, "temperature": 0.8, "seed": 4}
    with connect(system.home) as aios:
        alone = aios.generate("Which?", **options).result()
        assert len(alone.tokens) > 50
        call = aios.generate("Which?", **options)
        seen = 0
        for count in (5, 15):
            seen += len(list(itertools.islice(call.pieces(), count - seen)))
            assert not call.ended
            core = of_core(system)
            core.kill()
            core.wait(timeout=60)
        assert (call.text, call.tokens, call.digest) == (alone.text, alone.tokens, alone.digest)
        assert aios.status().core_restarts == 2
        assert aios.check() == []


# --- the command line ---------------------------------------------------------------------------


def test_generate_takes_a_schema_as_a_file_or_as_text(system: System, tmp_path: Path) -> None:
    path = tmp_path / "person.json"
    path.write_text(json.dumps(PERSON))
    by_file = run(system.home, "generate", "Who?", "--schema", str(path))
    by_text = run(system.home, "generate", "Who?", "--schema", json.dumps(PERSON))
    assert by_file.stdout == by_text.stdout
    assert set(json.loads(by_file.stdout)) == {"name", "age", "tags"}


def test_generate_takes_a_grammar_as_a_file_or_as_text(system: System, tmp_path: Path) -> None:
    path = tmp_path / "answer.gbnf"
    path.write_text(YES_OR_NO)
    for given in (str(path), YES_OR_NO):
        assert answer(system.home, "generate", "Rain?", "--grammar", given)["text"] in ("yes", "no")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--schema", "/nowhere.json"], "cannot read '/nowhere.json'"),
        (["--schema", "{"], "--schema is not JSON"),
        (["--schema", '{"not": {}}'], "Unimplemented"),
        (["--grammar", "/nowhere.gbnf"], "cannot read '/nowhere.gbnf'"),
        (["--grammar", "root ::= word"], "no rule 'word'"),
        (["--grammar", YES_OR_NO, "--schema", "{}"], "exclude each other"),
    ],
)
def test_generate_says_what_is_wrong_with_it(system: System, options: list[str], said: str) -> None:
    done = run(system.home, "generate", "Hi", *options)
    assert (done.returncode, done.stdout) == (78, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_schema_file_that_holds_no_object(system: System, tmp_path: Path) -> None:
    path = tmp_path / "list.json"
    path.write_text("[1]")
    done = run(system.home, "generate", "Hi", "--schema", str(path))
    assert (done.returncode, "not a JSON object" in done.stderr) == (78, True)
