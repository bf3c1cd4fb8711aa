"""The context manager's record of each context: what entered it, and how (paper, section 3.4).

History is the truth, KV is a cache of it. A context is a list of segments, prefilled or decoded.
How a token entered is part of the context, since it decides the bits of its KV. The last token of
a generation was drawn, but never decoded: it joins the next prefill, or is decoded when the
generation goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from aios.syscalls.errors import BadInput, ContextBusy, ContextFull, LimitReached, NotFound

from .core.protocol import Decoded, Prefilled, Segment
from .process import Process


@dataclass
class Context:
    id: int
    owner: Process
    history: list[Segment] = field(default_factory=list)
    turns: list[tuple[str, str | None]] = field(default_factory=list)  # None: was generated
    prelude: list[tuple[str, str]] = field(default_factory=list)  # system text, not entered yet
    used: int = 0
    sealed: bool = True  # the last segment has been computed with: it grows no more
    busy: bool = False  # a call works on it

    def append(self, tokens: list[int], window: int) -> None:
        """Raises ContextFull where `tokens` do not fit, and changes nothing then."""
        if self.used + len(tokens) > window:
            raise ContextFull(
                f"{len(tokens)} tokens do not fit: {self.used} of {window} are used",
                "shorten it, open another context, or start with a larger --ctx",
            )
        self.used += len(tokens)
        if not self.sealed:
            self.history[-1][1].extend(tokens)
        elif tokens:
            self.history.append((Prefilled, [*self._undecoded(), *tokens]))
            self.sealed = False

    def _undecoded(self) -> list[int]:
        if not self.history or self.history[-1][0] == Prefilled:
            return []
        drawn = self.history[-1][1]
        last = drawn.pop()
        if not drawn:
            self.history.pop()
        return [last]

    def seal(self) -> None:
        """A generation starts: where the next prefill's chunks begin is decided by this."""
        self.sealed = True

    def draw(self, token: int) -> None:
        """A generation drew `token`."""
        if self.history[-1][0] == Prefilled:
            self.history.append((Decoded, [token]))
        else:
            self.history[-1][1].append(token)
        self.used += 1


class ContextManager:
    """All open contexts. `drop` tells the core to forget one."""

    def __init__(self, drop: Callable[[int], None]) -> None:
        self.drop = drop
        self.contexts: dict[int, Context] = {}
        self.window = 0  # tokens; known when the core is ready
        self.vocab = 0
        self.last = 0

    def open(self, owner: Process, system: str | None) -> Context:
        limit = owner.limits.contexts
        if limit is not None and len(owner.contexts) >= limit:
            raise LimitReached(f"{limit} contexts are open: the limit of process {owner.pid}")
        self.last += 1
        context = Context(self.last, owner)
        if system is not None:
            context.prelude.append(("system", system))
        self.contexts[context.id] = context
        owner.contexts.add(context.id)
        return context

    def get(self, owner: Process, ctx: int) -> Context:
        """The context `ctx` of `owner`, idle.

        Raises:
            NotFound: it has no such context.
            ContextBusy: a call works on it.
        """
        context = self.contexts.get(ctx)
        if context is None or context.owner is not owner:
            raise NotFound(f"no context {ctx}", "open one with llm.open")
        if context.busy:
            raise ContextBusy(f"context {ctx} is generating", "wait for it, or cancel it")
        return context

    def append(self, context: Context, tokens: list[int]) -> None:
        if any(token >= self.vocab for token in tokens):
            raise BadInput(f"a token id is out of the model's vocabulary of {self.vocab}")
        context.append(tokens, self.window)

    def close(self, context: Context) -> None:
        del self.contexts[context.id]
        context.owner.contexts.discard(context.id)
        self.drop(context.id)

    def check(self, processes: Collection[Process]) -> list[str]:
        problems = []
        owned = {ctx for process in processes for ctx in process.contexts}
        for ctx in owned ^ self.contexts.keys():
            problems.append(f"context {ctx} is owned or open, not both")
        for ctx, context in self.contexts.items():
            length = sum(len(tokens) for _, tokens in context.history)
            if length != context.used:
                problems.append(f"context {ctx} has {length} tokens, counts {context.used}")
        return problems
