"""Find the places where cgroups can be made. test_sandbox.py tests what they do."""

from __future__ import annotations

from pathlib import Path

import pytest

from aios.kernel.sandbox.cgroup import AgentCgroups, enter, pids_mounts

V2 = "30 1 0:26 / {} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "31 1 0:27 / {} rw - cgroup cgroup rw,pids\n32 1 0:28 / /other rw - cgroup cgroup rw,memory\n"


def test_both_versions_are_found_where_they_are_mounted(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(V2.format("/cgroup2") + V1.format("/cgroup1"))
    assert [str(path) for path in pids_mounts(str(mounts))] == ["/cgroup2", "/cgroup1"]


def test_where_groups_have_no_limit_there_are_none(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        AgentCgroups(tmp_path / "not there", "/home", "1")


def test_a_process_enters_its_group(tmp_path: Path) -> None:
    enter(tmp_path)
    assert (tmp_path / "cgroup.procs").read_text() == "0"
