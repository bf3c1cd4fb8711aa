"""The access manager: the one gate that every system call passes before any effect.

The gate checks two things of each call: that rules allow it (kernel/rules.py), and that its objects
are the caller's own, or shared with it. A person's process (a client: same user, not started by
init) may do everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial

from aios.syscalls import acc, mem, sto, tool
from aios.syscalls.base import Message
from aios.syscalls.errors import BadInput, Denied
from aios.syscalls.llm import Append, Generate
from aios.syscalls.msg import Send
from aios.syscalls.proc import Kill, Log, SetLimits, SetNice, Spawn
from aios.syscalls.rules import Group, Rule
from aios.syscalls.table import Syscall

from ..entry.call import Call
from ..lib.patterns import TooLong
from ..manifests import SourcedRule, check_right, check_rules, rules_of
from ..process import Process, ProcessTable
from ..rules import (
    AccessRequest,
    Evaluation,
    Grant,
    Mode,
    Permit,
    RuleEvaluator,
    Subject,
    all_fitting,
    covers,
)
from .grants import Grants

NICE = (SetNice, Spawn)
RAW = (Append, Generate)
PERSON, EVERYBODY = Permit("a person may"), Permit("everybody may")

Shared = Callable[[str, str, str | None, Mode], bool]  # principal, owner, path or None for any


class Gate:
    """Checks calls. `shared` tells whether an owner of storage has shared a path."""

    def __init__(self, table: ProcessTable, grants: Grants, shared: Shared) -> None:
        self.table, self.grants, self.shared = table, grants, shared
        self.evaluator = RuleEvaluator(grants.by_id, self._giver)
        # The layers of rules that bind a process, by pid and right, with the permit that they give
        # for any object, if they do.
        self.layers: dict[int, dict[str, tuple[list[list[SourcedRule]], Permit | None]]] = {}
        grants.changed = self.layers.clear

    # --- the check ------------------------------------------------------------------------------

    def check(self, process: Process, syscall: Syscall, args: Message) -> Permit:
        """Permit a call. Raises Denied, or NotFound where the process it is about is not there."""
        if process.kind == "client" or syscall.right == "none":
            return PERSON if process.kind == "client" else EVERYBODY
        if isinstance(args, RAW) and args.messages is None and (args.text or args.tokens):
            syscall = replace(syscall, right="llm.raw")  # it may hold control tokens
        layers, plain = self._layers(process, syscall.right)
        requests, subject = self.requests(process, syscall, args), self._subject(process, layers)
        if (
            plain is not None
            and not isinstance(args, NICE)
            and all(each.owned is None or each.owned(subject) for each in requests)
        ):
            return plain
        evaluation, rule = Evaluation(self.grants.now()), ""
        asked: list[tuple[AccessRequest, str]] = []
        for request in requests:
            found = self.evaluator.decide(subject, request, evaluation.now, evaluation)
            if found.effect == "deny":
                about = f" on {request.object!r}" if request.object else ""
                raise Denied(
                    f"{process.principal} may not {syscall.name}{about}: {found.rule}",
                    "a person sees why with `aios policy check`",
                    found.rule,
                )
            rule = found.rule
            if found.effect == "ask":
                asked.append((request, rule))
        if isinstance(args, NICE) and args.nice is not None and args.nice < process.nice:
            raise Denied(
                f"{syscall.name}: an agent cannot go below its own nice value, {process.nice}"
            )
        if not asked:
            return Permit(rule)
        rules = dict.fromkeys(rule for _, rule in asked)
        objects = tuple(dict.fromkeys(request.all for request in requests if request.object))
        return Permit("; ".join(rules), objects, tuple(request for request, _ in asked))

    def subject(self, process: Process, right: str = "") -> Subject:
        """Return the subject that a process is; with `right`, with only the rules that cover it."""
        return self._subject(process, self._layers(process, right)[0])

    def _subject(self, process: Process, layers: list[list[SourcedRule]]) -> Subject:
        pid = 0 if process.kind == "client" else process.pid
        return Subject(
            process.principal, layers, pid, frozenset(process.labels), is_worker=bool(process.tool)
        )

    def _layers(
        self, process: Process, right: str
    ) -> tuple[list[list[SourcedRule]], Permit | None]:
        known = self.layers.setdefault(process.pid, {}) if process.alive else {}
        found = known.get(right)
        if found is None:
            own = self._own_rules(process, right)
            layers = [[named for named in own if not right or covers(named.rule.right, right)]]
            if len(process.line) > 1:
                layers += self._layers(process.line[1], right)[0]
            elif process.parent:
                layers.append([])  # the rules of a parent that is gone are not known: deny
            found = known[right] = layers, plainly(layers)
        return found

    def _own_rules(self, process: Process, right: str) -> list[SourcedRule]:
        """Return the process's own layer. The rules are the same objects, whatever the `right`."""
        if right:
            return self._layers(process, "")[0][0]
        groups = {} if process.tool else self.grants.groups  # its caller's are not its own
        return rules_of(process.principal, process.manifest, groups)

    def _giver(self, grant: Grant) -> Subject | None:
        if not grant.pid:
            return Subject("")
        process = self.table.rows.get(grant.pid)
        return self.subject(process) if process is not None and process.alive else None

    def requests(self, process: Process, syscall: Syscall, args: Message) -> list[AccessRequest]:
        """Return the requests of a call: one right, on one or more objects."""
        make = partial(AccessRequest, syscall.right)
        match args:
            case Kill() | Log() | SetNice() | SetLimits():
                target = process if args.pid is None else self.table.get(args.pid)
                return [make(target.principal, owned=lambda who: self._controls(who, target))]
            case Send():
                return [make(self.table.find(args.to, process.principal).principal)]
            case Spawn():
                return [make(args.program)]
            case tool.CallTool():
                return [make(args.name, args=args.args)]
            case mem.Whose():
                named = self.table.rows.get(args.pid or 0)
                theirs = args.principal or (named.principal if named else "")
                own = args.principal is None and args.pid in (None, process.pid)
                pid = process.pid if own else args.pid
                whose = process.principal if own else theirs
                return [make(whose, owned=lambda who: args.principal is None and who.pid == pid)]
        owner = getattr(args, "owner", None)
        owner = process.principal if owner is None else owner
        return [
            make(
                f"{owner}:{path}",
                below=below,
                owned=partial(self._reaches, owner, None if below else path, mode),
            )
            for path, below, mode in _objects(args)
        ] or [make()]

    def _controls(self, who: Subject, target: Process) -> bool:
        return who.pid == target.pid or self.table.is_above(who.pid, target)

    def _reaches(self, owner: str, path: str | None, mode: Mode, who: Subject) -> bool:
        return who.principal == owner or self.shared(who.principal, owner, path, mode)

    def readable(self, process: Process, scopes: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the (owner, prefix) among `scopes` that the rules let a process read."""
        if process.kind == "client":
            return scopes
        subject, evaluation = self.subject(process), Evaluation(self.grants.now())

        def may(owner: str, prefix: str) -> bool:
            request = AccessRequest("sto.read", f"{owner}:{prefix}", below="/:*")
            found = self.evaluator.decide(subject, request, evaluation.now, evaluation)
            return found.effect == "allow"

        return [scope for scope in scopes if may(*scope)]

    def may_ever(self, process: Process, right: str, objects: Iterable[str]) -> list[str]:
        """Return the objects on which a process may have the right with some arguments. Where this
        takes too many steps, the rest are left out."""
        if process.kind == "client":
            return list(objects)
        subject, evaluation = self.subject(process, right), Evaluation(self.grants.now())
        found: list[str] = []
        with suppress(TooLong):
            may_ever = self.evaluator.may_ever
            found += (each for each in objects if may_ever(subject, right, each, evaluation))
        return found

    def grant(self, call: Call, args: acc.Grant) -> acc.Granted:
        """Grant a right. Raises BadInput for storage, which is shared by its owner instead."""
        if args.right.split(".")[0] in ("sto", "*"):
            raise BadInput("a grant of storage does nothing", "its owner shares it: `sto.share`")
        check_right(args.right)
        rule = Rule(args.right, args.on, args.args)
        check_rules([Group(allow=[rule], members=[args.to])])
        return acc.Granted(id=self.grants.give(call.process, args.to, rule, args.seconds))

    def explain(self, call: Call, args: acc.Check) -> acc.Verdict:
        """Explain how the rules decide, as if the object were the caller's own.

        Raises:
            Denied: an agent asks about another. BadInput: no call needs that right.
        """
        check_right(args.right)
        process = call.process
        if process.kind != "client" and (args.principal or args.pid not in (None, process.pid)):
            raise Denied("an agent asks of itself only")
        target = process if args.pid is None else self.table.get(args.pid)
        subject = self.subject(target)
        if args.principal is not None:
            rules = [rules_of(args.principal, None, self.grants.groups)]
            subject = Subject(args.principal, rules, -1)
        request = AccessRequest(args.right, args.object, args=args.args)
        decision = self.evaluator.decide(subject, request, self.grants.now())
        return acc.Verdict(
            effect=decision.effect, rule=decision.rule, tainted=sorted(subject.labels),
            fits=all_fitting(subject, request),
        )  # fmt: skip

    def ended(self, process: Process) -> None:
        """Forget the rules of a process."""
        self.layers.pop(process.pid, None)


def plainly(layers: list[list[SourcedRule]]) -> Permit | None:
    """Return the permit for any object, if each layer allows all and no rule is about less."""
    plain = all(
        named == named._replace(effect="allow", rule=Rule(named.rule.right))
        for layer in layers
        for named in layer
    )
    return Permit(layers[0][0].text) if plain and all(layers) else None


def _objects(args: Message) -> Iterator[tuple[str, str, Mode]]:
    """Iterate over (path, below, mode) of the storage that a call is about: see AccessRequest."""
    match args:
        case sto.Batch():
            for change in args.changes:
                yield change.path, "", "write"
        case sto.Put() | sto.Delete() | sto.Restore():
            yield args.path, "", "write"
        case sto.Get() | sto.History():
            yield args.path, "", "read"
        case sto.Search():
            yield args.path, "/:*", "read"
        case sto.List() | sto.Watch():
            yield args.prefix, ":*", "read"
        case sto.Purge():
            yield args.path, "", "own"
        case sto.Share():
            yield args.prefix, "/:*", "own"
        case sto.Upload():
            yield "", ":*", "write"
        case sto.Shares():
            yield "", ":*", "own"
