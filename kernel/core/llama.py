"""The engine on llama.cpp: one model and one context.

A slot is a llama.cpp sequence with a KV stream of its own (`kv_unified=False`): what one sequence
computes then depends neither on its slot nor on its neighbours, as long as three rules hold, and
this file keeps them (docs/internals/exactness.md has the measurements):

- a prefill chunk is decoded alone, one `llama_decode` per chunk;
- a decode batch holds one token per sequence, of at most `certified` sequences;
- llama.cpp computes only neighbouring streams together, and ggml's flash attention takes another
  path for a solo stream that spans 512 cells or more (it splits the KV between threads). So a
  solo sequence of more than PAD_FROM_TOKENS gets padding: one token in the stream beside it,
  taken back at once. For some formats (BF16, F16) llama.cpp multiplies one row with other kernels
  than several: there every solo sequence gets padding.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import llama_cpp as ll
import numpy as np
import psutil
from numpy.typing import NDArray

from aios.syscalls import VERSION
from aios.syscalls.errors import Internal, ModelError, NoRoom

from .engine import CHUNK_TOKENS
from .gguf import identity, load, log, parts
from .state_layout import BlockSlice, Bytes, StateLayout
from .vocabulary import LlamaVocabulary

PAD_FROM_TOKENS = 256  # with one more, llama.cpp makes the span of a KV stream 512 cells
PADDING_TOKEN = 0
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)

Cache = Literal["f16", "q8_0"]
TYPES = {"f16": ll.GGML_TYPE_F16, "q8_0": ll.GGML_TYPE_Q8_0}


def _reuse_memory() -> None:
    """Have glibc keep up to 1 GiB of freed memory: touching 23 MB of fresh pages for a snapshot
    took 45 ms, writing into used ones 1 ms."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


_reuse_memory()


