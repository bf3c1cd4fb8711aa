"""Memory as methods of the SDK.

An agent leaves out `pid` and `principal`: it reaches its own memory only. A person names either.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from aios.syscalls import mem as m
from aios.syscalls.base import Done
from aios.syscalls.errors import StoreDamaged

from .calls import Calls, several


class MemoryCalls(Calls):
    def mem_put(
        self, items: Mapping[str, Any], *, space: str = "main",
        ack: Literal["durable", "accepted"] = "durable", pid: int | None = None,
        principal: str | None = None,
    ) -> None:  # fmt: skip
        """Set items, all or none. They are on disk on return, or soon with ack="accepted".

        Raises:
            LimitReached: the memory would pass mem_bytes.
        """
        self._call(
            Done, "mem.put", items=dict(items), space=space, ack=ack, pid=pid, principal=principal
        )

    def mem_get(
        self, keys: Sequence[str], *, space: str = "main", pid: int | None = None,
        principal: str | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the values of keys, except those that do not exist."""
        found: dict[str, Any] = {}
        rest = several(keys)
        while rest:
            part = self._call(
                m.Items, "mem.get", keys=rest, space=space, pid=pid, principal=principal
            )
            found |= part.items
            rest = part.rest
        return found

    def mem_delete(
        self, keys: Sequence[str], *, space: str = "main", pid: int | None = None,
        principal: str | None = None,
    ) -> int:  # fmt: skip
        """Remove keys; return how many existed."""
        return self._call(
            m.Deleted, "mem.delete", keys=several(keys), space=space, pid=pid, principal=principal
        ).count

    def mem_scan(
        self, prefix: str = "", *, space: str = "main", after: str | None = None,
        back: bool = False, limit: int = 256, pid: int | None = None, principal: str | None = None,
    ) -> m.Scanned:  # fmt: skip
        """Read one page of items; its `after` leads to the next."""
        return self._call(
            m.Scanned, "mem.scan", prefix=prefix, space=space, after=after, back=back, limit=limit,
            pid=pid, principal=principal,
        )  # fmt: skip

    def mem_items(self, prefix: str = "", **options: Any) -> Iterator[tuple[str, Any]]:
        """Iterate over all items in the order of their keys; options are those of `mem_scan`.

        Raises:
            StoreDamaged: at the end, if values are damaged.
        """
        damaged: list[str] = []
        while True:
            page = self.mem_scan(prefix, **options)
            yield from page.items
            damaged += page.damaged
            if page.after is None:
                break
            options["after"] = page.after
        if damaged:
            raise StoreDamaged(f"damaged values: {', '.join(damaged)}", "put or delete them")

    def mem_clear(
        self, space: str | None = None, *, pid: int | None = None, principal: str | None = None
    ) -> None:
        """Remove all items of one space, or of all spaces."""
        self._call(Done, "mem.clear", space=space, pid=pid, principal=principal)

    def mem_spaces(self, *, pid: int | None = None, principal: str | None = None) -> list[m.Memory]:
        """List the spaces of the memory. A person who names none lists those of all agents."""
        return self._call(list[m.Memory], "mem.spaces", pid=pid, principal=principal)

    def mem_keep(
        self, keep: bool = True, *, pid: int | None = None, principal: str | None = None
    ) -> None:
        """Keep the memory when its agent ends, for the next agent of that name.

        Raises:
            Conflict: other memory is kept under that name.
        """
        self._call(Done, "mem.keep", keep=keep, pid=pid, principal=principal)

    def mem_log(
        self, *, after: m.Place | None = None, back: bool = False, limit: int = 64,
        pid: int | None = None, principal: str | None = None,
    ) -> m.LogPage:  # fmt: skip
        """Read one page of the interaction log; its `after` leads to the next."""
        return self._call(
            m.LogPage, "mem.log", after=after, back=back, limit=limit, pid=pid, principal=principal
        )
