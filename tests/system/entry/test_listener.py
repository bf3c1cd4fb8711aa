"""The identity of a peer, and limits on the memory and work that it can cause."""

from __future__ import annotations

import itertools
import math
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
from raw import Raw
from turns import Turns

from aios.agents import Aios
from aios.kernel import hello
from aios.kernel.entry.listener import (
    MAX_HELD_BYTES,
    MAX_STRANGER_BYTES,
    MAX_UNREAD_BYTES,
    PEER_FDS,
    SPARE_FDS,
    Listener,
)
from aios.kernel.entry.zmtp import COMMAND, GREETING, LONG, MAX_FRAMES, MORE, encode_frame
from aios.kernel.lib.poll import Poll
from aios.kernel.loop import Loop
from aios.shell.launch import System
from aios.syscalls.wire import ABI_VERSION

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
LONGEST = 1 << 20
BEGIN = GREETING + encode_frame(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER", COMMAND)


class Heard:
    """A listener, and a record of its events."""

    def __init__(self, path: Path) -> None:
        self.poll, self.path = Poll(), path
        self.listener = Listener(path, self.poll, LONGEST, bounded=True)
        self.listener.turn_s = math.inf  # else what a turn takes depends on the machine
        self.known: set[bytes] = set()
        self.messages: list[tuple[bytes, int, bytes | None]] = []
        self.refused: list[str] = []
        self.closed: list[bytes] = []
        self.answer: Callable[[bytes], None] = lambda _route: None
        self.listener.on_message = self._take
        self.listener.is_known = self.known.__contains__
        self.listener.may_connect = lambda _os_pid: True
        self.listener.on_closed = self.closed.append
        self.listener.on_refused = lambda _os_pid, why: self.refused.append(why)

    def _take(self, route: bytes, os_pid: int, data: bytes | None) -> None:
        self.messages.append((route, os_pid, data))
        self.answer(route)

    def turn(self) -> None:
        self.poll.wait(0.0)
        self.listener.resume()
        self.listener.flush()

    def settle(self) -> None:
        """Run until no event comes any more."""
        quiet = 0
        while quiet < 3:
            before = len(self.messages), len(self.closed), self.listener.held_bytes
            self.turn()
            after = len(self.messages), len(self.closed), self.listener.held_bytes
            quiet = quiet + 1 if after == before else 0


@pytest.fixture
def heard(homes: Path) -> Iterator[Heard]:
    made = Heard(homes / "peers.sock")
    yield made
    made.listener.close()
    made.poll.close()


def connected(heard: Heard, *, known: bool = False) -> socket.socket:
    end = socket.socket(socket.AF_UNIX)
    end.connect(str(heard.path))
    end.setblocking(False)
    end.send(BEGIN)
    heard.settle()
    if known:
        heard.known.add(next(reversed(heard.listener.peers)))
        end.send(encode_frame(b"hello"))
        heard.settle()
        heard.messages.clear()
    return end


def by_another(path: Path) -> tuple[socket.socket, int]:
    """Return a connection whose process is gone, and the pid that it had."""
    end = socket.socket(socket.AF_UNIX)
    os_pid = os.fork()
    if os_pid == 0:
        end.connect(str(path))
        end.send(BEGIN + encode_frame(b"before"))
        os._exit(0)
    os.waitpid(os_pid, 0)
    return end, os_pid


def with_pid(os_pid: int) -> subprocess.Popen[str]:
    """Start a process with this pid, which another process had."""
    for _ in range(100_000):
        if os.access(LAST_PID, os.W_OK):
            LAST_PID.write_text(str(os_pid - 1))
        process = subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, text=True)
        if process.pid == os_pid:
            return process
        process.communicate()
    raise AssertionError(f"pid {os_pid} did not come again")


# --- turns ----------------------------------------------------------------------------------------


