"""Groups and grants, and where they are kept: what persons say in policy.json, which is there for
each system in this home; what agents hand on in the journal, as long as they live."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from aios.syscalls import acc
from aios.syscalls.errors import BadInput, DiskFull, NotFound
from aios.syscalls.rules import Group, Rule

from ..lib import files
from ..lib.trees import check_tree, in_tree
from ..process import Process, ProcessTable
from ..rules import AGENTS, DEFAULT, Grant, check_rights, check_rules, names_of

GRANTS = 256  # that an agent and all below it have given, and that stand
FORMAT = 1

_decode = msgspec.msgpack.Decoder(Grant).decode
_encode = msgspec.msgpack.Encoder().encode


class Kept(msgspec.Struct, forbid_unknown_fields=True):
    """What policy.json holds."""

    format: int = FORMAT
    groups: dict[str, Group] = msgspec.field(default_factory=lambda: {AGENTS: DEFAULT})
    grants: list[Grant] = []


class Accounts:
    """`note(number, row)` journals a grant, or with None that it is no more. `barrier` runs before
    policy.json is written: what it makes durable is so before that.

    Raises:
        BadInput: policy.json cannot be read. Nothing is served then: it may hold what denies.
    """

    def __init__(
        self, path: Path, table: ProcessTable, note: Callable[[int, bytes | None], None],
        barrier: Callable[[], None] = lambda: None, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.now = now
        self.path, self.table, self.note, self.barrier = path, table, note, barrier
        self.last = 0  # number that a grant had
        self.next = math.inf  # when the next grant expires
        kept = read(path)
        self.groups = kept.groups
        self.grants: dict[int, Grant] = {}
        for grant in kept.grants:
            self._insert(self._in_time(grant))
        self.expire()
        self.changed: Callable[[], None] = lambda: None  # groups have

    # --- groups ---------------------------------------------------------------------------------

    def set_group(self, name: str, group: Group | None) -> None:
        """Make it anew, or remove it.

        Raises:
            BadInput: a rule is none. NotFound: there is none to remove. DiskFull.
        """
        groups = dict(self.groups)
        if group is not None:
            check_rules([group])
            check_rights([group])
            groups[name] = group
        elif name == AGENTS:
            raise BadInput(f"the group {AGENTS!r} cannot be removed", "give it other rules")
        elif groups.pop(name, None) is None:
            raise NotFound(f"no group {name!r}", "`aios group list` lists them")
        self._write(groups, self.grants)
        self.groups = groups
        self.changed()

    # --- grants ---------------------------------------------------------------------------------

    def give(self, giver: Process, to: str, rule: Rule, seconds: float | None = None) -> int:
        """A new grant: an agent's lives as long as that, one to "#PID" as long as that process.

        Raises:
            LimitReached: an agent has given so many. DiskFull.
        """
        pid = giver.pid if giver.kind != "client" else 0
        self.expire()
        if pid:
            given = in_tree(giver.principal, (g.giver for g in self.grants.values() if g.pid))
            check_tree(giver.principal, given, GRANTS, "grants that stand", "revoke some")
        expires = None if seconds is None else self.now() + seconds
        grant = Grant(self.last + 1, giver.principal, pid, to, rule, expires, seconds)
        if _lasts(grant):
            self._write(self.groups, {**self.grants, grant.id: grant})
        else:
            self.note(grant.id, _encode(grant))
        self._insert(grant)
        return grant.id

    def revoke(self, process: Process, number: int) -> None:
        """Raises NotFound, also where it is another's: who gave it may, those above, a person."""
        grant = self.grants.get(number)
        giver = self.table.rows.get(grant.pid) if grant is not None else None
        above = giver is not None and (giver is process or self.table.is_above(process.pid, giver))
        if grant is None or not (process.kind == "client" or above):
            raise NotFound(f"no grant {number} that you could revoke", "`aios grants` lists them")
        self._remove(grant)

    def ended(self, process: Process) -> None:
        """What it has given, and what was given to it alone, goes with it."""
        for grant in list(self.grants.values()):
            if process.pid == grant.pid or grant.to == f"#{process.pid}":
                self._remove(grant)

    def take(self, row: bytes) -> None:
        """A grant out of the journal."""
        self._insert(self._in_time(_decode(row)))

    def _in_time(self, grant: Grant) -> Grant:
        """It has no longer than it was given for, should this machine's clock have been set back
        since."""
        if grant.expires is None or grant.seconds is None:
            return grant
        return msgspec.structs.replace(
            grant, expires=min(grant.expires, self.now() + grant.seconds)
        )

    def expire(self) -> None:
        """Forget the grants whose time is over, here and on disk."""
        if self.now() < self.next:
            return
        over = [each for each in self.grants.values() if each.ends <= self.now()]
        for grant in over:
            del self.grants[grant.id]
            if not _lasts(grant):
                self.note(grant.id, None)
        self.next = min((each.ends for each in self.grants.values()), default=math.inf)
        if any(_lasts(grant) for grant in over):
            with suppress(DiskFull):  # the next change writes the file; until then it is read so
                self._write(self.groups, self.grants)

    def visible(self, process: Process) -> list[acc.GrantRow]:
        """All, for a person; an agent sees what it has given, and what it was given."""
        names = names_of(process.principal) | {f"#{process.pid}"}
        self.expire()
        return [
            acc.GrantRow(
                id=grant.id, giver=grant.giver, pid=grant.pid, to=grant.to, right=grant.rule.right,
                on=grant.rule.on, args=grant.rule.args, expires=grant.expires,
            )
            for grant in self.grants.values()
            if process.kind == "client" or grant.pid == process.pid or grant.to in names
        ]  # fmt: skip

    def _insert(self, grant: Grant) -> None:
        self.grants[grant.id] = grant
        self.last = max(self.last, grant.id)
        self.next = min(self.next, grant.ends)

    def _remove(self, grant: Grant) -> None:
        if _lasts(grant):
            left = {number: each for number, each in self.grants.items() if number != grant.id}
            self._write(self.groups, left)
        else:
            self.note(grant.id, None)
        del self.grants[grant.id]

    # --- the file -------------------------------------------------------------------------------

    def _write(self, groups: dict[str, Group], grants: dict[int, Grant]) -> None:
        """On disk before anything changes here."""
        kept = Kept(groups=groups, grants=[each for each in grants.values() if _lasts(each)])
        self.barrier()
        try:
            files.replace(self.path, msgspec.json.format(msgspec.json.encode(kept)))
        except OSError as error:
            raise DiskFull(f"cannot write {self.path}: {error.strerror}") from error

    def check(self) -> list[str]:
        return [
            f"grant {grant.id} of dead process {grant.pid} is kept"
            for grant in self.grants.values()
            if grant.pid and not self.table.is_alive(grant.pid)
        ]


def steady() -> Callable[[], float]:
    """A clock of Unix time that runs on evenly from now, whatever this machine's is set to."""
    start = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: start + time.clock_gettime(time.CLOCK_BOOTTIME)


def _lasts(grant: Grant) -> bool:
    return not grant.pid and not grant.to.startswith("#")


def read(path: Path) -> Kept:
    """What is kept there; the default where nothing is. Raises BadInput."""
    if not path.exists():
        return Kept()
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Kept)
        check_rules(kept.groups.values())
    except (OSError, ValueError, BadInput) as error:
        raise BadInput(
            f"{path} cannot be read: {error}", "correct it, or move it away and set groups anew"
        ) from error
    if kept.format != FORMAT or AGENTS not in kept.groups:
        raise BadInput(
            f"{path} has format {kept.format}, and this AIOS reads {FORMAT}",
            "use the AIOS that wrote it",
        )
    return kept
