"""The decorator that makes a tool, which models can call, of a function with type hints.

from aios.agents.tools import tool

@tool
def dice(sides: int = 6) -> int:
    "Roll a die."
    return random.randint(1, sides)

msgspec makes the JSON Schema of the hints, and checks arguments and results against them.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import inspect
import json
import math
import operator
import re
import sys
import types
import typing
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, time
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, overload

import msgspec

from aios.agents.sdk.aios import Aios
from aios.syscalls import tool as t
from aios.syscalls.errors import NoProgram, ToolArguments, ToolFailed

MAX_DEPTH = 32  # of a result; the kernel refuses more
MAX_SCHEMA_CHARS = 2000  # in an error
FORMATS: dict[type, str] = {datetime: "date-time", time: "time"}
NESTED = ("properties", "patternProperties", "$defs")  # keywords whose value names schemas
VALUES = ("default", "enum", "const", "examples", "required")  # whose value is no schema


class Running(Protocol):
    """The call that a tool serves. It is passed to the parameter of this type."""

    @property
    def aios(self) -> Aios:
        """A connection that acts in the caller's storage, within the rights of the toolbox."""

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Report progress to the caller."""


@dataclass(frozen=True)
class Tool:
    """A function, with the metadata that the kernel, its callers and models need."""

    name: str
    description: str
    schema: dict[str, Any]  # of the arguments
    result: dict[str, Any] | None  # of what it returns, where the function says so
    effect: bool
    exclusive: str
    limit: int
    timeout: float  # seconds
    function: Callable[..., Any]
    takes: type[msgspec.Struct]  # the arguments
    returns: Any
    job: str | None  # the parameter that gets the Running

    def spec(self) -> t.Spec:
        return t.Spec(
            name=self.name, description=self.description, schema=self.schema, result=self.result,
            effect=self.effect, exclusive=self.exclusive, limit=self.limit, timeout=self.timeout,
        )  # fmt: skip

    def run(self, args: dict[str, Any], job: Running) -> Any:
        """Call the function with the arguments of a job; return its result in msgpack's types.

        Raises:
            ToolArguments: they do not fit the schema; the function was not called.
            ToolFailed: its result is not of the declared type, or cannot be sent.
            Exception: the function's own.
        """
        try:
            given = msgspec.convert(args, self.takes, str_keys=True)
        except (msgspec.ValidationError, RecursionError) as error:
            schema = json.dumps(self.schema)[:MAX_SCHEMA_CHARS]
            raise ToolArguments(f"{self.name}: {error}", f"its arguments are {schema}") from error
        named = {name: getattr(given, name) for name in self.takes.__struct_fields__}
        if self.job is not None:
            named[self.job] = job
        return self._sendable(self.function(**named))

    def _sendable(self, value: Any) -> Any:
        try:
            plain = msgspec.to_builtins(_whole(value), builtin_types=(bytes,))
            check_plain(plain, MAX_DEPTH)
            msgspec.convert(plain, self.returns, str_keys=True)
        except (TypeError, ValueError, RecursionError) as error:
            raise ToolFailed(f"{self.name} returned what cannot be used: {error}") from error
        return plain

    def __call__(self, *args: Any, **named: Any) -> Any:
        return self.function(*args, **named)


@overload
def tool(function: Callable[..., Any]) -> Tool: ...


@overload
def tool(
    *, name: str | None = None, effect: bool = False, exclusive: str = "", limit: int = 8,
    timeout: float = 60.0,
) -> Callable[[Callable[..., Any]], Tool]: ...  # fmt: skip


def tool(
    function: Callable[..., Any] | None = None, *, name: str | None = None, effect: bool = False,
    exclusive: str = "", limit: int = 8, timeout: float = 60.0,
) -> Tool | Callable[[Callable[..., Any]], Tool]:  # fmt: skip
    """Make a tool of a function: @tool, or @tool(effect=True, ...).

    The docstring is the tool's description. Every parameter needs a type that msgspec knows;
    constraints and descriptions are given as `Annotated[int, msgspec.Meta(ge=1, description="")]`.

    `name` is that of the function by default. `effect`: the tool changes something, so that an
    interrupted call is never repeated. `exclusive`: only one of the tools with the same word runs
    at a time. `limit`: calls of this tool at a time. `timeout`: seconds; its caller may give less.

    Raises:
        TypeError: no schema can be made; the message says why.
    """

    def decorate(function: Callable[..., Any]) -> Tool:
        if not inspect.isfunction(function):
            raise TypeError(
                f"{function!r} is no function: write @tool, or @tool(name=...), above one"
            )
        label = name or function.__name__
        takes, returns, job = _signature(label, function)
        made = Tool(
            name=label,
            description=inspect.getdoc(function) or "",
            schema=_schema(label, takes),
            result=None if returns is Any else _schema(label, returns),
            effect=effect, exclusive=exclusive, limit=limit, timeout=timeout, function=function,
            takes=takes, returns=returns, job=job,
        )  # fmt: skip
        try:
            msgspec.convert(msgspec.to_builtins(made.spec()), t.Spec)
        except msgspec.ValidationError as error:
            raise TypeError(f"the tool {label!r}: {error}") from error
        return made

    return decorate if function is None else decorate(function)


def load_tools(path: str) -> list[Tool]:
    """Load the tools that the file at `path` defines, in its order.

    Raises:
        NoProgram: it is no Python file, has no tools, two of one name, or needs a missing package.
    """
    name = "aios_tools" + re.sub(r"\W", "_", path)  # hints are looked up in its module, also later
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise NoProgram(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except ModuleNotFoundError as error:
        hint = "install it; the tools that ship need `pip install 'aios-system[tools]'`"
        raise NoProgram(f"{path} needs the package {error.name}", hint) from error
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, Tool) and value.function.__module__ == spec.name
    ]
    if not found:
        raise NoProgram(f"{path} defines no tools", "mark a function with @tool")
    if len({tool.name for tool in found}) < len(found):
        raise NoProgram(f"{path} defines two tools of one name")
    return found


def _signature(
    label: str, function: Callable[..., Any]
) -> tuple[type[msgspec.Struct], Any, str | None]:
    """Return the arguments as a struct, the type of the result, and the parameter for Running."""
    if (
        inspect.iscoroutinefunction(function) or inspect.isgeneratorfunction(function)
        or inspect.isasyncgenfunction(function)
    ):  # fmt: skip
        raise TypeError(f"the tool {label!r}: a tool is a plain function")
    hints = typing.get_type_hints(function, include_extras=True)
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    job = None
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise TypeError(f"the tool {label!r}: {parameter} cannot be given by name")
        if name not in hints:
            raise TypeError(f"the tool {label!r}: the parameter {name!r} has no type")
        if name.startswith("__"):
            raise TypeError(f"the tool {label!r}: the parameter {name!r} begins with two _")
        if hints[name] is Running:
            job = name
        elif parameter.default is parameter.empty:
            fields.append((name, _dated(hints[name])))
        else:
            fields.append((name, *_defaulted(label, name, hints[name], parameter.default)))
    takes = msgspec.defstruct("Arguments", fields, kw_only=True, forbid_unknown_fields=True)
    returns = hints.get("return", Any)
    return takes, returns, job


def _defaulted(label: str, name: str, hint: Any, default: Any) -> tuple[Any, Any]:
    """Return the type and the default of a parameter. Raises TypeError."""
    if default is None:
        hint |= None
    hint = _dated(hint)
    try:
        if default is not msgspec.UNSET:
            plain = msgspec.to_builtins(default, builtin_types=(bytes,))
            msgspec.convert(plain, hint, str_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"the default of {name!r} is not of its type: {error}"
        raise TypeError(f"the tool {label!r}: {what}") from error
    if default and isinstance(default, list | dict | set | bytearray):
        return hint, msgspec.field(default_factory=lambda: copy.deepcopy(default))
    return hint, default


def _dated(hint: Any) -> Any:
    """Add the formats of dates and times to a type: msgspec omits them unless there is a zone."""
    if isinstance(hint, type) and hint in FORMATS:
        return Annotated[hint, msgspec.Meta(extra_json_schema={"format": FORMATS[hint]})]
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        has_zone = any(getattr(each, "tz", None) is not None for each in args[1:])
        return hint if has_zone else Annotated[(_dated(args[0]), *args[1:])]
    if origin is None or origin is Literal:
        return hint
    dated = tuple(_dated(each) for each in args)
    if dated == args:
        return hint
    return reduce(operator.or_, dated) if origin is types.UnionType else origin[dated]


def _schema(label: str, kind: Any) -> dict[str, Any]:
    """Return the schema of a type without references, which models and grammars do not follow."""
    try:
        (schema,), named = msgspec.json.schema_components([kind])
        found: dict[str, Any] = _inlined(schema, named, ())
    except (TypeError, RecursionError) as error:
        raise TypeError(f"the tool {label!r}: {' '.join(str(error).split())}") from error
    return found


def _inlined(schema: Any, named: dict[str, Any], within: tuple[str, ...]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, named, within) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        if name in within:
            raise TypeError(f"the type {name} contains itself")
        rest = {key: value for key, value in schema.items() if key != "$ref"}
        return _inlined(named[name] | rest, named, (*within, name))
    return {
        key: value if key in VALUES
        else {name: _inlined(item, named, within) for name, item in value.items()}
        if key in NESTED else _inlined(value, named, within)
        for key, value in schema.items() if key not in ("title", "discriminator")
    }  # fmt: skip


def _whole(value: Any) -> Any:
    """Turn dataclasses into maps of all their fields: msgspec skips defaults kept in the class."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        return {name: _whole(getattr(value, name)) for name in names if hasattr(value, name)}
    if isinstance(value, dict):
        return {key: _whole(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value


def check_plain(value: Any, depth: int) -> None:
    """Raise ValueError unless every msgpack library can decode the value, and JSON can hold it."""
    if depth < 0:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is no number of JSON")
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        raise ValueError("an integer above 64 bits; return it as text")
    if isinstance(value, dict):
        if not all(type(key) in (str, int) for key in value):  # True is no key of JSON
            raise ValueError("a map's keys are strings or integers")
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            check_plain(item, depth - 1)
