"""One transaction over the store's tables. LMDB has no checksums, so the value codec of the store
adds one to each value, or encrypts it (kernel/lib/encryption.py)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lmdb

from aios.syscalls.errors import AiosError, StoreDamaged, StoreFull

from ..lib.encryption import Damaged, ValueCodec

MAX_KEY_BYTES = 511  # LMDB's


class Txn:
    """One transaction over the tables; keys and values are bytes."""

    def __init__(
        self,
        env: lmdb.Environment,
        txn: lmdb.Transaction,
        tables: dict[str, Any],
        codec: ValueCodec,
    ) -> None:
        self.env, self.txn, self.tables, self.codec = env, txn, tables, codec

    def attempt(self, do: Callable[[Txn], Any]) -> AiosError | None:
        """Run `do` in a nested transaction. Return its error, if it fails; then it is undone."""
        try:
            with self.env.begin(write=True, parent=self.txn) as child:
                do(Txn(self.env, child, self.tables, self.codec))
        except lmdb.MapFullError:
            return StoreFull("the store has reached the size that it may have")
        except AiosError as error:
            return error
        return None

    def get(self, table: str, key: bytes) -> bytes | None:
        """Return the value of a key. Raises StoreDamaged where it fails its checksum."""
        data = self.txn.get(key, db=self.tables[table])
        try:
            return None if data is None else self.codec.decode(table, key, data)
        except Damaged as error:
            raise StoreDamaged(
                f"the store's {table} holds a damaged value at {key[:64]!r}: {error}"
            ) from None

    def size(self, table: str, key: bytes) -> int | None:
        """Return the size in bytes of a value, which may be damaged."""
        data = self.txn.get(key, db=self.tables[table])
        return None if data is None else len(data) - self.codec.overhead

    def put(self, table: str, key: bytes, value: bytes) -> None:
        self.txn.put(key, self.codec.encode(table, key, value), db=self.tables[table])

    def delete(self, table: str, key: bytes) -> bool:
        return bool(self.txn.delete(key, db=self.tables[table]))

    def scan(
        self, table: str, prefix: bytes, start: bytes = b"", *, back: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """Iterate over the keys with `prefix` and their values, in rising order from `start` on; or
        `back`, in falling order from the last one before `start`."""
        for key in self.keys(table, prefix, start, back=back):
            yield key, self.get(table, key) or b""

    def keys(
        self, table: str, prefix: bytes, start: bytes = b"", *, back: bool = False
    ) -> Iterator[bytes]:
        """Iterate over the keys as `scan` does, including keys whose value fails its checksum."""
        with self.txn.cursor(db=self.tables[table]) as cursor:
            found = _before(cursor, prefix, start) if back else cursor.set_range(max(prefix, start))
            while found and (key := bytes(cursor.key())).startswith(prefix):
                yield key
                found = cursor.prev() if back else cursor.next()

    def drop(self, table: str) -> None:
        """Delete all rows of a table."""
        self.txn.drop(self.tables[table], delete=False)


def _before(cursor: lmdb.Cursor, prefix: bytes, start: bytes) -> bool:
    """Move to the last key with `prefix` that is below `start`."""
    end = start or prefix + b"\xff" * (MAX_KEY_BYTES - len(prefix))
    return bool(cursor.prev() if cursor.set_range(end) else cursor.last())
