"""Workers whose toolbox changes or whose kernel dies: what may have been done is not done again."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from conftest import Boot, eventually
from helpers import call
from places import SUPPORT

from aios.agents import Aios, connect
from aios.syscalls.errors import ToolUnknown

LAB = str(SUPPORT / "toolbox.py")

# --- a toolbox that changes under a running system ------------------------------------------------

NOTES = """
from aios.agents.tools import tool

@tool(name="notes.version")
def version() -> int:
    return {version}

@tool(name="notes.{name}", effect=True)
def other() -> str:
    return "done"
"""


def test_a_changed_file_is_what_is_listed_and_called(boot: Boot, tmp_path: Path) -> None:
    file = tmp_path / "notes.py"

    def write(text: str) -> None:
        file.write_text(text)
        os.utime(file, ns=(0, len(text)))  # another time, however fast this is

    def names(aios: Aios) -> list[str]:
        return [spec.name for spec in aios.tools() if spec.name.startswith("notes.")]

    write(NOTES.format(version=1, name="first"))
    system = boot(slots=1, ctx=256, tools={"notes": {"program": str(file), "idle": 300}})
    with connect(system.home) as aios, connect(system.home) as other:
        assert (call(aios, "notes.version"), call(other, "notes.version")) == (1, 1)
        before = {row.pid for row in aios.ps()}
        write(NOTES.format(version=2, name="second_one"))
        assert names(aios) == ["notes.version", "notes.second_one"]
        assert [call(each, "notes.version") for each in (aios, other)] == [2, 2]
        assert call(other, "notes.second_one") == "done"
        assert not before & {row.pid for row in aios.ps()}
        write("def (:")
        (box,) = [box for box in aios.toolboxes().boxes if box.name == "notes"]
        assert "SyntaxError" in box.error
        assert call(other, "notes.version") == 2  # those who have it go on
        write(NOTES.format(version=3, name="first"))
        assert names(aios) == ["notes.version", "notes.first"]
        assert call(aios, "notes.version") == 3
        assert aios.check() == []


def test_a_worker_that_has_a_changed_files_tools_no_more_is_given_none(
    boot: Boot, tmp_path: Path
) -> None:
    file, go = tmp_path / "notes.py", tmp_path / "go"
    waits = "\n@tool(name='notes.wait')\ndef wait() -> int:\n    while not Path({!r}).exists():\n"
    waits = "\nfrom pathlib import Path" + waits.format(str(go)) + "        pass\n    return 0\n"
    file.write_text(NOTES.format(version=1, name="first") + waits)
    box = {"program": str(file), "idle": 300, "reach": {"read": [str(tmp_path)]}}
    system = boot(slots=1, ctx=256, tools={"notes": box})
    with connect(system.home) as aios, connect(system.home) as other:
        assert call(aios, "notes.version") == 1
        (old,) = aios.ps()
        waiting = aios.call_tool("notes.wait")
        file.write_text(NOTES.format(version=2, name="second"))
        assert call(other, "notes.version") == 2
        go.touch()
        assert waiting.result(30).value == 0
        assert call(aios, "notes.second") == "done"
        assert old.pid not in {row.pid for row in aios.ps()}
        assert aios.check() == []


# --- once -----------------------------------------------------------------------------------------


def test_what_was_interrupted_is_unknown_and_never_done_again(boot: Boot, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "walls": {"write": [str(tmp_path)]}, "tools": {"lab": {"program": LAB}}, "slots": 1,
        "ctx": 256,
    }  # fmt: skip
    system = boot(**settings)
    log, never = tmp_path / "log", str(tmp_path / "never")
    with connect(system.home) as aios:
        changing = aios.call_tool("lab.change", {"path": str(log), "then": never})
        counting = aios.call_tool("lab.wait_for", {"path": str(tmp_path / "go")})
        eventually(lambda: log.exists() and len(list(tmp_path.glob("go.*"))) == 1)
        os.kill(aios.status().os_pid, signal.SIGKILL)
        with pytest.raises(ToolUnknown, match="kernel died while"):
            changing.result(30)
        (tmp_path / "go").touch()
        assert counting.result(30).value > 0  # it changes nothing, so it is done again
        eventually(lambda: len(list(tmp_path.glob("go.*"))) == 2)
        killed = aios.call_tool("lab.change", {"path": str(log), "then": never})
        eventually(lambda: log.read_text() == "once\n" * 2)
        for row in aios.ps():
            os.kill(row.os_pid, signal.SIGKILL)
        with pytest.raises(ToolUnknown, match="look whether it has happened"):
            killed.result(30)
        late = aios.call_tool("lab.change", {"path": str(log), "then": never}, timeout=1.0)
        with pytest.raises(ToolUnknown):
            late.result(30)
        assert call(aios, "lab.change", path=str(log)) == "changed"
        assert log.read_text() == "once\n" * 4
        assert aios.check() == []


SLOW = """
import time
from pathlib import Path
from aios.agents.tools import tool
Path({begun!r}).touch()
while not Path({go!r}).exists():
    time.sleep(0.01)

@tool(name="slow", effect=True)
def slow() -> str:
    Path({log!r}).open("a").write("once\\n")
    return "slow"
"""


def test_the_kernel_may_die_while_a_worker_starts_and_before_its_word_is_heard(
    boot: Boot, tmp_path: Path
) -> None:
    begun, go, log = (tmp_path / name for name in ("begun", "go", "log"))
    place = tmp_path / "box"
    place.mkdir()
    (place / "slow.py").write_text(SLOW.format(begun=str(begun), go=str(go), log=str(log)))
    box = {"program": str(place / "slow.py"), "workers": 1}
    walls = {"read": [str(tmp_path)], "write": [str(tmp_path)]}
    system = boot(slots=1, ctx=256, walls=walls, tools={"slow": box})
    with connect(system.home) as aios, connect(system.home) as other:

        def kill_kernel() -> None:
            os_pid = other.status().os_pid
            os.kill(os_pid, signal.SIGKILL)
            eventually(lambda: other.status().os_pid != os_pid)

        first, second = aios.call_tool("slow"), aios.call_tool("slow")  # one starts, one waits
        eventually(begun.exists)
        (before,) = other.ps()
        kill_kernel()
        go.touch()
        assert (first.result(30).value, second.result(30).value) == ("slow", "slow")
        assert before.pid not in [row.pid for row in other.ps()]
        assert log.read_text() == "once\n" * 2  # it had not begun
        unheard = aios.call_tool("slow")
        eventually(lambda: log.read_text() == "once\n" * 3)
        eventually(lambda: other.stats().calls.get("tool.done", 0) == 3)
        kill_kernel()
        assert unheard.result(30).value == "slow"
        assert log.read_text() == "once\n" * 3
        assert other.check() == []
