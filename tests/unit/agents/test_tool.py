"""Functions become tools: their schemas, what they accept, what they may return."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgpack
import msgspec
import pytest
from msgspec import Meta

from aios.agents.runtime.tool import Running, load_tools, tool
from aios.agents.sdk.aios import Aios
from aios.syscalls.errors import NoProgram, ToolArguments, ToolFailed


class Alone:
    """A job of tools that need no kernel."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float | None, str]] = []

    @property
    def aios(self) -> Aios:
        raise AssertionError("this tool has no business with the kernel")

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        self.steps.append((done, total, message))


@dataclass
class Point:
    x: int
    title: str = "a point"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Chain:
    next: Chain | None


@tool(name="draw.points", effect=True, exclusive="canvas", limit=2, timeout=5)
def draw(
    points: list[Point], job: Running, color: Color = Color.RED,
    size: Annotated[int, Meta(ge=1, le=9, description="pixels")] = 1,
) -> list[Point]:  # fmt: skip
    """Draw points.

    All of them.
    """
    job.progress(1, 2, color.value)
    return points * size


def test_a_schema_comes_from_the_hints() -> None:
    point = {
        "type": "object",
        "properties": {
            "x": {"type": "integer"},
            "title": {"type": "string", "default": "a point"},
        },
        "required": ["x"],
    }
    assert draw.schema == {
        "type": "object",
        "properties": {
            "points": {"type": "array", "items": point},
            "color": {"enum": ["blue", "red"], "default": "red"},
            "size": {
                "type": "integer", "minimum": 1, "maximum": 9, "default": 1, "description": "pixels"
            },
        },
        "required": ["points"],
        "additionalProperties": False,
    }  # fmt: skip
    assert draw.result == {"type": "array", "items": point}
    spec = draw.spec()
    assert (spec.name, spec.description) == ("draw.points", "Draw points.\n\nAll of them.")
    assert (spec.effect, spec.exclusive, spec.limit, spec.timeout) == (True, "canvas", 2, 5)
    assert (spec.schema, spec.result) == (draw.schema, draw.result)


def test_it_runs_with_the_job_and_is_still_a_function() -> None:
    job = Alone()
    found = draw.run({"points": [{"x": 1, "title": "b"}], "size": 2, "color": "blue"}, job)
    assert found == [{"x": 1, "title": "b"}] * 2
    assert job.steps == [(1, 2, "blue")]
    assert draw([Point(3)], job) == [Point(3)]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ({}, "missing required field `points`"),
        ({"points": [{"x": "1"}]}, "Expected `int`, got `str` - at `$.points[0].x`"),
        ({"points": [], "size": 0}, "Expected `int` >= 1 - at `$.size`"),
        ({"points": [], "size": True}, "Expected `int`, got `bool` - at `$.size`"),
        ({"points": [], "color": "green"}, "Invalid enum value 'green' - at `$.color`"),
        ({"points": [], "job": {}}, "unknown field `job`"),
        ([1], "Expected `object`, got `array`"),
        ({1: 2}, "Expected `str`"),
    ],
)
def test_arguments_that_do_not_fit_never_reach_the_function(args: Any, reason: str) -> None:
    job = Alone()
    with pytest.raises(ToolArguments) as caught:
        draw.run(args, job)
    assert "draw.points: " in caught.value.message
    assert reason in caught.value.message
    assert json.dumps(draw.schema) in caught.value.hint
    assert job.steps == []


def test_a_long_schema_is_cut_in_an_error() -> None:
    @tool
    def wide(choice: Literal["a", "b"], text: Annotated[str, Meta(description="x" * 9000)]) -> None:
        """Take one of them."""

    with pytest.raises(ToolArguments) as caught:
        wide.run({"choice": "c", "text": ""}, Alone())
    assert len(str(caught.value)) < 2200


# --- results --------------------------------------------------------------------------------------


class Pair(NamedTuple):
    a: int
    b: str


class Row(msgspec.Struct):
    n: int