def test_all_of_one_tree_have_as_much_of_a_turn_as_another(heard: Heard) -> None:
    """Else many agents of one, with calls that take long each, hold up everybody."""
    ends = [connected(heard, known=True) for _ in range(3)]
    trees = dict(zip(heard.listener.peers, ("/many", "/many", "/one"), strict=True))
    heard.listener.tree_of, heard.listener.turn_s = trees.__getitem__, 1e-9  # one message
    for end in ends:
        end.send(b"".join(encode_frame(b"%d" % number) for number in range(4)))
    heard.poll.wait(0.0)
    said = []
    while heard.messages:
        said.append([f"{trees[route]} {int(data or b'')}" for route, _, data in heard.messages])
        heard.messages.clear()
        heard.listener.resume()
    assert said == [
        ["/many 0", "/one 0"], ["/many 1", "/one 1"], ["/many 0", "/one 2"], ["/many 2", "/one 3"],
        ["/many 1"], ["/many 3"], ["/many 2"], ["/many 3"],
    ]  # fmt: skip
    assert heard.listener.waiting == {}
    for end in ends:
        end.close()


def test_an_agent_has_the_turn_of_its_tree(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    above = turns.agent("above")
    below, person = turns.agent("below", parent=above.pid), turns.person()
    tree_of = turns.loop.calls.tree_of
    assert tree_of(above.route) == tree_of(below.route) == "/above"
    assert tree_of(person.route) == person.route.hex()
    assert turns.kernel.gateway.channel.listener.turn_s == turns.loop.calls.turn_s < 1
    turns.close()


# --- who it is ------------------------------------------------------------------------------------


def test_a_connection_goes_with_the_process_that_made_it(heard: Heard) -> None:
    """Its parent still holds the connection, and another process has the pid by then."""
    end, _ = by_another(heard.path)
    heard.settle()
    assert heard.listener.peers == {}
    with pytest.raises(OSError, match="pipe"):
        end.send(encode_frame(b"after"))
    assert b"after" not in {data for _, _, data in heard.messages}
    end.close()


def test_what_a_process_said_last_is_heard(heard: Heard) -> None:
    end = socket.socket(socket.AF_UNIX)
    told, tell = os.pipe()
    os_pid = os.fork()
    if os_pid == 0:
        end.connect(str(heard.path))
        os.read(told, 1)
        end.send(BEGIN + encode_frame(b"one") + encode_frame(b"two"))
        os._exit(0)
    while not heard.listener.peers:
        heard.turn()
    assert heard.listener.is_here(*heard.listener.peers)
    os.write(tell, b"x")
    os.waitpid(os_pid, 0)
    assert not heard.listener.is_here(*heard.listener.peers)
    heard.settle()
    assert [data for _, _, data in heard.messages] == [b"one", b"two"]
    assert heard.listener.peers == {}
    for fd in (told, tell):
        os.close(fd)
    end.close()


def test_whoever_has_the_pid_now_did_not_make_the_connection(heard: Heard) -> None:
    end, os_pid = by_another(heard.path)
    other = with_pid(os_pid)
    heard.poll.wait(0.0)  # it is accepted now
    assert not any(map(heard.listener.is_here, heard.listener.peers))
    heard.settle()
    assert heard.listener.peers == {}
    other.communicate()
    end.close()


FORKS = """
import os, socket, sys, time
end = socket.socket(socket.AF_UNIX)
if os.fork() == 0:
    end.connect(sys.argv[1])
    end.send(bytes.fromhex(sys.argv[2]))
    end.recv(1)
    print(os.getpid(), flush=True)
    os._exit(0)
os.wait()
end.settimeout(20)
while end.recv(4096):
    pass
print("closed", flush=True)
"""


def test_a_forked_childs_connection_is_closed_by_the_kernel(aios: Aios, system: System) -> None:
    path = f"{system.home}/run/kernel.sock"
    done = subprocess.run(
        [sys.executable, "-c", FORKS, path, BEGIN.hex()], capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.splitlines()[1:] == ["closed"]
    assert aios.check() == []


def test_one_hello_a_connection(system: System) -> None:
    with Raw(system.home, hello=False) as raw:
        assert raw.error("hello", version=ABI_VERSION, token=bytes(32))["code"] == "hello.token"
        for args in ({}, {"token": bytes(32)}, {"name": "x"}):
            error = raw.error("hello", version=ABI_VERSION, **args)
            assert error["code"] == "call.out_of_order"


def test_after_its_exit_nobody_says_hello_on_a_connection(system: System) -> None:
    with Raw(system.home) as raw:
        raw.done("proc.exit")
        raw.pid = 0
        raw.start("hello", version=ABI_VERSION)
        assert raw.failed(raw.start("hello", version=ABI_VERSION))["code"] == "call.out_of_order"


def test_who_is_above_a_process_is_looked_at_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends in between leaves its children to another; then its pid is a third
    one's.
    """
    mine = [process.pid for process in psutil.Process().parents()]
    found = hello.ancestors(os.getpid(), unknown=-1)
    assert [os_pid for os_pid in found if os_pid] == mine
    changing = itertools.count(2)
    monkeypatch.setattr(hello, "_ancestors", lambda _: [next(changing)])
    assert hello.ancestors(os.getpid(), unknown=-1) == [-1]


# --- what it makes the kernel hold ----------------------------------------------------------------

PING = encode_frame(b"\x04PING\0\0" + bytes(16), COMMAND)
PIECES = {
    "pings": PING,
    "commands": encode_frame(b"\x05OTHER" + bytes(200), COMMAND),
    "subscriptions": encode_frame(b"\x01topic"),
    "cancelled subscriptions": encode_frame(b"\x09SUBSCRIBE" + bytes(100), COMMAND),
    "empty messages": encode_frame(b""),
    "messages": encode_frame(bytes(200)),
    "long messages": encode_frame(bytes(MAX_STRANGER_BYTES)),
    "parts": encode_frame(b"", MORE),
    "whole messages of parts": encode_frame(b"", MORE) + encode_frame(b""),
    "a long ping": encode_frame(b"\x04PING\0\0" + bytes(240), COMMAND),
    "oversize": bytes([LONG]) + (LONGEST + 1).to_bytes(8, "big") + bytes(1000),
    "oversize command": bytes([LONG | COMMAND]) + (LONGEST + 1).to_bytes(8, "big") + bytes(1000),
    "half a message": bytes([LONG]) + LONGEST.to_bytes(8, "big") + bytes(1000),
}


@pytest.mark.parametrize("known", [False, True], ids=["stranger", "known"])
@pytest.mark.parametrize("what", PIECES)
def test_no_kind_of_frame_makes_it_hold_more(heard: Heard, what: str, *, known: bool) -> None:
    """The peer reads no reply."""
    end = connected(heard, known=known)
    heard.answer = lambda route: heard.listener.peers[route].protocol.output.extend(bytes(300))
    piece = PIECES[what]
    data = piece * max(1, (1 << 16) // len(piece))
    most = (MAX_UNREAD_BYTES if known else 2 * MAX_STRANGER_BYTES) + 3 * LONGEST
    for _ in range(400):
        try:
            end.send(data)
        except BlockingIOError:
            pass
        except OSError:  # it was cut off
            break
        heard.turn()
        assert heard.listener.held_bytes <= most
        heard.messages.clear()
    heard.settle()
    assert heard.listener.held_bytes <= most
    end.close()


def test_many_together_hold_no_more_than_there_is_room_for(heard: Heard) -> None:
    ends = [connected(heard, known=True) for _ in range(8)]
    for round_ in range(256):
        for route in list(heard.listener.peers):
            if not heard.listener.peers[route].given_up:
                heard.listener._queue(heard.listener.peers[route], bytes(1 << 16))
        assert heard.listener.held_bytes <= MAX_HELD_BYTES, round_
    assert "does not read what is answered" in heard.refused
    for end in ends:
        end.close()


def test_strangers_with_half_a_message_each_are_bounded(heard: Heard) -> None:
    half = bytes([LONG]) + (MAX_STRANGER_BYTES).to_bytes(8, "big") + bytes(MAX_STRANGER_BYTES - 1)
    ends = []
    for _ in range(200):
        end = connected(heard)
        end.send(half)
        heard.settle()
        ends.append(end)
    assert len(heard.listener.peers) <= 129
    assert heard.listener.held_bytes <= 130 * 2 * MAX_STRANGER_BYTES
    for end in ends:
        end.close()


def test_strangers_leave_the_kernel_descriptors(
    heard: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = PEER_FDS * 10 + SPARE_FDS
    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    ends = [connected(heard, known=number < 4) for number in range(30)]
    assert len(heard.listener.peers) == 10
    assert heard.known <= heard.listener.peers.keys()
    assert len(heard.refused) == 20
    for end in ends:
        end.close()


def test_one_turn_takes_so_many_messages_of_each(heard: Heard) -> None:
    ends = [connected(heard, known=True) for _ in range(3)]
    for end in ends:
        end.send(encode_frame(b"x") * 1000)
    heard.turn()
    taken = [route for route, _, _ in heard.messages]
    assert {taken.count(route) for route in set(taken)} <= {
        MAX_FRAMES,
        2 * MAX_FRAMES,
    }
    assert len(set(taken)) == 3
    while heard.listener.waiting:
        heard.turn()
    assert len(heard.messages) == 3000
    for end in ends:
        end.close()


def test_who_has_said_much_is_heard_again_when_replies_are_out(heard: Heard) -> None:
    end = connected(heard, known=True)
    busy = True
    heard.listener.is_busy = lambda: busy
    end.send(encode_frame(b"x") * 100)
    heard.turn()
    heard.turn()
    assert heard.messages == []
    busy = False
    heard.settle()
    heard.settle()
    assert len(heard.messages) == 100
    end.close()


def test_replies_that_are_not_read_do_not_fill_the_kernel(aios: Aios, system: System) -> None:
    """Send short calls with long replies at once, and never read."""
    kernel = psutil.Process(aios.status().os_pid)
    aios.mem_put({"big": "x" * 60_000})
    before = kernel.memory_info().rss
    end = socket.socket(socket.AF_UNIX)
    end.connect(f"{system.home}/run/kernel.sock")
    end.settimeout(0.2)
    end.sendall(BEGIN + encode_frame(msgpack.packb([1, "hello", {"version": ABI_VERSION}])))
    most = 0
    for number in itertools.count(2):
        try:
            call = [number, "mem.get", {"keys": ["big"], "pid": aios.pid}]
            end.sendall(encode_frame(msgpack.packb(call)))
        except TimeoutError:
            break
        except OSError:
            break
        if number == 20_000:
            break
        if number % 1000 == 0:
            most = max(most, kernel.memory_info().rss - before)
    most = max(most, kernel.memory_info().rss - before)
    assert most < 64 << 20
    end.close()
    aios.mem_delete(["big"])


def test_while_the_journal_waits_for_room_nobody_is_listened_to(homes: Path) -> None:
    """Messages that were read before are not handled either."""
    home = homes / "waiting"
    (home / "run").mkdir(parents=True)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop = Loop(home, theirs.detach())
    heard: list[list[bytes]] = []
    before: list[int] = []  # messages that were heard by the end of each turn

    def on_turn() -> bool:
        before.append(len(heard))
        loop.running = len(before) < 20
        loop.post(lambda: None)  # another turn follows
        return True

    loop.on_call = lambda _route, _os_pid, frames: heard.append(frames)
    loop.calls.is_known = lambda _route: True
    loop.on_turn, loop.is_waiting = on_turn, lambda: bool(heard)
    with ours, loop.init, socket.socket(socket.AF_UNIX) as end:
        end.connect(str(home / "run" / "kernel.sock"))
        end.send(BEGIN + encode_frame(b"x") * 3 * MAX_FRAMES)
        loop.run()
    first = next(filter(None, before))
    assert first == len(heard) < 3 * MAX_FRAMES
    loop.close()
    os.close(loop.wake)
