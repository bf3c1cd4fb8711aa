"""The identity of a peer of the kernel's socket, and the part of a turn that it has."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from listener_harness import BEGIN, Heard, connected
from raw import Raw
from turns import Turns

from aios.agents import Aios
from aios.kernel import hello
from aios.kernel.entry.zmtp import encode_frame
from aios.shell.launch import System
from aios.syscalls.wire import ABI_VERSION

LAST_PID = Path("/proc/sys/kernel/ns_last_pid")


@pytest.fixture
def heard(homes: Path) -> Iterator[Heard]:
    with contextlib.closing(Heard(homes / "peers.sock")) as heard:
        yield heard


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
