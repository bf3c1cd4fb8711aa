"""Callers by TCP: only with an allowed key, as a person or an agent."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq
from commands import run as run_aios
from conftest import Boot, eventually, run_system, tiny
from helpers import kill_kernel
from zmq.utils.monitor import recv_monitor_message

from aios.agents import Aios, connect
from aios.agents.sdk.remote import new_key
from aios.kernel.lib.patterns import quoted
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, Denied, KernelGone, NoProgram, NotFound
from aios.syscalls.wire import ABI_VERSION

KEY = "x" * 40
LOOPBACK = "tcp://127.0.0.1:*"
FAILED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
FAILED |= zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED


class Server:
    """A system that listens, and a person on its machine."""

    def __init__(self, system: System, folder: Path, aios: Aios) -> None:
        self.system, self.folder, self.aios = system, folder, aios
        self.numbers = itertools.count()
        eventually(lambda: aios.keys().address)

    def key(self, name: str | None = None, *, person: bool = False) -> Path:
        """Make a key and allow it under a name."""
        path = self.folder / f"{next(self.numbers)}.key"
        public = new_key(path)
        if name is not None:
            self.aios.allow_key(name, public, person=person)
        return path

    def where(self, key: Path) -> dict[str, Any]:
        listens = self.aios.keys()
        return {"address": listens.address, "key": key, "server_key": listens.server}

    def connect(self, key: Path, name: str | None = None) -> Aios:
        return connect(name=name, **self.where(key))


@pytest.fixture(scope="module")
def programs(homes: Path) -> Path:
    """A folder that every agent reads."""
    folder = homes / "remote-programs"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def listening(homes: Path, programs: Path) -> Iterator[System]:
    settings = {"listen": LOOPBACK, "slots": 1, "ctx": 256, "walls": {"read": [str(programs)]}}
    yield from run_system(homes / "listening", settings)


@pytest.fixture
def server(listening: System, tmp_path: Path) -> Iterator[Server]:
    """The shared system, without keys and groups of earlier tests."""
    with connect(listening.home, "here") as aios:
        yield Server(listening, tmp_path, aios)
        for each in aios.keys().keys:
            aios.remove_key(each.name)
        for name in aios.groups().keys() - {"agents"}:
            aios.set_group(name, None)
        assert aios.check() == []


def test_who_has_a_key_is_a_person_or_an_agent_with_the_rights_of_its_groups(
    server: Server,
) -> None:
    with server.connect(server.key("ann", person=True)) as ann:
        assert (ann.whoami().kind, ann.whoami().name) == ("client", "ann")
        ann.sto_put("note", "of a person")
        assert ann.groups().keys() == {"agents"}
    with server.connect(server.key("scout"), "another") as scout:
        row = scout.whoami()
        assert (row.kind, row.name, row.os_pid) == ("remote", "scout", 0)
        refused: list[tuple[str, dict[str, Any]]] = [
            ("mem.put", {"items": {"k": 1}}),
            ("proc.spawn", {"program": "/bin/true"}),
            ("key.allow", {"name": "more", "public": "x" * 40}),
            ("sto.get", {"path": "note", "owner": ""}),
            ("kernel.stop", {}),
        ]
        for name, args in refused:
            with pytest.raises(Denied):
                scout.start(name, **args).wait()
        server.aios.set_group("far", {"members": ["/scout"], "allow": ["mem", "sto", "llm"]})
        scout.mem_put({"k": 1})
        assert scout.mem_get(["k"]) == {"k": 1}
        assert scout.sto_put("mine", "x").owner == "/scout"
        with pytest.raises(NotFound):
            scout.sto_get("note")
        with pytest.raises(Denied):
            scout.sto_get("note", owner="")
        assert scout.generate("Hello", max_tokens=3, ignore_eos=True).tokens
        assert [each.name for each in server.aios.ps()] == ["scout"]
    eventually(lambda: not server.aios.ps())


def test_what_a_remote_agent_starts_or_hands_on_is_bound_by_its_own_rights(
    server: Server, programs: Path, tmp_path: Path
) -> None:
    for folder in (programs, tmp_path):
        (folder / "child.py").write_text(
            "from aios.agents import Agent\n\n\nclass Child(Agent):\n    def run(self, task):\n"
            "        self.aios.mem_put({'k': 1})\n"
        )
    rules = {"members": ["/scout"], "allow": ["proc", "acc.grant"]}
    server.aios.set_group("far", rules)
    with server.connect(server.key("scout")) as scout:
        child = scout.spawn(str(programs / "child.py"))
        assert scout.wait(child, timeout=60).code == 1
        assert "/scout/child may not mem.put" in server.aios.log(child).data.decode()
        with pytest.raises(NoProgram):  # its walls show no more than all agents see
            scout.spawn(str(tmp_path / "child.py"))
        with pytest.raises(Denied):
            scout.spawn(str(programs / "child.py"), reach={"read": [str(tmp_path)]})
        grant = scout.grant("/other", "mem")
        [row] = [row for row in server.aios.grants() if row.id == grant]
        assert row.pid == scout.pid  # not a person's, which would be worth anything
    eventually(lambda: server.aios.grants() == [])


def test_keys_and_who_came_by_them_are_recorded(server: Server) -> None:
    path = server.key("scout")
    public = json.loads(path.read_text())["public"]
    where = server.where(path)
    with connect(**where) as scout, pytest.raises(Denied):
        scout.mem_put({"k": 1})
    server.aios.remove_key("scout")
    server.aios.keys()
    log = run_aios(server.system.home, "audit", "search", "--json").stdout
    records = [json.loads(line) for line in log.splitlines()]
    for kind, call, about in (
        ("intent", "key.allow", f"name=scout public={quoted(public)} person=False"),
        ("note", "process.connected", f"key={quoted(public)}"),
        ("denied", "mem.put", f"key={public}"),
        ("intent", "key.remove", "name=scout"),
        ("read", "key.list", ""),
    ):
        found = [record for record in records if (record["kind"], record["call"]) == (kind, call)]
        assert about in [record["object"] for record in found], (kind, call)


def monitored(options: dict[zmq.SocketOption, bytes], address: str) -> int:
    """Return the first event of FAILED on a bare socket with these options that says hello."""
    context: zmq.Context[Any] = zmq.Context()
    bare: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    try:
        bare.linger = 0
        bare.setsockopt(zmq.RECONNECT_IVL, 2**30)
        for option, value in options.items():
            bare.setsockopt(option, value)
        monitor: zmq.Socket[bytes] = bare.get_monitor_socket(FAILED)
        bare.connect(address)
        bare.send(msgpack.packb([1, "hello", {"version": ABI_VERSION}]))
        assert monitor.poll(10_000)
        assert not bare.poll(0)
        event = int(recv_monitor_message(monitor)["event"])
        bare.disable_monitor()
        return event
    finally:
        context.destroy(linger=0)


@pytest.mark.parametrize(
    ("address", "server", "public"),
    [("nonsense", KEY, KEY), ("tcp://127.0.0.1", KEY, KEY), ("tcp://127.0.0.1:1", "short", KEY),
     ("tcp://127.0.0.1:1", KEY, 7)],
)  # fmt: skip
def test_what_is_no_address_or_no_key_is_refused(
    address: str, server: str, public: object, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text(json.dumps({"public": public, "secret": KEY}))
    with pytest.raises(BadInput, match=f"cannot connect to {address}: .*give tcp://HOST:PORT"):
        connect(address=address, key=tmp_path / "key", server_key=server)


def test_where_nobody_listens_it_says_where_to_look(tmp_path: Path) -> None:
    pair = {"public": KEY, "secret": KEY}
    (tmp_path / "key").write_text(json.dumps(pair))
    with pytest.raises(KernelGone, match=r"at tcp://127.0.0.1:1 .*`aios key list` shows both"):
        connect(address="tcp://127.0.0.1:1", key=tmp_path / "key", server_key=KEY)


def test_no_other_gets_a_connection(server: Server) -> None:
    where = server.where(server.key("known"))
    unknown = server.key()
    with pytest.raises(Denied, match="refuses this key"):
        server.connect(unknown)
    with pytest.raises((Denied, KernelGone)):  # another kernel would be at that address
        connect(**{**where, "server_key": zmq.curve_keypair()[0].decode()})
    for bad in ({**where, "key": None}, {**where, "server_key": None}):
        with pytest.raises(BadInput, match="takes your key"):
            connect(**bad)
    assert monitored({}, where["address"])
    plain = {zmq.PLAIN_USERNAME: b"known", zmq.PLAIN_PASSWORD: b"x"}
    assert monitored(plain, where["address"])
    with server.connect(where["key"]) as known:  # it still serves
        assert known.whoami().name == "known"
    assert server.aios.check() == []


def test_a_key_that_is_removed_is_not_heard_from_that_moment(server: Server) -> None:
    server.aios.set_group("far", {"members": ["/scout"], "allow": ["msg"]})
    path = server.key("scout")
    scout, other = server.connect(path), server.connect(server.key("other"))
    waiting = scout.start("msg.recv")
    eventually(lambda: len(server.aios.keys().keys[0].pids) == 1)
    server.aios.remove_key("scout")
    assert [process.name for process in server.aios.ps()] == ["other"]
    scout.start("msg.send", to=server.aios.pid, body="late")
    scout.start("hello", version=ABI_VERSION)
    assert other.whoami().name == "other"
    assert not scout.connection.socket.poll(500)  # not even an error, which any caller gets
    assert not waiting.ended
    with pytest.raises(Denied):
        server.connect(path)
    with pytest.raises(NotFound):
        server.aios.remove_key("scout")
    scout.connection.close(0)
    other.close()


def test_one_that_goes_without_a_word_is_noticed(server: Server) -> None:
    scout = server.connect(server.key("scout"))
    scout.connection.close(0)
    eventually(lambda: not server.aios.ps())


@pytest.fixture
def fixed(boot: Boot, tmp_path: Path) -> Iterator[Server]:
    """A system with a fixed port."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as probe:
        port = probe.bind_to_random_port("tcp://127.0.0.1")
    system = boot(listen=f"tcp://127.0.0.1:{port}", slots=1, ctx=256)
    with connect(system.home, "here") as aios:
        yield Server(system, tmp_path, aios)
        assert aios.check() == []


