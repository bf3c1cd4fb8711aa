"""The protocol between the kernel and an LLM core: msgpack, one tagged struct per message.

The kernel names a context by its id and always sends its whole history; the core finds out by
itself how much of it the KV cache still holds. So a core may lose everything at any moment.

A message's tag is its class name, unless the class names another. Tags must not change, since a
core and the next kernel may be of different versions.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from aios.syscalls.kernel import ModelInfo
from aios.syscalls.llm import Decoding, Logprob

PREFILLED: Final = "p"
DECODED: Final = "d"
Segment = tuple[Literal["p", "d"], list[int]]  # how tokens entered is a part of the context
EndReason = Literal["stop", "length", "context_full", "preempted", "cancelled", "failed"]


class CoreFrame(Struct, tag_field="t"):
    """Base of all messages between kernel and core."""


class Run(CoreFrame):
    """Give `ctx` a slot and generate. The last `generated` tokens of the history are its answer so
    far. Reports carry the `run`.
    """

    ctx: int
    run: int
    history: list[Segment]
    generated: int
    decoding: Decoding
    digest: bytes  # the chained hash so far; 32 bytes, or none to start


class Halt(CoreFrame):
    """Stop `ctx` at the next token; it stays in its slot until that is needed."""

    ctx: int
    why: Literal["preempted", "cancelled"]


class Drop(CoreFrame):
    """Forget `ctx`: its slot and its KV blocks."""

    ctx: int


class ResetCore(CoreFrame, tag="Reset"):
    """The first message of a kernel: stop all runs, forget all contexts but these. Answered by
    Ready."""

    contexts: list[int]


class Prefetch(CoreFrame):
    """Read the blocks of `ctx` from disk, since it will run soon."""

    ctx: int


class TokenizeRequest(CoreFrame, tag="Encode"):
    """Tokenize text or chat messages for a context; answered by Tokenized.

    With `messages`, `turns` are those already in the context: the text that the chat template adds
    behind them is tokenized. An assistant's turn that was generated has None for content.
    """

    req: int
    text: str | None = None
    messages: list[tuple[str, str]] = []
    turns: list[tuple[str, str | None]] = []
    reply: bool = False  # open the assistant's answer
    start: bool = True  # at the beginning of a context
    tokens: dict[int, list[int]] = {}  # instead of contents, by index into turns and messages


class DetokenizeRequest(CoreFrame, tag="Decode"):
    """Turn tokens into text; answered by Tokenized."""

    req: int
    tokens: list[int]


class Compile(CoreFrame):
    """Check that an answer can satisfy a schema or a grammar; answered by Tokenized, empty."""

    req: int
    schema: dict[str, Any] | None
    grammar: str | None


Command = Run | Halt | Drop | Prefetch | ResetCore
Question = TokenizeRequest | DetokenizeRequest | Compile


class Ready(CoreFrame):
    """The core serves this kernel from now on."""

    model: ModelInfo


class CoreUnusable(CoreFrame, tag="Failed"):
    """The core cannot start; `error` is an AiosError on the wire."""

    error: dict[str, str]


class Tokenized(CoreFrame, tag="Encoded"):
    """The answer to a question: tokens, text, or an AiosError on the wire."""

    req: int
    tokens: list[int] = []
    text: str = ""
    error: dict[str, str] | None = None


class Out(CoreFrame):
    """One context's share of a step: `fed` tokens computed for the first time, and one drawn.

    Tokens computed `again` are not charged: else a context could use up its turns without getting
    any further.
    """

    ctx: int
    run: int
    fed: int
    token: int | None = None
    text: str = ""
    logprob: Logprob | None = None
    digest: bytes = b""
    again: int = 0


class Halted(CoreFrame):
    """A run has ended. `text` was held back until now; it is shown unless the run goes on."""

    ctx: int
    run: int
    why: EndReason
    text: str = ""
    error: dict[str, str] | None = None  # an AiosError on the wire


class Counters(CoreFrame):
    """Counts since the core's start; bytes, and KV blocks as `extents`, are as of now. Stats in
    syscalls/kernel.py explains them."""

    steps: int = 0
    saves: int = 0
    restores: int = 0
    replayed: int = 0
    shared: int = 0
    extents: int = 0
    snapshot_bytes: int = 0
    disk_bytes: int = 0
    written: int = 0
    read: int = 0
    lost: int = 0
    bad_snapshots: int = 0
    disk_failures: int = 0


class Step(CoreFrame):
    """The report of one step."""

    outs: list[Out]
    halted: list[Halted]
    counters: Counters


Report = Ready | CoreUnusable | Step

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_tokenized = msgspec.msgpack.Decoder(Tokenized).decode
