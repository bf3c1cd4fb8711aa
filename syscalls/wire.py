"""The frames of the ABI, as msgpack bytes.

    call   [id, name, args, heard, receipt]
                                  caller to kernel; id > 0 and rising. All calls with an id up to
                                  `heard` have had their final reply; left out, it is 0. With
                                  `receipt` true, the final reply has a fourth element
    reply  [id, kind, body]       kernel to caller; kind is one of PIECE, DONE, FAILED
    reply  [id, kind, body, [sequence, head]]
                                  the record of the call in the audit log, and its chain value

Each call gets any number of PIECE replies and exactly one DONE or FAILED. A message whose id
cannot be read is answered with id 0.
"""

from __future__ import annotations

from typing import Any

import msgpack

from .errors import Malformed, TooBig

Receipt = tuple[int, bytes]  # where the audit log has a call: docs/audit.md

ABI_VERSION = 1
MAX_CALL_BYTES = 64 * 1024

DONE, FAILED, PIECE = 0, 1, 2


def pack_call(
    call_id: int, name: str, args: dict[str, Any], heard: int = 0, receipt: bool = False
) -> bytes:
    """Pack one system call.

    Raises:
        TooBig: the call would pass MAX_CALL_BYTES.
        Malformed: it holds what is not plain: a set, an object, an integer above 64 bits.
    """
    try:
        data: bytes = msgpack.packb([call_id, name, args, heard, *[True] * receipt])
    except (TypeError, ValueError, OverflowError) as error:
        raise Malformed(f"{name}: {error}", "send numbers, strings, bytes, lists, dicts") from error
    if len(data) > MAX_CALL_BYTES:
        raise TooBig(f"{name}: {len(data)} bytes, a system call holds {MAX_CALL_BYTES}")
    return data


def unpack_reply(data: bytes) -> tuple[int, int, Any, Receipt | None]:
    call_id, kind, body, *receipt = msgpack.unpackb(data, strict_map_key=False)
    return call_id, kind, body, (receipt[0][0], receipt[0][1]) if receipt else None
