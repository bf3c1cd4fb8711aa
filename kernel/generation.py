"""Generations: from a system call through the scheduler and the core to its tokens and its end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import msgspec
from msgspec import UNSET

from aios.syscalls.errors import (
    AiosError,
    BadInput,
    CoreFailed,
    Internal,
    LimitReached,
)
from aios.syscalls.messages import (
    Append,
    Appended,
    Decoding,
    Finish,
    Generate,
    Logprob,
    ModelInfo,
    Piece,
    Result,
    Timings,
    Usage,
)

from .context import Context, ContextManager
from .core.protocol import (
    Command,
    Halt,
    Halted,
    Out,
    Run,
    Step,
)
from .process import Process
from .prompt import DEATHS, Prompts
from .scheduler import Decision, Dispatch, Scheduler, Task
from .stats import EventLog, Statistics
from .trap import Call


@dataclass
class Generation:
    run: int  # what the core still reports of an earlier run in this context has another
    call: Call
    context: Context
    decoding: Decoding
    stream: bool
    prompt: int  # tokens that the call appended
    began: float
    task: Task
    turn: float | None = None  # when its turn began, while it has one
    prefill: float = 0.0
    decode: float = 0.0
    ttft: float | None = None
    text: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[Logprob] = field(default_factory=list)
    digest: bytes = b""
    held: str = ""  # text that the core held back, while preempted
    cancelled: bool = False
    deaths: int = 0  # of the core while it had a slot, since its last token

    def stop_clock(self, now: float) -> None:
        """Account for the time of this turn."""
        if self.turn is not None:
            if self.ttft is None:
                self.prefill += now - self.turn
            else:
                self.decode += now - self.turn
        self.turn = None


class Generations:
    """All generations, by context id. `send` takes commands to the core."""

    def __init__(
        self,
        scheduler: Scheduler,
        contexts: ContextManager,
        prompts: Prompts,
        stats: Statistics,
        events: EventLog,
        send: Callable[[Command], None],
    ) -> None:
        self.scheduler = scheduler
        self.contexts = contexts
        self.prompts = prompts
        self.stats = stats
        self.events = events
        self.send = send
        self.active: dict[int, Generation] = {}
        self.last_run = 0

    # --- calls ----------------------------------------------------------------------------------

    def append(self, call: Call, args: Append) -> None:
        context = self.contexts.get(call.process, args.ctx)
        self._occupy(call, context)

        def appended(added: int) -> None:
            call.done(Appended(added=added, used=context.used, window=self.contexts.window))

        self.prompts.enter(call, context, args, appended)

    def start(self, call: Call, args: Generate) -> None:
        """A generation in the context that the call names, or in one that ends with the call."""
        if args.ctx is None:
            context = self.contexts.open(call.process, None)
        else:
            context = self.contexts.get(call.process, args.ctx)
        self._occupy(call, context, own=args.ctx is None)
        self.prompts.enter(call, context, args, partial(self._queue, call, context, args))

    def _occupy(self, call: Call, context: Context, *, own: bool = False) -> None:
        """`context` is the call's until it ends, whichever way it ends."""
        context.busy = True

        def release() -> None:
            context.busy = False
            decisions = self._leave(context) if context.id in self.active else []
            if own:
                self.contexts.close(context)
            self.apply(decisions)

        call.on_end = release

    def cancel(self, context: Context) -> None:
        """End it at the next token, with what it has."""
        gen = self.active[context.id]
        gen.cancelled = True
        if gen.task.state == "ready":
            self._finish(gen, "cancelled", gen.held)
        else:
            self.send(Halt(context.id, "cancelled"))

    def suspend(self, process: Process, suspended: bool) -> None:
        change = self.scheduler.suspend if suspended else self.scheduler.resume
        self.apply(change(process.contexts, time.monotonic()))

    # --- a generation's life --------------------------------------------------------------------

    def _queue(self, call: Call, context: Context, args: Generate, added: int) -> None:
        if context.used == 0:
            raise BadInput("there is nothing to generate from", "send messages, text or tokens")
        context.append([], self.contexts.window - 1)  # room for one token, or ContextFull
        context.seal()
        now = time.monotonic()
        suspended = call.process.state == "stopped"
        decisions = self.scheduler.add(context.id, call.process.nice, now, suspended=suspended)
        task = self.scheduler.tasks[context.id]
        decoding = msgspec.convert(args, Decoding, from_attributes=True)
        self.last_run += 1
        self.active[context.id] = Generation(
            self.last_run, call, context, decoding, args.stream, added, now, task
        )
        call.on_cancel = lambda: self.cancel(context)
        self.events.publish("generation", "queued", call.process.pid, ctx=context.id, prompt=added)
        self.apply(decisions)

    def _leave(self, context: Context) -> list[Decision]:
        """The call has ended, with its result or without: nothing of it is left behind."""
        gen = self.active.pop(context.id)
        process = gen.call.process
        decisions = self.scheduler.remove(context.id, time.monotonic())
        if gen.turn is not None:  # it ended without the core's word
            self.contexts.drop(context.id)
        process.generations += 1
        process.waiting += gen.task.waiting
        process.switches += gen.task.switches
        if context.turns and context.turns[-1][1] is not None:
            context.turns.append(("assistant", None))
        self.stats.generations += 1
        self.stats.switches += gen.task.switches
        return decisions

    def apply(self, decisions: list[Decision]) -> None:
        now = time.monotonic()
        for decision in decisions:
            gen = self.active[decision.task]
            context = gen.context
            if isinstance(decision, Dispatch):
                gen.turn, gen.held = now, ""
                generated = len(gen.tokens)
                self.send(
                    Run(context.id, gen.run, context.history, generated, gen.decoding, gen.digest)
                )
            else:
                self.send(Halt(context.id, "preempted"))
            what = type(decision).__name__.lower()
            self.events.publish("generation", what, gen.call.process.pid, ctx=context.id)

    # --- what the core reports ------------------------------------------------------------------

    def core_ready(self, model: ModelInfo, slots: int) -> None:
        self.contexts.window, self.contexts.vocab = model.window, model.vocab
        self.apply(self.scheduler.set_slots(slots, time.monotonic()))

    def core_gone(self, error: AiosError | None) -> None:
        """All that ran goes back to the ready queue; with an `error` there is no other core."""
        now = time.monotonic()
        for gen in self.active.values():
            if gen.task.state != "ready":
                gen.stop_clock(now)
                gen.deaths += 1
        self.scheduler.set_slots(0, now)
        for gen in list(self.active.values()):
            if error is not None:
                gen.call.fail(error)
            elif gen.cancelled:
                self._finish(gen, "cancelled", "")
            elif gen.deaths >= DEATHS:
                why = f"the LLM core died {gen.deaths} times in a row under this call"
                gen.call.fail(CoreFailed(why, "see log/core.log in the AIOS home"))
        if error is not None:
            self.prompts.give_up(error)
        else:
            self.prompts.core_gone()

    def step(self, step: Step) -> None:
        self.stats.core = step.counters
        for out in step.outs:
            gen = self.active.get(out.ctx)
            if gen is not None and gen.run == out.run:
                self._out(gen, out)
        for halted in step.halted:
            gen = self.active.get(halted.ctx)
            if gen is not None and gen.run == halted.run:
                self._halted(gen, halted)

    def _out(self, gen: Generation, out: Out) -> None:
        now = time.monotonic()
        if out.digest:
            gen.digest = out.digest
        if out.token is not None:
            if gen.ttft is None:
                self._first_token(gen, now)
            gen.context.draw(out.token)
            gen.tokens.append(out.token)
            gen.deaths = 0
            gen.text.append(out.text)
            if out.logprob is not None:
                gen.logprobs.append(out.logprob)
            try:
                self.prompts.check_limit(gen.call.process, 1)
            except LimitReached as error:
                gen.call.fail(error)
                return
            gen.call.process.tokens += 1
            if gen.stream:
                some = UNSET if out.logprob is None else [out.logprob]
                gen.call.piece(Piece(text=out.text, tokens=[out.token], logprobs=some))
        self.apply(self.scheduler.served(out.ctx, out.fed, now))

    def _first_token(self, gen: Generation, now: float) -> None:
        if gen.turn is not None:
            gen.prefill += now - gen.turn
            gen.turn = now
        gen.ttft = now - gen.began
        self.stats.ttft.add(gen.ttft)
        gen.call.process.ttft_total += gen.ttft
        gen.call.process.first_tokens += 1

    def _halted(self, gen: Generation, halted: Halted) -> None:
        now = time.monotonic()
        gen.stop_clock(now)
        if halted.why == "failed":
            gen.call.fail(Internal(f"the core refused the context: {halted.error}"))
        elif halted.why == "preempted" and not gen.cancelled:
            gen.held = halted.text
            self.apply(self.scheduler.halted(halted.ctx, now))
        else:
            why: Finish = "cancelled" if halted.why == "preempted" else halted.why
            self._finish(gen, why, halted.text)

    def _finish(self, gen: Generation, finish: Finish, text: str) -> None:
        now = time.monotonic()
        if text:
            gen.text.append(text)
            if gen.stream:
                gen.call.piece(Piece(text=text, tokens=[]))
        turnaround, waiting = now - gen.began, gen.task.waited(now)
        self.stats.waiting.add(waiting)
        self.stats.turnaround.add(turnaround)
        gen.call.process.turnaround += turnaround
        self.stats.prompt_tokens += gen.prompt
        self.stats.completion_tokens += len(gen.tokens)
        usage = Usage(prompt=gen.prompt, completion=len(gen.tokens), context=gen.context.used)
        timings = Timings(
            waiting=waiting,
            prefill=gen.prefill,
            decode=gen.decode,
            ttft=gen.ttft,
            turnaround=turnaround,
            switches=gen.task.switches,
        )
        result = Result(
            text="".join(gen.text),
            tokens=gen.tokens,
            finish=finish,
            usage=usage,
            timings=timings,
            digest=gen.digest.hex() or None,
            logprobs=gen.logprobs if gen.decoding.logprobs is not None else UNSET,
        )
        self.events.publish("generation", finish, gen.call.process.pid, ctx=gen.context.id)
        gen.call.done(result)

    def check(self) -> list[str]:
        problems = [
            f"context {ctx} is scheduled, not generating"
            for ctx in self.scheduler.tasks.keys() ^ self.active.keys()
        ]
        running = len(self.scheduler.in_state("running"))
        if running > self.scheduler.slots:
            problems.append(f"{running} contexts run on {self.scheduler.slots} slots")
        for ctx, gen in self.active.items():
            if gen.call.ended:
                problems.append(f"context {ctx} generates for a call that has ended")
            if not gen.context.busy:
                problems.append(f"context {ctx} generates and is not busy")
        return problems