@tool
def returns(what: str) -> Any:
    """Return one of these."""
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    ring: list[Any] = []
    ring.append(ring)
    return {
        "struct": Row(1), "dataclass": Point(1, ""), "pair": Pair(1, "b"), "enum": Color.RED,
        "time": datetime(2026, 1, 31, tzinfo=UTC), "set": {1}, "bytes": b"\0", "none": None,
        "map": {1: "a"}, "widest": 2**64 - 1,
        "nan": [float("nan")], "inf": {"a": -float("inf")}, "object": object(), "complex": 3j,
        "wide": 2**64, "deep": deep, "ring": ring, "key": {(1, 2): 3}, "float key": {0.5: 1},
        "bool key": {True: 1},
    }[what]  # fmt: skip


@pytest.mark.parametrize(
    ("what", "value"),
    [
        ("struct", {"n": 1}), ("dataclass", {"x": 1, "title": ""}), ("pair", [1, "b"]),
        ("enum", "red"), ("time", "2026-01-31T00:00:00Z"), ("set", [1]), ("bytes", b"\0"),
        ("none", None), ("map", {1: "a"}), ("widest", 2**64 - 1),
    ],
)  # fmt: skip
def test_a_result_becomes_what_msgpack_has(what: str, value: Any) -> None:
    found = returns.run({"what": what}, Alone())
    assert msgpack.unpackb(msgpack.packb(found), strict_map_key=False) == value


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("nan", "nan is no number of JSON"), ("inf", "-inf is no number of JSON"),
        ("object", "type object"), ("complex", "type complex"),
        ("wide", "above 64 bits"), ("deep", "deeper than 32"), ("ring", ""),
        ("key", "keys are strings"), ("float key", "keys are strings"),
        ("bool key", "keys are strings"),
    ],
)  # fmt: skip
def test_a_result_that_cannot_be_sent_is_a_clear_failure(what: str, reason: str) -> None:
    with pytest.raises(ToolFailed, match=f"returned what cannot be used: .*{reason}"):
        returns.run({"what": what}, Alone())


def test_a_result_is_what_the_function_declares() -> None:
    @tool
    def liar() -> list[int]:
        """Say it returns integers."""
        return ["one"]  # type: ignore[list-item]

    with pytest.raises(ToolFailed, match=r"Expected `int`, got `str` - at `\$\[0\]`"):
        liar.run({}, Alone())


def test_what_the_function_raises_is_its_own() -> None:
    @tool
    def broken() -> None:
        """Fail."""
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        broken.run({}, Alone())


# --- what is no tool ------------------------------------------------------------------------------


async def later() -> int:
    return 1


def pieces() -> Any:
    yield 1


async def streams(a: int) -> Any:
    yield a


def private(__x: int) -> None: ...
def wrong(a: int = "x") -> None: ...  # type: ignore[assignment]


def untyped(x):  # type: ignore[no-untyped-def]
    return x


