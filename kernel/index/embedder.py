"""Texts as vectors, so that what means the same is near.

The embedded model is wordllama's, a vector for each of 32,000 tokens, which comes in its wheel.
Only the files are used: the package itself would import an HTTP client and a validator of its
settings, look for the tokenizer in the wrong folder and want to download it.

    python -m aios.kernel.index.embedder PATH

tries a GGUF file: what is wrong with it goes to stdout, as the JSON of an AiosError.
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
    """Any model of meaning. An index is made anew when the name of its model changes.

    A text's vector depends on nothing else, to the last bit; it has [dim] numbers and the length 1,
    or is 0 where the text has no content.
    """

    name: str
    dim: int

    def passage(self, text: str) -> Vector:
        """Of a text that is to be found."""

    def query(self, text: str) -> Vector:
        """Of one that is looked for."""


def open_embedder(path: str, prefixes: Prefixes) -> Embedder:
    """The model in the GGUF file `path`, or the embedded one where it is empty; where that is not
    installed, none.

    Raises:
        ModelError: it cannot be loaded.
    """
    if path:
        return Gguf(Path(path), prefixes)
    return WordLlama() if is_installed("wordllama") else WordsAlone()


class WordsAlone:
    """No model: passages have no vector, and are found by their words."""

    name, dim = "words alone", 0

    def passage(self, text: str) -> Vector:
        return np.zeros(0, np.float32)

    def query(self, text: str) -> NoReturn:
        """Raises ModelError: nothing can be found by meaning."""
        hint = f"{WITH_MEANING}, and start again; or search with the mode `words`"
        raise ModelError("no embedding model is installed", hint)


class WordLlama:
    """The mean of the vectors of a text's tokens."""

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


class Gguf:
    """A model of any kind that llama.cpp knows: BERT, nomic-embed, Qwen, ..."""

    def __init__(self, path: Path, prefixes: Prefixes) -> None:
        # Here, since wordllama does without llama.cpp, which takes time and memory.
        from aios.kernel.core.encoder import Encoder  # noqa: PLC0415
        from aios.kernel.core.gguf import identity  # noqa: PLC0415

        # The LLM core has all processors, so this takes half of them. They change no bit.
        self.encoder = Encoder(path, max(1, (os.cpu_count() or 1) // 2))
        self.prefixes, self.dim = prefixes, self.encoder.dim
        self.name = " ".join(filter(None, (path.name, identity(path), prefixes.passage)))

    def passage(self, text: str) -> Vector:
        return self._vector(self.prefixes.passage, text)

    def query(self, text: str) -> Vector:
        return self._vector(self.prefixes.query, text)

    def _vector(self, prefix: str, text: str) -> Vector:
        return self.encoder.encode(prefix + text) if text.strip() else np.zeros(self.dim, "f4")


class Mended(Exception):
    """The model that was missing can be loaded."""

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder


class Missing:
    """In place of a model that cannot be loaded. Each use tries again: it raises ModelError where
    that fails too, else Mended."""

    name, dim = "", 0

    def __init__(self, again: Callable[[], Embedder], why: ModelError) -> None:
        self.again, self.trouble = again, why.message

    def passage(self, text: str) -> NoReturn:
        try:
            embedder = self.again()
        except ModelError as error:
            hint = "put it right, it is tried again; until then search with the mode `words`"
            raise ModelError(error.message, hint) from error
        raise Mended(embedder)

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
