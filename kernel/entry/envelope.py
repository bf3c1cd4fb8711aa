"""Decode system calls: the envelope, and the arguments by the table."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from functools import partial
from itertools import chain, compress
from typing import Any

import msgspec
from msgspec.structs import asdict

from aios.syscalls import wire
from aios.syscalls.base import Message
from aios.syscalls.errors import Malformed, TooBig
from aios.syscalls.table import TABLE, Syscall

MAX_DEPTH = 32  # of values that agents pass on to each other
PLAIN = {str, int, bool, float, bytes, type(None), list, dict}
SIMPLE = PLAIN - {float, list, dict}  # a float may be nan
KEYS = {str, int}  # values are shown to people as JSON, which has no others


class Envelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    """A system call before its arguments are decoded."""

    id: int
    name: str
    args: msgspec.Raw
    heard: int = 0
    receipt: bool = False


def _no_extensions(code: int, _data: memoryview) -> Any:
    raise ValueError(f"extension type {code} is not part of the ABI")


_envelope = msgspec.msgpack.Decoder(Envelope).decode
_passed_on = {
    syscall.name: [
        name
        for name in ("body", "task", "result", "schema", "items", "args", "value", "tools")
        if name in syscall.args.__struct_fields__
    ]
    for syscall in TABLE.values()
}
_decoders = {
    syscall.name: msgspec.msgpack.Decoder(syscall.args, ext_hook=_no_extensions).decode
    for syscall in TABLE.values()
}


def open_envelope(data: bytes) -> Envelope:
    try:
        call = _envelope(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not a system call: {error}", "send msgpack [id, name, args]") from error
    if not 0 < call.id < 2**63:
        raise Malformed("a call id is an integer above 0")
    return call


def arguments(syscall: Syscall, raw: msgspec.Raw) -> Message:
    size = len(memoryview(raw))
    if size > wire.MAX_CALL_BYTES:
        raise TooBig(f"{syscall.name}: {size} bytes, a system call holds {wire.MAX_CALL_BYTES}")
    try:
        args: Message = _decoders[syscall.name](raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(f"{syscall.name}: {error}") from error
    for name in _passed_on[syscall.name]:
        value = getattr(args, name)
        if not _is_flat(value):
            _check_plain(syscall, value)
    return args


def _is_flat(value: Any) -> bool:
    """Tell whether a value is plain at a glance, as most values that agents pass on are."""
    return type(value) in SIMPLE or (
        type(value) is dict
        and SIMPLE.issuperset(map(type, value.values()))
        and KEYS.issuperset(map(type, value))
    )


def _check_plain(syscall: Syscall, value: Any) -> None:
    """Refuse values that not every msgpack library can decode.

    It goes level by level, so that the items of a level are checked by C code.
    """
    level = [value]
    for depth in range(MAX_DEPTH + 1):
        kinds = set(map(type, level))
        others = kinds - PLAIN
        if depth == MAX_DEPTH and (others or kinds & {list, dict}):
            raise Malformed(f"{syscall.name}: nested deeper than {MAX_DEPTH}")
        if any(not issubclass(kind, msgspec.Struct) for kind in others):
            what = next(each for each in level if type(each) in others)
            raise Malformed(f"{syscall.name}: holds what is not plain: {str(what)[:64]}")
        if others:  # the bounds of a grant
            level = [asdict(each) if type(each) in others else each for each in level]
        if float in kinds and any(map(math.isnan, _all_of(float, level))):
            raise Malformed(f"{syscall.name}: holds what is not plain: nan")
        level = list(filter(None, level))
        below: list[Any] = []
        if list in kinds:
            below += chain.from_iterable(_all_of(list, level))
        if dict in kinds or others:
            maps = list(_all_of(dict, level))
            if not set(map(type, chain.from_iterable(maps))) <= KEYS:
                raise Malformed(f"{syscall.name}: a map's keys are strings or integers")
            below += chain.from_iterable(map(dict.values, maps))
        if not below:
            return
        level = below


def _all_of(kind: type, level: list[Any]) -> Iterator[Any]:
    return compress(level, map(partial(operator.is_, kind), map(type, level)))
