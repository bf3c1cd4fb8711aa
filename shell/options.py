"""The types of options and arguments, with the bounds that the messages of the ABI have, so that a
value out of range is reported with its option before anything is sent."""

from __future__ import annotations

import math
import re
import time
import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import msgspec
from msgspec import inspect

from aios.syscalls import acc, sto
from aios.syscalls.errors import BadInput
from aios.syscalls.kernel import SetPolicy
from aios.syscalls.proc import Limits, Spawn, Wait
from aios.syscalls.rules import Manifest

UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
FAR = 10**9  # a bound from here on is kept, and not told: nobody meets it


class Whole(click.IntRange):
    """A whole number in a range."""

    name = "number"

    def _describe_range(self) -> str:  # click's own, for help and errors
        return super()._describe_range() if (self.max or 0) < FAR else f"x>={self.min}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            int(value)
        except ValueError:
            self.fail(
                f"{value!r} is no whole number in the range {self._describe_range()}", param, ctx
            )
        return int(super().convert(value, param, ctx))


class Number(click.FloatRange):
    """A number in a range; not nan, and not infinite."""

    name = "number"

    def _describe_range(self) -> str:
        more = f"x{'>' if self.min_open else '>='}{self.min:g}" if self.min is not None else ""
        return super()._describe_range() if (self.max or 0) < FAR else more

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            finite = math.isfinite(float(value))
        except ValueError:
            finite = False
        if not finite:
            self.fail(f"{value!r} is no number in the range {self._describe_range()}", param, ctx)
        return float(super().convert(value, param, ctx))


class BoundedText(click.ParamType[str]):
    """A text of bounded length and, with a pattern, of the form that `says` puts into words."""

    name = "text"

    def __init__(self, kind: inspect.StrType, says: str) -> None:
        self.least, self.most = kind.min_length or 0, kind.max_length
        self.pattern, self.says = kind.pattern, says

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if self.pattern is not None and not re.search(self.pattern, text):
            self.fail(f"{text!r} is not {self.says}", param, ctx)
        if not self.least <= len(text) <= (self.most or len(text)):
            bounds = dict.fromkeys([self.least, self.most])
            count = " to ".join(map(str, bounds)) if self.most else f"at least {self.least}"
            self.fail(f"it has {len(text)} characters: give {count}", param, ctx)
        return text


class When(click.ParamType[float]):
    """A time, as Unix time: 2026-01-31T12:00, or so long ago as 90s, 10m, 2h, 3d."""

    name = "time"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value)
        try:
            if ago := re.fullmatch(r"(\d+)([smhd])", text):
                return time.time() - int(ago[1]) * UNIT_S[ago[2]]
            return datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            self.fail(f"{text!r} is no time: give 2026-01-31T12:00, or 10m, 2h, 3d", param, ctx)


class Who(click.ParamType[int | str]):
    """A process by its PID, by its name, or as /NAME below the names of those that started it."""

    name = "who"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> int | str:
        text = str(value)
        if not (text.isascii() and text.isdigit()):
            return text or self.fail("it is empty: give a PID or a name", param, ctx)
        return int(text) if int(text) <= 2**31 else self.fail(f"{text} is no PID", param, ctx)


def text_of(path: str | Path, hint: str = "") -> str:
    """Return what is in a file. Raises BadInput where it cannot be read, or is no text in UTF-8."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise BadInput(f"cannot read {str(path)!r}: {why}", hint) from error


def json_value(text: str, option: str) -> Any:
    """Return the value of a JSON text that was given as `option`. Raises BadParameter."""
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(str(error), param_hint=option) from error


def field(message: type[msgspec.Struct], name: str, says: str = "") -> click.ParamType[Any]:
    """Return the type of an option that becomes the field `name` of `message`, or an item of that
    list."""
    info = inspect.type_info(message)
    assert isinstance(info, inspect.StructType)
    return _click_type(next(each.type for each in info.fields if each.name == name), says)


def _click_type(kind: inspect.Type, says: str) -> click.ParamType[Any]:
    match kind:
        case inspect.UnionType():
            return _click_type(
                next(each for each in kind.types if not isinstance(each, inspect.NoneType)), says
            )
        case inspect.ListType():
            return _click_type(kind.item_type, says)
        case inspect.IntType():
            least = kind.ge if kind.gt is None else kind.gt + 1
            return Whole(least, kind.le if kind.lt is None else kind.lt - 1)
        case inspect.FloatType():
            return Number(
                kind.ge if kind.gt is None else kind.gt, kind.le if kind.lt is None else kind.lt,
                min_open=kind.gt is not None, max_open=kind.lt is not None,
            )  # fmt: skip
        case inspect.StrType():
            return BoundedText(kind, says)
    raise TypeError(f"no option has the type {kind}")


def parse_limits(
    ctx: click.Context, param: click.Parameter, given: tuple[str, ...]
) -> dict[str, Any]:
    """Parse limits such as `tokens=1000`, each within the range that the ABI has for it."""
    limits = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or name not in Limits.__struct_fields__:
            names = ", ".join(Limits.__struct_fields__)
            raise click.BadParameter(f"{item!r} is not NAME=NUMBER, with a NAME of {names}")
        try:
            limits[name] = field(Limits, name).convert(value, param, ctx)
        except click.BadParameter as error:
            raise click.BadParameter(f"{name}: {error.message}") from error
    return limits


def read_toml(path: Path, kind: type[Any]) -> Any:
    """Read a manifest or a group out of a TOML file. Raises BadInput."""
    try:
        return msgspec.convert(tomllib.loads(path.read_text()), kind)
    except (OSError, ValueError) as error:
        raise BadInput(f"{path}: {error}", "see docs/access.md") from error


NAME = field(Spawn, "name", "a name: letters, digits and . _ + -")
MEMBER = field(acc.Grant, "to", "/NAME, or /TEAM/* for all below")
RIGHT = field(acc.Grant, "right", "a right, as sto.read, sto or *")
PATH = field(sto.Get, "path")
VERSION = field(sto.Get, "version")
WAIT = field(Wait, "timeout")
WHO = Who()
READABLE = click.Path(exists=True, resolve_path=True, path_type=str)
TOML_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)
QUANTUM = field(SetPolicy, "quantum")
SLOTS = Whole(1, 64)  # a setting of the kernel: kernel/config.py


def confining(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that bound what agents may do and use."""
    for option in (
        click.option("--manifest", type=TOML_FILE, metavar="FILE",
                     callback=lambda _ctx, _param, path: path and read_toml(path, Manifest),
                     help="TOML: what they may do; see docs/access.md."),
        click.option("--limit", "limits", multiple=True, callback=parse_limits,
                     metavar="NAME=NUMBER", help="A limit, as tokens=1000; may be repeated."),
        click.option("--write", multiple=True, type=READABLE, metavar="PATH",
                     help="A file or folder that may be read and written."),
        click.option("--read", multiple=True, type=READABLE, metavar="PATH",
                     help="A file or folder that may be read."),
    ):  # fmt: skip
        command = option(command)
    return command
