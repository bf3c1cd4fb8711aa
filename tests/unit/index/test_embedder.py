"""Models of meaning in GGUF files: small ones that are made here, and the chat model that ships."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from gguf import PoolingType
from index_documents import CAR, FOX, ODD, SEA, model
from models import WINDOW, write_bert
from numpy.typing import NDArray

from aios.kernel.config import Prefixes, embedded_model
from aios.kernel.index.embedder import Embedder, GgufEmbedder, open_embedder
from aios.syscalls.errors import ModelError

TEXTS = [FOX, CAR, SEA]


@cache
def chat_model() -> GgufEmbedder:
    """A poor model of meaning, but a real one, and of a kind that keeps what it has read."""
    return GgufEmbedder(embedded_model(), Prefixes())


@pytest.fixture
def bert(tmp_path: Path) -> GgufEmbedder:
    write_bert(tmp_path / "bert.gguf", TEXTS)
    return GgufEmbedder(tmp_path / "bert.gguf", Prefixes())


@pytest.fixture(params=["wordllama", "bert", "chat model"])
def embedder(request: pytest.FixtureRequest) -> Embedder:
    made: dict[str, Embedder] = {"wordllama": model(), "chat model": chat_model()}
    chosen: Embedder = made.get(request.param) or request.getfixturevalue("bert")
    return chosen


def test_a_vector_depends_on_its_text_alone(embedder: Embedder) -> None:
    alone = [embedder.passage(text) for text in TEXTS]
    for text, vector in reversed([*zip(TEXTS, alone, strict=True)]):
        embedder.passage(" ".join(TEXTS))
        assert embedder.passage(text).tobytes() == vector.tobytes()
    assert np.dot(alone[0], alone[1]) < 0.999


@pytest.mark.parametrize("text", ODD)
def test_any_text_has_a_vector(embedder: Embedder, text: str) -> None:
    vector = embedder.passage(text[:200])
    assert (vector.shape, vector.dtype.name) == ((embedder.dim,), "float32")
    assert np.linalg.norm(vector) == pytest.approx(1 if text.strip() else 0, abs=1e-5)


def normal(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """LayerNorm, of which the models that are made here have no more than the form."""
    centred = rows - rows.mean(-1, keepdims=True)
    found: NDArray[np.float32] = centred / centred.std(-1, keepdims=True)
    return found


@pytest.mark.parametrize(
    "pooling", [PoolingType.MEAN, PoolingType.CLS, PoolingType.LAST, None]
)  # fmt: skip
def test_pooled_as_the_file_says(tmp_path: Path, pooling: PoolingType | None) -> None:
    """The layer does so little that a row is about its token's. By default it is the mean."""
    weights = write_bert(tmp_path / "bert.gguf", ["ibis heron"], pooling)
    rows = normal(weights["token_embd.weight"][[2, 5, 4, 3]] + weights["position_embd.weight"][:4])
    ways = {PoolingType.MEAN: rows.mean(0), PoolingType.CLS: rows[0], PoolingType.LAST: rows[3]}
    found = GgufEmbedder(tmp_path / "bert.gguf", Prefixes()).passage("ibis heron")
    like = {way: found @ pooled / np.linalg.norm(pooled) for way, pooled in ways.items()}
    assert max(like, key=lambda way: like[way]) == (pooling or PoolingType.MEAN)
    assert max(like.values()) > 0.9


def test_what_the_window_has_no_room_for_is_left_out(bert: GgufEmbedder) -> None:
    room = ["fox"] * (WINDOW - 2)
    full = bert.passage(" ".join(room))
    assert bert.passage(" ".join([*room, "dog", "dog"])).tobytes() == full.tobytes()
    assert bert.passage(" ".join([*room[1:], "dog"])).tobytes() != full.tobytes()


def test_prefixes_of_queries_and_passages(tmp_path: Path, bert: GgufEmbedder) -> None:
    both = GgufEmbedder(tmp_path / "bert.gguf", Prefixes(query="the fox ", passage="our dog "))
    assert both.query(CAR).tobytes() == bert.query("the fox " + CAR).tobytes()
    assert both.passage(CAR).tobytes() == bert.passage("our dog " + CAR).tobytes()
    assert not both.passage(" ").any()


def test_its_name_is_that_of_the_weights_and_of_the_prefix(
    tmp_path: Path, bert: GgufEmbedder
) -> None:
    path = tmp_path / "bert.gguf"
    assert GgufEmbedder(path, Prefixes(query="q")).name == bert.name
    assert GgufEmbedder(path, Prefixes(passage="p")).name != bert.name
    write_bert(path, TEXTS, seed=2)
    assert GgufEmbedder(path, Prefixes()).name != bert.name


def test_files_that_are_none(tmp_path: Path, bert: GgufEmbedder) -> None:
    path = tmp_path / "other.gguf"
    with pytest.raises(ModelError, match="No such file") as missing:
        open_embedder(str(path), Prefixes())
    assert "--embedder" in missing.value.hint
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match="not a GGUF file"):
        open_embedder(str(path), Prefixes())
    whole = (tmp_path / "bert.gguf").read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot load"):
        open_embedder(str(path), Prefixes())
    write_bert(path, TEXTS, PoolingType.RANK)
    with pytest.raises(ModelError, match="reranker"):
        open_embedder(str(path), Prefixes())
