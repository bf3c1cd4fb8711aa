"""The frames of the ABI, as msgpack bytes.

    call   [id, name, args, heard]
                                  caller to kernel; id > 0 and rising. All calls with an id up to
                                  `heard` have had their final reply; left out, it is 0
    reply  [id, kind, body]       kernel to caller; kind is one of PIECE, DONE, FAILED

Each call gets any number of PIECE replies and exactly one DONE or FAILED. A message whose id
cannot be read is answered with id 0.
"""

from __future__ import annotations

from typing import Any

import msgpack

from .errors import Malformed, TooBig

ABI_VERSION = 1
MAX_CALL_BYTES = 64 * 1024

DONE, FAILED, PIECE = 0, 1, 2


def pack_call(call_id: int, name: str, args: dict[str, Any], heard: int = 0) -> bytes:
    """The bytes of one system call.

    Raises:
        TooBig: the call would pass MAX_CALL_BYTES.
        Malformed: it holds what is not plain: a set, an object, an integer above 64 bits.
    """
    try:
        data: bytes = msgpack.packb([call_id, name, args, heard])
    except (TypeError, ValueError, OverflowError) as error:
        raise Malformed(f"{name}: {error}", "send numbers, strings, bytes, lists, dicts") from error
    if len(data) > MAX_CALL_BYTES:
        raise TooBig(
            f"{name}: {len(data)} bytes, a system call holds {MAX_CALL_BYTES}",
            "send it in several calls",
        )
    return data


def pack_reply(call_id: int, kind: int, body: Any) -> bytes:
    data: bytes = msgpack.packb([call_id, kind, body])
    return data


def unpack_reply(data: bytes) -> tuple[int, int, Any]:
    call_id, kind, body = msgpack.unpackb(data, strict_map_key=False)
    return call_id, kind, body
