"""A system under attack: things to reach in it, and agents that try."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from conftest import eventually, run_system
from helpers import end, row
from places import SUPPORT

from aios.agents import Aios, connect
from aios.agents.sdk.connection import Pending
from aios.kernel.audit.read import Filter, entries

PROBES = SUPPORT / "probes"
ATTACKER, SIBLING = str(PROBES / "attacks.py"), str(PROBES / "sibling.py")
TESTS = str(SUPPORT)
SECRET_VARIABLES = (  # that begin as others do which agents have
    "PERSONS_TOKEN", "AIOS_MCP_TOKEN", "AIOS_KEY", "AIOS_SERVER_KEY", "AIOS_ADDRESS", "AIOS_TOKEN",
    "USER_TOKEN", "PATH_TOKEN", "LANG_TOKEN", "LC_TOKEN", "TERM_TOKEN", "SHELL_TOKEN", "TZ_TOKEN",
    "PYTHON_TOKEN", "OMP_TOKEN", "SSL_CERT_PASSWORD",
)  # fmt: skip
BOUNDS = {"tasks": 48, "files": 64, "file_bytes": 1 << 20, "memory": 1 << 30}


@dataclass
class Place:
    """A running system, things to reach in it, and an agent that others go on talking to."""

    aios: Aios
    targets: dict[str, Any]
    waits: list[float] = field(default_factory=list)
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def attack(self, table: str, only: str | None = None, **targets: Any) -> dict[str, str]:
        """Run all attempts in an agent with a name of its own, as agents of one name share a part
        of the log.
        """
        task = {"table": table, "only": only, "targets": self.targets | targets}
        pid = self.aios.spawn(ATTACKER, task, name=f"attack-{next(self.numbers)}")
        exited = self.talked(self.aios.start("proc.wait", pid=pid))
        assert exited["code"] == 0, (exited, self.aios.log(pid).data.decode())
        return dict(exited["result"])

    def attack_by_tool(self, table: str) -> dict[str, str]:
        """Run all attempts in a tool that a person has called."""
        args = {"table": table, "targets": self.targets}
        result = self.talked(self.aios.start("tool.call", name="probes", args=args))
        return dict(result["value"])

    def talked(self, waiting: Pending) -> Any:
        """Return how a call ends while the sibling answers all the time."""
        while not waiting.ended:
            begin = time.monotonic()
            self.aios.send(self.targets["pid"], begin)
            assert self.aios.recv(timeout=60).body == begin
            self.waits.append(time.monotonic() - begin)
        return waiting.wait()


@contextlib.contextmanager
def listeners(folder: Path) -> Iterator[dict[str, Any]]:
    """Open a person's sockets: a named one, an abstract one, and two ports."""
    with contextlib.ExitStack() as open_:
        targets: dict[str, Any] = {
            "unix": str(folder / "sock"), "abstract": f"\0{folder}", "tcp": 0, "other": 0,
        }  # fmt: skip
        for name, address in targets.items():
            family = socket.AF_UNIX if address else socket.AF_INET
            end = open_.enter_context(socket.socket(family))
            end.bind(address or ("127.0.0.1", 0))
            end.listen(16)
            targets[name] = address or end.getsockname()[1]
        yield targets


def place(
    home: Path, folder: Path, walls: dict[str, Any], *, grant: bool = False
) -> Iterator[Place]:
    """Run a system with the setting `walls`; with `grant` agents reach one of the ports and
    folders.
    """
    for name in ("private", "lent", "given"):
        (folder / name).mkdir(parents=True)
    secret, loose = folder / "private" / "secret", folder / "loose"
    for path in (secret, loose, folder / "lent" / "file"):
        path.write_text("what is in there")
    with listeners(folder) as targets:
        walls = {"read": [TESTS]} | walls
        if grant:
            walls["read"].append(str(folder / "lent"))
            walls |= {"write": [str(folder / "given")], "ports": [targets["tcp"]]}
        tools = {"probes": {"program": str(PROBES / "tool.py")}}
        settings = {"slots": 1, "ctx": 256, "grace": 0.5, "walls": walls, "tools": tools}
        steps = run_system(home, settings)
        with pytest.MonkeyPatch.context() as patch:
            for name in SECRET_VARIABLES:
                patch.setenv(name, "hunter2-of-a-person")
            system = next(steps)
        with connect(home) as aios:
            pid = aios.spawn(SIBLING)
            aios.send(pid, "who are you?")
            address, own, word = aios.recv(timeout=20).body
            yield Place(aios, targets | {
                "secret": str(secret), "loose": str(loose), "folder": str(folder),
                "home": str(home), "person": os.getpid(), "kernel": aios.status().os_pid,
                "init": system.process.pid, "sibling": row(aios, pid).os_pid, "pid": pid,
                "sibling_folder": own, "address": address, "word": word,
                "processors": sorted(os.sched_getaffinity(0)),
            })  # fmt: skip
            end(aios, pid)
            assert aios.check() == []
        assert next(steps, None) is None


def kept(home: Path, walls: dict[str, Any], *, grant: bool = False) -> Iterator[Place]:
    yield from place(home, home.with_name(home.name + "-person"), walls, grant=grant)


def got(found: dict[str, str]) -> set[str]:
    return {name for name, what in found.items() if what.startswith("got")}


def recorded(place: Place, attack: Callable[[], object]) -> list[str]:
    """Return the records of what agents were refused during an attack."""
    folder = Path(place.targets["home"]) / "audit"
    before = place.aios.status().audit.records
    attack()
    after = place.aios.status().audit.records
    eventually(lambda: len(found := list(entries(folder, before))) >= after - before and found)
    return [
        f"{record.call} {record.object}"
        for record, _, _ in entries(folder, before)
        if Filter(decision="denied").matches(record)
        and not re.match(r"\d+ more, as record", record.object)  # which is told already
    ]
