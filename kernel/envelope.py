"""What a system call looks like on the wire: taken apart, and its arguments by the table."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from aios.syscalls import wire
from aios.syscalls.errors import Malformed, TooBig
from aios.syscalls.messages import Message
from aios.syscalls.table import TABLE, Row

MAX_DEPTH = 32  # of what agents pass on to each other
PLAIN, KEYS = (str, int, float, bytes, type(None)), (str, int)


class Envelope(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    id: int
    name: str
    args: msgspec.Raw
    heard: int = 0
    receipt: bool = False


def _no_extensions(code: int, _data: memoryview) -> Any:
    raise ValueError(f"extension type {code} is not part of the ABI")


_envelope = msgspec.msgpack.Decoder(Envelope).decode
_decoders = {
    row.name: msgspec.msgpack.Decoder(row.args, ext_hook=_no_extensions).decode
    for row in TABLE.values()
}


def open_envelope(data: bytes) -> Envelope:
    try:
        call = _envelope(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise Malformed(f"not a system call: {error}", "send msgpack [id, name, args]") from error
    if not 0 < call.id < 2**63:
        raise Malformed("a call id is an integer above 0")
    return call


def arguments(row: Row, raw: msgspec.Raw) -> Message:
    size = len(memoryview(raw))
    if size > wire.MAX_CALL_BYTES:
        raise TooBig(f"{row.name}: {size} bytes, a system call holds {wire.MAX_CALL_BYTES}")
    try:
        args: Message = _decoders[row.name](raw)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise Malformed(f"{row.name}: {error}", "see docs/abi.md") from error
    for name in ("body", "task", "result", "schema", "items", "args", "value", "tools"):
        _check_plain(row, getattr(args, name, None), MAX_DEPTH)
    return args


def _check_plain(row: Row, value: Any, depth: int) -> None:
    """Whatever agents pass on must be something that any msgpack library can take apart."""
    if isinstance(value, PLAIN):
        if isinstance(value, float) and math.isnan(value):
            raise Malformed(f"{row.name}: holds what is not plain: nan")
    elif depth == 0:
        raise Malformed(f"{row.name}: nested deeper than {MAX_DEPTH}")
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, KEYS):
                raise Malformed(f"{row.name}: a map's keys are strings or integers")
            _check_plain(row, item, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_plain(row, item, depth - 1)
    elif isinstance(value, msgspec.Struct):  # the bounds of a grant
        _check_plain(row, msgspec.structs.asdict(value), depth - 1)
    else:
        raise Malformed(f"{row.name}: holds what is not plain: {str(value)[:64]}")
