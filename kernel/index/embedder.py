"""Texts as vectors, so that what means the same is near.

The model is wordllama's, a vector for each of 32,000 tokens, which comes in its wheel. Only the
files are used: the package itself would import an HTTP client and a validator of its settings, look
for the tokenizer in the wrong folder and want to download it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Protocol

import numpy as np
from llguidance import LLTokenizer
from numpy.typing import NDArray
from safetensors import safe_open

from aios.syscalls.errors import ModelError


class Embedder(Protocol):
    """Any model of meaning. An index is made anew when the name of its model changes."""

    name: str
    dim: int

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        """Vectors of length 1, [texts, dim]; that of a text without content is 0."""


class WordLlama:
    """The mean of the vectors of a text's tokens."""

    name, dim = "wordllama 0.4 l2_supercat 256", 256

    def __init__(self) -> None:
        spec = importlib.util.find_spec("wordllama")
        if spec is None or not spec.submodule_search_locations:
            raise ModelError("the embedding model is not installed", "run `make install`")
        folder = Path(spec.submodule_search_locations[0])
        try:
            with safe_open(folder / "weights" / "l2_supercat_256.safetensors", "np") as weights:
                self.vectors: NDArray[np.float16] = weights.get_tensor("embedding.weight")
            tokenizer = folder / "tokenizers" / "l2_supercat_tokenizer_config.json"
            self.tokenizer = LLTokenizer(tokenizer.read_text())
        except (OSError, ValueError) as error:
            raise ModelError(
                f"the embedding model in {folder} cannot be read: {error}", "run `make install`"
            ) from error

    def embed(self, texts: list[str]) -> NDArray[np.float32]:
        found = np.zeros((len(texts), self.dim), np.float32)
        for at, text in enumerate(texts):
            if text.strip():
                # llguidance leaves out the space that this tokenizer puts before a text.
                tokens = self.tokenizer.tokenize_str(" " + text)
                mean = self.vectors[tokens].mean(0, np.float32)
                found[at] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return found
