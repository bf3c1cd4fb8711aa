"""A tool's schema, narrowed to one that a grammar can keep and whose every value the tool takes."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import pytest
from byte_grammar import drawn, takes
from hypothesis import given
from hypothesis import strategies as st

from aios.agents.reasoning.schemas import MAX_STRING_CHARS, narrowed
from aios.syscalls.errors import BadGrammar

WILD: dict[str, dict[str, Any]] = {  # as MCP servers have them
    "nothing": {},
    "no fields": {"type": "object"},
    "draft 7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {
            "path": {"type": "string", "description": "Where."},
            "head": {"type": "number"},
            "edits": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"old": {"type": "string"}, "new": {"type": "string"}},
                    "required": ["old", "new"],
                    "additionalProperties": False,
                },
            },
            "dry run": {"type": "boolean", "default": False},
        },
        "required": ["path", "edits"],
    },
    "pydantic": {
        "$defs": {
            "Mode": {"enum": ["a", "b"], "title": "Mode", "type": "string"},
            "Node": {
                "type": "object",
                "properties": {
                    "value": {"type": "integer"},
                    "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                },
                "required": ["value"],
            },
        },
        "properties": {
            "mode": {"$ref": "#/$defs/Mode"},
            "node": {"$ref": "#/$defs/Node"},
            "when": {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}]},
        },
        "required": ["mode", "node"],
        "type": "object",
    },
    "free maps, and no type": {
        "type": "object",
        "properties": {
            "headers": {"type": "object", "additionalProperties": {"type": "string"}},
            "body": {},
            "meta": {"type": "object"},
            "tags": {"type": "array", "items": {"type": "string"}, "uniqueItems": True},
            "rest": True,
        },
        "required": ["headers", "body", "meta", "tags"],
    },
    "a discriminated union": {
        "type": "object",
        "properties": {
            "shape": {
                "oneOf": [
                    {"type": "object", "properties": {"kind": {"const": "circle"}}},
                    {
                        "type": "object",
                        "properties": {"kind": {"const": "box"}, "width": {"type": "number"}},
                        "required": ["width"],
                    },
                ],
                "discriminator": {"propertyName": "kind"},
            }
        },
        "required": ["shape"],
    },
    "one of two fields": {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
        "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
    },
    "parts": {
        "type": "object",
        "allOf": [
            {"properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": {"type": "string"}}, "required": ["b"]},
        ],
    },
    "tuples": {
        "type": "object",
        "properties": {
            "point": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}]},
            "pair": {"prefixItems": [{"type": "integer"}, {"type": "integer"}], "minItems": 2},
        },
        "required": ["point", "pair"],
    },
    "bounds and formats": {
        "type": "object",
        "properties": {
            "maybe": {"type": ["string", "null"], "minLength": 2},
            "word": {"pattern": "^[a-z]+$"},
            "large": {"minimum": 3},
            "share": {"type": "number", "minimum": 0, "maximum": 1},
            "narrow": {"type": "number", "minimum": 0.25, "maximum": 0.26},
            "far": {"type": "integer", "minimum": 10**17},
            "mail": {"type": "string", "format": "email"},
            "file": {"type": "string", "format": "binary"},
            "long": {"type": "string", "minLength": 2 * MAX_STRING_CHARS},
        },
        "required": ["maybe", "word", "large", "share", "narrow", "far", "mail", "file", "long"],
    },
    "itself": {
        "type": "object",
        "properties": {"name": {"type": "string"}, "inner": {"$ref": "#"}},
        "required": ["name"],
    },
    "fields named like keywords": {
        "type": "object",
        "properties": {"not": {"type": "integer"}, "if": {"enum": ["$ref", "not"]}},
        "required": ["not", "if"],
    },
}


@pytest.mark.parametrize("name", WILD)
def test_what_a_grammar_allows_of_a_schema_from_the_wild_fits_it(name: str) -> None:
    grammar = f"root ::= %json {json.dumps(narrowed('wild', WILD[name]))}"
    values = [json.loads(drawn(grammar, seed)) for seed in range(12)]
    for value in values:
        jsonschema.validate(value, WILD[name])
    assert len({json.dumps(value) for value in values}) > 1 or name in ("nothing", "no fields")


def test_a_tool_that_takes_nothing_is_given_nothing() -> None:
    grammar = f"root ::= %json {json.dumps(narrowed('clock', {'type': 'object'}))}"
    assert takes("{}", grammar=grammar)
    assert not takes('{"a": 1}', grammar=grammar)


def test_what_must_be_unique_is_one_at_most() -> None:
    tags = {"type": "array", "items": {"enum": ["a", "b"]}, "uniqueItems": True}
    schema = narrowed("tag", {"type": "object", "properties": {"tags": tags}})
    grammar = f"root ::= %json {json.dumps(schema)}"
    assert takes('{"tags": ["a"]}', grammar=grammar)
    assert not takes('{"tags": ["a", "a"]}', grammar=grammar)


LEAVES = st.sampled_from(
    [
        {"type": "string"},
        {"type": "string", "minLength": 1, "maxLength": 3},
        {"type": "string", "pattern": "^[a-c]{2}$"},
        {"type": "integer"},
        {"type": "integer", "minimum": -3, "exclusiveMaximum": 9},
        {"type": "number", "minimum": 0.5},
        {"type": "number", "multipleOf": 0.5},
        {"type": "boolean"},
        {"type": "null"},
        {"enum": ["a", 1, None, [True]]},
        {"const": {"a": "é"}},
        {"type": ["integer", "string"]},
        {"minLength": 2},
        {"items": {"type": "null"}, "maxItems": 2},
        {},
    ]
)
KEYS = st.sampled_from(["a", "b", "not", "x y", "é", '"'])


def _object(fields: dict[str, Any], required: set[str], closed: bool | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": fields}
    schema["required"] = sorted(required & fields.keys())
    return schema if closed is None else {**schema, "additionalProperties": closed}


def _nested(inner: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    fields = st.dictionaries(KEYS, inner, max_size=3)
    whole = st.builds(_object, fields, st.sets(KEYS), st.sampled_from([None, True, False]))
    sizes = st.tuples(st.integers(0, 2), st.integers(2, 4))
    return st.one_of(
        whole,
        st.builds(
            lambda item, size: {
                "type": "array", "items": item, "minItems": size[0], "maxItems": size[1]
            },
            inner, sizes,
        ),
        st.builds(lambda item: {"type": "array", "items": item, "uniqueItems": True}, inner),
        st.builds(lambda value: {"type": "object", "additionalProperties": value}, inner),
        st.builds(lambda parts: {"anyOf": parts}, st.lists(inner, min_size=1, max_size=3)),
    )  # fmt: skip


SCHEMAS = st.builds(
    _object,
    st.dictionaries(KEYS, st.recursive(LEAVES, _nested, max_leaves=5), max_size=3),
    st.sets(KEYS),
    st.sampled_from([None, True, False]),
)


@given(SCHEMAS, st.integers(0, 2**32))
def test_what_a_grammar_allows_of_any_schema_fits_it(schema: dict[str, Any], seed: int) -> None:
    grammar = f"root ::= %json {json.dumps(narrowed('any', schema))}"
    jsonschema.validate(json.loads(drawn(grammar, seed)), schema)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"not": {"type": "string"}}, "'not'"),
        ({"if": {}, "then": {}}, "'if'"),
        ({"type": "array", "contains": {"const": 1}}, "'contains'"),
        ({"type": "array", "uniqueItems": True, "minItems": 2}, "'uniqueItems' and takes several"),
        ({"type": "object", "propertyNames": {"pattern": "a"}}, "'propertyNames'"),
        ({"type": "object", "dependentRequired": {"a": ["b"]}}, "'dependentRequired'"),
        ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "'oneOf' whose parts may both fit"),
        ({"$ref": "#/$defs/none"}, "'$ref' to '#/$defs/none', which is not in it"),
        ({"$ref": "https://example.org/schema"}, "'$ref' to 'https://example.org/schema'"),
        ({"type": "string", "pattern": "^(?!a)b$"}, "'pattern' '^(?!a)b$'"),
        ({"type": "string", "pattern": r"^(a)\1$"}, "'pattern'"),
    ],
)
def test_what_no_grammar_can_keep_is_refused_by_name(part: dict[str, Any], said: str) -> None:
    schema = {"type": "object", "properties": {"deep": {"type": "array", "items": part}}}
    with pytest.raises(BadGrammar, match=re.escape(said)) as caught:
        narrowed("files.move", schema)
    assert caught.value.message.startswith("the schema of the tool files.move has ")
    assert caught.value.hint == "leave this tool out"


@pytest.mark.parametrize(
    "part",
    [
        {"properties": {}, "minProperties": "1"},
        {"$ref": 0},
        {"type": "string", "pattern": {}},
        {"anyOf": True},
    ],
)
def test_what_other_drafts_let_through_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(BadGrammar, match="is none of JSON Schema of 2020"):
        narrowed("files.move", {"type": "object", "properties": {"deep": part}})
