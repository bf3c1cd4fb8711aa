"""Rows of the journal with named fields. A row is written whole once, then the fields that change.

So a short change to a row with long fields costs little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from ..journal import Journal

SLACK_BYTES = 4096  # of changes, before a short row is written whole again

_encode = msgspec.msgpack.Encoder().encode
_fields = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


@dataclass
class WrittenFields:
    """A row as the journal has it."""

    fields: dict[str, bytes]  # as in the journal
    whole: int  # bytes of the whole row
    added: int = 0  # bytes of the changes added to it


class FieldRows:
    """Write rows of named fields when they change."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.written: dict[str, WrittenFields] = {}

    def put(self, key: str, values: dict[str, Any] | None) -> None:
        """Write a row, or what changed in it; with None delete it, if there is one."""
        if values is None:
            self.written.pop(key, None)
            self.journal.put(key, None)
            return
        fields = {name: _encode(value) for name, value in values.items()}
        known = self.written.get(key)
        if known is not None:
            others = {n: field for n, field in fields.items() if known.fields[n] != field}
            if not others:
                return
            data = _raw(others)
            known.added += len(data)
            if known.added <= known.whole + SLACK_BYTES:
                self.journal.add(key, data)
                known.fields = fields
                return
        data = _raw(fields)
        self.journal.put(key, data)
        self.written[key] = WrittenFields(fields, len(data))


def read_fields(items: Iterable[bytes]) -> bytes:
    """Merge the items of a row into the row, as if it had been written whole."""
    fields: dict[str, msgspec.Raw] = {}
    for item in items:
        fields |= _fields(item)
    return _encode(fields)


def _raw(fields: dict[str, bytes]) -> bytes:
    return _encode({name: msgspec.Raw(field) for name, field in fields.items()})
