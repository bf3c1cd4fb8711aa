"""The engine: one llama.cpp model and context. The only file that imports llama_cpp.

A slot is a llama.cpp sequence with a KV stream of its own (`kv_unified=False`): what one sequence
computes then depends neither on its slot nor on its neighbours, as long as three rules hold, and
this file keeps them (ARCHITECTURE.md, "Exactness", has the measurements):

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
import os
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal

import llama_cpp as ll
import numpy as np
import psutil
from llama_cpp.llama_chat_format import Jinja2ChatFormatter
from numpy.typing import NDArray

from aios.syscalls import VERSION
from aios.syscalls.errors import BadInput, Internal, ModelError, NoRoom
from aios.syscalls.messages import Sampling

from .grammar import Grammar, Grammars
from .state import Bytes, Part, StateForm

CHUNK = 64  # tokens of a prefill chunk; chunks end at its multiples, so they never depend on others
ALONE = 256  # llama.cpp pads the span of a KV stream to 256 cells: one more token and it is 512
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # mallopt(3)
COMPANY = 0  # the token that keeps a lone sequence company
BINDING = f"llama-cpp-python {ll.__version__}"
FORMATS = {  # llama.cpp's name; bits a weight
    "q8_0": (ll.LLAMA_FTYPE_MOSTLY_Q8_0, 8.5),
    "q4_0": (ll.LLAMA_FTYPE_MOSTLY_Q4_0, 4.5),
    "q4_1": (ll.LLAMA_FTYPE_MOSTLY_Q4_1, 5.0),
    "q5_0": (ll.LLAMA_FTYPE_MOSTLY_Q5_0, 5.5),
    "q5_1": (ll.LLAMA_FTYPE_MOSTLY_Q5_1, 6.0),
    "q4_k_m": (ll.LLAMA_FTYPE_MOSTLY_Q4_K_M, 4.9),
    "q5_k_m": (ll.LLAMA_FTYPE_MOSTLY_Q5_K_M, 5.7),
    "q6_k": (ll.LLAMA_FTYPE_MOSTLY_Q6_K, 6.6),
    "f16": (ll.LLAMA_FTYPE_MOSTLY_F16, 16.0),
    "bf16": (ll.LLAMA_FTYPE_MOSTLY_BF16, 16.0),
}
CANDIDATE = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])

Cache = Literal["f16", "q8_0"]
TYPES = {"f16": (ll.GGML_TYPE_F16, 2.0), "q8_0": (ll.GGML_TYPE_Q8_0, 34 / 32)}  # bytes a value


class _Log:
    """What llama.cpp complained about last, for the error that follows."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.callback = ll.llama_log_callback(self._take)  # ctypes: must outlive the library's use

    def _take(self, level: int, text: bytes, _user: Any) -> None:
        if level >= 3 and level != 5:
            self.errors = [*self.errors[-4:], text.decode(errors="replace").strip()]


def _reuse_memory() -> None:
    """Have glibc keep what is freed, up to 1 GiB: to touch 23 MB of fresh pages for a snapshot took
    45 ms, to write them into used ones 1 ms."""
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, 1 << 30)


_reuse_memory()
_log = _Log()
ll.llama_log_set(_log.callback, ctypes.c_void_p(0))


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(
            f"cannot read the model {path}: {error.strerror}", "name a GGUF file with --model"
        ) from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file", "name a GGUF file with --model")
    params = ll.llama_model_default_params()
    params.n_gpu_layers = 0
    model = ll.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelError(
            f"llama.cpp cannot load {path}: {'; '.join(_log.errors) or 'no reason given'}",
            "the file may be truncated: compare its size with its source",
        )
    return model


def requantize(source: Path, target: Path, name: str, threads: int) -> None:
    """Write the model `source` to `target`, its weights in the format `name`, one of FORMATS.

    Raises:
        ModelError: `source` is no model, or `target` cannot be written.
    """
    params = ll.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FORMATS[name][0], True, threads
    code = ll.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code != 0:
        raise ModelError(f"llama.cpp cannot write {source} as {name}: {'; '.join(_log.errors)}")


