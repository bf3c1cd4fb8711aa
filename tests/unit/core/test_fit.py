"""A model in other formats: what they lose and gain is measured, and one is picked."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import psutil
import pytest

from aios.kernel.config import embedded_model
from aios.kernel.core import compare, fit
from aios.kernel.core.gguf import requantize
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.variants import Conditions, FitRecord, Variant
from aios.syscalls.errors import NoRoom

HERE = Conditions("cpu", "engine", 2, 2)


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, LlamaEngine]]:
    folder = tmp_path_factory.mktemp("versions")
    engines = {"original": LlamaEngine(embedded_model(), slots=2, window=512, threads=2)}
    for name in ("q8_0", "q4_0"):
        requantize(embedded_model(), folder / name, name, 2)
        engines[name] = LlamaEngine(folder / name, slots=2, window=512, threads=2)
    yield engines
    for engine in engines.values():
        engine.close()


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less text and fewer rounds, for what is measured in this process."""
    monkeypatch.setattr(compare, "TEXT_TOKENS", 256)
    monkeypatch.setattr(compare, "ROUNDS", 1)


def silent(_what: str, _done: int, _total: int) -> None:
    pass


@pytest.mark.usefixtures("briefly")
def test_a_model_is_at_no_divergence_from_itself(variants: dict[str, LlamaEngine]) -> None:
    again = LlamaEngine(embedded_model(), slots=2, window=512, threads=2)
    divergences, perplexity = compare.measure_divergence([variants["original"], again], silent)
    again.close()
    assert divergences == [compare.Divergence()] * 2
    assert divergences[1].kl == divergences[1].kl_max == 0.0
    assert perplexity[0] == perplexity[1] > 1


@pytest.mark.usefixtures("briefly")
def test_the_limit_parts_what_keeps_the_model_from_what_spoils_it(
    variants: dict[str, LlamaEngine],
) -> None:
    (_, near, far), perplexity = compare.measure_divergence(list(variants.values()), silent)
    assert 0 < near.kl < fit.KL_LIMIT < far.kl
    assert near.kl < near.kl_max < far.kl_max
    assert far.same_top < near.same_top < 1
    assert abs(perplexity[1] / perplexity[0] - 1) < 0.01 < perplexity[2] / perplexity[0] - 1


@pytest.mark.usefixtures("briefly")
def test_the_race_leaves_the_slots_empty(variants: dict[str, LlamaEngine]) -> None:
    speeds, gains = compare.race(list(variants.values()), [2, 2, 1], silent)
    assert all(min(msgspec.structs.astuple(speed)) > 0 for speed in speeds)
    assert gains[0] == compare.Speed(1.0, 1.0, 1.0)
    assert {engine.length(slot) for engine in variants.values() for slot in (0, 1)} == {0}


def variant(name: str, turns: float = 2.0, kl: float = 0.001, **changed: Any) -> Variant:
    speed = compare.Speed(1.0, 1.0, turns)
    figures = {"measured": HERE, "certified": 4, **changed}
    return Variant(
        format=name, size=1, sha256="", speed=speed, gain=speed, divergence=compare.Divergence(kl),
        perplexity=1.0, **figures,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variants", "picked"),
    [
        ([], ""),
        ([variant("a")], "a"),
        ([variant("a"), variant("b", turns=3.0)], "b"),
        ([variant("a"), variant("b", turns=3.0, kl=0.011)], "a"),
        ([variant("a", turns=1.05)], ""),
        ([variant("a", certified=3)], ""),
        ([variant("a", measured=Conditions("other", "engine", 2, 2))], ""),
    ],
)
def test_the_rule(variants: list[Variant], picked: str) -> None:
    record = FitRecord("path", original=variant("original", turns=1.0, kl=0.0), variants=variants)
    assert fit.pick(record, HERE) == picked


def test_what_memory_has_no_room_for_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    params = 1 << 30  # 2,048 MiB as BF16, 1,088 as Q8_0, 576 as Q4_0
    names = ["bf16", "q8_0", "q4_0"]
    for free, fit_in in ((3800, names), (3700, names[1:]), (600, names[2:])):
        memory = SimpleNamespace(available=(free + 50) << 20)
        monkeypatch.setattr(psutil, "virtual_memory", lambda found=memory: found)
        assert fit.drop_too_large(names, 50 << 20, params) == fit_in
    said = capsys.readouterr().out
    assert said.count("leaving bf16 out: it needs 2048 MiB, 3700 are free") == 1
    memory.available = 500 << 20
    with pytest.raises(NoRoom, match="q4_0 needs 576 MiB beside the original, 450 MiB are free"):
        fit.drop_too_large(names, 50 << 20, params)
