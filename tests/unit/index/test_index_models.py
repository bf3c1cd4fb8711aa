"""The index with models of meaning from GGUF files: changed, missing, slow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from index_documents import CAR, FOX, SEA, ask, put
from index_harness import FakeKernel, with_index
from models import write_bert

from aios.kernel.config import embedded_model
from aios.kernel.index.protocol import SearchResults
from aios.syscalls.errors import ModelError
from aios.syscalls.sto import Mode


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    with with_index() as kernel:
        yield kernel


@pytest.fixture
def bert(kernel: FakeKernel) -> Path:
    """An index with a document, made with this model, whose process is killed."""
    kernel.kill()
    kernel.embedder = kernel.home / "bert.gguf"
    write_bert(kernel.embedder, [FOX, CAR])
    kernel.start()
    kernel.reset()
    kernel.send(put(1, "fox", FOX))
    kernel.until(1)
    kernel.kill()
    return kernel.embedder


def hits(kernel: FakeKernel, query: str, mode: Mode) -> list[str]:
    kernel.send(ask(query, mode))
    found = kernel.hear(SearchResults)
    assert found.error is None
    return [hit.path for hit in found.hits]


def test_another_model_has_the_index_made_again(kernel: FakeKernel, bert: Path) -> None:
    kernel.start()
    assert kernel.reset().seq == 1
    assert hits(kernel, "the dog", "meaning") == ["fox"]
    kernel.kill()
    write_bert(bert, [FOX, CAR], seed=2)
    kernel.start()
    position = kernel.reset()
    assert position.seq == 0
    assert "made with another model, bert.gguf" in position.began_again


def test_without_its_model_words_are_found_until_it_is_back(kernel: FakeKernel, bert: Path) -> None:
    bert.rename(kernel.home / "away")
    kernel.start()
    position = kernel.reset()
    assert position.seq == 1
    assert "cannot read the model" in position.trouble
    kernel.send(put(2, "car", CAR, epoch=kernel.epoch))
    assert hits(kernel, "dog", "words") == ["fox"]
    for mode in ("meaning", "fused"):
        kernel.send(ask("dog", mode))
        error = kernel.hear(SearchResults).error
        assert error and error["code"] == ModelError.code
        assert "`words`" in error["hint"]
    (kernel.home / "away").rename(bert)
    kernel.here()  # it comes back by itself, as it looks again for what waits
    position = kernel.reset()
    assert (position.seq, position.trouble) == (1, "")
    kernel.send(put(2, "car", CAR, epoch=kernel.epoch))
    kernel.until(2)
    assert hits(kernel, "engine garage", "meaning")[0] == "car"


def test_a_search_has_it_look_for_the_model_too(kernel: FakeKernel, bert: Path) -> None:
    bert.rename(kernel.home / "away")
    kernel.start()
    assert "cannot read the model" in kernel.reset().trouble
    (kernel.home / "away").rename(bert)
    kernel.send(ask("dog", "meaning"))
    kernel.here()
    kernel.reset()
    assert hits(kernel, "dog", "meaning") == ["fox"]


def test_begun_without_a_model_it_is_made_again_with_one(kernel: FakeKernel, bert: Path) -> None:
    bert.rename(kernel.home / "away")
    kernel.start()
    assert kernel.reset(drop=True).seq == 0
    kernel.send(put(1, "fox", FOX, epoch=kernel.epoch))
    (kernel.home / "away").rename(bert)
    kernel.here()
    assert "which was missing" in kernel.reset().began_again


def test_a_slow_model_delays_neither_a_search_nor_a_reset(kernel: FakeKernel) -> None:
    """It would take minutes for the 700 passages of the long one."""
    kernel.kill()
    kernel.embedder = embedded_model()
    kernel.start()
    kernel.reset()
    kernel.send(put(1, "fox", FOX), put(2, "long", f"{CAR} {SEA} " * 10_000))
    kernel.until(1)  # now it begins with the other
    assert hits(kernel, "dog", "words") == ["fox"]
    assert kernel.reset().seq == 1
    kernel.put(2)
    assert kernel.until(2).documents == 2