def describe(path: Path) -> tuple[str, int]:
    """The format of a model's weights, as llama.cpp names it, and how many there are.

    Raises:
        ModelError: the file is missing, truncated or not a GGUF.
    """
    model = _load(path)
    name: bytes = ll.llama_ftype_name(ll.llama_model_ftype(model))
    params = int(ll.llama_model_n_params(model))
    ll.llama_model_free(model)
    return name.decode(), params


class Engine:
    """`slots` sequences of up to `window` tokens each over one model; window 0 is the model's own,
    at most 2,048. `cache` is the format of keys and values: q8_0 takes about half of f16 and gives
    another output. `unified` is for tests: one KV stream for all is not exact, and
    its cells are in no order.

    Raises:
        ModelError: the file is missing, truncated or not a GGUF.
        NoRoom: there is no memory for the KV cache.
    """

    def __init__(
        self, path: Path, *, slots: int, window: int, threads: int, cache: Cache = "f16",
        unified: bool = False,
    ) -> None:  # fmt: skip
        ll.llama_backend_init()
        self.path = path
        self.slots, self.threads, self.cache = slots, threads, cache
        self.model = _load(path)
        self.vocab = ll.llama_model_get_vocab(self.model)
        self.n_vocab = ll.llama_vocab_n_tokens(self.vocab)
        self.window = window or min(ll.llama_model_n_ctx_train(self.model), 2048)
        self.streams = max(slots, 2)
        self.cells = self.window // 256 * 256 + 256  # at least one more than the window: company
        self.cache_bytes = self._cache_bytes()
        available = psutil.virtual_memory().available
        if self.cache_bytes > available:
            raise NoRoom(
                f"{slots} slots of {self.window} tokens need {self.cache_bytes >> 20} MiB "
                f"for the KV cache, {available >> 20} MiB are free",
                "start with fewer --slots or a smaller --ctx",
            )
        params = ll.llama_context_default_params()
        params.n_ctx = self.cells * self.streams
        params.n_seq_max = self.streams
        params.n_batch = params.n_ubatch = max(CHUNK, self.streams)
        params.n_threads = params.n_threads_batch = threads
        params.flash_attn_type = ll.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.type_k = params.type_v = TYPES[cache][0]
        params.kv_unified = unified
        params.no_perf = True
        self.ctx = ll.llama_init_from_model(self.model, params)
        if not self.ctx:
            raise NoRoom(
                f"llama.cpp cannot make the context: {'; '.join(_log.errors)}",
                "start with fewer --slots or a smaller --ctx",
            )
        self.memory = ll.llama_get_memory(self.ctx)
        self.batch = ll.llama_batch_init(int(params.n_batch), 0, 1)
        self.index: list[int] = []
        self.alone = ALONE  # tokens from which on a lone sequence gets company
        self.pieces: dict[int, bytes] = {}
        self._template: Jinja2ChatFormatter | None = None
        self._buffer: Bytes = np.empty(0, np.uint8)
        self.form = None if unified else self._form()

    def close(self) -> None:
        ll.llama_batch_free(self.batch)
        ll.llama_free(self.ctx)
        ll.llama_model_free(self.model)

    def _cache_bytes(self) -> int:
        heads, layers = ll.llama_model_n_head(self.model), ll.llama_model_n_layer(self.model)
        width = ll.llama_model_n_embd(self.model) // max(heads, 1)
        values = 2 * width * ll.llama_model_n_head_kv(self.model) * layers  # K and V of a token
        return int(values * TYPES[self.cache][1]) * self.cells * self.streams

    def description(self) -> str:
        buffer = ctypes.create_string_buffer(256)
        ll.llama_model_desc(self.model, buffer, 256)
        return buffer.value.decode(errors="replace")

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
        data = text.encode()
        room = len(data) + 8
        buffer = (ll.llama_token * room)()
        count = ll.llama_tokenize(self.vocab, data, len(data), buffer, room, start, True)
        if count < 0:
            raise Internal(f"llama_tokenize needs {-count} places for {len(data)} bytes")
        return list(buffer[:count])

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
        """The chat template that the GGUF carries, over `messages`; `reply` opens an answer.

        Raises:
            BadInput: the model carries no template, or the template refuses the messages.
        """
        if self._template is None:
            raw = ll.llama_model_chat_template(self.model, None)
            if not raw:
                raise BadInput("this model carries no chat template", "send text, not messages")
            self._template = Jinja2ChatFormatter(
                raw.decode(), self._text_of(ll.llama_vocab_eos), self._text_of(ll.llama_vocab_bos)
            )
        try:
            text: str = self._template._environment.render(
                messages=messages,
                eos_token=self._template.eos_token,
                bos_token=self._template.bos_token,
                add_generation_prompt=reply,
                raise_exception=_refuse,
                strftime_now=self._template.strftime_now,
            )
            return text
        except BadInput:
            raise
        except Exception as error:
            raise BadInput(f"the model's chat template failed: {error}") from error

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
            raise Internal(f"llama_decode failed with {code}: {'; '.join(_log.errors)}")

    def logits(self, index: int) -> NDArray[np.float32]:
        """A view, shape (vocab,), valid until the next prefill or decode."""
        pointer = ll.llama_get_logits_ith(self.ctx, index)
        return np.ctypeslib.as_array(pointer, shape=(self.n_vocab,))

    # --- rows of the KV cache -------------------------------------------------------------------

    def cut(self, slot: int, spans: list[tuple[int, int]]) -> list[Bytes]:
        """Copies of the KV rows (first, count) that a slot holds; its `form` is not None."""
        assert self.form is not None
        return self.form.cut(self._state(slot), slot, self.length(slot), spans)

    def paste(self, slot: int, parts: list[Part]) -> None:
        """Have a slot hold the rows of `parts`, one behind the other, and nothing else."""
        assert self.form is not None
        buffer = self._room(self.form.size(sum(part.tokens for part in parts)))
        self._put_state(slot, self.form.join(buffer, slot, parts))

    def copy(self, source: int, target: int) -> None:
        """Have a slot hold what another one does."""
        self._put_state(target, self._state(source))

    def swap(self, one: int, other: int) -> None:
        """Exchange what two slots hold, one of which may be empty."""
        length, kept = self.length(one), self._state(one).copy()
        self.clear(one)
        if self.length(other):
            self.copy(other, one)
            self.clear(other)
        if length:
            self._put_state(other, kept)

    def _form(self) -> StateForm | None:
        """The form of this model's states, or None if rows that were cut and joined are not, byte
        for byte, what llama.cpp writes: then nothing can be kept but what is in the slots."""
        count = 7
        self.prefill(0, tuple(range(count)), 0)
        try:
            state = self._state(0).copy()
            form = StateForm.of(state, 0)
            rows = form.cut(state, 0, count, [(0, 2), (2, count - 2)])
            ends = [Part(rows[0], 2, 0, 2), Part(rows[1], count - 2, 0, count - 3)]
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
        """Names the model file by both its ends and its size: to hash all of a large one takes
        seconds at each start."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            ends = file.read(1 << 20)
            file.seek(max(0, size - (1 << 20)))
            ends += file.read()
        return blake2b(ends + str(size).encode(), digest_size=16).hexdigest()

    def clear(self, slot: int, since: int = 0) -> None:
        """Drop what a slot holds from position `since` on."""
        ll.llama_memory_seq_rm(self.memory, slot, since, -1)

    @cached_property
    def grammars(self) -> Grammars:  # of use to few, and 0.3 s to make
        tokens = range(self.n_vocab)
        ends = [token for token in tokens if self.is_end(token)]
        pieces = [self.piece(token) for token in tokens]
        return Grammars(pieces, ends, lambda text: self.tokenize(text.decode(), start=False))

    def sampler(self, params: Sampling, past: list[int], grammar: Grammar | None = None) -> Sampler:
        return Sampler(self, params, past, grammar)


def _beside(slot: int, streams: int) -> int:
    return slot + 1 if slot + 1 < streams else slot - 1


def _refuse(message: str) -> None:
    raise BadInput(f"the model's chat template refuses: {message}")


def _mix(seed: int, position: int) -> int:
    """SplitMix64 over (seed, position), cut to the 32 bits that llama.cpp's seeds have."""
    mask = 2**64 - 1
    z = (seed * 0x9E3779B97F4A7C15 + position + 0x632BE59BD9B4E019) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return (z ^ (z >> 31)) & 0xFFFFFFFE  # never LLAMA_DEFAULT_SEED, which means random


