"""Callers from elsewhere: the keys that are allowed, and the gateway that they come in by.

A key belongs to a person, who may do everything, or to an agent of its name, "/NAME", who may do
what the groups allow that it was put into. A connection is its process; there is no process here
of which Linux could say anything.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from aios.syscalls import acc
from aios.syscalls.errors import BadInput, Denied, DiskFull, NotFound

from ..config import Config
from ..entry.trap import Session, Trap
from ..events import EventLog
from ..init.protocol import Census, Gone, Heard, SignalChild, Started, StartFailed, StartService
from ..lib import files
from ..loop import REMOTE, Loop
from ..process import Process, ProcessTable
from .protocol import Allow, Bound, Came, Left, Refused, Say, decode_report, encode

GATEWAY_KEY = -2
BACKOFF, LONGEST_BACKOFF = 0.05, 5.0  # seconds
BACK = 30.0  # seconds that a caller has to come back, after kernel or gateway have died


class Allowed(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    public: str
    person: bool = False


class Remotes:
    """`barrier` runs before the list is written: what it makes durable is so before that.

    Raises:
        BadInput: the list cannot be read. Nothing is served then.
    """

    trap: Trap  # these are set by the boot
    on_lost: Callable[[Session, str], None]

    def __init__(
        self, config: Config, loop: Loop, table: ProcessTable, events: EventLog,
        barrier: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        self.config, self.table, self.events, self.barrier = config, table, events, barrier
        self.line, self.to_init, self.after = loop.gate, loop.send_init, loop.after
        self.line.on_here = self._tell_keys
        self.line.on_data = self._report
        loop.say_remote = lambda route, data: self.line.send(encode(Say(route, data)))
        self.path = config.path / "keys" / "allowed.json"
        self.keys = {each.public: each for each in read(self.path)}
        self.bound = Bound("", "")
        self.error: dict[str, str] | None = None
        self.backoff = BACKOFF

    # --- keys -------------------------------------------------------------------------------------

    def of(self, key: str) -> Allowed:
        """Raises Denied for a key that was removed."""
        if key not in self.keys:
            raise Denied("this key is not allowed", "`aios key allow` there")
        return self.keys[key]

    def allow(self, args: acc.KeyAllow) -> None:
        """Raises BadInput where the name or the key is in the list."""
        for each in self.keys.values():
            if each.name == args.name or each.public == args.public:
                raise BadInput(f"{each.name!r} has the key {each.public}", "remove it first")
        self._write([*self.keys.values(), Allowed(args.name, args.public, args.person)])

    def remove(self, name: str) -> None:
        """Its connections are closed. Raises NotFound."""
        found = [each for each in self.keys.values() if each.name == name]
        if not found:
            raise NotFound(f"no key of {name!r}", "`aios key list` lists them")
        self._write([each for each in self.keys.values() if each.name != name])
        for process in self._processes(found[0].public):
            self.on_lost(self.trap.by_pid[process.pid], "its key was removed")

    def _write(self, keys: list[Allowed]) -> None:
        """Raises DiskFull."""
        self.barrier()
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            files.replace(self.path, msgspec.json.format(msgspec.json.encode(keys)))
        except OSError as error:
            raise DiskFull(f"cannot write {self.path}: {error.strerror}") from error
        self.keys = {each.public: each for each in keys}
        self._tell_keys()

    def listed(self) -> acc.Keys:
        rows = [
            acc.Key(
                name=each.name, public=each.public, person=each.person,
                pids=[process.pid for process in self._processes(each.public)],
            )
            for each in self.keys.values()
        ]  # fmt: skip
        return acc.Keys(
            address=self.bound.address, server=self.bound.public, error=self.error, keys=rows
        )

    def _processes(self, key: str) -> Iterator[Process]:
        return (process for process in list(self.table.live()) if process.key == key)

    # --- callers ----------------------------------------------------------------------------------

    def _tell_keys(self) -> None:
        self.line.send(encode(Allow(list(self.keys))))

    def _report(self, data: bytes) -> None:
        match decode_report(data):
            case Came() as came if came.key in self.keys:
                self.trap.receive(REMOTE + came.route, 0, came.frames, came.key)
            case Came():
                pass  # its key was removed meanwhile
            case Left() as left:
                session = self.trap.sessions.get(REMOTE + left.route)
                if session is not None:
                    self.on_lost(session, left.why)
            case Bound() as bound:
                self.bound, self.error, self.backoff = bound, None, BACKOFF
                self.events.publish("gateway", "listening", address=bound.address)
            case Refused() as refused:
                self.error = refused.error
                print(f"gateway: {refused.error['message']}", file=sys.stderr, flush=True)

    # --- the gateway's process --------------------------------------------------------------------

    def recover(self, census: Census) -> None:
        """Nobody takes over the gateway of the kernel before: its callers have to come again."""
        running = [os_pid for os_pid, key in census.children.items() if key == GATEWAY_KEY]
        for frame in census.gone:
            if frame.key == GATEWAY_KEY:
                self.to_init(Heard(frame.os_pid))
        for os_pid in running:
            self.to_init(SignalChild(os_pid, signal.SIGKILL))
        self._expect_back()
        if not running:
            self._start()

    def _start(self) -> None:
        if self.config.listen:
            home = self.config.path
            settings = msgspec.json.encode({"home": str(home), "address": self.config.listen})
            argv = [sys.executable, "-m", "aios.kernel.gateway", settings.decode()]
            self.to_init(StartService(GATEWAY_KEY, argv, str(home / "log" / "gateway.log")))

    def started(self, frame: Started) -> None:
        self.line.os_pid = frame.os_pid

    def start_failed(self, frame: StartFailed) -> None:
        self._start_later()

    def gone(self, frame: Gone) -> None:
        self.to_init(Heard(frame.os_pid))
        self.line.gone()
        self.bound = Bound("", "")
        if self.error is None:  # else the next one would be refused as well
            self._expect_back()
            self._start_later()

    def _start_later(self) -> None:
        self.after(self.backoff, self._start)
        self.backoff = min(self.backoff * 2, LONGEST_BACKOFF)

    def _expect_back(self) -> None:
        """End those who have not come back in time; the next gateway may use a route again."""
        for process in self.table.live():
            if process.key:
                self.trap.part(self.trap.by_pid[process.pid])
                self.after(BACK, partial(self._check_back, process))

    def _check_back(self, process: Process) -> None:
        session = self.trap.by_pid.get(process.pid)
        if session is not None and session.closed:
            self.on_lost(session, "did not come back")


def read(path: Path) -> list[Allowed]:
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Allowed])
    except (msgspec.DecodeError, OSError) as error:
        raise BadInput(f"{path}: {error}", "correct or remove it") from error
