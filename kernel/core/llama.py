"""The engine on llama.cpp: one model and context. llama_cpp is imported here, in gguf.py,
sampler.py and encoder.py alone.

A slot is a llama.cpp sequence with a KV stream of its own (`kv_unified=False`): what one sequence
computes then depends neither on its slot nor on its neighbours, as long as three rules hold, and
this file keeps them (docs/internals/exactness.md has the measurements):

- a prefill chunk is decoded alone, one `llama_decode` for one chunk;
- a decode batch holds one token a sequence, of at most `certified` sequences;
- llama.cpp computes only neighbouring streams together, and ggml's flash attention takes another
  path for a stream that is alone and spans 512 cells or more (it splits the KV between threads).
  So a sequence of over ALONE tokens without a neighbour in the batch gets company: one token in
  the stream beside it, taken back at once. For some formats (BF16, F16) llama.cpp multiplies one
  row with other kernels than several: there every sequence without a neighbour gets it.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import llama_cpp as ll
import numpy as np
import psutil
from numpy.typing import NDArray

from aios.syscalls import VERSION
from aios.syscalls.errors import BadInput, Internal, ModelError, NoRoom

from .chat import Controls, Said
from .engine import CHUNK
from .gguf import identity, load, log, tokenize
from .grammar import Grammars
from .state import BlockSlice, Bytes, StateForm
from .template import AS_TEXT, Template

ALONE = 256  # llama.cpp pads the span of a KV stream to 256 cells: one more token and it is 512
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
LOOKS = re.compile(r"<[|\uff5c].*[|\uff5c]>|<(start|end)_of_turn>")  # of a control token
COMPANY = 0  # the token that keeps a lone sequence company

Cache = Literal["f16", "q8_0"]
TYPES = {"f16": ll.GGML_TYPE_F16, "q8_0": ll.GGML_TYPE_Q8_0}


def _reuse_memory() -> None:
    """Have glibc keep what is freed, up to 1 GiB: to touch 23 MB of fresh pages for a snapshot took
    45 ms, to write them into used ones 1 ms."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


_reuse_memory()


