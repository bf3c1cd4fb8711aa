"""The first exchange with a running system."""

from __future__ import annotations

from collections.abc import Callable

from aios.agents import Aios


def test_generate_is_repeatable_and_streams_what_it_returns(aios: Aios) -> None:
    first = aios.generate("Name three colors.", max_tokens=24, seed=1, temperature=0.8, digest=True)
    pieces = list(first)
    second = aios.generate(
        "Name three colors.", max_tokens=24, seed=1, temperature=0.8, digest=True
    )
    assert "".join(pieces) == first.text == second.text
    assert first.tokens == second.tokens
    assert first.digest == second.digest is not None


def test_an_agent_runs_and_reports(aios: Aios, program: Callable[[str], str]) -> None:
    path = program("print('at work')\nreturn {'said': aios.generate(task, max_tokens=4).text}")
    pid = aios.spawn(path, "Hello")
    end = aios.wait(pid, timeout=30)
    assert (end.code, end.reason) == (0, "exit")
    assert end.result["said"]
    assert aios.log(pid).data == b"at work\n"


def test_a_failing_agent_says_why(aios: Aios, program: Callable[[str], str]) -> None:
    end = aios.wait(aios.spawn(program("raise ValueError('no good')")), timeout=30)
    assert end.code == 1
    assert end.result == {"error": "ValueError: no good"}
