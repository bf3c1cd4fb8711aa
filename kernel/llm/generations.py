"""Generations: from a system call through the scheduler and the core to its tokens and its end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import takewhile

import msgspec

from aios.syscalls.errors import (
    AiosError,
    BadInput,
    CoreFailed,
    DiskFull,
    LimitReached,
    from_wire,
)
from aios.syscalls.kernel import ModelInfo
from aios.syscalls.llm import (
    Append,
    Appended,
    Decoding,
    Finish,
    Generate,
    Moved,
    PastMessage,
    Piece,
    Result,
)

from ..core.protocol import Command, Halt, Halted, Out, Prefetch, Run, Step
from ..entry.call import Call
from ..events import EventLog
from ..lib.coroutine import Wait
from ..lib.trees import root
from ..process import Process
from .context_state import Turn
from .contexts import Context, ContextManager
from .generation import Generation, GenerationState, packed
from .prompt import MAX_DEATHS, PromptInput, Prompts
from .scheduler.scheduler import Decision, Dispatch, Scheduler
from .scheduler.task import Task
from .statistics import Statistics
from .window import Windows


class Generations:
    """All generations, by context id.

    `send` takes commands to the core; `check_room` raises DiskFull where the journal has no room;
    `on_end` hears of each that a caller has asked for.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        contexts: ContextManager,
        prompts: Prompts,
        stats: Statistics,
        events: EventLog,
        send: Callable[[Command], None],
        check_room: Callable[[], None],
        on_end: Callable[[Generation], None],
    ) -> None:
        self.check_room, self.on_end = check_room, on_end
        # Reports of the core in this turn, by context: the ledger writes them before anyone is
        # shown what follows from them.
        self.reports: dict[int, list[Out | Halted]] = {}
        self.scheduler = scheduler
        self.contexts = contexts
        self.prompts = prompts
        self.stats = stats
        self.events = events
        self.send = send
        self.windows = Windows(contexts, prompts, self._generate_for)
        self.active: dict[int, Generation] = {}
        self.last_run = time.monotonic_ns()  # a core may still run what another kernel sent

    # --- calls ----------------------------------------------------------------------------------

    async def append(self, call: Call, args: Append) -> Appended:
        """Append to a context without an answer."""
        context = self.contexts.get(call.process, args.ctx)
        call.durable = context.name is not None
        with self._occupied(context):
            added, moved = await self.windows.enter(call, context, args)
        window = self.contexts.window
        return Appended(added=added, used=context.used, window=window, moved=moved)

    async def generate(self, call: Call, args: Generate) -> Result:
        """Generate in the context that the call names, or in one that ends with the call."""
        args = packed(args)
        if args.ctx is None:
            context = self.contexts.open(call.process, None, own=True)
        else:
            context = self.contexts.get(call.process, args.ctx)
        call.durable = context.name is not None
        with self._occupied(context):
            await self.prompts.compile(call.process, args)
            added, moved = await self.windows.enter(call, context, args)
            state = self._begin(call.process, call.id, context, args, added, moved)
            return await self._run(call, context, state)

    async def _generate_for(self, call: Call, turns: list[Turn], decoding: Decoding) -> str:
        """Have the model answer for the kernel itself, while it serves `call`."""
        context = self.contexts.scratch(call.process)
        args = Generate(**msgspec.structs.asdict(decoding), stream=False)
        with self._occupied(context):
            new = PromptInput(turns, None, None, reply=True)
            tokens = await self.prompts.encode(call.process, context, new)
            self.contexts.append(context, tokens)
            state = self._begin(call.process, 0, context, args, len(tokens), None)
            return (await self._run(call, context, state)).text

    @contextlib.contextmanager
    def _occupied(self, context: Context) -> Iterator[None]:
        """Keep other calls out of a context. In the end its generation, if any, leaves the
        scheduler."""
        context.busy = True
        try:
            yield
        finally:
            context.busy = False
            decisions = self._leave(context) if context.id in self.active else []
            if context.own:
                self.contexts.close(context)
            self.apply(decisions)

    def cancel(self, context: Context) -> None:
        """End the generation in a context at the next token, with what it has."""
        gen = self.active[context.id]
        if gen.state.cancelled:
            return
        gen.state.cancelled = True
        self.contexts.touch(context)
        if gen.task.state == "ready":
            self._finish(gen, "cancelled", gen.state.held)
        else:
            self.send(Halt(context.id, "cancelled"))

    def suspend(self, process: Process, suspended: bool) -> None:
        """Suspend or resume all generations of a process."""
        self.apply(self.scheduler.suspend(process.contexts, suspended, time.monotonic()))

    # --- a generation's life --------------------------------------------------------------------

    def _begin(
        self, process: Process, call: int, context: Context, args: Generate, added: int,
        moved: Moved | None,
    ) -> GenerationState:  # fmt: skip
        """Make a context ready for an answer; return the state of its generation."""
        if context.used == 0:
            raise BadInput("there is nothing to generate from", "send messages, text or tokens")
        self.contexts.check_model(context)
        context.append([], self.contexts.window - 1)  # room for one token, or ContextFull
        context.seal()
        self.contexts.touch(context)
        decoding = Decoding(*(getattr(args, name) for name in Decoding.__struct_fields__))
        self.events.publish("generation", "queued", process.pid, ctx=context.id, prompt=added)
        return GenerationState(
            call=call, decoding=decoding, stream=args.stream, prompt=added,
            began=time.monotonic(), moved=moved, given=_given(context, args),
        )  # fmt: skip

    async def _run(self, call: Call, context: Context, state: GenerationState) -> Result:
        """Hand a generation to the scheduler, and wait for its end."""
        cancel = partial(self.cancel, context) if state.call else None
        end = Wait[Result](cancel=cancel)
        self.apply(self._add(call, end, context, state))
        if state.cancelled:
            self._finish(self.active[context.id], "cancelled", state.held)
        return await end

    def _add(
        self, call: Call, end: Wait[Result], context: Context, state: GenerationState
    ) -> list[Decision]:
        suspended = call.process.state == "stopped"
        now = time.monotonic()
        agent = call.process.principal or f"pid {call.process.pid}"
        task = Task(
            context.id, agent, root(agent), call.process.nice, state.prompt,
            state.decoding.max_tokens, suspended, decoded=state.drawn, waiting=state.waiting,
            switches=state.switches,
        )  # fmt: skip
        decisions = self.scheduler.add(task, now)
        self.last_run += 1
        self.active[context.id] = Generation(self.last_run, call, end, context, state, task)
        return decisions

    def recover(self, call: Call, context: Context, state: GenerationState) -> None:
        """Go on with a generation that another kernel began, once there is a core."""
        state.decoding = packed(state.decoding)
        call.pieces = list(state.pieces) if state.stream else []
        call.durable = context.name is not None
        call.run(self._go_on(call, context, state))

    async def _go_on(self, call: Call, context: Context, state: GenerationState) -> Result:
        with self._occupied(context):
            return await self._run(call, context, state)

    def _leave(self, context: Context) -> list[Decision]:
        """Forget a generation whose call has ended, with a result or without."""
        gen = self.active.pop(context.id)
        process = gen.call.process
        decisions = self.scheduler.remove(context.id, time.monotonic())
        if gen.turn is not None:  # it ended without the core's word
            self.contexts.drop(context.id)
        process.generations += 1
        process.waiting += gen.task.waiting
        process.switches += gen.task.switches
        process.touch()
        if gen.state.call:
            self.on_end(gen)
        context.answered(gen.state.text + gen.tail, gen.state.drawn)
        self.contexts.touch(context)
        self.stats.generations += 1
        self.stats.switches += gen.task.switches
        return decisions

    def apply(self, decisions: list[Decision]) -> None:
        now = time.monotonic()
        for decision in decisions:
            gen = self.active[decision.task]
            context = gen.context
            if isinstance(decision, Dispatch):
                gen.turn, state = now, gen.state
                generated = len(state.pieces)
                self.send(
                    Run(
                        context.id,
                        gen.run,
                        context.history,
                        generated,
                        state.decoding,
                        state.digest,
                    )
                )
            else:
                self.send(Halt(context.id, "preempted"))
                gen.prefetched = False
            what = type(decision).__name__.lower()
            self.events.publish("generation", what, gen.call.process.pid, ctx=context.id)
        if decisions:
            self._prefetch()

    def _prefetch(self) -> None:
        """Have the core read from disk, while others run, what those that follow need."""
        for task in self.scheduler.upcoming():
            gen = self.active[task.id]
            if not gen.prefetched:
                gen.prefetched = True
                self.send(Prefetch(task.id))

    # --- what the core reports ------------------------------------------------------------------

    def core_ready(self, model: ModelInfo, slots: int) -> None:
        self.contexts.window, self.contexts.vocab = model.window, model.vocab
        self.contexts.model = model.id
        self.prompts.core_error = None
        self.apply(self.scheduler.set_slots(slots, time.monotonic()))

    def core_gone(self, error: AiosError | None) -> None:
        """Put all that ran back into the ready queue; with an `error`, end all instead."""
        now = time.monotonic()
        for gen in self.active.values():
            if gen.task.state != "ready":
                gen.stop_clock(now)
                gen.deaths += 1
        self.scheduler.set_slots(0, now)
        for gen in list(self.active.values()):
            if error is not None:
                gen.end.fail(error)
            elif gen.state.cancelled:
                self._finish(gen, "cancelled", gen.state.held)
            elif gen.deaths >= MAX_DEATHS:
                why = f"the LLM core died {gen.deaths} times in a row under this call"
                gen.end.fail(CoreFailed(why))
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
        self.apply(self.scheduler.decide(time.monotonic()))

    def _out(self, gen: Generation, out: Out) -> None:
        now = time.monotonic()
        drawn = len(gen.state.pieces)
        piece = gen.state.take(out)
        if piece is not None or out.digest:
            self.reports.setdefault(out.ctx, []).append(out)
        if out.token is not None and piece is not None:
            if gen.state.ttft is None:
                self._first_token(gen, now)
            gen.context.draw(out.token)
            gen.deaths = 0
            try:
                gen.call.process.check_tokens(1)
                self.check_room()
            except (LimitReached, DiskFull) as error:
                gen.end.fail(error)
                return
            gen.call.process.spend(1)
            if gen.state.stream:
                gen.call.piece(piece)
        prefilled = out.fed if drawn == 0 else 0
        self.scheduler.served(
            out.ctx, now, prefilled=prefilled, decoded=out.fed - prefilled, again=out.again
        )

    def _first_token(self, gen: Generation, now: float) -> None:
        if gen.turn is not None:
            gen.state.prefill += now - gen.turn
            gen.turn = now
        gen.state.ttft = ttft = now - gen.state.began
        self.stats.ttft.add(ttft)
        gen.call.process.ttft_total += ttft
        gen.call.process.first_tokens += 1

    def _halted(self, gen: Generation, halted: Halted) -> None:
        now = time.monotonic()
        gen.stop_clock(now)
        if halted.why == "failed":
            gen.end.fail(from_wire(halted.error))
        elif halted.why == "preempted" and not gen.state.cancelled:
            gen.state.held = halted.text
            self.reports.setdefault(halted.ctx, []).append(halted)
            self.scheduler.halted(halted.ctx, now)
        else:
            why: Finish = "cancelled" if halted.why == "preempted" else halted.why
            self._finish(gen, why, halted.text)

    def _finish(self, gen: Generation, finish: Finish, text: str) -> None:
        now = time.monotonic()
        gen.tail, gen.finish = text, finish
        if text and gen.state.stream:
            gen.call.piece(Piece(text=text, tokens=[]))
        result = gen.result(finish, now)
        self.stats.waiting.add(result.timings.waiting)
        self.stats.turnaround.add(result.timings.turnaround)
        gen.call.process.turnaround += result.timings.turnaround
        self.stats.prompt_tokens += gen.state.prompt
        self.stats.completion_tokens += len(result.tokens)
        self.events.publish("generation", finish, gen.call.process.pid, ctx=gen.context.id)
        gen.end.done(result)

    def check(self) -> list[str]:
        """List each broken invariant in words."""
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


def _given(context: Context, args: Generate) -> list[PastMessage]:
    """Return the messages since the last answer, or the text."""
    if args.text is not None:
        return [PastMessage(role="text", content=args.text)]
    since = takewhile(lambda turn: not turn.generated, reversed(context.turns))
    return [PastMessage(role=turn.role, content=turn.text) for turn in since][::-1]
