"""The SDK does more than pass calls on: contexts that clean up, ends that say why."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from conftest import core_stopped, eventually

from aios.agents import Aios, connect
from aios.agents.sdk.connection import Pending
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, KernelGone


def test_leaving_a_context_cancels_what_runs_in_it(aios: Aios, system: System) -> None:
    context = aios.open()
    with (
        connect(system.home) as other, ThreadPoolExecutor(1) as thread,
        core_stopped(system),  # or the answer may end by itself
    ):  # fmt: skip
        answer = context.generate([7] * 9, max_tokens=900, ignore_eos=True)
        eventually(lambda: other.status().running == 1)
        before = other.stats().calls.get("call.cancel", 0)
        leaving = thread.submit(context.__exit__)
        eventually(lambda: other.stats().calls.get("call.cancel", 0) > before)
    leaving.result()
    assert answer.finish == "cancelled"
    assert aios.status().contexts == 0


def test_leaving_a_context_lets_an_error_of_the_block_through(aios: Aios) -> None:
    with pytest.raises(KeyboardInterrupt), aios.open() as context:
        for _ in context.generate("Tell me a story.", max_tokens=500, ignore_eos=True):
            raise KeyboardInterrupt
    assert aios.status().contexts == 0


@pytest.mark.parametrize(
    ("body", "code", "result"),
    [
        ("sys.exit()", 0, None),
        ("sys.exit(300)", 300 & 0xFF, None),
        ("sys.exit('no input')", 1, {"error": "no input"}),
    ],
)
def test_sys_exit_ends_an_agent_as_it_ends_any_program(
    aios: Aios, program: Callable[[str], str], body: str, code: int, result: Any
) -> None:
    end = aios.wait(aios.spawn(program(body)), timeout=30)
    assert (end.code, end.result) == (code, result)
    assert aios.log(end.pid).data.decode() == ("no input\n" if result else "")


@pytest.mark.parametrize("value", ["{1, 2}", "object()", "2**70", "{1.5: 2}", "'a' * 70000"])
def test_a_result_that_cannot_be_passed_on_is_an_error_of_the_agent(
    aios: Aios, program: Callable[[str], str], value: str
) -> None:
    end = aios.wait(aios.spawn(program(f"return {value}")), timeout=30)
    assert end.code == 1
    assert end.result["error"].startswith("proc.exit: ")
    assert "the result cannot be reported" in aios.log(end.pid).data.decode()


@pytest.mark.parametrize(("code", "value"), [(1, "5"), (0, "None")])
def test_an_agent_that_closed_its_connection_is_told_that_its_result_is_lost(
    code: int, value: str, aios: Aios, program: Callable[[str], str]
) -> None:
    end = aios.wait(aios.spawn(program(f"aios.close()\nreturn {value}")), timeout=30)
    assert (end.code, end.result) == (code, None)
    said = "the result cannot be reported: this connection is closed"
    assert aios.log(end.pid).data.decode().startswith(said)


@pytest.mark.parametrize(
    "use",
    [
        lambda aios: aios.mem_get("style"),
        lambda aios: aios.mem_delete("style"),
        lambda aios: aios.sto_put("path", b"", tags="style"),
        lambda aios: aios.sto_search("query", tags="style"),
        lambda aios: aios.spawn("", args="style"),
    ],
)
def test_one_text_is_not_taken_for_its_letters(use: Callable[[Aios], Any]) -> None:
    with pytest.raises(TypeError, match=r"several, as in \['style'\]"):
        use(Aios(Mock(), Mock()))


def test_a_connection_is_for_one_thread_at_a_time(system: System) -> None:
    with (
        connect(system.home) as aios, connect(system.home) as friend,
        ThreadPoolExecutor(1) as other,
    ):  # fmt: skip
        pid = aios.connection.welcome["pid"]
        waiting = other.submit(aios.recv, timeout=30)
        eventually(lambda: aios.connection.within)
        with pytest.raises(BadInput, match="another thread is using this connection") as caught:
            aios.status()
        assert "several calls" in caught.value.hint
        friend.send(pid, "enough")
        assert waiting.result().body == "enough"
        assert aios.status().agents == friend.status().agents


@pytest.mark.parametrize("use", [lambda call: call.wait(30), list])
def test_a_reply_that_another_thread_took_is_not_waited_for(
    use: Callable[[Pending], Any], aios: Aios, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes between a look for it and the wait."""
    call, enter = aios.start("proc.whoami"), aios.connection._enter

    def late() -> None:
        monkeypatch.undo()
        aios.connection.pump()
        assert call.ended
        enter()

    monkeypatch.setattr(aios.connection, "_enter", late)
    use(call)
    assert call.body["name"] == "test"


def test_a_connection_that_is_closed_says_so(system: System) -> None:
    with connect(system.home) as aios:
        mail = aios.start("msg.recv")
    uses: list[Callable[[], Any]] = [aios.ps, lambda: list(mail), mail.wait, aios.stats]
    for use in uses:
        with pytest.raises(KernelGone, match=r"this connection is closed .*open another"):
            use()
    aios.close()


def test_a_fork_is_told_that_the_connection_is_its_parent_s(system: System) -> None:
    with connect(system.home, "parent") as aios:
        mail = aios.start("msg.recv")
        read, write = os.pipe()
        if os.fork() == 0:
            try:
                os.write(write, outcome(system.home, aios, mail).encode())
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read) as told:
            said = told.read().splitlines()
        os.wait()
        assert aios.whoami().name == "parent"
        assert len(said) == 3
        assert said[0] == "child"
        for line in said[1:]:
            assert f"this connection is that of process {os.getpid()} (call connect() in" in line


def outcome(home: Path, aios: Aios, mail: Pending) -> str:
    """Return what a fork hears on the connection of its parent, and on its own."""
    said = []
    with connect(home, "child") as own:
        said.append(own.whoami().name)
    uses: list[Callable[[], Any]] = [aios.ps, mail.wait]
    for use in uses:
        try:
            use()
        except KernelGone as error:
            said.append(str(error))
    aios.close()
    return "\n".join(said)
