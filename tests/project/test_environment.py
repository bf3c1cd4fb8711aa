"""Agents have those variables of the environment of `aios start` that are named, and no others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from conftest import Boot
from hypothesis import given
from hypothesis import strategies as st

from aios.agents import connect
from aios.shell import launch

names = st.text(st.characters(codec="ascii", exclude_characters="=\0"), min_size=1, max_size=8)
begins = st.sampled_from(["", "AIOS_", *sorted(launch.OPEN)])


@given(begins, names)
def test_only_what_is_named_is_handed_on(begin: str, end: str) -> None:
    name = begin + end
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, "x")
        found = launch.open_environment()
    assert found.keys() <= launch.OPEN.union(launch.FOR_INIT)
    assert (name in found) == (name in launch.OPEN or name in launch.FOR_INIT)


def test_an_agent_has_no_secret_of_aios(
    boot: Boot, program: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert callable(program)
    for name in ("MCP_TOKEN", "KEY", "SERVER_KEY", "ADDRESS", "KEY_FILE", "OTHER_TOKEN"):
        monkeypatch.setenv(f"AIOS_{name}", str(tmp_path / "secret"))
    monkeypatch.setenv("AIOS_WEB_CORPUS", "pages")
    system = boot(slots=1)
    for name in ("ADDRESS", "KEY", "SERVER_KEY"):
        monkeypatch.delenv(f"AIOS_{name}")
    with connect(system.home) as aios:
        pid = aios.spawn(program("return dict(os.environ)"))
        found = aios.wait(pid).result
    own = {"AIOS_HOME", "HOME", "TMPDIR", "PWD", "LC_CTYPE", "GIT_CONFIG_NOSYSTEM"}
    assert found.keys() <= launch.OPEN | own, sorted(found.keys() - launch.OPEN - own)
    assert found["AIOS_WEB_CORPUS"] == "pages"
    assert found["PATH"].split(os.pathsep)[0] in os.environ["PATH"].split(os.pathsep)
