"""The life of processes: spawned by init, signalled, limited, and ended with all they have."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable
from functools import partial

import msgspec

from aios.syscalls.base import Done
from aios.syscalls.errors import Denied, LimitReached, ProcessGone, from_wire
from aios.syscalls.proc import Exit, Kill, SandboxGrants, Spawn, Spawned

from ..config import Config
from ..entry.call import Call, Session
from ..entry.sessions import Sessions
from ..events import EventLog
from ..init.protocol import (
    ExitAcknowledged,
    Gone,
    Paused,
    SandboxRefusal,
    SignalChild,
    StartAgent,
    Started,
    StartFailed,
    Takeover,
    ToInit,
)
from ..lib.callbacks import After
from ..lib.patterns import check_visible
from ..lib.trees import root
from ..llm.contexts import ContextManager
from ..llm.generations import Generations
from ..manifests import check_rights, check_rules
from ..process import Process, ProcessTable, named_by
from ..sandbox.sandbox import merge_grants
from ..tools.toolbox import Box
from .agent_logs import Logs
from .inherited import grants_of, limits_of
from .leftovers import Leftovers
from .pending_spawn import PendingSpawn
from .starts import Starts
from .wait import Waiters

EXIT_NOTICE_S = 0.2  # for init to say how a process ended whose connection is lost
MAX_EARLY_SIGNALS = 16  # sent to a process before it has an OS pid


class Lifecycle:
    """Starts and ends processes; each function in `ended` is called at each end."""

    def __init__(
        self, config: Config, table: ProcessTable, contexts: ContextManager,
        generations: Generations, waiters: Waiters, events: EventLog, logs: Logs,
        sessions: Sessions, to_init: Callable[[ToInit], None], after: After,
        ended: list[Callable[[Process], None]],
    ) -> None:  # fmt: skip
        self.config, self.sessions = config, sessions
        self.table, self.contexts, self.generations = table, contexts, generations
        self.waiters, self.events, self.logs = waiters, events, logs
        self.to_init, self.after, self.ended = to_init, after, ended
        self.pending_spawns: dict[int, PendingSpawn] = {}  # by pid
        self.starts = Starts(to_init)
        self.leftovers = Leftovers(config.path, table, logs)
        self.on_empty: Callable[[], None] | None = None  # set while the system winds up

    # --- pending ----------------------------------------------------------------------------------

    async def spawn(self, call: Call, args: Spawn) -> Spawned:
        """Start an agent; return when it has an OS process."""
        pending = self._add_agent(call, args)
        del args  # the task waits as bytes
        self._start(pending)
        return await self.reply(pending)

    async def reply(self, pending: PendingSpawn) -> Spawned:
        """Wait for the OS process of a spawn."""
        try:
            return await pending.reply
        finally:
            pending.process.touch()  # nobody waits for it any more

    def _check_running(self) -> None:
        if self.on_empty is not None:
            raise Denied("the system is stopping: nothing new is started")

    def _add_agent(self, call: Call, args: Spawn) -> PendingSpawn:
        """Add the process of a spawn, with its rights, limits and contexts."""
        self._check_running()
        if call.process.state == "ending":
            raise Denied(f"process {call.process.pid} is ending: it starts nothing new")
        name = args.name or named_by(args.program)
        check_visible("a process's name", name)
        above = None if call.process.kind == "client" else call.process
        limits = limits_of(self.config, above, args)
        nice = call.process.nice if args.nice is None else args.nice
        lent = [self.contexts.get(call.process, ctx) for ctx in args.contexts]
        if limits.contexts is not None and len(lent) > limits.contexts:
            raise LimitReached(
                f"{len(lent)} contexts are more than its limit, {limits.contexts}",
                "lend it fewer, or give it a larger limit",
            )
        if args.manifest is not None:
            check_rules([args.manifest])
            check_rights([args.manifest])
        grants = grants_of(self.config, above, args)
        merge_grants(self.config.walls, grants)  # a wrong one is refused before anything is there
        parent = 0 if above is None else above.pid
        process = self.table.add("agent", name, parent, nice, limits, time.monotonic())
        process.manifest, process.labels = args.manifest, set(call.process.labels)
        process.reach = grants
        try:
            for context in lent:
                self.contexts.fork(context, process)
        except LimitReached:
            self._drop_unstarted(process)
            raise
        return self._add_pending(process, args, call)

    def _add_pending(self, process: Process, args: Spawn, call: Call | None) -> PendingSpawn:
        pending = PendingSpawn(process, secrets.token_bytes(32), args, call)
        self.pending_spawns[process.pid] = pending
        return pending

    def start_worker(self, name: str, box: Box, caller: Process | None) -> Process:
        """Start a worker of a toolbox, which acts in its caller's storage, and ends with it.

        Raises:
            Denied: the system is stopping.
            LimitReached: too many agents are alive.
        """
        self._check_running()
        args = box.spawn(name, self.config.path)
        grants = merge_grants(
            caller.reach if caller is not None else SandboxGrants(), args.reach or SandboxGrants()
        )
        above = caller if caller is not None and caller.kind != "client" else None
        limits = self.config.limits if above is None else above.limits
        nice = 0 if caller is None else caller.nice
        parent = 0 if above is None else above.pid
        merge_grants(self.config.walls, grants)
        now = time.monotonic()
        process = self.table.add("agent", name, parent, nice, limits, now, tool=name)
        process.manifest, process.reach = args.manifest, grants
        if caller is not None:
            process.principal, process.labels = caller.principal, set(caller.labels)
        else:
            process.principal = f"/@{name}"  # no agent has a name with "@"
        self._start(self._add_pending(process, args, None))
        return process

    def _start(self, pending: PendingSpawn) -> None:
        pid, spawn = pending.process.pid, pending.spawn
        cwd, log = spawn.cwd or "", str(self.logs.path(pid))
        around = merge_grants(self.config.walls, pending.process.reach)
        frame = StartAgent(pid, spawn.program, spawn.args, pending.token, cwd, log, around)
        self.starts.add(root(pending.process.principal), frame)

    def started(self, frame: Started) -> None:
        self.starts.tried(frame.key)
        pending = self.pending_spawns.get(frame.key)
        if pending is None or not pending.process.alive:
            return
        if not pending.process.os_pid:  # or its hello came first
            self.has_started(pending, frame.os_pid)
        self.after(self.config.hello, partial(self._check_hello, frame.key))

    def has_started(self, pending: PendingSpawn, os_pid: int) -> None:
        process = pending.process
        self.table.bind(process, os_pid)
        pending.reply.done(Spawned(pid=process.pid))
        self.events.publish("process", "started", process.pid, os_pid=os_pid)
        for name in pending.signals:
            self.signal(process, name)

    def start_failed(self, frame: StartFailed) -> None:
        self.starts.tried(frame.key)
        pending = self.pending_spawns.pop(frame.key, None)
        if pending is None:  # it was started after all, by a kernel that has died since
            return
        pending.reply.fail(from_wire(frame.error))
        pending.process.reason = f"not started: {from_wire(frame.error).message}"
        self._drop_unstarted(pending.process)

    def _drop_unstarted(self, process: Process) -> None:
        self._take_back(process)
        self.table.end(process, 127, "not started", time.monotonic())
        self.table.forget(process)
        self._ended(process)

    def _check_hello(self, pid: int) -> None:
        pending = self.pending_spawns.get(pid)
        if pending is not None and not pending.greeted:
            self.terminate(pending.process, "no hello")

    def settle(self, process: Process) -> None:
        """Forget the spawn of a process that makes its first call: its token is used up."""
        if self.pending_spawns.pop(process.pid, None) is not None:
            process.touch()

    # --- death ----------------------------------------------------------------------------------

    def gone(self, frame: Gone) -> None:
        process = self.table.rows.get(frame.key)
        if process is not None and process.alive:
            reason = f"signal {frame.signal}" if frame.signal else "exit"
            process.output_lost = frame.lost
            self._end(process, frame.code, reason)
        self.to_init(ExitAcknowledged(frame.os_pid))

    def refused(self, frame: SandboxRefusal) -> None:
        """Publish what a sandbox has refused."""
        more = {"needs": frame.needs} if frame.needs else {}
        told = {"call": frame.call, "object": frame.object, **more}
        self.events.publish("process", "refused", frame.key, **told)

    # --- after the kernel's death ---------------------------------------------------------------

    def recover(self, takeover: Takeover) -> None:
        """Take over the processes of the kernel before this one, as init knows them."""
        keys = {key: os_pid for os_pid, key in takeover.children.items()}
        ended = {frame.key for frame in takeover.gone}
        for process in self.agents_alive():
            pending = self.pending_spawns.get(process.pid)
            if process.pid in keys and not process.os_pid and pending is not None:
                self.has_started(pending, keys[process.pid])
            elif process.pid not in keys and process.pid not in ended and pending is not None:
                self._start(pending)  # init never heard of it
            paused = keys.get(process.pid) in takeover.paused
            if process.alive and paused != (process.state == "stopped"):
                self.paused(Paused(process.os_pid, paused))
            if process.state == "ending":
                self._end_soon(process)
            elif pending is not None and not pending.greeted:
                self.after(self.config.hello, partial(self._check_hello, process.pid))
        for frame in takeover.gone:
            pending = self.pending_spawns.get(frame.key)
            if pending is not None and not pending.process.os_pid:
                self.has_started(pending, frame.os_pid)  # its spawner hears of that first
            self.gone(frame)
        for process in self.table.rows.values():
            if process.tool and process.alive:  # a worker has nobody to tell what it does
                self.end_now(process, "the kernel has died")
            elif process.tool:  # the kernel may have died over it
                self.leftovers.remove(process)
        self.leftovers.remove_unknown()

    def _end_soon(self, process: Process) -> None:
        if not process.reported:
            self.signal(process, "TERM")
        self.after(self.config.grace, partial(self._kill_if_alive, process))

    def closed(self, session: Session) -> None:
        """End a client whose connection is closed; an agent may have work left."""
        if session.process is not None and session.process.kind == "client":
            self.lost(session, "closed its connection")

    def lost(self, session: Session, why: str) -> None:
        """End a process whose connection is lost; an agent, unless init says soon how it ended."""
        self.sessions.close(session)
        process = session.process
        if process is None or not process.alive:
            return
        if process.kind != "agent":
            self._end(process, 0, why)
        else:
            self.after(EXIT_NOTICE_S, partial(self._disconnected, process, why))

    def _disconnected(self, process: Process, why: str) -> None:
        if process.alive and process.state != "ending":
            self.terminate(process, why)

    def exit(self, call: Call, args: Exit) -> Done:
        """Take the report of a process. An agent has the grace to end in, a client ends now."""
        process = call.process
        process.code, process.result = args.code, msgspec.msgpack.encode(args.result)
        process.reported = True
        process.touch()
        if process.kind != "agent":
            self.after(0, partial(self.lost, call.session, "exit"))
        elif process.state != "ending":
            process.move("ending")
            self.after(self.config.grace, partial(self._kill_if_alive, process))
        return Done()

    def _end(self, process: Process, code: int, reason: str) -> None:
        """End a process, and with it its calls, contexts, messages and children."""
        session = self.sessions.by_pid.get(process.pid)
        if session is not None:
            self.sessions.close(session)
        pending = self.pending_spawns.pop(process.pid, None)
        if pending is not None:
            pending.reply.done(Spawned(pid=process.pid))
        process.reason = process.reason or reason
        process.code = process.code if process.reported else code
        self._take_back(process)
        children = self.table.end(process, code, reason, time.monotonic())
        if process.tool:
            self.leftovers.remove(process)
        self.events.publish(
            "process", "ended", process.pid, code=process.code, reason=process.reason
        )
        for child in children:  # grows: all below end, or each could start another meanwhile
            self.terminate(child, "parent gone")
            children += [self.table.rows[pid] for pid in child.children]
        self._ended(process)

    def _take_back(self, process: Process) -> None:
        """Close what a process has open, and tell all managers of its end."""
        for ctx in list(process.contexts):
            self.contexts.close(self.contexts.contexts[ctx])
        for tell in self.ended:
            tell(process)

    def _ended(self, process: Process) -> None:
        """Tell those who wait for the end of a process."""
        self.waiters.ended(process)
        self.logs.look()
        if self.on_empty is not None and not self.agents_alive():
            self.on_empty()

    def agents_alive(self) -> list[Process]:
        return [process for process in self.table.live() if process.kind == "agent"]

    # --- signals and limits ---------------------------------------------------------------------

    def kill(self, call: Call, args: Kill) -> Done:
        self.signal(self.table.get(args.pid), args.signal)
        return Done()

    def signal(self, process: Process, name: str) -> None:
        """Send a signal. Raise ProcessGone where there is no such agent."""
        if process.kind != "agent" or not process.alive:
            raise ProcessGone(
                f"process {process.pid} is not an agent that is alive", "see `aios ps`"
            )
        if process.os_pid:
            self.to_init(SignalChild(process.os_pid, signal.Signals["SIG" + name]))
        else:
            pending = self.pending_spawns[process.pid]
            pending.signals = [*pending.signals[1 - MAX_EARLY_SIGNALS :], name]
            process.touch()

    def terminate(self, process: Process, reason: str) -> None:
        """Send TERM now and KILL after the grace; its parent will read `reason`."""
        if process.state == "ending" or not process.alive:
            return
        process.reason = reason
        stopped = process.state == "stopped"
        process.move("ending")
        self._end_soon(process)
        if stopped:
            self.signal(process, "CONT")

    def end_now(self, process: Process, reason: str) -> None:
        """Send KILL at once, to a process that nothing is asked of any more."""
        if process.alive and process.state != "ending":
            process.reason = reason
            process.move("ending")
        self._kill_if_alive(process)

    def _kill_if_alive(self, process: Process) -> None:
        if process.alive:
            self.signal(process, "KILL")

    def paused(self, frame: Paused) -> None:
        """Note that a process was stopped or continued, and with it its generations."""
        process = self.table.by_os_pid.get(frame.os_pid)
        if process is None or process.state == "ending":
            return
        if frame.paused and process.state != "stopped":
            process.move("stopped")
        elif not frame.paused and process.state == "stopped":
            pending = self.pending_spawns.get(process.pid)
            process.move("running" if pending is None or pending.greeted else "starting")
        self.generations.suspend(process, frame.paused)
        self.events.publish("process", process.state, process.pid)

    def end_over_limit(self, process: Process, which: str, what: str) -> None:
        """End a process that is over a limit; a client only loses its calls."""
        error = LimitReached(f"process {process.pid} is ended by its limit on {which}: {what}")
        self.sessions.end_calls(process, error)
        if process.kind == "agent":
            self.terminate(process, f"limit {which}")
        elif process.kind == "remote":
            self._end(process, 0, f"limit {which}")

    def check(self) -> list[str]:
        """List each broken invariant in words."""
        return [
            f"a spawn of process {pid} is kept, which is {pending.process.state}"
            for pid, pending in self.pending_spawns.items()
            if not pending.process.alive
        ]
