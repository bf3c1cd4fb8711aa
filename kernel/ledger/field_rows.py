"""Rows of the journal that are made of named fields: each is written whole once, then the fields
that are others. So a row that holds something long costs little where something short changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..journal import Journal

SLACK = 4096  # bytes of changes that are added before a short row is written whole again

_encode = msgspec.msgpack.Encoder().encode
_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


@dataclass
class Written:
    fields: dict[str, bytes]  # as they are in the journal
    whole: int  # bytes of the row
    added: int = 0  # bytes of what follows it


class FieldRows:
    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.written: dict[str, Written] = {}

    def put(self, key: str, values: dict[str, Any] | None) -> None:
        """Write a row; with None drop it, or nothing where there is none."""
        if values is None:
            self.written.pop(key, None)
            self.journal.delete(key)
            return
        fields = {name: _encode(value) for name, value in values.items()}
        known = self.written.get(key)
        if known is not None:
            others = {n: field for n, field in fields.items() if known.fields[n] != field}
            if not others:
                return
            data = _raw(others)
            known.added += len(data)
            if known.added <= known.whole + SLACK:
                self.journal.add(key, data)
                known.fields = fields
                return
        data = _raw(fields)
        self.journal.put(key, data)
        self.written[key] = Written(fields, len(data))


def read_fields(items: Iterable[bytes]) -> bytes:
    """The row that items come to, one after the other, as if it had been written whole."""
    fields: dict[str, msgspec.Raw] = {}
    for item in items:
        fields |= _fields(item)
    return _encode(fields)


def _raw(fields: dict[str, bytes]) -> bytes:
    return _encode({name: msgspec.Raw(field) for name, field in fields.items()})
