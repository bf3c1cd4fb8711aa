"""The value of an answer that was held to a schema: it fits, or there is none."""

from __future__ import annotations

from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aios.agents.sdk import strict_json
from aios.kernel.core.grammar import Grammars
from aios.syscalls.llm import Decoding

BYTES = Grammars([*(bytes([byte]) for byte in range(256)), b""], [256], list)
SCHEMAS: list[dict[str, Any]] = [
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"a/b": {"type": "integer"}, "b": {"type": "null"}}},
    {"type": "object", "minProperties": 2, "additionalProperties": {"type": "number"}},
    {"type": "object", "additionalProperties": {"exclusiveMinimum": 0, "exclusiveMaximum": 1}},
]
KEYS = [
    "a",
    r"\u0061",
    "b",
    r"\u0062",
    "a/b",
    r"a\/b",
    "é",
    r"\u00e9",
    r"\n",
    r"\ud83d\ude00",
    "😀",
]
VALUES = ["1", '"x"', "null", "1E400", "-1e999", "0.5", "0." + "9" * 30, "0." + "0" * 400 + "1"]
OBJECTS = st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=4)


def takes(text: str, schema: dict[str, Any]) -> bool:
    """Tell whether the grammar of the schema lets the text through."""
    grammar = BYTES.start(Decoding(schema=schema), [])
    for byte in text.encode():
        if byte not in grammar.allowed():
            return False
        grammar.accept(byte)
    return 256 in grammar.allowed()


def written(pairs: list[tuple[str, str]]) -> str:
    return "{" + ", ".join(f'"{key}": {value}' for key, value in pairs) + "}"


@given(OBJECTS, st.sampled_from(SCHEMAS))
@example([("a", "1"), (r"\u0061", '"x"')], SCHEMAS[0])
@example([(r"a\/b", '"x"')], SCHEMAS[1])
@example([("b", "1"), ("b", "0.5")], SCHEMAS[2])
@example([("a", "0." + "9" * 30)], SCHEMAS[3])
def test_a_value_fits_the_schema_or_there_is_none(
    pairs: list[tuple[str, str]], schema: dict[str, Any]
) -> None:
    text = written(pairs)
    if takes(text, schema):
        try:
            value = strict_json.read(text)
        except ValueError:
            return
        jsonschema.validate(value, schema)


@pytest.mark.parametrize(("text", "why"), [
    (written([("a", "1"), (r"\u0061", '"x"')]), "the key 'a' twice"),
    (written([(r"\u0061", '"x"')]), r'the key "a" is written as "\\u0061"'),
    ('{"b": {"a": 1, "a": 1}}', "the key 'a' twice"),
    ("[1E400]", "the number 1E400 is not"),
    ("[1e99999999999999999999]", "is not what a float makes of it"),
    ("[-1e-99999999999999999999]", "is not what a float makes of it"),
    ("[0." + "9" * 30 + "]", "is not what a float makes of it"),
    ("[NaN]", "NaN is no value"),
    ('{"a": ', "Expecting value"),
])  # fmt: skip
def test_what_is_no_value_is_said(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        strict_json.read(text)


@pytest.mark.parametrize(("text", "value"), [
    (r'{"a": "\u0061\ud83d\ude00", "é\n": [1.5, 3.14159265358979323846, 1e5, true, null]}',
     {"a": "a😀", "é\n": [1.5, 3.141592653589793, 1e5, True, None]}),
    (r'["{\"a\": 1, \"a\": 2}", {"x": ":"}, -0.0, 0e99999999999999999999, 12345678901234567890]',
     ['{"a": 1, "a": 2}', {"x": ":"}, 0, 0, 12345678901234567890]),
])  # fmt: skip
def test_other_values_are_as_they_were_written(text: str, value: Any) -> None:
    assert strict_json.read(text) == value