def gateway_of(server: Server) -> psutil.Process:
    init = psutil.Process(server.system.process.pid)
    [found] = [child for child in init.children() if "aios.kernel.gateway" in child.cmdline()]
    return found


def test_they_come_back_to_the_next_kernel_and_the_next_gateway(fixed: Server) -> None:
    fixed.aios.set_group("far", {"members": ["/scout"], "allow": ["mem"]})
    with fixed.connect(fixed.key("scout")) as scout:
        scout.mem_put({"k": 1})
        waiting = scout.start("mem.get", keys=["k"])
        kill_kernel(fixed.aios)
        assert waiting.wait(30)["items"] == {"k": 1}
        pid = scout.whoami().pid
        gateway_of(fixed).kill()
        assert scout.mem_get(["k"]) == {"k": 1}
        assert scout.whoami().pid == pid == scout.pid


def test_an_address_that_cannot_be_had_is_said_and_keeps_nothing_else_from_running(
    fixed: Server, boot: Boot
) -> None:
    other = boot(listen=fixed.aios.keys().address, slots=1, ctx=256)
    with connect(other.home, "here") as aios:
        status = aios.status()  # a start waits for what is known of it
        assert status.gateway == "failed"
        assert status.gateway_error is not None
        assert "cannot listen" in status.gateway_error["message"]
        assert aios.keys().error == status.gateway_error
        assert aios.generate("Hello", max_tokens=2, ignore_eos=True).tokens
    for command in (("key", "list"), ("status",)):
        assert "cannot listen" in run_aios(other.home, *command).stdout


