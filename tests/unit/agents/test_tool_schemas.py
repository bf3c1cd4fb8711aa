"""A tool accepts just what its schema says, for random signatures."""

from __future__ import annotations

import enum
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import jsonschema
import msgspec
from hypothesis import given
from hypothesis import strategies as st
from jobs import NO_KERNEL
from msgspec import Meta

from aios.agents.runtime.tool import Tool, tool
from aios.syscalls.errors import ToolArguments


@dataclass
class Point:
    x: int
    title: str = "a point"


class Row(msgspec.Struct):
    n: int


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


SMALL = st.integers(-3, 12)
SCALARS: list[Any] = [
    int, float, bool, str, Color, Literal["a", "b"], Literal[1, 5],
    Annotated[int, Meta(ge=0, lt=10)], Annotated[float, Meta(gt=-1, le=2.5)],
    Annotated[int, Meta(multiple_of=3)], Annotated[str, Meta(min_length=1, max_length=3)],
    Annotated[str, Meta(pattern="^a+$")],
]  # fmt: skip
KINDS = st.recursive(
    st.sampled_from([*SCALARS, Point, Row, tuple[int, str], int | str | None]),
    lambda inner: st.one_of(
        inner.map(lambda kind: list[kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: dict[str, kind]),  # type: ignore[valid-type]
        inner.map(lambda kind: Annotated[list[kind], Meta(min_length=1, max_length=2)]),  # type: ignore[valid-type]
        inner.map(lambda kind: kind | None),
    ),
    max_leaves=3,
)
# A number with a point is no integer to msgspec; JSON Schema takes 1.0 for one.
JSON = st.recursive(
    st.one_of(
        st.none(), st.booleans(), SMALL, SMALL.map(lambda n: n + 0.5),
        st.text("ab", max_size=4), st.sampled_from(["red", "x"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["x", "n", "title"]), inner, max_size=3),
        st.tuples(SMALL, st.text("ab", max_size=2)).map(list),
    ),
    max_leaves=5,
)  # fmt: skip
NAMES = ["a", "title", "properties", "b"]


@st.composite
def tools(draw: st.DrawFn) -> Tool:
    """A tool of a random signature; half of its parameters may be left out."""
    kinds = draw(st.dictionaries(st.sampled_from(NAMES), KINDS, max_size=3))
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default)
        for name in kinds
        for default in [draw(st.sampled_from([inspect.Parameter.empty, None]))]
    ]

    def function(**given: Any) -> Any:
        return sorted(given)

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = kinds
    return tool(function)


def fitting(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values for an object's properties, many of which fit."""
    known: dict[str, st.SearchStrategy[Any]] = {
        name: st.one_of(like(part), JSON) for name, part in schema["properties"].items()
    }
    required = {name: known[name] for name in schema["required"]}
    optional = {name: part for name, part in known.items() if name not in required}
    whole = st.fixed_dictionaries(required, optional=optional)
    return st.one_of(whole, st.dictionaries(st.sampled_from([*NAMES, "c"]), JSON, max_size=3))


def like(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """A value that likely fits."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "anyOf" in schema:
        return st.one_of([like(part) for part in schema["anyOf"]])
    return LIKE[schema["type"]](schema)


def like_array(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "prefixItems" in schema:
        return st.tuples(*map(like, schema["prefixItems"])).map(list)
    return st.lists(like(schema["items"]), max_size=2)


def like_object(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    if "properties" in schema:
        return st.fixed_dictionaries({name: like(p) for name, p in schema["properties"].items()})
    return st.dictionaries(st.text("ab", max_size=2), like(schema["additionalProperties"]))


LIKE: dict[str, Callable[[dict[str, Any]], st.SearchStrategy[Any]]] = {
    "array": like_array,
    "object": like_object,
    "integer": lambda _: SMALL,
    "number": lambda _: SMALL.map(lambda n: n / 2 if n % 2 else n),
    "boolean": lambda _: st.booleans(),
    "string": lambda _: st.text("a", max_size=3),
    "null": lambda _: st.none(),
}


@given(tools(), st.data())
def test_what_fits_the_schema_is_accepted_and_nothing_else(made: Tool, data: st.DataObject) -> None:
    assert "$ref" not in json.dumps(made.schema)
    jsonschema.Draft202012Validator.check_schema(made.schema)
    args = data.draw(fitting(made.schema))
    fits = jsonschema.Draft202012Validator(made.schema).is_valid(args)
    try:
        made.run(args, NO_KERNEL)
        accepted = True
    except ToolArguments:
        accepted = False
    assert accepted == fits, (made.schema, args)
