"""The context manager: what each context holds, and how that entered (paper, section 3.4).

History is the truth, KV is a cache of it. A context is a list of segments, prefilled or decoded.
How a token entered is part of the context, since it decides the bits of its KV. The last token of
a generation was drawn, but never decoded: it joins the next prefill, or is decoded when the
generation goes on.

A fork, a checkpoint and a rollback copy histories; the core finds their common prefixes. A context
with a name outlives its process: it sleeps until a process of the same principal opens it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection

from aios.syscalls.errors import (
    BadInput,
    ContextBusy,
    ContextForeign,
    Denied,
    LimitReached,
    NotFound,
)
from aios.syscalls.llm import ContextInfo, OnFull

from ..lib.trees import Trees, check_tree, in_tree, root
from ..process import Process
from .context_state import ContextState, Turn

MAX_CHECKPOINTS = 64  # of one context
MAX_NAMED = 1024  # contexts with a name, of one tree of agents
MAX_TREE_BYTES = 256 << 20  # of all contexts of one tree of agents, with their checkpoints


class Context(ContextState, kw_only=True):
    """A context: its state, its checkpoints, and its owner."""

    id: int
    owner: Process | None  # None: asleep
    principal: str  # that owns it; of a person's program, its name
    name: str | None = None
    checkpoints: dict[str, ContextState] = {}
    busy: bool = False  # a call works on it
    own: bool = False  # it ends with the call that it was made for
    labels: set[str] = set()  # taint labels of the processes that have had it
    checkpoint_bytes: int = 0
    counted: int = 0  # its bytes that are counted for its tree

    def info(self) -> ContextInfo:
        return ContextInfo(
            ctx=self.id,
            owner=self.principal,
            pid=self.owner.pid if self.owner else 0,
            name=self.name,
            used=self.used,
            state="asleep" if self.owner is None else "busy" if self.busy else "idle",
            on_full=self.on_full,
            checkpoints=sorted(self.checkpoints),
        )


def whose(process: Process) -> str:
    """Return the principal whose contexts with a name a process has; a person's program has those
    of its own name, which no principal is."""
    return process.principal or process.name


class ContextManager:
    """All contexts. `drop` has the core forget one; the ledger writes those in `changed`."""

    def __init__(self, drop: Callable[[int], None]) -> None:
        self.drop = drop
        self.contexts: dict[int, Context] = {}
        self.changed: set[int] = set()
        self.trees = Trees()  # bytes
        self.window = self.vocab = 0  # tokens; known when the core is ready
        self.model = ""  # the id of the core's model
        self.last = 0

    def open(
        self, owner: Process, system: str | None, name: str | None = None,
        on_full: OnFull | None = None, *, own: bool = False, principal: str | None = None,
    ) -> Context:  # fmt: skip
        """Return a new context, or the one of that name, awake again. A person may also open one of
        another `principal`.

        Raises:
            ContextBusy: the context of that name is open.
            Denied: an agent names another principal.
            LimitReached: `owner` has as many as it may.
        """
        self._check_limit(owner)
        principal = whose(owner) if principal is None else principal
        if principal != whose(owner) and owner.kind != "client":
            raise Denied(
                f"{owner.principal} may not open a context of {principal}: it is another's",
                "leave `owner` out",
            )
        context = self._named(principal, name)
        if context is None:
            prelude = [] if system is None else [Turn("system", system)]
            state = ContextState(prelude=prelude, on_full=on_full or "error")
            return self._add(owner, state, name, principal, own=own)
        if context.owner is not None:
            raise ContextBusy(
                f"context {name!r} is open in process {context.owner.pid}", "close it there first"
            )
        if principal.startswith("/") and principal != owner.principal:  # forks of it say so
            context.labels.add(f"msg:{principal}")
        self._taint(owner, context)
        context.owner = owner
        context.on_full = on_full or context.on_full
        owner.contexts.add(context.id)
        self.touch(context)
        return context

    def fork(self, context: Context, owner: Process, name: str | None = None) -> Context:
        """Copy a context for `owner`.

        Raises:
            ContextBusy: there is a context of that name.
            LimitReached: `owner` has as many as it may.
        """
        self._check_limit(owner)
        if self._named(whose(owner), name) is not None:
            raise ContextBusy(f"there is a context {name!r}", "choose another name, or close that")
        copy = self._add(owner, context.copy_state(), name, whose(owner), labels=context.labels)
        self._taint(owner, copy)
        return copy

    def _taint(self, owner: Process, context: Context) -> None:
        """Taint a process by what it has read in a context, but for its own words."""
        owner.taint(context.labels - {f"msg:{owner.principal}"})

    def _named(self, principal: str, name: str | None) -> Context | None:
        found = (c for c in self.contexts.values() if (c.principal, c.name) == (principal, name))
        return None if name is None else next(found, None)

    def _check_limit(self, owner: Process) -> None:
        limit = owner.limits.contexts
        if limit is not None and len(owner.contexts) >= limit:
            raise LimitReached(
                f"{limit} contexts are open: the limit of process {owner.pid}", "close one"
            )

    def scratch(self, owner: Process) -> Context:
        """Return a context that the kernel itself needs for a call of `owner`."""
        return self._add(owner, ContextState(), None, whose(owner), own=True)

    def _add(
        self, owner: Process, state: ContextState, name: str | None, principal: str, *,
        own: bool = False, labels: Collection[str] = (),
    ) -> Context:  # fmt: skip
        """Add a context. Raise LimitReached where its tree holds too much, or too many with a
        name."""
        if name is not None:
            named = (each.principal for each in self.contexts.values() if each.name is not None)
            check_tree(
                principal, in_tree(principal, named), MAX_NAMED, "contexts with a name",
                "drop some: `aios contexts --forget OWNER/NAME`, close(forget=True)",
            )  # fmt: skip
        self._check_bytes(principal)
        self.last += 1
        context = Context(id=self.last, owner=owner, principal=principal, name=name, own=own)
        context.become(state)
        context.labels = {*labels, *owner.labels}
        self.contexts[context.id] = context
        owner.contexts.add(context.id)
        self.touch(context)
        return context

    def take(self, context: Context) -> None:
        """Take over a context of the kernel before this one."""
        self.contexts[context.id] = context
        context.checkpoint_bytes = sum(state.size for state in context.checkpoints.values())
        self.touch(context)

    def touch(self, context: Context) -> None:
        """Mark a context that has changed for the journal, and count its bytes."""
        self.changed.add(context.id)
        if context.id in self.contexts:
            self._count(context, context.size + context.checkpoint_bytes)

    def _count(self, context: Context, size: int) -> None:
        self.trees.add(context.principal, size - context.counted)
        context.counted = size

    def _check_bytes(self, principal: str) -> None:
        """Raise LimitReached where a tree of agents holds as much as it may."""
        if principal.startswith("/"):
            check_tree(
                principal, self.trees.total(root(principal)), MAX_TREE_BYTES, "bytes of contexts",
                "close some, those with a name by close(forget=True): checkpoints go with them",
            )  # fmt: skip

    def get(self, owner: Process, ctx: int) -> Context:
        """Return the context `ctx` of `owner`.

        Raises:
            NotFound: the process has no such context.
            ContextBusy: another call works on it.
        """
        context = self.contexts.get(ctx)
        if context is None or context.owner is not owner:
            raise NotFound(f"no context {ctx}", "open one with llm.open")
        if context.busy:
            raise ContextBusy(f"context {ctx} is generating", "wait for it, or cancel it")
        return context

    def append(self, context: Context, tokens: list[int]) -> None:
        """Enter tokens. Raises BadInput, ContextForeign, ContextFull, LimitReached."""
        if max(tokens, default=0) >= self.vocab:
            raise BadInput(f"a token id is out of the model's vocabulary of {self.vocab}")
        self.check_model(context)
        self._check_bytes(context.principal)
        if context.owner is not None:
            context.labels |= context.owner.labels
        context.append(tokens, self.window)
        context.model = self.model
        self.touch(context)

    def check_model(self, context: Context) -> None:
        """Raise ContextForeign where a context began with another model than the core's."""
        if context.model not in ("", self.model):
            raise ContextForeign(
                f"context {context.id} was begun with another model",
                "start with that model again, or close it with `forget` and begin anew",
            )

    def checkpoint(self, context: Context, name: str) -> None:
        """Remember the state of a context by a name. Raises LimitReached."""
        if name not in context.checkpoints and len(context.checkpoints) >= MAX_CHECKPOINTS:
            raise LimitReached(
                f"context {context.id} has {MAX_CHECKPOINTS} checkpoints: no more",
                "take the name of one that may be replaced",
            )
        self._check_bytes(context.principal)
        before = context.checkpoints.get(name)
        state = context.checkpoints[name] = context.copy_state()
        context.checkpoint_bytes += state.size - (before.size if before is not None else 0)
        self.touch(context)

    def rollback(self, context: Context, name: str) -> None:
        """Go back to a checkpoint. Raise NotFound where there is none of that name."""
        if name not in context.checkpoints:
            known = ", ".join(sorted(context.checkpoints)) or "none"
            raise NotFound(f"context {context.id} has no checkpoint {name!r}", f"it has: {known}")
        context.become(context.checkpoints[name])
        self.touch(context)

    def visible(self, process: Process) -> list[Context]:
        """List the contexts that a process may see: a person all, an agent its own, and those that
        are asleep and that it could open."""
        return [
            context
            for context in self.contexts.values()
            if process.kind == "client"
            or context.owner is process
            or (context.owner is None and context.principal == whose(process))
        ]

    def close(self, context: Context, *, forget: bool = False) -> None:
        """Drop a context. One with a name falls asleep, unless it is to be forgotten."""
        if context.owner is not None:
            context.owner.contexts.discard(context.id)
        self.touch(context)
        if context.name is not None and not forget:
            context.owner = None
            return
        del self.contexts[context.id]
        self._count(context, 0)
        self.drop(context.id)

    def open_count(self) -> int:
        return sum(context.owner is not None for context in self.contexts.values())

    def check(self, processes: Collection[Process]) -> list[str]:
        """List each broken invariant in words."""
        problems = []
        counted: Counter[str] = Counter()
        for context in self.contexts.values():
            counted[context.principal] += context.counted
        if counted != self.trees.held:
            problems.append("the bytes of contexts are miscounted")
        owned = {ctx for process in processes for ctx in process.contexts}
        awake = {ctx for ctx, context in self.contexts.items() if context.owner is not None}
        for ctx in owned ^ awake:
            problems.append(f"context {ctx} is owned or open, not both")
        for ctx, context in self.contexts.items():
            length = sum(len(tokens) for _, tokens in context.history)
            if length != context.used:
                problems.append(f"context {ctx} has {length} tokens, counts {context.used}")
            if context.busy and context.owner is None:
                problems.append(f"context {ctx} is asleep and busy")
        return problems