def test_a_start_says_that_it_cannot_listen(fixed: Server, homes: Path) -> None:
    home = homes / "unheard"
    home.mkdir()
    address = fixed.aios.keys().address
    settings = f"model = '{tiny(homes)}'\nlisten = '{address}'\nslots = 1\n"
    (home / "config.toml").write_text(settings)
    started = run_aios(home, "start", "--detach")
    assert run_aios(home, "stop").returncode == 0
    assert started.returncode == 0
    assert started.stdout.startswith("ready: ")
    assert started.stderr.startswith(
        f"aios: nobody can call from elsewhere: cannot listen at {address}"
    )


def test_the_commands(server: Server) -> None:
    home = server.system.home
    made = run_aios(home, "key", "new", "ann")
    assert made.returncode == 0, made.stderr
    public, path = made.stdout.splitlines()[0], home / "keys" / "ann.key"
    assert path.stat().st_mode & 0o77 == 0
    assert run_aios(home, "key", "new", "ann").returncode == 78
    assert run_aios(home, "key", "allow", "ann", public, "--person").returncode == 0
    assert run_aios(home, "key", "allow", "bob", public).returncode == 78
    listed = run_aios(home, "key", "list")
    assert server.aios.keys().server in listed.stdout
    assert "person" in listed.stdout
    where = server.where(path)
    script = "from aios.agents import connect\nwith connect() as aios: print(aios.whoami().name)"
    variables = {
        "AIOS_ADDRESS": where["address"], "AIOS_KEY": str(path),
        "AIOS_SERVER_KEY": where["server_key"],
    }  # fmt: skip
    ran = subprocess.run(
        [sys.executable, "-c", script], env=os.environ | variables, text=True,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.stdout.strip() == "ann", ran.stderr
    assert run_aios(home, "key", "remove", "ann").returncode == 0
    assert server.aios.keys().keys == []
