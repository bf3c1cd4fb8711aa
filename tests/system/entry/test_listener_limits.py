"""Limits on what the peers of a socket can make the kernel hold, and take at once."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import msgpack
import psutil
import pytest
from listener_harness import BEGIN, LONGEST, Heard, connected

from aios.agents import Aios
from aios.kernel.entry.listener import (
    MAX_HELD_BYTES,
    MAX_STRANGER_BYTES,
    MAX_UNREAD_BYTES,
    PEER_FDS,
    SPARE_FDS,
)
from aios.kernel.entry.zmtp import COMMAND, LONG, MAX_FRAMES, MORE, encode_frame
from aios.kernel.loop import Loop
from aios.shell.launch import System
from aios.syscalls.wire import ABI_VERSION


@pytest.fixture
def heard(homes: Path) -> Iterator[Heard]:
    with contextlib.closing(Heard(homes / "peers.sock")) as heard:
        yield heard


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
