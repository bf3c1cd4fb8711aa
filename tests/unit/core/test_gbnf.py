"""Grammars as texts: what each takes, over a vocabulary of bytes and over a large one."""

from __future__ import annotations

import json
import random
import re

import pytest
from byte_grammar import BYTES, takes
from hypothesis import given
from hypothesis import strategies as st
from models import merges

from aios.agents.reasoning.tool_dialogue import BARE, TAGS, CallFormat
from aios.kernel.core.grammar import Grammars, to_lark
from aios.kernel.core.protocol import Compile
from aios.syscalls.errors import BadGrammar
from aios.syscalls.llm import Decoding

Pair = tuple[str, str]  # a piece of GBNF, and a regular expression of the same meaning


@pytest.mark.parametrize("schema", ['{"type": }', '{"type": "integer"', "{" * 5000])
def test_a_schema_in_a_grammar_that_is_no_json(schema: str) -> None:
    with pytest.raises(BadGrammar, match="a schema in the grammar is not JSON"):
        to_lark(f"root ::= %json {schema}")


def _quoted(text: str) -> Pair:
    return json.dumps(text, ensure_ascii=False), re.escape(text)


def _either(parts: list[Pair]) -> Pair:
    return f"({' | '.join(p[0] for p in parts)})", f"(?:{'|'.join(p[1] for p in parts)})"


def _both(parts: list[Pair]) -> Pair:
    return " ".join(p[0] for p in parts), "".join(p[1] for p in parts)


def _many(part: Pair, times: str) -> Pair:
    return f"({part[0]}){times}", f"(?:{part[1]}){times}"


ATOMS = st.text("ab\N{LATIN SMALL LETTER E WITH ACUTE}\n", max_size=3).map(
    _quoted
) | st.sampled_from(
    [
        ("[a-c]", "[a-c]"),
        ("[^a\\n]", "[^a\\n]"),
        ("[-a\\]]", "[-a\\]]"),
        ("[\\x61\\u00e9-\\u00EA]", "[aéê]"),
        (".", "(?s:.)"),
        ('"\\u0062\\x63"', "bc"),
    ]
)
EXPRESSIONS = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(_either)
        | st.lists(inner, min_size=2, max_size=3).map(_both)
        | st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{1,}", "{0,2}"])).map(
            lambda got: _many(*got)
        )
    ),
    max_leaves=6,
)


@given(EXPRESSIONS, st.lists(st.text("abcé-]\n", max_size=5), min_size=4, max_size=4))
def test_a_grammar_takes_what_it_says_and_nothing_else(pair: Pair, texts: list[str]) -> None:
    gbnf, expression = pair
    for text in [*texts, ""]:
        fits = re.fullmatch(expression, text) is not None
        assert takes(text, grammar=f"root ::= {gbnf}") == fits, text


@pytest.mark.parametrize(
    ("gbnf", "good", "bad"),
    [
        (
            'root ::= "a " one\none ::= %json {"items": {"$ref": "#/$defs/n"}, "maxItems": 2, '
            '"type": "array", "$defs": {"n": {"type": "integer"}}} "!"',
            ["a []!", "a [1, -2]!"],
            ["a [1,2]!", "a [1, 2, 3]!", "a []", 'a ["1"]!'],
        ),
        ('root ::= word "b"\nword ::= [a-z]+', ["ab", "aab"], ["b", "ba"]),
        ('root ::= ("if" | id) " " id\nid ::= [a-z]+', ["if x", "iffy if"], ["if "]),
        ('root ::= Ab ab\nAb ::= "x" ab?\nab ::= "y" Ab?', ["xyy", "xyxy"], ["xx"]),
        ('root ::= "(" root? ")" | root root', ["(())", "()()"], ["(()"]),
        ('# all\nroot ::= (\n "a" | # one\n "b"\n)\n  x-1\n\nx-1 ::=\n "c" |', ["ac", "b"], ["c"]),
        ('root ::= ""', [""], ["a"]),
        ('root ::= [^.]++ "."', ["a.", "ab c."], [".", "a", "a.."]),
        ('root ::= [a-z]++ ("x" | "!")', ["ab!", "x!"], ["abx", "!"]),  # nothing is given back
        ('root ::= "a" (.++)?', ["a", "ab\n<"], ["", "b"]),
        (f"root ::= {TAGS.text}", ["a", "a < b", "<<x", "<table", "a\n<"[:2]], ["", "a<", "a <to"]),
        (f"root ::= {BARE.text}", ["a", "a {\n"], ["", "{", " a", "\na"]),
        (
            f'root ::= ({TAGS.text})? "<tool_call>"',
            ["a<tool_call>", "<tool_call>", "<<b<tool_call>"],
            ["a<tool_call", "a<<tool_call>"],
        ),
    ],
)
def test_rules(gbnf: str, good: list[str], bad: list[str]) -> None:
    for text in good + bad:
        assert takes(text, grammar=gbnf) == (text in good), text


@pytest.mark.parametrize("form", [TAGS, BARE], ids=["tags", "bare"])
def test_calls_can_be_chosen_from_a_large_vocabulary(form: CallFormat) -> None:
    """The vocabulary is as large as Qwen2.5's; an answer is any text, or a call."""
    dice = random.Random(1)
    parts = [pair.replace(" ", "").replace("\u0120", " ") for pair in merges()]
    parts = [part for part in parts if part.isascii()] + ["<"] * 8  # beginnings of calls, of tags
    words = {"".join(dice.choices(parts, k=dice.randint(1, 3))) for _ in range(320_000)}
    pieces = [*(bytes([byte]) for byte in range(256)), b""]
    pieces += [word.encode() for word in sorted(words)][: 152_000 - len(pieces)]
    assert len(pieces) == 152_000
    schema = '{"type": "object", "properties": {}, "additionalProperties": false}'
    call = f'{json.dumps(form.opens)} "{{" %json {schema} "}}" {json.dumps(form.closes)}'
    for gbnf in (f"root ::= text | {call}\ntext ::= {form.text}", 'root ::= [^<]* "<"'):
        grammars = Grammars(pieces, [256], list)
        assert grammars.answer(Compile(1, None, gbnf)).error is None
        grammar = grammars.start(Decoding(grammar=gbnf), [])
        for token in b"Hello, you.":
            assert len(grammar.allowed()) > 10_000
            grammar.accept(token)


@given(st.text(st.sampled_from('ab"[]()|*+?{},.:=\\xu0- \n#é\ud800'), max_size=40))
def test_no_text_is_a_defect(text: str) -> None:
    """A malformed grammar is refused, in words; what is accepted can begin."""
    try:
        allowed = BYTES.start(Decoding(grammar=f"root ::= {text}"), []).allowed()
    except BadGrammar as error:
        assert error.message
        assert error.hint
    else:
        assert allowed.size
