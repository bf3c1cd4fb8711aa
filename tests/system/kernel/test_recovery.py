"""Deaths at the top: of the core, of the kernel, of init."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EMBEDDED, Boot, eventually, left_of, of_core, on_tiny
from models import tiny_model

from aios.agents import Aios, Generation, connect
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, CoreFailed, KernelGone
from aios.syscalls.llm import Piece

OPTIONS: dict[str, Any] = {
    "max_tokens": 60, "temperature": 0.8, "seed": 3, "ignore_eos": True, "digest": True,
    "repeat_penalty": 1.2,
}  # fmt: skip
PROMPTS = [f"Tell a story about {what}." for what in ("a fox", "the sea", "a lamp")]


def kill_core(system: System, by: signal.Signals = signal.SIGKILL) -> None:
    """And wait until nothing of it is left."""
    core = of_core(system)
    core.send_signal(by)
    core.wait(timeout=60)


def answers(aios: Aios) -> list[Generation]:
    return [aios.generate(prompt, **OPTIONS) for prompt in PROMPTS]


def test_generations_survive_the_core_without_a_trace(boot: Boot) -> None:
    system = boot(slots=2, quantum=16)
    with connect(system.home) as aios:
        alone = [generation.result() for generation in answers(aios)]
        calls = answers(aios)
        pieces: list[list[Piece]] = [[], [], []]
        for count in (5, 40):
            pieces[0] += itertools.islice(calls[0].pieces(), count - len(pieces[0]))
            kill_core(system)
        for call, seen in zip(calls, pieces, strict=True):
            seen.extend(call.pieces())
        results = [call.result() for call in calls]
        assert [result.tokens for result in results] == [result.tokens for result in alone]
        assert [result.digest for result in results] == [result.digest for result in alone]
        assert [result.text for result in results] == [result.text for result in alone]
        for result, seen in zip(results, pieces, strict=True):
            assert [token for piece in seen for token in piece.tokens] == result.tokens
            assert "".join(piece.text for piece in seen) == result.text
        assert aios.status().core_restarts == 2
        assert aios.check() == []


def test_calls_to_a_core_that_is_gone_wait_for_the_next(boot: Boot) -> None:
    system = boot(slots=2)
    with connect(system.home) as aios:
        tokens = aios.tokenize("one two three")
        context = aios.open("You are terse.")
        context.append("Remember 42.")
        kill_core(system)
        waiting = [
            aios.start("llm.tokenize", text="one two three"),
            aios.start("llm.detokenize", tokens=tokens),
            aios.start("llm.append", ctx=context.id, text="and 43"),
            aios.start("llm.generate", text="one", max_tokens=2),
        ]
        bodies = [call.wait(60) for call in waiting]
        assert bodies[0]["tokens"] == tokens
        assert bodies[1]["text"] == "one two three"
        assert context.generate(max_tokens=3).result().usage.completion == 3
        assert aios.status().core_restarts == 1


def test_a_call_under_which_the_core_keeps_dying_fails_and_the_rest_goes_on(boot: Boot) -> None:
    system = boot(model=EMBEDDED, slots=2)  # which prefills for seconds
    with connect(system.home) as aios:
        follow = aios.start("kernel.events", kinds=["core"])
        call = aios.generate([7] * 900, max_tokens=100, ignore_eos=True)
        eventually(lambda: aios.status().running == 1)
        for death in range(3):
            kill_core(system)
            for event in follow:
                if event["what"] == "ready":
                    break
            if death < 2:
                assert aios.status().running == 1
        with pytest.raises(CoreFailed, match="3 times"):
            call.result()
        assert aios.generate("Hi", max_tokens=3).result().usage.completion >= 1
        # three deaths that were nobody's fault are not held against the next
        call = aios.generate([7] * 500, max_tokens=2, ignore_eos=True)
        eventually(lambda: aios.status().running == 1)
        kill_core(system)
        assert call.result().usage.completion == 2
        eventually(lambda: aios.status().core == "ready")
        status = aios.status()
        assert (status.contexts, status.core_restarts) == (0, 4)
        assert aios.check() == []


def test_a_core_that_keeps_dying_while_it_loads_is_tried_again(boot: Boot, tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    tiny_model(model)
    system = boot(model=str(model), threads=1, slots=1, ctx=256)
    with connect(system.home) as aios:
        whole = model.rename(model.with_suffix(".whole"))
        os.mkfifo(model)  # nobody writes to it: cores load it until they are killed
        events = (event["what"] for event in aios.start("kernel.events", kinds=["core"]))
        aios.status()  # from here on they are told
        kill_core(system)
        call = aios.generate("Hi", max_tokens=2)
        assert next(events) == "died"
        for _ in range(3):
            kill_core(system, signal.SIGILL)
            assert next(events) == "died"
        assert next(events) == "failed"
        with pytest.raises(
            CoreFailed, match=r"while loading .*model.gguf \(signal ILL\); it is tried again in"
        ) as failed:
            call.result()
        assert "built for another processor" in failed.value.hint
        with pytest.raises(CoreFailed, match="it is tried again in"):
            aios.generate("Hi", max_tokens=2).result()
        whole.rename(model)
        kill_core(system)
        seen = list(itertools.takewhile(lambda what: what != "ready", events))
        assert seen == ["died", "failed"]
        status = aios.status()
        assert status.core_error is None
        assert status.core_restarts == 5
        assert aios.generate("Hi", max_tokens=2, ignore_eos=True).result().usage.completion == 2
        assert aios.check() == []


def test_calls_before_the_first_core_wait_for_it(homes: Path) -> None:
    system = System(homes / "early", on_tiny(homes / "early", slots=1, ctx=256), detach=True)
    try:
        with eventually(lambda: connected(system.home)) as aios:
            calls = [
                aios.start("llm.detokenize", tokens=[2**31 - 1]),
                aios.start("llm.generate", tokens=[2**31 - 1]),
                aios.start("llm.generate", tokens=[60], max_tokens=3, ignore_eos=True),
                aios.start("llm.tokenize", text="a"),
            ]
            for call in calls[:2]:
                with pytest.raises(BadInput, match="vocabulary"):
                    call.wait(60)
            assert len(calls[2].wait(60)["tokens"]) == 3
            assert calls[3].wait(60)["tokens"]
            assert aios.status().core_restarts == 0
    finally:
        system.end()


def connected(home: Path) -> Aios | None:
    try:
        return connect(home)
    except KernelGone:
        return None


@pytest.mark.parametrize("how", ["KILL", "TERM", "INT"])
def test_with_init_everything_ends(boot: Boot, program: Callable[[str], str], how: str) -> None:
    system = boot(slots=1, grace=0.3)
    deaf = program("signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('up')\ntime.sleep(60)")
    with connect(system.home) as aios:
        pids = [aios.spawn(deaf), aios.spawn(program("aios.recv()"))]
        assert aios.log(pids[0], wait=20).data
        generation = aios.generate(PROMPTS[0], max_tokens=900, ignore_eos=True)
        next(generation.pieces())
        guard = aios.status().walls["tasks"].startswith("cgroup")
        # init, kernel, core and what renders its templates, two agents
        assert len(left_of(system.home)) == 6 + guard
        os.kill(system.process.pid, signal.Signals[f"SIG{how}"])
        code = system.process.wait(timeout=20)
    eventually(lambda: not left_of(system.home))
    assert code == (-signal.SIGKILL if how == "KILL" else 0)
    sockets = list(system.home.rglob("*.sock"))
    assert how == "KILL" or sockets == []
    for path in sockets:  # a kernel that was killed leaves them; the next start replaces them
        path.unlink()


def test_stop_ends_agents_first_and_is_answered(boot: Boot, program: Callable[[str], str]) -> None:
    system = boot(slots=1)
    with connect(system.home) as aios:
        pid = aios.spawn(
            program(
                "signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))\nprint('up')\naios.recv()"
            )
        )
        assert aios.log(pid, wait=20).data  # not before: it runs while the handler is not yet set
        follow = aios.start("kernel.events", kinds=["process"])
        aios.stop()
        ended = [event for event in follow.pieces if event["what"] == "ended"]
        assert [(event["pid"], event["detail"]["code"]) for event in ended] == [(pid, 5)]
    assert system.process.wait(timeout=60) == 0
