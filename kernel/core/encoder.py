"""An embedding model on llama.cpp: texts in, vectors out. The process of the index uses it, but all
that imports llama_cpp is in this package.

Each text is one `llama_decode`, so its vector depends on the text alone, to the last bit. In a
batch vectors differ by up to 1e-4, and come no faster: a passage of 200 tokens keeps the processors
busy, and attention is computed over all of a batch, then masked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

from aios.syscalls.errors import Internal, ModelError

from .gguf import load, log, tokenize

MAX_WINDOW_TOKENS = 2048


class Encoder:
    """Encodes texts as vectors of `dim` numbers, pooled as the model's metadata say; by default
    they are the mean over the text's tokens.

    Raises:
        ModelError: the file is missing, truncated, not a GGUF, or not an embedding model.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.model = load(path, "--embedder")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.window = min(int(ll.llama_model_n_ctx_train(self.model)), MAX_WINDOW_TOKENS)
        self.dim = int(ll.llama_model_n_embd_out(self.model))
        self.ctx = self._context(ll.LLAMA_POOLING_TYPE_UNSPECIFIED, threads)
        if self._pooling() == ll.LLAMA_POOLING_TYPE_NONE:
            ll.llama_free(self.ctx)
            self.ctx = self._context(ll.LLAMA_POOLING_TYPE_MEAN, threads)
        if self._pooling() == ll.LLAMA_POOLING_TYPE_RANK:
            raise ModelError(f"{path} is a reranker", "name an embedding model with --embedder")
        self.memory = ll.llama_get_memory(self.ctx)  # None for a model without a KV cache
        self.batch = ll.llama_batch_init(self.window, 0, 1)

    def _context(self, pooling: int, threads: int) -> Any:
        params = ll.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.window
        params.n_threads = params.n_threads_batch = threads
        params.embeddings, params.pooling_type, params.no_perf = True, pooling, True
        ctx = ll.llama_init_from_model(self.model, params)
        if not ctx:
            raise ModelError(
                f"llama.cpp cannot embed with this model: {log}",
                "name an embedding model with --embedder",
            )
        return ctx

    def _pooling(self) -> int:
        return int(ll.llama_pooling_type(self.ctx))

    def encode(self, text: str) -> NDArray[np.float32]:
        """Return a text's vector, shape (dim,) and length 1; 0 for a text without tokens. The text
        beyond the window is ignored."""
        tokens = tokenize(self.vocab, text, start=True, special=False)
        if not tokens:
            return np.zeros(self.dim, np.float32)
        if len(tokens) > self.window:  # most models expect the last one, an end token
            tokens = [*tokens[: self.window - 1], tokens[-1]]
        batch = self.batch
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        batch.n_tokens = len(tokens)
        if self.memory:
            ll.llama_memory_clear(self.memory, False)
        code = ll.llama_decode(self.ctx, batch)
        if code != 0:
            raise Internal(f"llama_decode failed with {code}: {log}")
        pointer = ll.llama_get_embeddings_seq(self.ctx, 0)
        found: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self.dim,))
        return found / max(float(np.linalg.norm(found)), 1e-12)
