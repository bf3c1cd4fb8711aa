"""Input that cannot work, and callers that misbehave: one clear error, nothing left."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Boot, eventually, left_of, on_tiny
from models import tiny_model
from places import SUPPORT
from raw import Raw

from aios.agents import Aios, connect
from aios.kernel.config import embedded_model
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, BadInput, HomeBusy, ModelError, NoRoom
from aios.syscalls.kernel import Event


def refused(home: Path, **settings: Any) -> AiosError:
    """The error that a start ends with; it leaves no process and no socket."""
    with pytest.raises(AiosError) as caught:
        System(home, settings, detach=True).ready()
    assert left_of(home) == []
    assert not list(home.rglob("*.sock")) if home.is_dir() else True
    assert "\n" not in caught.value.message
    assert caught.value.hint
    return caught.value


# --- a start that cannot work ------------------------------------------------------------------


def gguf(folder: Path, kind: str) -> Path:
    path = folder / f"{kind}.gguf"
    whole = embedded_model().read_bytes
    content: dict[str, Callable[[], bytes]] = {
        "empty": lambda: b"",
        "text": lambda: b"# Not a model\n" * 100,
        "magic": lambda: b"GGUF",
        "garbage": lambda: b"GGUF\x03\0\0\0" + bytes(range(256)) * 64,
        "head": lambda: whole()[:200_000],
        "truncated": lambda: whole()[:50_000_000],
    }
    if kind == "folder":
        path.mkdir()
    elif kind != "missing":
        path.write_bytes(content[kind]())
    return path


@pytest.mark.parametrize(
    "kind", ["missing", "folder", "empty", "text", "magic", "garbage", "head", "truncated"]
)
def test_a_file_that_is_no_model_is_named(homes: Path, tmp_path: Path, kind: str) -> None:
    path = gguf(tmp_path, kind)
    error = refused(homes / kind, model=str(path))
    assert isinstance(error, ModelError)
    assert str(path) in error.message


def test_what_is_no_whole_language_model_is_told_from_one_that_is_cut(
    homes: Path, tmp_path: Path
) -> None:
    """As the second of several files, or an adapter."""
    first = tiny_model(tmp_path / "tiny.gguf", split=8)
    *_, last = sorted(tmp_path.iterdir())
    assert last != first
    error = refused(homes / "last", model=str(last))
    assert str(last) in error.message
    assert "of one in several files the first" in error.hint
    assert "adapter" in error.hint


def test_a_model_with_recurrent_layers_is_refused_in_a_sentence(
    homes: Path, tmp_path: Path
) -> None:
    path = tiny_model(tmp_path / "tiny.gguf", "jamba")
    error = refused(homes / "recurrent", model=str(path))
    assert isinstance(error, ModelError)
    assert f"{path} has recurrent layers" in error.message
    assert "\n" not in error.message


def test_a_cache_larger_than_memory_is_refused(homes: Path, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.gguf", layers=32, trained=2**20)
    error = refused(homes / "room", model=str(path), slots=64, ctx=2**20)
    assert isinstance(error, NoRoom)
    assert "64 slots" in error.message


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("slots = ", "config.toml"),
        ("slots = 0", "slots"),
        ("slots = 'many'", "slots"),
        ("slotz = 4", "slotz"),
        ("policy = 'lottery'", "lottery"),
        ("[limits]\ntokens = -1", "limits.tokens"),
        ("[tools.'a.b']\nprogram = '/a.py'", "tools"),  # no tool could be named so
        ("[tools.lab]\nprogram = './lab.py'", "'./lab.py' is no absolute path"),
        ("[tools.lab]\nprogram = 'lab.py'", "'lab.py' is no absolute path"),
        ("[tools.lab]\nprogram = '/lab\\u0000.py'".replace("'", '"'), "is no absolute path"),
        ("[tools.lab]\nprogram = '/lab.py'\nallow = ['Sto!']", "no rule: 'Sto!'"),
        ("[blobs_options]\naws_secret_access_key = 'x'", "'aws_secret_access_key'"),
        (b"\xff\xfe", "config.toml"),
    ],
)
def test_a_broken_setting_is_named(homes: Path, text: str | bytes, named: str) -> None:
    home = homes / f"settings{abs(hash(text))}"
    home.mkdir()
    (home / "config.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    error = refused(home)
    assert isinstance(error, BadInput)
    assert named in error.message + error.hint


def test_settings_are_read_and_overridden(homes: Path, boot: Boot) -> None:
    system = boot(slots=1, quantum=7)
    with connect(system.home) as aios:
        assert (aios.status().slots, aios.policy().quantum) == (1, 7)


def test_a_home_in_use_is_refused_and_undisturbed(aios: Aios, system: System) -> None:
    with pytest.raises(HomeBusy, match=str(system.home)):
        System(system.home, {}, detach=True).ready()
    assert aios.status().core == "ready"


def test_another_kernels_live_socket_is_not_taken(aios: Aios, system: System, homes: Path) -> None:
    home = homes / "taken"
    home.mkdir()
    (home / "run").symlink_to(system.home / "run")
    with pytest.raises(HomeBusy, match="another kernel"):
        System(home, {}, detach=True).ready()
    assert left_of(home) == []
    (home / "run").unlink()
    assert aios.status().core == "ready"


def test_a_dead_kernels_socket_is_replaced(homes: Path) -> None:
    home = homes / "stale"
    (home / "run").mkdir(parents=True)
    for name in ("run/kernel.sock", "core.sock", "text.sock", "index.sock", "gate.sock"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(home / name))
    system = System(home, on_tiny(home, slots=1, ctx=256), detach=True)
    try:
        assert system.ready().core == "ready"
    finally:
        system.end()


def test_a_home_with_a_path_too_long_for_a_socket_is_refused(homes: Path) -> None:
    error = refused(homes / ("long" * 30))
    assert isinstance(error, BadInput)
    assert "too long" in error.message


@pytest.mark.parametrize("kind", ["below a file", "not writable"])
def test_a_home_that_cannot_be_written_is_refused(homes: Path, kind: str) -> None:
    blocker = homes / "file"
    blocker.touch()
    home = blocker / "home" if kind == "below a file" else Path("/proc/self/task")
    with pytest.raises(BadInput) as caught:
        System(home, {}, detach=True).ready()
    assert str(home) in caught.value.message


# --- programs that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("def f(:\n", "SyntaxError"),
        ("x = 1\n", "NoProgram"),
        ("import nothing_like_that\n", "ModuleNotFoundError"),
        (b"\xff\0", "SyntaxError"),
        ("from aios.agents import Agent\nclass A(Agent):\n    pass\n", "NoProgram"),
    ],
)
def test_a_file_without_an_agent_ends_with_the_reason(
    aios: Aios, tmp_path: Path, text: str | bytes, named: str
) -> None:
    path = tmp_path / "agent.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    exited = aios.wait(aios.spawn(str(path)), timeout=30)
    assert (exited.code, exited.reason) == (1, "exit")
    assert exited.result["error"].startswith(named)


@pytest.mark.parametrize("kind", ["not executable", "no format", "no interpreter", "no folder"])
def test_an_executable_that_does_not_run_ends_with_the_reason(
    aios: Aios, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "program"
    path.write_text({"no interpreter": "#!/nowhere\n"}.get(kind, "\0\0\0\0"))
    path.chmod(0o600 if kind == "not executable" else 0o700)
    cwd = "/nowhere" if kind == "no folder" else None
    if kind == "not executable":
        with pytest.raises(AiosError, match="executable"):
            aios.spawn(str(path))
        return
    pid = aios.spawn(str(path), cwd=cwd)
    assert aios.wait(pid, timeout=30).code == 1
    assert b"Error" in aios.log(pid).data


# --- peers that do not behave ------------------------------------------------------------------


@pytest.fixture
def events(aios: Aios, system: System) -> Iterator[Callable[[int], Event]]:
    """The event of a process's end."""
    with connect(system.home) as watcher:
        follow = watcher.start("kernel.events", kinds=["process"])
        watcher.whoami()

        def ended(pid: int) -> Event:
            for body in follow:
                if (body["what"], body["pid"]) == ("ended", pid):
                    return Event(**body)
            raise AssertionError("the events ended")

        yield ended