class Sampler:
    """Draws tokens with llama.cpp's samplers; no state but what `past` tokens rebuild.

    The generator is seeded anew for each draw from (seed, position), so a context that moves
    between slots, cores and machines has no generator to carry along.
    """

    def __init__(
        self, engine: Engine, params: Sampling, past: list[int], grammar: Grammar | None
    ) -> None:
        self.engine = engine
        self.params = params
        self.grammar = grammar
        self.chain = ll.llama_sampler_chain_init(ll.llama_sampler_chain_default_params())
        add = self._add
        penalties = params.repeat_penalty, params.frequency_penalty, params.presence_penalty
        if penalties != (1.0, 0.0, 0.0) and params.penalty_last:
            last = params.penalty_last
            add(ll.llama_sampler_init_penalties(engine.n_vocab, last, *penalties))
            for token in past[-last:]:
                ll.llama_sampler_accept(self.chain, token)
        if params.temperature == 0:
            add(ll.llama_sampler_init_greedy())
            return
        if params.top_k:
            add(ll.llama_sampler_init_top_k(params.top_k))
        if params.top_p < 1:
            add(ll.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            add(ll.llama_sampler_init_min_p(params.min_p, 1))
        add(ll.llama_sampler_init_temp(params.temperature))

    def _add(self, sampler: Any) -> None:
        ll.llama_sampler_chain_add(self.chain, sampler)

    def draw(self, index: int, position: int) -> int:
        """The token that follows, from the logits at `index` of the last batch.

        Raises:
            BadGrammar: what the answer is held to has outgrown its limits.
        """
        if self.params.temperature == 0:
            return self._draw(index)
        last = ll.llama_sampler_chain_n(self.chain)
        self._add(ll.llama_sampler_init_dist(_mix(self.params.seed, position)))
        try:
            return self._draw(index)
        finally:
            ll.llama_sampler_free(ll.llama_sampler_chain_remove(self.chain, last))

    def _draw(self, index: int) -> int:
        if self.grammar is None:
            return int(ll.llama_sampler_sample(self.chain, self.engine.ctx, index))
        ids = self.grammar.allowed()
        found = np.zeros(ids.size, CANDIDATE)
        found["id"], found["logit"] = ids, self.engine.logits(index)[ids]
        data = found.ctypes.data_as(ll.llama_token_data_p)
        candidates = ll.llama_token_data_array(data, found.size, -1, False)
        ll.llama_sampler_apply(self.chain, ctypes.byref(candidates))
        token = int(candidates.data[candidates.selected].id)
        ll.llama_sampler_accept(self.chain, token)
        self.grammar.accept(token)
        return token

    @property
    def complete(self) -> bool:
        """Whether the grammar, if there is one, lets nothing follow."""
        return self.grammar is not None and self.grammar.complete

    def close(self) -> None:
        ll.llama_sampler_free(self.chain)
