"""An embedding model: texts in, vectors out. Used by the index, which is another process than the
LLM core; it is here because llama_cpp is.

One text is one `llama_decode`, so its vector is a function of the text alone, to the last bit.
Several in a batch come out up to 1e-4 apart, and no faster: a passage of 200 tokens keeps the
processors busy, and attention within a batch is computed over all of it, then masked.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import llama_cpp as ll
import numpy as np
from numpy.typing import NDArray

from aios.syscalls.errors import Internal, ModelError

from .gguf import load, log, tokenize

WINDOW = 2048  # tokens of a text at most, where the model has room for more


class Encoder:
    """Vectors of `dim` numbers, pooled as the model's metadata say, or their mean over a text's
    tokens where they say nothing.

    Raises:
        ModelError: the file is missing, truncated, not a GGUF, or no model of texts' meaning.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.model = load(path, "--embedder")
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.window = min(int(ll.llama_model_n_ctx_train(self.model)), WINDOW)
        self.dim = int(ll.llama_model_n_embd_out(self.model))
        self.ctx = self._context(ll.LLAMA_POOLING_TYPE_UNSPECIFIED, threads)
        if self._pooling() == ll.LLAMA_POOLING_TYPE_NONE:
            ll.llama_free(self.ctx)
            self.ctx = self._context(ll.LLAMA_POOLING_TYPE_MEAN, threads)
        if self._pooling() == ll.LLAMA_POOLING_TYPE_RANK:
            raise ModelError(f"{path} is a reranker", "name an embedding model with --embedder")
        self.memory = ll.llama_get_memory(self.ctx)  # None: such a model keeps nothing
        self.batch = ll.llama_batch_init(self.window, 0, 1)

    def _context(self, pooling: int, threads: int) -> Any:
        params = ll.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = self.window
        params.n_threads = params.n_threads_batch = threads
        params.embeddings, params.pooling_type, params.no_perf = True, pooling, True
        ctx = ll.llama_init_from_model(self.model, params)
        if not ctx:
            raise ModelError(
                f"llama.cpp cannot embed with this model: {'; '.join(log.errors)}",
                "name an embedding model with --embedder",
            )
        return ctx

    def _pooling(self) -> int:
        return int(ll.llama_pooling_type(self.ctx))

    def encode(self, text: str) -> NDArray[np.float32]:
        """Of length 1, [dim]; 0 of a text without tokens. Of one that is longer than the window
        its beginning counts."""
        tokens = tokenize(self.vocab, text, start=True, special=False)
        if not tokens:
            return np.zeros(self.dim, np.float32)
        if len(tokens) > self.window:  # most models want to see their last token, an end
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
            raise Internal(f"llama_decode failed with {code}: {'; '.join(log.errors)}")
        pointer = ll.llama_get_embeddings_seq(self.ctx, 0)
        found: NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=(self.dim,))
        return found / max(float(np.linalg.norm(found)), 1e-12)