def starred(*items: int) -> None: ...
def doubled(**items: int) -> None: ...
def positional(x: int, /) -> None: ...
def endless(chain: Chain) -> None: ...
def foreign(path: Alone) -> None: ...


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (later, "a plain function"), (pieces, "a plain function"), (streams, "a plain function"),
        (private, "'__x' begins with two _"), (wrong, "default of 'a' .*Expected `int`, got `str`"),
        (untyped, "the parameter 'x' has no type"), (starred, "items: .*by name"),
        (doubled, "items: .*by name"), (positional, "x: .*by name"),
        (endless, "Chain contains itself"), (foreign, "Alone"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_tool_says_why(function: Callable[..., Any], reason: str) -> None:
    with pytest.raises(TypeError, match=f"the tool '{function.__name__}': .*{reason}"):
        tool(function)


@tool
def all_kinds(
    when: datetime, maybe: list[datetime | None], clock: Annotated[time, Meta(description="at")],
    zoned: Annotated[datetime, Meta(tz=True)],
    a: int = None,  # type: ignore[assignment]  # noqa: RUF013
    b: list[int] = [1],  # noqa: B006
) -> list[Any]:  # fmt: skip
    """Return what it gets."""
    b.append(2)
    return [when, maybe, clock, zoned, a, b]


def test_dates_and_times_have_their_formats_in_a_schema() -> None:
    kinds = all_kinds.schema["properties"]
    date = {"type": "string", "format": "date-time"}
    assert (kinds["when"], kinds["zoned"]) == (date, date)
    assert kinds["maybe"]["items"]["anyOf"] == [date, {"type": "null"}]
    assert kinds["clock"] == {"type": "string", "format": "time", "description": "at"}
    given = {
        "when": "2026-01-31T10:00:00Z", "maybe": ["2026-01-31T10:00:00", None], "clock": "10:00:00",
        "zoned": "2026-01-31T10:00:00Z",
    }  # fmt: skip
    assert all_kinds.run(given, Alone()) == [*given.values(), None, [1, 2]]
    assert all_kinds.run({**given, "a": None}, Alone())[4:] == [
        None,
        [1, 2],
    ]  # no call's is another's


@dataclass
class Report:
    text: str
    lines: int = field(default=3, init=False)


def test_a_field_that_nobody_has_set_is_in_the_result() -> None:
    @tool
    def reports() -> list[Report]:
        """Report."""
        return [Report("a")]

    assert reports.run({}, Alone()) == [{"text": "a", "lines": 3}]


@pytest.mark.parametrize("given", ["lab.add", returns, Row])
def test_what_is_no_function_says_how_to_write_it(given: Any) -> None:
    with pytest.raises(TypeError, match=r"write @tool, or @tool\(name="):
        tool(given)


@pytest.mark.parametrize("given", [{"name": "two words"}, {"limit": 0}, {"timeout": 0}])
def test_what_the_kernel_would_refuse_is_refused_here(given: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="Expected"):
        tool(**given)(returns.function)


# --- files of tools -------------------------------------------------------------------------------

FILE = """
from __future__ import annotations
from dataclasses import dataclass
from aios.agents.tools import Running, tool
from aios.agents.tools.time import now  # another's: not offered here

@dataclass
class Pair:
    a: int

@tool(name="pair.make")
def make(a: int) -> Pair:
    return Pair(a)

def helper(): ...

@tool
def add(pair: Pair, b: int) -> int:
    return pair.a + b
"""


def test_a_file_s_own_tools_are_loaded_in_order(tmp_path: Path) -> None:
    (tmp_path / "pairs.py").write_text(FILE)
    make, add = load_tools(str(tmp_path / "pairs.py"))
    assert (make.name, add.name) == ("pair.make", "add")
    assert add.run({"pair": make.run({"a": 1}, Alone()), "b": 2}, Alone()) == 3


LATER = """
from __future__ import annotations
import msgspec
from aios.agents.tools import tool

class Inner(msgspec.Struct):
    {name}: int

class Outer(msgspec.Struct):
    inner: Inner

@tool
def read(text: str) -> int:
    return msgspec.json.decode(text, type=Outer).inner.{name}
"""


def test_files_that_are_loaded_together_keep_their_types_apart(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text(LATER.format(name=name))
    (a,), (b,) = (load_tools(str(tmp_path / f"{name}.py")) for name in ("a", "b"))
    assert a.run({"text": '{"inner": {"a": 1}}'}, Alone()) == 1
    assert b.run({"text": '{"inner": {"b": 2}}'}, Alone()) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x = 1", "defines no tools"),
        ("import no_such_package", "needs the package no_such_package"),
        (FILE + "@tool(name='add')\ndef again() -> None: ...\n", "two tools of one name"),
    ],
)
def test_a_file_without_usable_tools_is_no_program(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "box.py").write_text(text)
    with pytest.raises(NoProgram, match=reason):
        load_tools(str(tmp_path / "box.py"))


@pytest.mark.parametrize("name", ["missing.py", "notes.txt", "."])
def test_what_is_no_file_of_python_is_no_program(name: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(NoProgram, match="is not a Python file"):
        load_tools(str(tmp_path / name))
