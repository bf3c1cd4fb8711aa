"""Texts as vectors, so that texts of like meaning are near each other.

The embedded model is wordllama's, a vector for each of 32,000 tokens, which comes in its wheel.
Only the wheel's files are used: the package itself would import an HTTP client and a validator of
its settings, look for the tokenizer in the wrong folder and try to download it.

    python -m aios.kernel.index.embedder PATH

tries a GGUF file, and prints why it cannot be used as the JSON of an AiosError.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, Protocol

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray
from safetensors import safe_open

from aios.kernel.config import WITH_MEANING, Prefixes, folder_of, is_installed
from aios.syscalls.errors import AiosError, ModelError

Vector = NDArray[np.float32]


class Embedder(Protocol):
    """An embedding model. An index is made anew when the name of its model changes.

    The vector of a text depends on the text alone, to the last bit. It has the shape (dim,) and the
    length 1, or is 0 for a text without content.
    """

    name: str
    dim: int

    def passage(self, text: str) -> Vector:
        """Return the vector of a text to be indexed."""

    def query(self, text: str) -> Vector:
        """Return the vector of a query."""


def open_embedder(path: str, prefixes: Prefixes) -> Embedder:
    """Load the model in the GGUF file `path`. Without a path it is the embedded one, or none if
    that is not installed.

    Raises:
        ModelError: the model cannot be loaded.
    """
    if path:
        return GgufEmbedder(Path(path), prefixes)
    return WordLlamaEmbedder() if is_installed("wordllama") else WordsOnly()


class WordsOnly:
    """In place of a model that is not installed: passages are found by their words only."""

    name, dim = "words alone", 0

    def passage(self, text: str) -> Vector:
        return np.zeros(0, np.float32)

    def query(self, text: str) -> NoReturn:
        """Raise ModelError: nothing can be found by meaning."""
        hint = f"{WITH_MEANING}, and start again; or search with the mode `words`"
        raise ModelError("no embedding model is installed", hint)


class WordLlamaEmbedder:
    """The embedded model: a text's vector is the mean of its tokens' vectors."""

    name, dim = "wordllama 0.4 l2_supercat 256", 256

    def __init__(self) -> None:
        folder = folder_of("wordllama")
        try:
            with safe_open(folder / "weights" / "l2_supercat_256.safetensors", "np") as weights:
                self.vectors: NDArray[np.float16] = weights.get_tensor("embedding.weight")
            tokenizer = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
            self.tokenizer = LLTokenizer(tokenizer.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the embedding model in {folder} cannot be read: {error}", WITH_MEANING
            ) from error

    def passage(self, text: str) -> Vector:
        if not text.strip():
            return np.zeros(self.dim, np.float32)
        # llguidance leaves out the space that this tokenizer puts before a text.
        mean: Vector = self.vectors[self.tokenizer.tokenize_str(" " + text)].mean(0, np.float32)
        return mean / max(float(np.linalg.norm(mean)), 1e-12)

    query = passage


class GgufEmbedder:
    """A model of any kind that llama.cpp knows: BERT, nomic-embed, Qwen, ..."""

    def __init__(self, path: Path, prefixes: Prefixes) -> None:
        # Imported here, since llama.cpp takes time and memory that wordllama does without.
        from aios.kernel.core.encoder import Encoder  # noqa: PLC0415
        from aios.kernel.core.gguf import identity  # noqa: PLC0415

        # Half of the processors: the LLM core uses all of them. Their number changes no bit.
        self.encoder = Encoder(path, max(1, (os.cpu_count() or 1) // 2))
        self.prefixes, self.dim = prefixes, self.encoder.dim
        self.name = " ".join(filter(None, (path.name, identity(path), prefixes.passage)))

    def passage(self, text: str) -> Vector:
        return self._vector(self.prefixes.passage, text)

    def query(self, text: str) -> Vector:
        return self._vector(self.prefixes.query, text)

    def _vector(self, prefix: str, text: str) -> Vector:
        return self.encoder.encode(prefix + text) if text.strip() else np.zeros(self.dim, "f4")


class EmbedderLoaded(Exception):
    """A model that could not be loaded is loaded now; whoever catches it takes `embedder`."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder


class MissingEmbedder:
    """In place of a model that cannot be loaded. Each use tries again, and raises EmbedderLoaded,
    or ModelError if that fails too."""

    name, dim = "", 0

    def __init__(self, again: Callable[[], Embedder], why: ModelError) -> None:
        self.again, self.trouble = again, why.message

    def passage(self, text: str) -> NoReturn:
        try:
            embedder = self.again()
        except ModelError as error:
            hint = "put it right, it is tried again; until then search with the mode `words`"
            raise ModelError(error.message, hint) from error
        raise EmbedderLoaded(embedder)

    query = passage


def main() -> int:
    try:
        open_embedder(sys.argv[1], Prefixes()).query("a text")
    except AiosError as error:
        print(json.dumps(error.to_wire()))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
