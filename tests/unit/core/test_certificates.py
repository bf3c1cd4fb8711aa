"""A self-test that was made is taken over by the next engine, under the same conditions alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from deterministic_engine import DeterministicEngine

from aios.kernel.core import certificates
from aios.kernel.core.certificates import certify_once

SLOTS = 4


class Watched(DeterministicEngine):
    """Counts what is computed."""

    computed = 0

    def decode(self, batch: list[tuple[int, int, int]]) -> None:
        self.computed += 1
        super().decode(batch)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "aios" / "certificates"


def engine(**options: Any) -> Watched:
    return Watched(**{"slots": SLOTS, "window": 320, **options})


@pytest.mark.parametrize(
    ("options", "batch", "padded_from", "is_movable"),
    [
        ({}, SLOTS, 256, True),
        ({"exact_batch": 2}, 2, 256, True),
        ({"inexact_after": ["paste"]}, SLOTS, 256, False),
        ({"solo_from": 0}, SLOTS, 0, True),
    ],
)
def test_the_next_engine_is_adapted_as_the_first_was(
    options: dict[str, Any], batch: int, padded_from: int, is_movable: bool
) -> None:
    first, second = engine(**options), engine(**options)
    found = certify_once(first)
    assert first.computed
    assert certify_once(second) == found
    assert second.computed == 0
    for each in (first, second):
        assert (found[0], each.pad_solo_from, each.row_bytes > 0) == (
            batch, padded_from, is_movable,
        )  # fmt: skip


@pytest.mark.parametrize("other", [{"slots": 3}, {"window": 321}, {"row_bytes": 128}])
def test_under_other_conditions_it_is_tested_anew(other: dict[str, Any]) -> None:
    certify_once(engine())
    changed = engine(**other)
    certify_once(changed)
    assert changed.computed


def test_on_another_processor_it_is_tested_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    certify_once(engine())
    monkeypatch.setattr(certificates, "processor", lambda: "another")
    again = engine()
    certify_once(again)
    assert again.computed


def test_after_a_change_of_the_test_it_is_tested_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "certify.py"
    source.touch()
    monkeypatch.setattr(certificates, "SOURCES", [source])
    certify_once(engine())
    os.utime(source, ns=(1, 1))
    again = engine()
    certify_once(again)
    assert again.computed


@pytest.mark.parametrize("content", [b"", b"{}", b'{"batch": 99', b"\xff"])
def test_a_damaged_certificate_is_made_anew(cache: Path, content: bytes) -> None:
    found = certify_once(engine())
    (path,) = cache.iterdir()
    path.write_bytes(content)
    again, third = engine(), engine()
    assert certify_once(again) == certify_once(third) == found
    assert again.computed
    assert not third.computed


def test_without_a_place_for_it_a_start_goes_on(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.parent.write_text("not a folder")
    assert certify_once(engine()) == (SLOTS, None)
    assert "the self-test runs again at the next start: " in capsys.readouterr().err


def test_the_oldest_certificate_makes_room(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(certificates, "MAX_KEPT", 2)
    for window in (320, 321, 322):
        certify_once(engine(window=window))
        for path in cache.iterdir():
            os.utime(path, ns=(0, path.stat().st_mtime_ns - 10**9))
    assert len(list(cache.iterdir())) == 2
    last, first = engine(window=322), engine(window=320)
    certify_once(last)
    certify_once(first)
    assert not last.computed
    assert first.computed
