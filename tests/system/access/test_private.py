"""The files in a home are for its user alone, whatever the umask was."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import run_system

from aios.agents import connect
from aios.kernel.init.home import lock_home
from aios.shell.launch import System
from aios.syscalls.errors import BadInput


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def open_to_others(home: Path) -> list[str]:
    """List what other users can reach in a home, except the folder itself."""
    found = []
    for folder, folders, files in os.walk(home):
        shut = [name for name in folders if not (Path(folder) / name).stat().st_mode & 0o077]
        found += [str(Path(folder) / name) for name in folders if name not in shut]
        found += [
            str(path) for name in files
            if (path := Path(folder) / name).lstat().st_mode & 0o077
        ]  # fmt: skip
        folders[:] = [name for name in folders if name not in shut]
    return found


@pytest.mark.usefixtures("open_umask")
def test_nobody_else_reads_what_a_home_keeps(
    homes: Path, program: Callable[[str], str], tmp_path: Path
) -> None:
    home, given = homes / "open", tmp_path / "given"
    given.mkdir()
    (home / "index").mkdir(parents=True)
    home.chmod(0o777)
    old = home / "index" / "of-an-older-system.db"
    old.write_text("my password is")
    for name in ("policy.json", "init.log"):
        (home / name).write_text("{}" if name == "policy.json" else "")
    steps = run_system(home, {"slots": 1, "ctx": 256})
    next(steps)
    with connect(home) as aios:
        aios.sto_put("notes/one", b"my password is parrot")
        aios.sto_search("password")
        path = program("open(task + '/file', 'w').close()\nprint('a log')")
        pid = aios.spawn(path, str(given), reach={"write": [str(given)]})
        assert aios.wait(pid, timeout=20).code == 0
        assert open_to_others(home) == []
    assert next(steps, None) is None
    assert open_to_others(home) == []
    assert stat.S_IMODE(home.stat().st_mode) == 0o755
    assert stat.S_IMODE((given / "file").stat().st_mode) == 0o644  # as the person's umask says


@pytest.mark.parametrize("name", ["", "config.toml", "run", "policy.json"])
def test_what_another_user_has_put_there_is_no_home(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    (home / "run").mkdir(parents=True)
    for each in ("config.toml", "policy.json"):
        (home / each).touch()
    if os.getuid() == 0:
        os.chown(home / name, 65534, -1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 65534)
    with pytest.raises(BadInput, match="belongs to another user"):
        lock_home(home)
    assert not (home / "init.lock").exists()


def test_a_link_in_the_place_of_its_log_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "init.log").symlink_to(tmp_path / "other")
    with pytest.raises(BadInput, match="cannot be used as a home"):
        System(tmp_path, {}, detach=False)
    assert not (tmp_path / "other").exists()