class LlamaEngine:
    """`slots` sequences of up to `window` tokens each over one model; window 0 is the model's own,
    at most 2,048, and none is larger than what the model was trained for. `cache` is the format of
    keys and values: q8_0 takes about half of f16 and gives another output. `unified` is for tests:
    one KV stream for all is not exact, and its cells are in no order.

    Raises:
        ModelError: the file is missing, truncated or not a GGUF; or the model cannot forget the end
            of what it has read, as one with recurrent layers.
        NoRoom: there is no memory for the KV cache.
    """

    def __init__(
        self, path: Path, *, slots: int, window: int, threads: int, cache: Cache = "f16",
        unified: bool = False,
    ) -> None:  # fmt: skip
        ll.llama_backend_init()
        self.path = path
        self.slots, self.threads, self.cache = slots, threads, cache
        self.model = load(path)
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)
        self.window = min(window or 2048, self._trained())
        self.streams = max(slots, 2)
        self.cells = self.window // 256 * 256 + 256  # at least one more than the window: company
        self.cache_bytes = self._row_bytes() * self.cells * self.streams
        available = psutil.virtual_memory().available
        if self.cache_bytes > available:
            raise NoRoom(
                f"{slots} slots of {self.window} tokens need {self.cache_bytes >> 20} MiB "
                f"for the KV cache, {available >> 20} MiB are free",
                "start with fewer --slots or a smaller --ctx",
            )
        self.ctx = self._context(self.cells, self.streams, max(CHUNK, self.streams), unified)
        self.memory = ll.llama_get_memory(self.ctx)
        self.batch = ll.llama_batch_init(max(CHUNK, self.streams), 0, 1)
        self.index: list[int] = []
        self.alone = ALONE  # tokens from which on a lone sequence gets company
        self.pieces: dict[int, bytes] = {}
        self._buffer: Bytes = np.empty(0, np.uint8)
        self.form = None if unified else self._form()
        if self.form is not None:
            self.cache_bytes = self.form.row_bytes * self.cells * self.streams
        self.row_bytes = self.form.row_bytes if self.form is not None else 0

    def close(self) -> None:
        if "template" in self.__dict__:
            self.template.close()
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.ctx)
        ll.llama_model_free(self.model)

    def _trained(self) -> int:
        """The longest window: where positions are learned there is none behind the last, and a
        context that is full may have to keep another company."""
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
        params.swa_full = True  # layers with a window keep all, each token in the cell of its place
        params.no_perf = True
        context = ll.llama_init_from_model(self.model, params)
        if not context:
            raise NoRoom(
                f"llama.cpp cannot make the context: {'; '.join(log.errors)}",
                "start with fewer --slots or a smaller --ctx",
            )
        return context

    def _row_bytes(self) -> int:
        """Bytes of a token in the KV cache: no metadata of a model say it for all kinds of them, so
        a small context tells by how much its state grows, and whether it can forget a token.

        Raises:
            ModelError: it cannot, or cannot run at all.
        """
        try:
            context = self._context(256, 1, 2)
        except NoRoom as error:  # so little is not what lacks
            raise ModelError(
                f"llama.cpp cannot run {self.path} with keys and values in {self.cache}: "
                f"{log.errors[-1] if log.errors else 'no reason given'}",
                'use another model, or cache = "f16" in config.toml',
            ) from error
        memory, batch = ll.llama_get_memory(context), ll.llama_batch_init(1, 0, 1)
        sizes = []
        for pos in range(2):
            batch.n_tokens, batch.token[0], batch.pos[0] = 1, 0, pos
            batch.n_seq_id[0], batch.seq_id[0][0], batch.logits[0] = 1, 0, False
            code = ll.llama_decode(context, batch)
            sizes.append(int(ll.llama_state_seq_get_size(context, 0)))
        forgets = memory and ll.llama_memory_seq_rm(memory, 0, 1, -1)
        ll.llama_batch_free(batch)
        ll.llama_free(context)
        if code != 0:
            raise ModelError(
                f"llama.cpp cannot run {self.path}: {'; '.join(log.errors)}", "use another model"
            )
        if not memory:
            raise ModelError(
                f"{self.path} keeps nothing of what it has read, so it cannot generate",
                "name an embedding model with --embedder",
            )
        if not forgets:
            raise ModelError(
                f"{self.path} has recurrent layers, which cannot forget a part of what they read",
                "use a model with attention in all layers",
            )
        return sizes[1] - sizes[0]

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        ll.llama_model_desc(self.model, buffer, 256)
        return buffer.value.decode(errors="replace")

    @property
    def sliding(self) -> int:
        """Tokens that layers with a window look back at; 0 if there are none."""
        return int(ll.llama_model_n_swa(self.model))

    @property
    def params(self) -> int:
        return int(ll.llama_model_n_params(self.model))

    @property
    def size(self) -> int:
        return int(ll.llama_model_size(self.model))

    # --- vocabulary: touches no context, so another thread may call these -------------------

    def tokenize(self, text: str, *, start: bool) -> list[int]:
        """Token ids of `text`, special tokens parsed; at the `start` of a context with BOS, if the
        model wants one and the text does not bring it."""
        bos = self._text_of(ll.llama_vocab_bos)
        start = start and not (bos and text.startswith(bos))
        return tokenize(self.vocab, text, start=start, special=True)

    def tokenize_parts(self, parts: Sequence[Said], *, start: bool) -> list[int]:
        """Token ids of a text that was cut where no token may be; some of it is tokens already."""
        tokens: list[int] = []
        line = self.tokenize("\n", start=False)
        for at, part in enumerate(parts):
            if isinstance(part, list):
                tokens += part
            elif at == 0:
                tokens += self.tokenize(part, start=start)
            else:  # behind a line's end some models put no blank before a word
                found = self.tokenize("\n" + part, start=False)
                same = found[: len(line)] == line
                tokens += found[len(line) :] if same else self.tokenize(part, start=False)
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes of one token; control tokens have none.

        Raises:
            BadInput: there is no such token (llama.cpp would end the process).
        """
        if token >= self.n_vocab:
            raise BadInput(f"token {token} is out of the model's vocabulary of {self.n_vocab}")
        known = self.pieces.get(token)
        if known is None:
            size = 64
            while True:
                buffer = ctypes.create_string_buffer(size)
                count = ll.llama_token_to_piece(self.vocab, token, buffer, size, 0, False)
                if count >= 0:
                    break
                size = -count
            known = self.pieces[token] = buffer.raw[:count]
        return known

    def is_end(self, token: int) -> bool:
        return bool(ll.llama_vocab_is_eog(self.vocab, token))

    def render(self, messages: list[dict[str, str]], *, reply: bool) -> str:
        """What the model's chat template makes of `messages`; `reply` opens an answer.

        Raises:
            BadInput: it makes nothing of them.
        """
        (text,) = self.template.render([(messages, reply)])
        if isinstance(text, BadInput):
            raise text
        return text

    @cached_property
    def template(self) -> Template:
        """The chat template that the file carries.

        Raises:
            BadInput: it carries none.
            ModelError: it carries one that cannot be used.
        """
        raw = ll.llama_model_chat_template(self.model, None)
        if not raw:
            raise BadInput("this model carries no chat template", AS_TEXT)
        bos, eos = self._text_of(ll.llama_vocab_bos), self._text_of(ll.llama_vocab_eos)
        return Template(raw.decode(errors="replace"), bos, eos)

    def check_template(self) -> None:
        """Raises ModelError for a chat template that cannot be used."""
        with suppress(BadInput):
            _ = self.template

    @cached_property
    def controls(self) -> Controls:
        """How the tokens are written that a text must not become."""
        special = ll.LLAMA_TOKEN_ATTR_CONTROL | ll.LLAMA_TOKEN_ATTR_UNKNOWN
        texts = []
        for token in range(self.n_vocab):
            kind = ll.llama_vocab_get_attr(self.vocab, token)
            if kind & (special | ll.LLAMA_TOKEN_ATTR_USER_DEFINED):
                text = ll.llama_vocab_get_text(self.vocab, token).decode(errors="replace")
                if kind & special or self.is_end(token) or LOOKS.fullmatch(text):
                    texts.append(text)
        return Controls(texts)

    def _text_of(self, which: Any) -> str:
        token = which(self.vocab)
        if token < 0:
            return ""
        text: bytes = ll.llama_vocab_get_text(self.vocab, token)
        return text.decode(errors="replace")

    # --- context ------------------------------------------------------------------------------

    def prefill(self, slot: int, tokens: tuple[int, ...], pos: int, *, every: bool = False) -> None:
        """Enter one chunk; the logits of its last token are then at index len(tokens) - 1, and
        those of `every` other one at its own."""
        for i, token in enumerate(tokens):
            self._put(i, token, pos + i, slot, every or i == len(tokens) - 1)
        self._decode(len(tokens))

    def decode(self, rows: list[tuple[int, int, int]]) -> None:
        """Enter one token each for (slot, token, pos) rows; logits of row i are at index
        `self.index[i]`. Rows of neighbouring slots in rising order are computed together."""
        slots = {row[0] for row in rows}
        long = (slot for slot, _, pos in rows if pos >= self.alone)
        company = [_beside(s, self.streams) for s in long if not {s - 1, s + 1} & slots]
        lone = [(s, COMPANY, self.length(s)) for s in dict.fromkeys(company)]
        order = sorted([*((*row, i) for i, row in enumerate(rows)), *((*row, -1) for row in lone)])
        self.index = [0] * len(rows)
        for at, (slot, token, pos, i) in enumerate(order):
            self._put(at, token, pos, slot, i >= 0 or not self.alone)
            if i >= 0:
                self.index[i] = at
        self._decode(len(order))
        for slot, _, pos in lone:
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
            raise Internal(f"llama_decode failed with {code}: {'; '.join(log.errors)}")

    def logits(self, index: int) -> NDArray[np.float32]:
        """A view, shape (vocab,), valid until the next prefill or decode."""
        pointer = ll.llama_get_logits_ith(self.ctx, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    # --- rows of the KV cache -------------------------------------------------------------------

    def cut(self, slot: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copies of the KV rows (first, count) that a slot holds; `row_bytes` is not 0."""
        assert self.form is not None
        state, length = self._state(slot), self.length(slot)
        if min((first for first, _ in spans), default=length) < self.form.start(
            state, slot, length
        ):
            state = self._whole_state(slot)
        return self.form.cut(state, slot, length, spans)

    def paste(self, slot: int, parts: list[BlockSlice]) -> None:
        """Have a slot hold the rows of `parts`, one behind the other, and nothing else."""
        assert self.form is not None
        buffer = self._room(self.form.size(sum(part.tokens for part in parts)))
        self._put_state(slot, self.form.join(buffer, slot, parts))

    def copy(self, source: int, target: int) -> None:
        """Have a slot hold what another one does; as the next, where `row_bytes` is not 0."""
        self._put_state(target, self._whole_state(source))

    def swap(self, one: int, other: int) -> None:
        """Exchange what two slots hold, one of which may be empty."""
        length, kept = self.length(one), self._whole_state(one).copy()
        self.clear(one)
        if self.length(other):
            self.copy(other, one)
            self.clear(other)
        if length:
            self._put_state(other, kept)

    def _whole_state(self, slot: int) -> Bytes:
        """The state of a slot with the rows of all its tokens, as a view of the buffer. llama.cpp
        writes of a layer with a window what is in it as seen from the last token; so the sequence
        is shortened to what is still missing, again and again, and put back."""
        assert self.form is not None
        state, end = self._state(slot), self.length(slot)
        parts: list[BlockSlice] = []
        while end and ((start := self.form.start(state, slot, end)) or parts):
            (rows,) = self.form.cut(state, slot, end, [(start, end - start)])
            parts.insert(0, BlockSlice(rows, end - start, 0, end - start))
            self.clear(slot, start)
            state, end = self._state(slot), start
        if parts:
            self.paste(slot, parts)
        return self._buffer[: self.form.size(self.length(slot))] if parts else state

    def _form(self) -> StateForm | None:
        """The form of this model's states, or None if rows that were cut and joined are not, byte
        for byte, what llama.cpp writes: then nothing can be kept but what is in the slots."""
        count = 7
        self.prefill(0, tuple(range(count)), 0)
        try:
            state = self._state(0).copy()
            form = StateForm.of(state, 0)
            rows = form.cut(state, 0, count, [(0, 2), (2, count - 2)])
            ends = [BlockSlice(rows[0], 2, 0, 2), BlockSlice(rows[1], count - 2, 0, count - 3)]
            self.clear(0, count - 1)
            shorter = self._state(0).copy()
            same = form.join(np.empty_like(state), 0, ends).tobytes() == shorter.tobytes()
        except ValueError:
            return None
        finally:
            self.clear(0)
        return form if same else None

    def _room(self, size: int) -> Bytes:
        """`size` bytes of one buffer, since the first touch of fresh pages takes far longer than
        to fill them."""
        if self._buffer.size < size:
            self._buffer = np.empty(size + size // 4, np.uint8)
        return self._buffer[:size]

    def _state(self, slot: int) -> Bytes:
        """What llama.cpp writes of a slot: a view, valid until the next use of the buffer."""
        size = ll.llama_state_seq_get_size(self.ctx, slot)
        state = self._room(size)
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if ll.llama_state_seq_get_data(self.ctx, data, size, slot) != size:
            raise Internal(f"llama_state_seq_get_data wrote less than {size} bytes")
        return state

    def _put_state(self, slot: int, state: Bytes) -> None:
        data = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if not ll.llama_state_seq_set_data(self.ctx, data, state.size, slot):
            raise Internal("llama_state_seq_set_data refused a state")

    def fingerprint(self, batch: int) -> bytes:
        """16 bytes that name all that decides the bits of the KV cache: the model, the build and
        the processor, the format, the threads, the size of prefill chunks, up to how many
        sequences are decoded at once, and which of them get company."""
        what = (
            VERSION, ll.__version__, ll.llama_print_system_info(), self.cache, self.threads, CHUNK,
            batch, self.alone, self.path.stat().st_mtime_ns, self.model_id,
        )  # fmt: skip
        return blake2b(repr(what).encode(), digest_size=16).digest()

    @cached_property
    def model_id(self) -> str:
        return identity(self.path)

    def clear(self, slot: int, since: int = 0) -> None:
        """Drop what a slot holds from position `since` on."""
        ll.llama_memory_seq_rm(self.memory, slot, since, -1)

    @cached_property
    def grammars(self) -> Grammars:  # of use to few, and 0.3 s to make
        tokens = range(self.n_vocab)
        ends = [token for token in tokens if self.is_end(token)]
        pieces = [self.piece(token) for token in tokens]
        return Grammars(pieces, ends, lambda text: self.tokenize(text.decode(), start=False))


def _beside(slot: int, streams: int) -> int:
    return slot + 1 if slot + 1 < streams else slot - 1
