"""Groups and grants. Groups and the grants of persons are kept in policy.json, for each system in
this home; grants of agents in the journal, for as long as the agents live."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from aios.syscalls import acc
from aios.syscalls.base import Done, Empty
from aios.syscalls.errors import BadInput, DiskFull, NotFound
from aios.syscalls.rules import Group, Rule

from ..entry.call import Call
from ..journal import PutRow
from ..lib import files
from ..lib.callbacks import ignore
from ..lib.trees import check_tree, in_tree
from ..manifests import AGENTS, DEFAULT, check_rights, check_rules, names_of
from ..process import Process, ProcessTable
from ..rules import Grant

MAX_GRANTS = 256  # that an agent and all below it have given, and that stand
FORMAT = 1

_decode = msgspec.msgpack.Decoder(Grant).decode
_encode = msgspec.msgpack.Encoder().encode


class PolicyFile(msgspec.Struct, forbid_unknown_fields=True):
    """The content of policy.json."""

    format: int = FORMAT
    groups: dict[str, Group] = msgspec.field(default_factory=lambda: {AGENTS: DEFAULT})
    grants: list[Grant] = []


class Grants:
    """The groups and grants of a system. `put_row` journals a grant, or its removal. `barrier`
    makes the audit log durable before policy.json is written.

    Raises:
        BadInput: policy.json cannot be read. The kernel does not start then: the file may hold
            rules that deny.
    """

    def __init__(
        self, path: Path, table: ProcessTable, put_row: PutRow,
        barrier: Callable[[], None] = ignore, now: Callable[[], float] = time.time,
    ) -> None:  # fmt: skip
        self.now = now
        self.path, self.table, self.put_row, self.barrier = path, table, put_row, barrier
        self.last = 0  # the highest number of a grant
        self.next_expiry = math.inf
        kept = read(path)
        self.groups = kept.groups
        self.by_id: dict[int, Grant] = {}
        for grant in kept.grants:
            self._insert(self._in_time(grant))
        self.expire()
        self.changed: Callable[[], None] = ignore  # called when a group has changed

    # --- groups ---------------------------------------------------------------------------------

    def list_groups(self, call: Call, args: Empty) -> acc.Groups:
        return acc.Groups(groups=self.groups)

    def set_group(self, call: Call, args: acc.SetGroup) -> Done:
        """Create or replace a group, or remove it where `group` is None.

        Raises:
            BadInput: a rule is malformed. NotFound: there is no such group to remove. DiskFull.
        """
        groups, name, group = dict(self.groups), args.name, args.group
        if group is not None:
            check_rules([group])
            check_rights([group])
            groups[name] = group
        elif name == AGENTS:
            raise BadInput(f"the group {AGENTS!r} cannot be removed", "give it other rules")
        elif groups.pop(name, None) is None:
            raise NotFound(f"no group {name!r}", "`aios group list` lists them")
        self._write(groups, self.by_id)
        self.groups = groups
        self.changed()
        return Done()

    # --- grants ---------------------------------------------------------------------------------

    def give(self, giver: Process, to: str, rule: Rule, seconds: float | None = None) -> int:
        """Give a rule to `to`. A grant of an agent ends with the agent, and one to "#PID" with that
        process.

        Raises:
            LimitReached: the giver's tree has MAX_GRANTS already. DiskFull.
        """
        pid = giver.pid if giver.kind != "client" else 0
        self.expire()
        if pid:
            given = in_tree(giver.principal, (g.giver for g in self.by_id.values() if g.pid))
            check_tree(giver.principal, given, MAX_GRANTS, "grants that stand", "revoke some")
        expires = None if seconds is None else self.now() + seconds
        grant = Grant(self.last + 1, giver.principal, pid, to, rule, expires, seconds)
        if _lasts(grant):
            self._write(self.groups, {**self.by_id, grant.id: grant})
        else:
            self.put_row(f"grant/{grant.id}", _encode(grant))
        self._insert(grant)
        return grant.id

    def revoke(self, call: Call, args: acc.Revoke) -> Done:
        """Revoke a grant. Its giver may, all above the giver, and a person; for others the grant is
        not there: NotFound."""
        process, grant = call.process, self.by_id.get(args.id)
        giver = self.table.rows.get(grant.pid) if grant is not None else None
        above = giver is not None and (giver is process or self.table.is_above(process.pid, giver))
        if grant is None or not (process.kind == "client" or above):
            raise NotFound(f"no grant {args.id} that you could revoke", "`aios grants` lists them")
        self._remove(grant)
        return Done()

    def ended(self, process: Process) -> None:
        """Remove the grants that a process has given, and those to it alone."""
        for grant in list(self.by_id.values()):
            if process.pid == grant.pid or grant.to == f"#{process.pid}":
                self._remove(grant)

    def take(self, row: bytes) -> None:
        """Restore a grant from the journal."""
        self._insert(self._in_time(_decode(row)))

    def _in_time(self, grant: Grant) -> Grant:
        """Bound the time left by the time granted: the clock may have been set back since."""
        if grant.expires is None or grant.seconds is None:
            return grant
        return msgspec.structs.replace(
            grant, expires=min(grant.expires, self.now() + grant.seconds)
        )

    def expire(self) -> None:
        """Forget the grants that have expired, here and on disk."""
        if self.now() < self.next_expiry:
            return
        over = [each for each in self.by_id.values() if each.ends <= self.now()]
        for grant in over:
            del self.by_id[grant.id]
            if not _lasts(grant):
                self.put_row(f"grant/{grant.id}", None)
        self.next_expiry = min((each.ends for each in self.by_id.values()), default=math.inf)
        if any(_lasts(grant) for grant in over):
            with suppress(DiskFull):  # the next change writes the file, and readers look at times
                self._write(self.groups, self.by_id)

    def visible(self, call: Call, args: Empty) -> list[acc.GrantRow]:
        """List the grants: for a person all, for an agent those that it has given or was given."""
        process = call.process
        names = names_of(process.principal) | {f"#{process.pid}"}
        self.expire()
        return [
            acc.GrantRow(
                id=grant.id, giver=grant.giver, pid=grant.pid, to=grant.to, right=grant.rule.right,
                on=grant.rule.on, args=grant.rule.args, expires=grant.expires,
            )
            for grant in self.by_id.values()
            if process.kind == "client" or grant.pid == process.pid or grant.to in names
        ]  # fmt: skip

    def _insert(self, grant: Grant) -> None:
        self.by_id[grant.id] = grant
        self.last = max(self.last, grant.id)
        self.next_expiry = min(self.next_expiry, grant.ends)

    def _remove(self, grant: Grant) -> None:
        if _lasts(grant):
            left = {number: each for number, each in self.by_id.items() if number != grant.id}
            self._write(self.groups, left)
        else:
            self.put_row(f"grant/{grant.id}", None)
        del self.by_id[grant.id]

    # --- the file -------------------------------------------------------------------------------

    def _write(self, groups: dict[str, Group], grants: dict[int, Grant]) -> None:
        """Write policy.json. The caller changes its own state only after that."""
        kept = PolicyFile(groups=groups, grants=[each for each in grants.values() if _lasts(each)])
        self.barrier()
        try:
            files.replace(self.path, msgspec.json.format(msgspec.json.encode(kept)))
        except OSError as error:
            raise DiskFull(f"cannot write {self.path}: {error.strerror}") from error

    def check(self) -> list[str]:
        """Return broken invariants, in words."""
        return [
            f"grant {grant.id} of dead process {grant.pid} is kept"
            for grant in self.by_id.values()
            if grant.pid and not self.table.is_alive(grant.pid)
        ]


def steady() -> Callable[[], float]:
    """Return a clock of Unix time that runs evenly from now on, even if the machine's is set."""
    start = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return lambda: start + time.clock_gettime(time.CLOCK_BOOTTIME)


def _lasts(grant: Grant) -> bool:
    """Tell whether a grant outlives the system, and so is kept in policy.json."""
    return not grant.pid and not grant.to.startswith("#")


def read(path: Path) -> PolicyFile:
    """Read a policy.json; where there is none, return the default. Raises BadInput."""
    if not path.exists():
        return PolicyFile()
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=PolicyFile)
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
