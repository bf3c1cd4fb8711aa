"""The life of processes: spawned by init, signalled, limited, reaped; and what falls with them."""

from __future__ import annotations

import secrets
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from aios.syscalls.errors import (
    Denied,
    LimitReached,
    ProcessGone,
    from_wire,
)
from aios.syscalls.proc import NewLimits, Reach, Spawn, Spawned

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
from ..lib.patterns import check_visible
from ..lib.trees import root
from ..llm.contexts import ContextManager
from ..llm.generations import Generations
from ..manifests import check_rights, check_rules
from ..process import Process, ProcessTable, named_by
from ..sandbox.sandbox import merge_grants
from ..tools.toolbox import Box
from .agent_logs import Logs
from .inherited import changed, limits_of, reach_of, tightened
from .leftovers import Leftovers
from .mailbox import Mailroom
from .pending_spawn import PendingSpawn
from .starts import Starts
from .wait import Waiters

LAST_WORD = 0.2  # seconds that init has to say of what a process died whose connection is lost
MOST_TOLD = 1000  # reasons for which connections were cut off, before the oldest is told again
SIGNALS = 16  # that one gets at its start, of those sent before


class Lifecycle:
    def __init__(
        self, config: Config, table: ProcessTable, contexts: ContextManager,
        generations: Generations, mailroom: Mailroom, waiters: Waiters,
        events: EventLog, logs: Logs, sessions: Sessions,
        to_init: Callable[[ToInit], None], after: Callable[[float, Callable[[], None]], Any],
    ) -> None:  # fmt: skip
        self.config = config
        self.table, self.contexts, self.generations = table, contexts, generations
        self.mailroom, self.waiters, self.events, self.logs = mailroom, waiters, events, logs
        self.to_init, self.after = to_init, after
        self.sessions = sessions
        self.ended: list[Callable[[Process], object]] = [mailroom.ended]  # who hears of an end
        self.births: dict[int, PendingSpawn] = {}  # by pid
        self.starts = Starts(to_init)
        self.told: dict[tuple[int, str], None] = {}  # connections that were cut off: OS pid, why
        self.leftovers = Leftovers(config.path, table, logs)
        self.on_empty: Callable[[], None] | None = None  # set while the system winds up

    # --- birth ----------------------------------------------------------------------------------

    async def spawn(self, call: Call, args: Spawn) -> Spawned:
        """Begin a process; return when it has an OS process."""
        birth = self._conceive(call, args)
        del args  # it waits as bytes
        self._start(birth)
        return await self.reply(birth)

    async def reply(self, birth: PendingSpawn) -> Spawned:
        try:
            return await birth.told
        finally:
            birth.process.touch()  # its birth has no caller any more

    def _conceive(self, call: Call, args: Spawn) -> PendingSpawn:
        if self.on_empty is not None:
            raise Denied("the system is stopping: nothing new is started")
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
        reach = reach_of(self.config, above, args)
        merge_grants(self.config.walls, reach)  # it is refused before anything is there
        parent = 0 if above is None else above.pid
        process = self.table.add("agent", name, parent, nice, limits, time.monotonic())
        process.manifest, process.labels = args.manifest, set(call.process.labels)
        process.reach = reach
        try:
            for context in lent:
                self.contexts.fork(context, process)
        except LimitReached:
            self._drop_unstarted(process)
            raise
        birth = PendingSpawn(process, secrets.token_bytes(32), args, call)
        self.births[process.pid] = birth
        return birth

    def start_worker(self, name: str, box: Box, caller: Process | None) -> Process:
        """For a toolbox: it acts in its caller's storage, and ends with it.

        Raises:
            Denied, LimitReached.
        """
        if self.on_empty is not None:
            raise Denied("the system is stopping: nothing new is started")
        args = box.spawn(name, self.config.path)
        reach = merge_grants(caller.reach if caller is not None else Reach(), args.reach or Reach())
        above = caller if caller is not None and caller.kind != "client" else None
        limits = self.config.limits if above is None else above.limits
        nice = 0 if caller is None else caller.nice
        parent = 0 if above is None else above.pid
        merge_grants(self.config.walls, reach)
        now = time.monotonic()
        process = self.table.add("agent", name, parent, nice, limits, now, tool=name)
        process.manifest, process.reach = args.manifest, reach
        if caller is not None:
            process.principal, process.labels = caller.principal, set(caller.labels)
        else:
            process.principal = f"/@{name}"  # no agent's: of those below "/" some may have the name
        birth = PendingSpawn(process, secrets.token_bytes(32), args, None)
        self.births[process.pid] = birth
        self._start(birth)
        return process

    def _start(self, birth: PendingSpawn) -> None:
        pid, spawn = birth.process.pid, birth.spawn
        cwd, log = spawn.cwd or "", str(self.logs.path(pid))
        around = merge_grants(self.config.walls, birth.process.reach)
        frame = StartAgent(pid, spawn.program, spawn.args, birth.token, cwd, log, around)
        self.starts.add(root(birth.process.principal), frame)

    def started(self, frame: Started) -> None:
        self.starts.tried(frame.key)
        birth = self.births.get(frame.key)
        if birth is None or not birth.process.alive:
            return
        if not birth.process.os_pid:  # or its hello came first
            self.born(birth, frame.os_pid)
        self.after(self.config.hello, partial(self._check_hello, frame.key))

    def born(self, birth: PendingSpawn, os_pid: int) -> None:
        process = birth.process
        self.table.bind(process, os_pid)
        birth.told.done(Spawned(pid=process.pid))
        self.events.publish("process", "started", process.pid, os_pid=os_pid)
        for name in birth.signals:
            self.signal(process, name)

    def start_failed(self, frame: StartFailed) -> None:
        self.starts.tried(frame.key)
        birth = self.births.pop(frame.key, None)
        if birth is None:  # it was started after all, by a kernel that died of late
            return
        birth.told.fail(from_wire(frame.error))
        birth.process.reason = f"not started: {from_wire(frame.error).message}"
        self._drop_unstarted(birth.process)

    def _drop_unstarted(self, process: Process) -> None:
        self._take_back(process)
        self.table.end(process, 127, "not started", time.monotonic())
        self.table.forget(process)
        self._ended(process)

    def _check_hello(self, pid: int) -> None:
        birth = self.births.get(pid)
        if birth is not None and not birth.greeted:
            self.terminate(birth.process, "no hello")

    def settle(self, process: Process) -> None:
        """Its first call: it has heard its welcome, and the token is used up."""
        if self.births.pop(process.pid, None) is not None:
            process.touch()

    # --- death ----------------------------------------------------------------------------------

    def gone(self, frame: Gone) -> None:
        process = self.table.rows.get(frame.key)
        if process is not None and process.alive:
            reason = f"signal {frame.signal}" if frame.signal else "exit"
            self._end(process, frame.code, reason)
        self.to_init(ExitAcknowledged(frame.os_pid))

    def refused(self, frame: SandboxRefusal) -> None:
        """A wall stopped it."""
        more = {"needs": frame.needs} if frame.needs else {}
        told = {"call": frame.call, "object": frame.object, **more}
        self.events.publish("process", "refused", frame.key, **told)

    def cut_off(self, os_pid: int, why: str) -> None:
        """The kernel has closed a connection of that process; told once of each reason."""
        if (os_pid, why) in self.told:
            return
        if len(self.told) == MOST_TOLD:
            del self.told[next(iter(self.told))]
        self.told[os_pid, why] = None
        rows = self.table.rows.values()  # of several that had it one after the other the last
        pid = max((row.pid for row in rows if row.os_pid == os_pid), default=0)
        self.events.publish("process", "refused", pid, call="connection", object=why)

    # --- after the kernel's death ---------------------------------------------------------------

    def recover(self, takeover: Takeover) -> None:
        """Take over the processes of the kernel before, as init knows them."""
        keys = {key: os_pid for os_pid, key in takeover.children.items()}
        ended = {frame.key for frame in takeover.gone}
        for process in self.agents_alive():
            birth = self.births.get(process.pid)
            if process.pid in keys and not process.os_pid and birth is not None:
                self.born(birth, keys[process.pid])
            elif process.pid not in keys and process.pid not in ended and birth is not None:
                self._start(birth)  # init never heard of it
            paused = keys.get(process.pid) in takeover.paused
            if process.alive and paused != (process.state == "stopped"):
                self.paused(Paused(process.os_pid, paused))
            if process.state == "ending":
                self._end_soon(process)
            elif birth is not None and not birth.greeted:
                self.after(self.config.hello, partial(self._check_hello, process.pid))
        for frame in takeover.gone:
            birth = self.births.get(frame.key)
            if birth is not None and not birth.process.os_pid:
                self.born(birth, frame.os_pid)  # whoever spawned it hears of that first
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
        """Its connection is no more: a client goes with it, an agent may have work left."""
        if session.process is not None and session.process.kind == "client":
            self.lost(session, "closed its connection")

    def lost(self, session: Session, why: str) -> None:
        """Its connection does not take what is sent."""
        self.sessions.close(session)
        process = session.process
        if process is None or not process.alive:
            return
        if process.kind != "agent":
            self._end(process, 0, why)
        else:  # most likely it has ended, and init is about to say how
            self.after(LAST_WORD, partial(self._disconnected, process, why))

    def _disconnected(self, process: Process, why: str) -> None:
        if process.alive and process.state != "ending":
            self.terminate(process, why)

    def leave(self, call: Call) -> None:
        """proc.exit: an agent is to be gone within the grace; a client is gone now."""
        process = call.process
        if process.kind != "agent":
            self.after(0, partial(self.lost, call.session, "exit"))
        elif process.state != "ending":
            process.move("ending")
            self.after(self.config.grace, partial(self._kill_if_alive, process))

    def _end(self, process: Process, code: int, reason: str) -> None:
        """End a process, and with it its calls, contexts, messages and children."""
        session = self.sessions.by_pid.get(process.pid)
        if session is not None:
            self.sessions.close(session)
        birth = self.births.pop(process.pid, None)
        if birth is not None:
            birth.told.done(Spawned(pid=process.pid))
        process.reason = process.reason or reason  # for those who are told
        process.code = process.code if process.reported else code
        self._take_back(process)
        children = self.table.end(process, code, reason, time.monotonic())
        if process.tool:
            self.leftovers.remove(process)
        self.events.publish(
            "process", "ended", process.pid, code=process.code, reason=process.reason
        )
        for child in children:  # grows: all below go, or each could start another in its time
            self.terminate(child, "parent gone")
            children += [self.table.rows[pid] for pid in child.children]
        self._ended(process)

    def _take_back(self, process: Process) -> None:
        """Take back what the process has of the managers."""
        for ctx in list(process.contexts):
            self.contexts.close(self.contexts.contexts[ctx])
        for tell in self.ended:
            tell(process)

    def _ended(self, process: Process) -> None:
        """Tell those who wait for its end."""
        self.waiters.ended(process)
        self.logs.look()
        if self.on_empty is not None and not self.agents_alive():
            self.on_empty()

    def agents_alive(self) -> list[Process]:
        return [process for process in self.table.live() if process.kind == "agent"]

    # --- signals and limits ---------------------------------------------------------------------

    def signal(self, process: Process, name: str) -> None:
        """Raises ProcessGone when there is nobody to send it to."""
        if process.kind != "agent" or not process.alive:
            raise ProcessGone(
                f"process {process.pid} is not an agent that is alive", "see `aios ps`"
            )
        if process.os_pid:
            self.to_init(SignalChild(process.os_pid, signal.Signals["SIG" + name]))
        else:
            birth = self.births[process.pid]
            birth.signals = [*birth.signals[1 - SIGNALS :], name]
            process.touch()

    def terminate(self, process: Process, reason: str) -> None:
        """TERM now, KILL after the grace; `reason` is what its parent will read."""
        if process.state == "ending" or not process.alive:
            return
        process.reason = reason
        stopped = process.state == "stopped"
        process.move("ending")
        self._end_soon(process)
        if stopped:
            self.signal(process, "CONT")

    def end_now(self, process: Process, reason: str) -> None:
        """KILL at once: nothing is asked of it any more."""
        if process.alive and process.state != "ending":
            process.reason = reason
            process.move("ending")
        self._kill_if_alive(process)

    def _kill_if_alive(self, process: Process) -> None:
        if process.alive:
            self.signal(process, "KILL")

    def paused(self, frame: Paused) -> None:
        process = self.table.by_os_pid.get(frame.os_pid)
        if process is None or process.state == "ending":
            return
        if frame.paused and process.state != "stopped":
            process.move("stopped")
        elif not frame.paused and process.state == "stopped":
            birth = self.births.get(process.pid)
            process.move("running" if birth is None or birth.greeted else "starting")
        self.generations.suspend(process, frame.paused)
        self.events.publish("process", process.state, process.pid)

    def end_over_limit(self, process: Process, which: str, what: str) -> None:
        error = LimitReached(f"process {process.pid} is ended by its limit on {which}: {what}")
        self.sessions.end_calls(process, error)
        if process.kind == "agent":
            self.terminate(process, f"limit {which}")
        elif process.kind == "remote":
            self._end(process, 0, f"limit {which}")

    def set_limits(self, caller: Process, process: Process, new: NewLimits) -> None:
        limits = changed(process.limits, new)
        process.limits = limits if caller.kind == "client" else tightened(caller.limits, limits)
        process.touch()

    def check(self) -> list[str]:
        return [
            f"a birth of process {pid} is kept, which is {birth.process.state}"
            for pid, birth in self.births.items()
            if not birth.process.alive
        ]
