"""Rows of fields, rebuilt from their changes, equal the row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from kept_journal import Kept

from aios.kernel.journal import read
from aios.kernel.ledger.field_rows import FieldRows, read_fields

values = st.one_of(st.none(), st.integers(0, 9), st.text(max_size=5), st.sampled_from(["x" * 9000]))
rows = st.fixed_dictionaries({"a": values, "b": values, "c": st.lists(values, max_size=3)})


class Items:
    """A journal of one row, and how many bytes were written to it."""

    def __init__(self) -> None:
        self.items: list[bytes] = []
        self.bytes = 0

    def put(self, _key: str, item: bytes) -> None:
        self.items = [item]
        self.bytes += len(item)

    def add(self, _key: str, item: bytes) -> None:
        self.items.append(item)
        self.bytes += len(item)

    def row(self) -> Any:
        return msgspec.msgpack.decode(read_fields(self.items))


@given(st.lists(rows, min_size=1, max_size=20))
def test_a_row_is_what_was_put_last(states: list[dict[str, Any]]) -> None:
    items = Items()
    fields = FieldRows(items)  # type: ignore[arg-type]
    for state in states:
        fields.put("key", state)
        assert items.row() == state


def test_what_is_written_is_in_proportion_to_what_changes() -> None:
    items = Items()
    fields = FieldRows(items)  # type: ignore[arg-type]
    row: dict[str, Any] = {"long": "x" * 60_000, "short": 0}
    for number in range(2000):
        row["short"] = number
        fields.put("key", row)
    assert items.bytes < 4 * 60_000
    assert sum(map(len, items.items)) < 3 * 60_000
    assert items.row() == row


def test_a_row_that_is_dropped_begins_anew(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "journal")
    fields = FieldRows(kept.journal)
    for row in ({"a": 1, "b": 2}, {"a": 1, "b": 3}):
        fields.put("key", row)
    fields.put("key", None)
    kept.commit()
    fields.put("key", None)
    fields.put("key", {"a": 4, "b": 5})
    fields.put("key", {"a": 4, "b": 6})
    kept.commit()
    kept.journal.close()
    found, _ = read(kept.journal.folder)
    assert msgspec.msgpack.decode(read_fields(found["key"])) == {"a": 4, "b": 6}
