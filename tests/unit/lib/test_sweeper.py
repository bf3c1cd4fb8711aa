"""Folders of ended agents are removed, at any depth and with any content."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import eventually, run_system

from aios.agents import connect
from aios.kernel.lib.sweeper import Sweeper, remove

DEEP = 3000


def dig(top: Path, levels: int) -> None:
    """Make nested folders, each with a file."""
    top.mkdir()
    at = os.open(top, os.O_RDONLY)
    for _ in range(levels):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
        os.mkdir("a long name of a folder", dir_fd=at)
        below = os.open("a long name of a folder", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)


@pytest.fixture
def few_descriptors() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(
        int(path.name) for path in Path("/proc/self/fd").iterdir()
    )  # of this process, which has run others
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 64, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.usefixtures("few_descriptors")
def test_deeper_than_a_path_is_long(tmp_path: Path) -> None:
    dig(tmp_path / "deep", DEEP)
    remove(tmp_path / "deep")
    assert list(tmp_path.iterdir()) == []


def test_what_it_holds_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    own = tmp_path / "own"
    (own / "wide" / "closed").mkdir(parents=True)
    (own / "wide" / "link").symlink_to(tmp_path / "elsewhere")
    (own / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    os.mkfifo(own / "wide" / "pipe")
    (own / "wide" / "closed" / "file").write_text("x")
    (own / "wide" / "closed").chmod(0)
    own.chmod(0)
    remove(own)
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "kept").read_text() == "kept"


def test_a_file_and_what_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("x")
    remove(tmp_path / "log")
    remove(tmp_path / "log")
    assert list(tmp_path.iterdir()) == []


def test_it_ends_in_between_and_the_next_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's end does not wait for a large folder."""
    dig(tmp_path / "deep", DEEP)
    half, go_on, unlink = threading.Event(), threading.Event(), os.unlink
    left = iter(range(DEEP // 2))

    def slow(*args: object, **names: object) -> None:
        if next(left, None) is None:
            half.set()
            assert go_on.wait(10)
        unlink(*args, **names)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "unlink", slow)
    first = Sweeper()
    first.remove(tmp_path / "deep")
    assert half.wait(30)
    first.running = False
    go_on.set()
    first.close()
    assert (tmp_path / "deep").exists()
    monkeypatch.undo()
    second = Sweeper()
    second.remove(tmp_path / "deep")
    eventually(lambda: not (tmp_path / "deep").exists())
    second.close()


def test_folders_and_logs_go_with_the_rows_of_agents(
    homes: Path, program: Callable[[str], str]
) -> None:
    """They stay while an ended agent is listed; the next system has none of an earlier one's."""
    home = homes / "swept"
    path = program("print('said')\nopen('left', 'w').write('x' * 1000)\nreturn os.getcwd()")
    above = program("return aios.wait(aios.spawn(task)).pid")
    for _ in range(2):
        for _ in run_system(home, {"slots": 1, "ctx": 256, "dead": 3}):
            with connect(home, "test") as aios:
                left(home, [])
                kept = aios.wait(aios.spawn(path))
                assert (Path(kept.result) / "left").stat().st_size == 1000
                parent = aios.wait(aios.spawn(above, path))
                left(home, [kept.pid, parent.pid])
                others = [aios.wait(aios.spawn(path)).pid for _ in range(3)]
                left(home, last := [parent.pid, *others[1:]])  # of the tree that had most one went
    left(home, last)


def left(home: Path, pids: list[int]) -> None:
    """Wait until only these agents have a folder and a log."""
    eventually(lambda: names(home) == [pids, pids])


def names(home: Path) -> list[list[int]]:
    """Return the agents that have a folder, and those that have a log."""
    folders = [int(path.name) for path in (home / "agents").iterdir()]
    logs = [int(path.stem.removeprefix("agent-")) for path in (home / "log").glob("agent-*.log")]
    return [sorted(folders), sorted(logs)]
