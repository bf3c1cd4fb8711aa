"""Who may reach whose objects: the owner, a person, and those whom a grant names."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from aios.syscalls import sto
from aios.syscalls.errors import BadInput, Denied, LimitReached, NotFound
from aios.syscalls.rules import Group

from ..manifests import groups_of, names_of
from ..process import Process, check_principal
from ..rules import Mode
from ..store.transaction import Txn
from .catalog import TABLE, Catalog, key, short

GRANTS = 256  # of one owner
TO = 200  # bytes of whom a grant is to

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(sto.SharedPrefix).decode


def covers(prefix: str, path: str) -> bool:
    """Whether `path` is `prefix` or below it."""
    return not prefix or path == prefix or path.startswith(prefix + "/")


class Shares:
    """`groups` gives those that there are, by name."""

    def __init__(self, groups: Callable[[], Mapping[str, Group]]) -> None:
        self.groups = groups

    def reach(self, txn: Txn, process: Process, owner: str, mode: Mode) -> list[str]:
        """The one decision: the prefixes of the owner's objects that `process` may reach so."""
        if process.kind == "client" or process.principal == owner:
            return [""]
        return self.shared(txn, process.principal, owner, mode)

    def shared(self, txn: Txn, principal: str, owner: str, mode: Mode) -> list[str]:
        """The prefixes that an owner has shared with another."""
        names = self._names(principal)
        return [
            grant.prefix
            for grant in self.of(txn, owner)
            if grant.to in names and mode in ("read", grant.mode)
        ]

    def check(self, txn: Txn, process: Process, owner: str, path: str, mode: Mode) -> None:
        """Raises Denied, whether or not there is such an object."""
        if not any(covers(prefix, path) for prefix in self.reach(txn, process, owner, mode)):
            raise Denied(
                f"{process.principal!r} may not {mode} {path!r} of {owner!r}",
                "its owner can share it: `sto.share`",
            )

    def scopes(
        self, txn: Txn, process: Process, owner: str | None, path: str
    ) -> list[tuple[str, str]]:
        """What `process` may read of that path and below, of one owner or of all: (owner, prefix).

        Raises:
            Denied: of that one owner nothing.
        """
        if owner is not None:
            owners = {owner}
        elif process.kind == "client":
            owners = {each.name for each in Catalog(txn).owners()}
        else:
            owners = {
                process.principal,
                *(grant.owner for grant in self.to(txn, process.principal)),
            }
        found = [
            (each, prefix if covers(path, prefix) else path)
            for each in sorted(owners)
            for prefix in self.reach(txn, process, each, "read")
            if covers(path, prefix) or covers(prefix, path)
        ]
        if not found and owner is not None:
            raise Denied(
                f"{process.principal!r} may read nothing of {owner!r} there",
                "its owner can share it: `sto.share`",
            )
        return found

    def of(self, txn: Txn, owner: str) -> list[sto.SharedPrefix]:
        return [_decode(data) for _, data in txn.scan(TABLE, key(b"g", owner))]

    def to(self, txn: Txn, principal: str) -> list[sto.SharedPrefix]:
        """What others have shared with an agent."""
        return [
            _decode(data)
            for name in sorted(self._names(principal))
            for _, data in txn.scan(TABLE, b"t" + short(name))
        ]

    def give(self, txn: Txn, owner: str, share: sto.Share) -> None:
        """Raises NotFound: no such group, or no such grant to take back."""
        if len(share.to.encode()) > TO:
            raise BadInput(f"a name of more than {TO} bytes", "share with a subtree, or a group")
        if share.to.startswith("/"):
            if share.to != "/*":
                check_principal(share.to.removesuffix("/*"))
        elif share.to not in self.groups():
            raise NotFound(
                f"no group {share.to!r}", 'a principal begins with "/"; `aios group` makes groups'
            )
        place = key(b"g", owner, share.prefix.encode() + b"\0" + share.to.encode())
        mirror = b"t" + short(share.to) + place[1:]
        if share.mode == "none":
            if not txn.delete(TABLE, place):
                raise NotFound(f"{share.prefix!r} is not shared with {share.to!r}")
            txn.delete(TABLE, mirror)
            return
        if txn.get(TABLE, place) is None and len(self.of(txn, owner)) >= GRANTS:
            raise LimitReached(f"{owner!r} has {GRANTS} grants", "share a prefix, or with a group")
        grant = sto.SharedPrefix(owner=owner, prefix=share.prefix, to=share.to, mode=share.mode)
        for each in (place, mirror):
            txn.put(TABLE, each, _encode(grant))

    def _names(self, principal: str) -> frozenset[str]:
        """All that a share can say to mean this agent; a person needs none."""
        return names_of(principal) | groups_of(principal, self.groups())
