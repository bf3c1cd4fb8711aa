"""Shares of objects: an owner's prefixes, and the principals or groups that may reach them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec

from aios.syscalls import sto
from aios.syscalls.errors import BadInput, Denied, LimitReached, NotFound
from aios.syscalls.rules import Group

from ..lib.trees import Trees, check_tree, root
from ..manifests import groups_of, names_of
from ..process import Process, check_principal
from ..rules import Mode
from ..store.transaction import Txn
from .catalog import TABLE, Catalog, key, short

MAX_SHARES, MAX_OF_TREE = 256, 1024  # of one owner; of a tree of agents, read by whom they are to
SHARE_HINT = "its owner can share it: `sto.share`"
MAX_TO_BYTES = 200  # of the name that a share is to

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(sto.SharedPrefix).decode


def covers(prefix: str, path: str) -> bool:
    """Tell whether `path` is `prefix` or below it."""
    return not prefix or path == prefix or path.startswith(prefix + "/")


class Shares:
    """Decides who may reach whose objects. `groups` returns all groups by name."""

    def __init__(self, groups: Callable[[], Mapping[str, Group]]) -> None:
        self.groups = groups
        self.trees = Trees()  # shares by owner, in the writer's thread

    def load(self, txn: Txn) -> None:
        """Count the shares that are stored."""
        for _, data in txn.scan(TABLE, b"g"):
            self.trees.add(_decode(data).owner, 1)

    def reach(self, txn: Txn, process: Process, owner: str, mode: Mode) -> list[str]:
        """Return the prefixes of the owner's objects that `process` may reach with `mode`. All
        decisions on storage come from here."""
        if process.kind == "client" or process.principal == owner:
            return [""]
        return self.shared(txn, process.principal, owner, mode)

    def shared(self, txn: Txn, principal: str, owner: str, mode: Mode) -> list[str]:
        """Return the prefixes that an owner has shared with a principal."""
        names = self._names(principal)
        return [
            grant.prefix
            for grant in self.of(txn, owner)
            if grant.to in names and mode in ("read", grant.mode)
        ]

    def check(self, txn: Txn, process: Process, owner: str, path: str, mode: Mode) -> None:
        """Raise Denied where a process may not reach a path, whether or not there is an object."""
        if not any(covers(prefix, path) for prefix in self.reach(txn, process, owner, mode)):
            raise Denied(
                f"{process.principal!r} may not {mode} {path!r} of {owner!r}",
                SHARE_HINT,
            )

    def scopes(
        self, txn: Txn, process: Process, owner: str | None, path: str
    ) -> list[tuple[str, str]]:
        """Return (owner, prefix) of all that `process` may read at a path and below it, of one
        owner or of all.

        Raises:
            Denied: it may read nothing there of the one owner.
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
                SHARE_HINT,
            )
        return found

    def of(self, txn: Txn, owner: str) -> list[sto.SharedPrefix]:
        return [_decode(data) for _, data in txn.scan(TABLE, key(b"g", owner))]

    def to(self, txn: Txn, principal: str) -> list[sto.SharedPrefix]:
        """Return the shares that an agent was given."""
        return [
            _decode(data)
            for name in sorted(self._names(principal))
            for _, data in txn.scan(TABLE, b"t" + short(name))
        ]

    def give(self, txn: Txn, owner: str, share: sto.Share) -> None:
        """Share a prefix, or end a share.

        Raises:
            NotFound: there is no such group, or no such share to end.
            LimitReached: the owner, or its tree of agents, has shared as much as it may.
        """
        if len(share.to.encode()) > MAX_TO_BYTES:
            raise BadInput(
                f"a name of more than {MAX_TO_BYTES} bytes", "share with a subtree, or a group"
            )
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
            self._count(txn, owner)
            return
        if txn.get(TABLE, place) is None:
            self._check_room(txn, owner)
        grant = sto.SharedPrefix(owner=owner, prefix=share.prefix, to=share.to, mode=share.mode)
        for each in (place, mirror):
            txn.put(TABLE, each, _encode(grant))
        self._count(txn, owner)

    def _check_room(self, txn: Txn, owner: str) -> None:
        if len(self.of(txn, owner)) >= MAX_SHARES:
            raise LimitReached(
                f"{owner!r} has {MAX_SHARES} grants", "share a prefix, or with a group"
            )
        if owner:
            check_tree(
                owner, self.trees.total(root(owner)), MAX_OF_TREE, "shares",
                "end some: sto.share with the mode `none`",
            )  # fmt: skip

    def _count(self, txn: Txn, owner: str) -> None:
        """Count all of an owner, so that no commit that fails leaves a difference for long."""
        self.trees.set(owner, len(self.of(txn, owner)))

    def _names(self, principal: str) -> frozenset[str]:
        """Return the names by which a share can mean this agent; a person has none."""
        return names_of(principal) | groups_of(principal, self.groups())