class LlamaEngine(LlamaVocabulary):
    """Computes `slots` sequences of up to `window` tokens each over one model.

    A `window` of 0 is the model's own, at most 2,048; none is larger than the model was trained
    for. `cache` is the format of keys and values: q8_0 takes about half of f16, and gives another
    output. `unified` is for tests: with one KV stream for all, it is not exact, and cells are in
    no order.

    Raises:
        ModelError: the file is missing, truncated or not a GGUF; or the model is of a kind that
            cannot serve contexts.
        NoRoom: there is no memory for the KV cache.
    """

    def __init__(
        self, path: Path, *, slots: int, window: int, threads: int, cache: Cache = "f16",
        unified: bool = False,
    ) -> None:  # fmt: skip
        ll.llama_backend_init()
        self.path = path
        self.slots, self.threads, self.cache = slots, threads, cache
        super().__init__(load(path))
        self._check_kind()
        self.window = min(window or 2048, self._max_window())
        self.streams = max(slots, 2)
        self.cells = self.window // 256 * 256 + 256  # at least one more than the window: padding
        self.cache_bytes = self._measure_row_bytes() * self.cells * self.streams
        available = psutil.virtual_memory().available
        if self.cache_bytes > available:
            raise NoRoom(
                f"{slots} slots of {self.window} tokens need {self.cache_bytes >> 20} MiB "
                f"for the KV cache, {available >> 20} MiB are free",
                "start with fewer --slots or a smaller --ctx",
            )
        self.ctx = self._context(self.cells, self.streams, max(CHUNK_TOKENS, self.streams), unified)
        self.memory = ll.llama_get_memory(self.ctx)
        self.batch = ll.llama_batch_init(max(CHUNK_TOKENS, self.streams), 0, 1)
        self.index: list[int] = []
        self.pad_solo_from = PAD_FROM_TOKENS
        self._buffer: Bytes = np.empty(0, np.uint8)
        self.layout = None if unified else self._learn_layout()
        if self.layout is not None:
            self.cache_bytes = self.layout.row_bytes * self.cells * self.streams
        self.row_bytes = self.layout.row_bytes if self.layout is not None else 0

    def close(self) -> None:
        self.close_template()
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.ctx)
        ll.llama_model_free(self.model)

    def _check_kind(self) -> None:
        """Raise ModelError unless the model writes one token after the other, and can forget the
        last ones. To compute with one of another kind would end the process."""
        model, tokenwise = self.model, "use a model that writes one token after the other"
        if ll.llama_model_is_recurrent(model) or ll.llama_model_is_hybrid(model):
            raise ModelError(
                f"{self.path} has recurrent layers, which cannot forget a part of what they read",
                "use a model with attention in all layers",
            )
        if ll.llama_model_has_encoder(model):
            raise ModelError(f"{self.path} reads prompts by an encoder, all at once", tokenwise)
        if ll.llama_model_is_diffusion(model):
            raise ModelError(f"{self.path} writes the tokens of an answer all at once", tokenwise)
        if ll.llama_vocab_type(self.vocab) == ll.LLAMA_VOCAB_TYPE_NONE:
            raise ModelError(
                f"{self.path} has no vocabulary, so it cannot read a text",
                "use a model whose file carries its tokenizer",
            )
        if not any(map(self.is_end, range(self.n_vocab))):
            raise ModelError(
                f"{self.path} has no token that ends an answer",
                "use a model whose file names one, as `tokenizer.ggml.eos_token_id`",
            )

    def _max_window(self) -> int:
        """Return the longest window in tokens. Where positions are learned it is one less than the
        model has: a slot that is full may have to hold a padding token as well."""
        trained = int(ll.llama_model_n_ctx_train(self.model))
        learned = bool(ll.llama_model_rope_type(self.model) == ll.LLAMA_ROPE_TYPE_NONE)
        return max(1, trained - learned)

    def _context(self, cells: int, streams: int, batch: int, unified: bool = False) -> Any:
        params = ll.llama_context_default_params()
        params.n_ctx = cells * streams
        params.n_seq_max = streams
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = TYPES[self.cache]
        params.kv_unified = unified
        params.swa_full = True  # sliding-window layers keep all tokens, in the order of positions
        params.no_perf = True
        context = ll.llama_init_from_model(self.model, params)
        if not context:
            raise NoRoom(
                f"llama.cpp cannot make the context: {log}",
                "start with fewer --slots or a smaller --ctx",
            )
        return context

    def _measure_row_bytes(self) -> int:
        """Return the bytes of a token in the KV cache. No metadata say it for all kinds of models,
        so a small context is made to see by how much its state grows.

        Raises:
            ModelError: the model cannot run, or keeps nothing of what it reads.
        """
        try:
            context = self._context(256, 1, 2)
        except NoRoom as error:  # it is not for lack of memory: the context is tiny
            raise ModelError(
                f"llama.cpp cannot run {self.path} with keys and values in {self.cache}: {log}",
                'use another model, or cache = "f16" in config.toml',
            ) from error
        if not ll.llama_get_memory(context):
            ll.llama_free(context)
            raise ModelError(
                f"{self.path} keeps nothing of what it has read, so it cannot generate",
                "name an embedding model with --embedder",
            )
        batch = ll.llama_batch_init(1, 0, 1)
        sizes = []
        for pos in range(2):
            batch.n_tokens, batch.token[0], batch.pos[0] = 1, 0, pos
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, False
            code = ll.llama_decode(context, batch)
            sizes.append(int(ll.llama_state_seq_get_size(context, 0)))
        ll.llama_batch_free(batch)
        ll.llama_free(context)
        if code != 0:
            raise ModelError(f"llama.cpp cannot run {self.path}: {log}", "use another model")
        return sizes[1] - sizes[0]

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        ll.llama_model_desc(self.model, buffer, 256)
        return buffer.value.decode(errors="replace")

    @property
    def sliding(self) -> int:
        """The tokens that sliding-window layers look back at; 0: there are no such layers."""
        return int(ll.llama_model_n_swa(self.model))

    @property
    def params(self) -> int:
        return int(ll.llama_model_n_params(self.model))

    @property
    def size(self) -> int:
        return int(ll.llama_model_size(self.model))

    # --- context ------------------------------------------------------------------------------

    def prefill(self, slot: int, tokens: tuple[int, ...], pos: int, *, every: bool = False) -> None:
        """Enter one chunk. Its last token's logits are then at index len(tokens) - 1; with `every`,
        each token's are at the token's own index."""
        for i, token in enumerate(tokens):
            self._put(i, token, pos + i, slot, every or i == len(tokens) - 1)
        self._decode(len(tokens))

    def decode(self, batch: list[tuple[int, int, int]]) -> None:
        """Enter one token each for (slot, token, pos); the logits of batch[i] are then at
        `self.index[i]`. Neighbouring slots in rising order are computed together."""
        slots = {slot for slot, _, _ in batch}
        long = (slot for slot, _, pos in batch if pos >= self.pad_solo_from)
        beside = [_beside(slot, self.streams) for slot in long if not {slot - 1, slot + 1} & slots]
        padding = [(slot, PADDING_TOKEN, self.length(slot)) for slot in dict.fromkeys(beside)]
        entries = [
            *((*entry, i) for i, entry in enumerate(batch)),
            *((*pad, -1) for pad in padding),
        ]
        order = sorted(entries)
        self.index = [0] * len(batch)
        for at, (slot, token, pos, i) in enumerate(order):
            self._put(at, token, pos, slot, i >= 0 or not self.pad_solo_from)
            if i >= 0:
                self.index[i] = at
        self._decode(len(order))
        for slot, _, pos in padding:
            self.clear(slot, pos)

    def length(self, slot: int) -> int:
        return int(ll.llama_memory_seq_pos_max(self.memory, slot)) + 1

    def _put(self, i: int, token: int, pos: int, slot: int, logits: bool) -> None:
        batch = self.batch
        batch.token[i] = token
        batch.pos[i] = pos
        batch.n_seq_id[i] = 1
        batch.seq_id[i][0] = slot
        batch.logits[i] = logits

    def _decode(self, count: int) -> None:
        self.batch.n_tokens = count
        code = ll.llama_decode(self.ctx, self.batch)
        if code != 0:
            raise Internal(f"llama_decode failed with {code}: {log}")

    def logits(self, index: int) -> NDArray[np.float32]:
        """Return a view, shape (n_vocab,), valid until the next prefill or decode."""
        pointer = ll.llama_get_logits_ith(self.ctx, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    # --- rows of the KV cache -------------------------------------------------------------------

    def cut(self, slot: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copy the KV rows (first, count) out of a slot; `row_bytes` must not be 0."""
        assert self.layout is not None
        state, length = self._state(slot), self.length(slot)
        if min((first for first, _ in spans), default=length) < self.layout.start(
            state, slot, length
        ):
            state = self._whole_state(slot)
        return self.layout.cut(state, slot, length, spans)

    def paste(self, slot: int, parts: list[BlockSlice]) -> None:
        """Have a slot hold the rows of `parts`, one behind the other, and nothing else."""
        assert self.layout is not None
        buffer = self._scratch(self.layout.size(sum(part.tokens for part in parts)))
        self._put_state(slot, self.layout.join(buffer, slot, parts))

    def copy(self, source: int, target: int) -> None:
        """Copy one slot's rows to another; like `swap`, only where `row_bytes` is not 0."""
        self._put_state(target, self._whole_state(source))

    def swap(self, one: int, other: int) -> None:
        """Exchange the rows of two slots, one of which may be empty."""
        length, kept = self.length(one), self._whole_state(one).copy()
        self.clear(one)
        if self.length(other):
            self.copy(other, one)
            self.clear(other)
        if length:
            self._put_state(other, kept)

    def _whole_state(self, slot: int) -> Bytes:
        """Return a slot's state with the rows of all its tokens, as a view of the buffer. llama.cpp
        leaves out the rows that have left a sliding window as seen from the last token; so the
        sequence is cut back to the missing ones until none is missing, and then put back."""
        assert self.layout is not None
        state, end = self._state(slot), self.length(slot)
        parts: list[BlockSlice] = []
        while end and ((start := self.layout.start(state, slot, end)) or parts):
            (rows,) = self.layout.cut(state, slot, end, [(start, end - start)])
            parts.insert(0, BlockSlice(rows, end - start, 0, end - start))
            self.clear(slot, start)
            state, end = self._state(slot), start
        if parts:
            self.paste(slot, parts)
        return self._buffer[: self.layout.size(self.length(slot))] if parts else state

    def _learn_layout(self) -> StateLayout | None:
        """Return the layout of this model's states. None: rows that were cut and joined are not,
        byte for byte, the state that llama.cpp writes, so no rows can leave their slot."""
        count = 7
        self.prefill(0, (PADDING_TOKEN,) * count, 0)  # 0, as tokens are in a state that is joined
        try:
            state = self._state(0).copy()
            layout = StateLayout.of(state, 0)
            rows = layout.cut(state, 0, count, [(0, 2), (2, count - 2)])
            ends = [BlockSlice(rows[0], 2, 0, 2), BlockSlice(rows[1], count - 2, 0, count - 3)]
            self.clear(0, count - 1)
            shorter = self._state(0).copy()
            same = layout.join(np.empty_like(state), 0, ends).tobytes() == shorter.tobytes()
        except ValueError:
            return None
        finally:
            self.clear(0)
        return layout if same else None

    def _scratch(self, size: int) -> Bytes:
        """Return `size` bytes of a buffer that is used again and again: the first touch of fresh
        pages takes far longer than filling them."""
        if self._buffer.size < size:
            self._buffer = np.empty(size + size // 4, np.uint8)
        return self._buffer[:size]

    def _state(self, slot: int) -> Bytes:
        """Return a slot's state as llama.cpp writes it: a view, valid until the next use of the
        buffer."""
        size = ll.llama_state_seq_get_size(self.ctx, slot)
        state = self._scratch(size)
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if ll.llama_state_seq_get_data(self.ctx, data, size, slot) != size:
            raise Internal(f"llama_state_seq_get_data wrote less than {size} bytes")
        return state

    def _put_state(self, slot: int, state: Bytes) -> None:
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not ll.llama_state_seq_set_data(self.ctx, data, state.size, slot):
            raise Internal("llama_state_seq_set_data refused a state")

    def fingerprint(self, batch: int) -> bytes:
        """Return 16 bytes that name all that decides the bits of the KV cache: the model, the build
        and the processor, the cache's format, the threads, the size of prefill chunks, the largest
        decode batch, and which sequences get padding."""
        times = [part.stat().st_mtime_ns for part in parts(self.path)]
        inputs = (
            VERSION, ll.__version__, ll.llama_print_system_info(), self.cache, self.threads,
            CHUNK_TOKENS, batch, self.pad_solo_from, times, self.model_id,
        )  # fmt: skip
        return blake2b(repr(inputs).encode(), digest_size=16).digest()

    @cached_property
    def model_id(self) -> str:
        return identity(self.path)

    def clear(self, slot: int, since: int = 0) -> None:
        """Drop a slot's rows from position `since` on."""
        ll.llama_memory_seq_rm(self.memory, slot, since, -1)


def _beside(slot: int, streams: int) -> int:
    return slot + 1 if slot + 1 < streams else slot - 1
