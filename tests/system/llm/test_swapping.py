"""Snapshots in a whole system: what leaves the core's slots comes back as it was, and it shows."""

from __future__ import annotations

from typing import Any

import pytest
from commands import run
from conftest import Boot, eventually, of_core, on_tiny
from helpers import STORY

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import AiosError
from aios.syscalls.kernel import Stats

OPTIONS: dict[str, Any] = {"max_tokens": 12, "ignore_eos": True, "digest": True, "raw": True}


def answers(aios: Aios, *between: Any) -> list[str | None]:
    """The digests of two answers in one context; `between` is called in between."""
    with aios.open() as context:
        first = context.generate(STORY * 4, **OPTIONS).result().digest
        for action in between:
            action()
        return [first, context.generate(" And then", **OPTIONS).result().digest]


def on_disk(aios: Aios, system: System) -> Stats:
    """The figures, once all is on disk. The core sees to that though nobody generates."""

    def quiet() -> Stats | None:
        found, files = aios.stats(), list((system.home / "kv").glob("*/*"))
        return found if found.extents == len(files) > 0 else None

    found: Stats = eventually(quiet)
    return found


def kill_core(system: System) -> None:
    core = of_core(system)
    core.kill()
    core.wait(timeout=60)


def test_an_idle_context_comes_back_from_disk_though_the_core_was_killed(boot: Boot) -> None:
    system = boot(slots=1, idle_ttl=0.0)
    with connect(system.home) as aios:
        undisturbed = answers(aios)
        assert (
            answers(aios, lambda: on_disk(aios, system), lambda: kill_core(system)) == undisturbed
        )
        stats = aios.stats()
        assert stats.read > 0
        assert (stats.bad_snapshots, stats.lost) == (0, 0)
        eventually(lambda: not list((system.home / "kv").glob("*/*")))  # the context is closed


def test_damaged_files_are_reported_and_nothing_else(boot: Boot) -> None:
    system = boot(slots=1, idle_ttl=0.0)

    def damage() -> None:
        on_disk(aios, system)
        for path in (system.home / "kv").glob("*/*"):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        kill_core(system)  # now: the next one lists at its start what is whole

    with connect(system.home) as aios:
        undisturbed = answers(aios)
        follow = aios.start("kernel.events", kinds=["core"])
        assert answers(aios, damage) == undisturbed
        assert aios.stats().bad_snapshots > 0
        seen = next(event for event in follow if event["what"] == "bad snapshots")
        assert seen["detail"]["count"] > 0
        assert "computed again" in (system.home / "log" / "core.log").read_text()
        assert "damaged" in run(system.home, "stats").stdout


def test_agents_with_one_beginning_compute_it_once(boot: Boot) -> None:
    system = boot(slots=2, ctx=512)
    with connect(system.home) as aios:
        beginning = aios.tokenize(STORY * 24)[:200]
        prompts = [[*beginning, *aios.tokenize(f"{i} sheep")] for i in range(6)]
        alone = aios.generate(prompts[0], **OPTIONS).result()
        calls = [aios.generate(prompt, **OPTIONS) for prompt in prompts]
        assert calls[0].result().digest == alone.digest
        for call in calls[1:]:
            call.result()
        assert aios.stats().shared >= 6 * 192


def test_a_quantized_cache_says_that_it_gives_another_output(boot: Boot) -> None:
    system = boot(slots=1, cache="q8_0")
    with connect(system.home) as aios:
        model = aios.status().model
        assert model is not None
        assert (model.cache, model.paged) == ("q8_0", True)
    assert "not the output of f16" in run(system.home, "status").stdout


def test_a_folder_that_cannot_be_used_is_one_clear_line(homes: Any) -> None:
    home = homes / "blocked"
    home.mkdir()
    (home / "kv").write_text("in the way")
    system = System(home, on_tiny(home, slots=1, ctx=256), detach=True)
    try:
        with pytest.raises(AiosError, match=r"cannot keep snapshots in .*kv.*disk_bytes to 0"):
            system.ready()
    finally:
        system.end()