def flood(raw: Raw) -> None:
    """More calls than a mailbox of replies holds, and no reply is read."""
    for _ in range(20_000):
        raw.start("kernel.stats")


def test_a_client_that_never_reads_is_dropped_and_others_are_served(
    aios: Aios, system: System, events: Callable[[int], Event]
) -> None:
    lazy = [Raw(system.home, unread=1) for _ in range(3)]
    for raw in lazy:
        raw.start("llm.generate", text="One, two,", max_tokens=900, ignore_eos=True)
        raw.start("kernel.events")
    for raw in lazy:
        flood(raw)
        assert aios.generate("Hi", max_tokens=3).usage.completion >= 1
    for raw in lazy:
        assert events(raw.pid).detail["reason"] == "does not read its replies"
        raw.close()
    eventually(lambda: aios.status().contexts == 0)
    assert {row.pid for row in aios.ps(all=True)}.isdisjoint(raw.pid for raw in lazy)


GENERATING = """
import sys
from pathlib import Path
from aios.agents import connect
aios = connect(Path(sys.argv[1]))
generation = aios.generate("Count.", max_tokens=900, ignore_eos=True)
next(iter(generation.pieces()))
print(aios.pid, flush=True)
generation.result()
"""


def test_a_client_killed_mid_stream_leaves_nothing(
    aios: Aios, system: System, events: Callable[[int], Event]
) -> None:
    client = subprocess.Popen(
        [sys.executable, "-c", GENERATING, str(system.home)], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    assert aios.status().contexts == 1
    client.kill()  # and it stays a zombie for a while
    assert events(pid).detail["reason"] in ("closed its connection", "gone")
    assert aios.status().contexts == 0
    client.communicate()


def test_an_idle_client_that_was_killed_is_noticed(
    aios: Aios, system: System, events: Callable[[int], Event]
) -> None:
    code = GENERATING.partition("generation =")[0] + "print(aios.pid, flush=True)\naios.recv()"
    client = subprocess.Popen(
        [sys.executable, "-c", code, str(system.home)], stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    pid = int(client.stdout.readline())
    client.kill()
    assert events(pid).detail["reason"] == "closed its connection"
    client.communicate()


def test_an_agent_that_closes_its_socket_mid_stream_is_ended(
    aios: Aios, program: Callable[[str], str]
) -> None:
    path = program(
        "generation = aios.generate('Count.', max_tokens=900, ignore_eos=True)\n"
        "next(generation.pieces())\naios.connection.socket.close(linger=0)\ntime.sleep(60)"
    )
    exited = aios.wait(aios.spawn(path), timeout=30)
    assert (exited.code, exited.reason) == (143, "closed its connection")
    assert aios.status().contexts == 0


NEVER_READS = f"""#!{sys.executable}
import sys
from pathlib import Path
sys.path.insert(0, {str(SUPPORT)!r})
from raw import Raw
raw = Raw(Path(sys.argv[1]), hello=False, unread=1)
raw.done("hello", version=1, token=open(3, "rb").read())
while True:
    raw.start("kernel.stats")
"""


def test_an_agent_that_never_reads_is_ended(aios: Aios, system: System, tmp_path: Path) -> None:
    path = tmp_path / "never_reads"
    path.write_text(NEVER_READS)
    path.chmod(0o700)
    exited = aios.wait(aios.spawn(str(path), args=[str(system.home)]), timeout=60)
    assert (exited.code, exited.reason) == (143, "does not read its replies")
    assert aios.check() == []
