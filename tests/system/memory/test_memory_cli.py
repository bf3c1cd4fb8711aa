"""`aios mem` as a person uses it, and the guide that shows it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from commands import AIOS, LIMIT, answer, environment, run
from helpers import end
from places import DOCS, PROJECT

from aios.agents import Aios
from aios.shell.commands.memory import read
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, NotFound

GUIDE = (DOCS / "memory.md").read_text()


def test_the_guide_s_commands_run(homes: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("The meeting is on Monday.")
    env = os.environ | {"AIOS_HOME": str(homes / "guide")}
    shown = {}
    commands = re.findall(r"^\$ (aios .*)$", GUIDE, re.MULTILINE)
    for line in commands:
        command = [sys.executable, "-m", "aios.shell", *shlex.split(line)[1:]]
        done = subprocess.run(
            command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False
        )
        assert (done.returncode, line) == (0, line), done.stderr
        shown[line] = done.stdout
    assert shown["aios mem get /writer style"] == "short sentences\n"
    assert "generation" in shown["aios mem log /writer -n 3"]
    assert len(commands) == 15


def test_the_guide_s_code_runs(aios: Aios, program: Callable[[str], str]) -> None:
    code = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)[0]
    pid = aios.spawn(program(code), name="guide")
    assert aios.wait(pid, timeout=30).code == 0, aios.log(pid).data.decode()
    assert aios.log(pid).data == b"draft/1 ...\ndraft/2 ...\n"
    assert aios.mem_get(["style", "limits"], principal="/guide") == {"style": "short sentences"}
    aios.mem_keep(False, principal="/guide")


def test_values_come_back_as_they_were(aios: Aios, system: System, tmp_path: Path) -> None:
    home, file = system.home, str(tmp_path / "a.mem")
    items = {"b": b"\x00\xff", "n": None, "t": "two\nlines", "big": "x" * 40_000, "i": 3}
    for key, value in items.items():
        aios.mem_put({key: value}, principal="/cli")
    aios.mem_put({"other": [1, {"a": 2}]}, space="two", principal="/cli")
    assert run(home, "mem", "export", "/cli", file).returncode == 0
    assert answer(home, "mem", "import", "/copy", file) == {"imported": 6}
    assert aios.mem_get(list(items), principal="/copy") == items
    assert aios.mem_get(["other"], space="two", principal="/copy") == {"other": [1, {"a": 2}]}
    assert answer(home, "mem", "list", "/copy", "--space", "two") == {"other": [1, {"a": 2}]}
    assert answer(home, "mem", "delete", "/copy", "i", "none") == {"deleted": 1}
    stdin = run(home, "mem", "put", "/copy", "i", stdin="from stdin\n")
    assert stdin.returncode == 0
    assert answer(home, "mem", "get", "/copy", "i") == "from stdin\n"
    for name in ("/cli", "/copy"):
        aios.mem_keep(False, principal=name)


def test_an_export_is_whole_or_none(aios: Aios, system: System, tmp_path: Path) -> None:
    """An export that fails leaves the file as it was; one that was cut short is not imported."""
    file = tmp_path / "a.mem"
    file.write_text("precious")
    assert run(system.home, "mem", "export", "/nobody", str(file)).returncode == 1
    assert (file.read_text(), [*tmp_path.iterdir()]) == ("precious", [file])
    aios.mem_put({"a": 1, "b": [2], "c": "three"}, principal="/cli")
    assert run(system.home, "mem", "export", "/cli", str(file)).returncode == 0
    data = file.read_bytes()
    for size in range(len(data)):
        file.write_bytes(data[:size])
        with file.open("rb") as cut, pytest.raises(BadInput, match="not all of one"):
            read(cut)
    torn = run(system.home, "mem", "import", "/copy", str(file))
    assert (torn.returncode, torn.stdout) == (78, "")
    with pytest.raises(NotFound):
        aios.mem_get(["a"], principal="/copy")
    full = run(system.home, "mem", "export", "/cli", "/dev/full")
    assert (full.returncode, full.stderr.splitlines()[0]) == (
        1, "aios: /dev/full: No space left on device"
    )  # fmt: skip
    aios.mem_keep(False, principal="/cli")


def test_from_and_into_pipes(aios: Aios, system: System) -> None:
    env = environment(system.home)
    for data, value in ((b"\xff\x00", b"\xff\x00"), ("é\n".encode(), "é\n")):
        put = [*AIOS, "mem", "put", "/cli", "piped"]
        subprocess.run(put, env=env, input=data, timeout=LIMIT, check=True)
        assert aios.mem_get(["piped"], principal="/cli") == {"piped": value}
        get = [*AIOS, "mem", "get", "/cli", "piped"]
        shown = subprocess.run(get, env=env, capture_output=True, timeout=LIMIT, check=True)
        assert shown.stdout.rstrip(b"\n") == data.rstrip(b"\n")
    exported = subprocess.run(
        [*AIOS, "mem", "export", "/cli"], env=env, capture_output=True, timeout=LIMIT, check=True
    )
    subprocess.run(
        [*AIOS, "mem", "import", "/copy", "-"], env=env, input=exported.stdout,
        stdout=subprocess.DEVNULL, timeout=LIMIT, check=True,
    )  # fmt: skip
    assert aios.mem_get(["piped"], principal="/copy") == {"piped": "é\n"}
    for name in ("/cli", "/copy"):
        aios.mem_keep(False, principal=name)


def test_memory_is_kept_and_forgotten(
    aios: Aios, system: System, program: Callable[[str], str]
) -> None:
    path = program("aios.mem_put({'a': 1})\naios.send('test', 1)\naios.recv()")
    pids = [aios.spawn(path, name=name) for name in ("stays", "goes")]
    for _ in pids:
        aios.recv(timeout=30)
    assert run(system.home, "mem", "keep", str(pids[0])).returncode == 0
    for pid in pids:
        end(aios, pid)
    assert answer(system.home, "mem", "list", "/stays") == {"a": 1}
    assert run(system.home, "mem", "list", "/goes").returncode == 1
    assert run(system.home, "mem", "forget", "/stays").returncode == 0
    for command in ("forget", "list"):
        done = run(system.home, "mem", command, "/stays")
        assert (done.returncode, done.stdout) == (1, "")
        assert "aios: /stays has no memory" in done.stderr
    assert run(system.home, "mem", "keep", "999999").returncode == 1


def test_everybody_s_memory_is_listed(
    aios: Aios, system: System, program: Callable[[str], str]
) -> None:
    pid = aios.spawn(program("aios.mem_put({'a': 1})\naios.send('test', 1)\naios.recv()"), name="x")
    aios.recv(timeout=30)
    rows = {row["pid"]: row for row in answer(system.home, "mem", "list")}
    assert rows[pid]["spaces"] == [{"name": "main", "count": 1, "bytes": 2}]
    assert "/x " in run(system.home, "mem", "list").stdout
    sent = answer(system.home, "mem", "log", str(pid))
    assert [(entry["kind"], entry["body"]) for entry in sent] == [("sent", 1)]
    end(aios, pid)


@pytest.mark.parametrize(
    ("args", "code", "named"),
    [
        (["list", "nobody"], 1, "no agent is named 'nobody'"),
        (["list", "\u00b2"], 1, "no agent is named '\u00b2'"),
        (["list", "/a//b"], 78, "no principal"),
        (["keep", "nobody"], 1, "no agent is named 'nobody'"),
        (["forget", "/none"], 1, "/none"),
        (["clear", "/none"], 1, "/none"),
        (["delete", "/none", "a"], 1, "/none"),
        (["export", "/none", "/nonexistent/file"], 78, "/nonexistent/file"),
        (["get", "/none", "a"], 1, "/none"),
        (["get", "999999", "a"], 1, "999999"),
        (["put", "/w", "a", "--value-json", "{"], 2, "--value-json"),
        (["put", "/w", "a", "--value-json", "NaN"], 2, "--value-json"),
        (["put", "/w", "a", "--value-json", "[" * 10_000], 2, "--value-json"),
        (["put", "/w", "k" * 401, "v"], 2, "it has 401 characters: give 1 to 400"),
        (["import", "/w", "setup.cfg"], 78, "no export"),
        (["log", "/none"], 1, "/none"),
    ],
)
def test_what_cannot_be_done_is_said(
    system: System, args: list[str], code: int, named: str
) -> None:
    root = PROJECT
    done = run(system.home, "mem", *args, cwd=root)
    assert (done.returncode, done.stdout) == (code, "")
    assert named in done.stderr
    as_json = run(system.home, "mem", *args, "--json", cwd=root)
    if args[0] in ("list", "get", "delete", "log", "import"):
        assert named in json.loads(as_json.stderr)["message"]
