"""The kernel's side of the gateway: allowed keys, remote callers, and the gateway's process.

A key belongs to a person, who may do everything, or to an agent of its name, "/NAME", who may do
what its groups allow. Each connection is a process of the table; Linux can say nothing about it.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from aios.syscalls import acc
from aios.syscalls.base import Done, Empty
from aios.syscalls.errors import BadInput, Denied, DiskFull, NotFound
from aios.syscalls.kernel import GatewayState

from ..config import Config
from ..entry.call import Call, Session
from ..entry.listener import TURN_S
from ..entry.sessions import Sessions
from ..events import EventLog
from ..init.protocol import Gone, SignalChild, StartFailed, Takeover
from ..lib import files
from ..loop import REMOTE, Loop
from ..process import Process, ProcessTable
from ..service import BACKOFF_S, Service
from .protocol import (
    Allow,
    ListenFailed,
    Listening,
    MessageReceived,
    PeerClosed,
    SendReply,
    decode_report,
    encode,
)

GATEWAY_KEY = -2
RECONNECT_S = 30.0  # for callers, after kernel or gateway have died


class AllowedKey(msgspec.Struct, forbid_unknown_fields=True):
    """A key in keys/allowed.json."""

    name: str
    public: str
    person: bool = False


class GatewayClient:
    """`on_lost` hears of a session whose peer is gone; `barrier` makes durable what has to be
    before the list of keys is written.

    Raises:
        BadInput: the list cannot be read. Nothing is served then.
    """

    # Serves a message: route, OS pid, frames, key. Set by the boot: the trap knows the keys here.
    on_call: Callable[[bytes, int, list[bytes], str], None]

    def __init__(
        self, config: Config, loop: Loop, table: ProcessTable, sessions: Sessions,
        events: EventLog, on_lost: Callable[[Session, str], None], barrier: Callable[[], None],
    ) -> None:  # fmt: skip
        self.config, self.table, self.sessions, self.events = config, table, sessions, events
        self.on_lost, self.barrier = on_lost, barrier
        self.to_init, self.after = loop.send_init, loop.after
        self.service = Service(GATEWAY_KEY, "gateway", config, loop, self)
        self.channel = self.service.channel("gate", self._send_keys, self._report)
        self.channel.listener.turn_s = TURN_S  # what comes is of callers, and not the kernel's own
        self.channel.listener.is_busy = loop.calls.is_busy
        self.path = config.path / "keys" / "allowed.json"
        self.keys = {each.public: each for each in read_keys(self.path)}
        self.listening = Listening("", "")
        self.error: dict[str, str] | None = None

    @property
    def state(self) -> GatewayState:
        if not self.config.listen:
            return "off"
        if self.error is not None:
            return "failed"
        return "listening" if self.listening.address else "starting"

    # --- keys -------------------------------------------------------------------------------------

    def allowed_key(self, key: str) -> AllowedKey:
        """Look a key up. Raises Denied for a key that was removed."""
        if key not in self.keys:
            raise Denied("this key is not allowed", "`aios key allow` there")
        return self.keys[key]

    def allow(self, call: Call, args: acc.KeyAllow) -> Done:
        """Add a key. Raises BadInput if its name or the key is in the list already."""
        for each in self.keys.values():
            if each.name == args.name or each.public == args.public:
                raise BadInput(f"{each.name!r} has the key {each.public}", "remove it first")
        self._write([*self.keys.values(), AllowedKey(args.name, args.public, args.person)])
        return Done()

    def remove(self, call: Call, args: acc.KeyRemove) -> Done:
        """Remove a key and close its connections. Raises NotFound."""
        name = args.name
        found = [each for each in self.keys.values() if each.name == name]
        if not found:
            raise NotFound(f"no key of {name!r}", "`aios key list` lists them")
        self._write([each for each in self.keys.values() if each.name != name])
        for process in self._processes(found[0].public):
            self.on_lost(self.sessions.by_pid[process.pid], "its key was removed")
        return Done()

    def _write(self, keys: list[AllowedKey]) -> None:
        """Replace the list of keys. Raises DiskFull."""
        self.barrier()
        try:
            self.path.parent.mkdir(mode=0o700, exist_ok=True)
            files.replace(self.path, msgspec.json.format(msgspec.json.encode(keys)))
        except OSError as error:
            raise DiskFull(f"cannot write {self.path}: {error.strerror}") from error
        self.keys = {each.public: each for each in keys}
        self._send_keys()

    def list_keys(self, call: Call, args: Empty) -> acc.Keys:
        rows = [
            acc.Key(
                name=each.name, public=each.public, person=each.person,
                pids=[process.pid for process in self._processes(each.public)],
            )
            for each in self.keys.values()
        ]  # fmt: skip
        return acc.Keys(
            address=self.listening.address,
            server=self.listening.public,
            error=self.error,
            keys=rows,
        )

    def _processes(self, key: str) -> Iterator[Process]:
        return (process for process in list(self.table.live()) if process.key == key)

    # --- callers ----------------------------------------------------------------------------------

    def send(self, route: bytes, data: bytes) -> None:
        """Send to a remote caller."""
        self.channel.send(encode(SendReply(route, data)))

    def _send_keys(self) -> None:
        self.channel.send(encode(Allow(list(self.keys))))

    def _report(self, data: bytes) -> None:
        match decode_report(data):
            case MessageReceived() as message if message.key in self.keys:
                self.on_call(REMOTE + message.route, 0, message.frames, message.key)
            case MessageReceived():
                pass  # the key was removed meanwhile
            case PeerClosed() as closed:
                session = self.sessions.by_route.get(REMOTE + closed.route)
                if session is not None:
                    self.on_lost(session, closed.why)
            case Listening() as listening:
                self.listening, self.error = listening, None
                self.service.backoff_s = BACKOFF_S
                self.events.publish("gateway", "listening", address=listening.address)
            case ListenFailed() as refused:
                self.error = refused.error
                print(f"gateway: {refused.error['message']}", file=sys.stderr, flush=True)

    # --- the gateway's process --------------------------------------------------------------------

    def recover(self, takeover: Takeover) -> None:
        """End the gateway of the previous kernel, and start another; its callers have to
        reconnect.
        """
        running = self.service.left_running(takeover)
        if running:
            self.to_init(SignalChild(running, signal.SIGKILL))
        self._await_reconnects()
        if not running:
            self.start()

    def start(self) -> None:
        if self.config.listen:
            self.service.launch({"home": self.config.home, "address": self.config.listen})

    def not_started(self, frame: StartFailed) -> None:
        self.service.launch_later()

    def died(self, how: str, frame: Gone) -> None:
        self.listening = Listening("", "")
        if self.error is None:  # otherwise the next one would fail as well
            self._await_reconnects()
            self.service.launch_later()

    def _await_reconnects(self) -> None:
        """End callers that do not reconnect in time, before the next gateway reuses their
        routes.
        """
        for process in self.table.live():
            if process.key:
                self.sessions.part(self.sessions.by_pid[process.pid])
                self.after(RECONNECT_S, partial(self._check_reconnected, process))

    def _check_reconnected(self, process: Process) -> None:
        session = self.sessions.by_pid.get(process.pid)
        if session is not None and session.closed:
            self.on_lost(session, "did not come back")


def read_keys(path: Path) -> list[AllowedKey]:
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[AllowedKey])
    except (msgspec.DecodeError, OSError) as error:
        raise BadInput(f"{path}: {error}", "correct or remove it") from error
