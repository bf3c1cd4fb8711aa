"""What the kernel and an LLM core say to each other: msgpack, one tagged struct a message.

The kernel names a context by its id and always sends its whole history; the core finds out by
itself how much of it the KV cache still holds. So a core has nothing that must not be lost.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from aios.syscalls.kernel import ModelInfo
from aios.syscalls.llm import Decoding, Logprob

PREFILLED: Final = "p"
DECODED: Final = "d"
Segment = tuple[Literal["p", "d"], list[int]]  # how tokens entered is part of the context
Why = Literal["stop", "length", "context_full", "preempted", "cancelled", "failed"]


class Frame(Struct, tag_field="t"):
    """Base of all that travels between kernel and core."""


class Run(Frame):
    """Give `ctx` a slot and generate; `generated` of the history's last tokens are its answer.

    What comes of it carries `run`.
    """

    ctx: int
    run: int
    history: list[Segment]
    generated: int
    decoding: Decoding
    digest: bytes  # the chained hash so far; 32 bytes, or none to start


class Halt(Frame):
    """Stop `ctx` at the next token; it stays in its slot until that is needed."""

    ctx: int
    why: Literal["preempted", "cancelled"]


class Drop(Frame):
    """Forget `ctx`: its slot and its snapshot."""

    ctx: int


class Reset(Frame):
    """The first word of a kernel: stop all that runs, forget all contexts but these. Answered by
    Ready."""

    contexts: list[int]


class Prefetch(Frame):
    """`ctx` will run soon: read what is on disk of it."""

    ctx: int


class Encode(Frame):
    """Turn what is to enter a context into tokens; answered by Encoded.

    With `messages`, `turns` are those already in the context: what the chat template adds behind
    them is encoded. An assistant's turn that was generated has None for content.
    """

    req: int
    text: str | None = None
    messages: list[tuple[str, str]] = []
    turns: list[tuple[str, str | None]] = []
    reply: bool = False  # open the assistant's answer
    start: bool = True  # at the beginning of a context
    tokens: dict[int, list[int]] = {}  # in the place of contents, by their place in turns, messages


class Decode(Frame):
    """Turn tokens into text; answered by Encoded."""

    req: int
    tokens: list[int]


class Compile(Frame):
    """See whether an answer can be held to this; answered by Encoded, of no tokens."""

    req: int
    schema: dict[str, Any] | None
    grammar: str | None


Command = Run | Halt | Drop | Prefetch | Reset
Question = Encode | Decode | Compile


class Ready(Frame):
    model: ModelInfo


class Failed(Frame):
    """The core cannot start; `error` is an AiosError on the wire."""

    error: dict[str, str]


class Encoded(Frame):
    req: int
    tokens: list[int] = []
    text: str = ""
    error: dict[str, str] | None = None


class Out(Frame):
    """One context's share of a step: `fed` tokens computed for the first time, one token drawn.

    What was computed `again` does not count: a turn must not be used up before the context has
    caught up, and has to be worth that.
    """

    ctx: int
    run: int
    fed: int
    token: int | None = None
    text: str = ""
    logprob: Logprob | None = None
    digest: bytes = b""
    again: int = 0


class Halted(Frame):
    """A run ended; `text` is what was held back of it, to be shown if it does not go on."""

    ctx: int
    run: int
    why: Why
    text: str = ""
    error: dict[str, str] | None = None  # an AiosError on the wire


class Counters(Frame):
    """Since the core's start; bytes and extents as they are now. syscalls' Stats explains them."""

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


class Step(Frame):
    outs: list[Out]
    halted: list[Halted]
    counters: Counters


Report = Ready | Failed | Step

encode = msgspec.msgpack.Encoder().encode
decode_command = msgspec.msgpack.Decoder(Command).decode
decode_question = msgspec.msgpack.Decoder(Question).decode
decode_report = msgspec.msgpack.Decoder(Report).decode
decode_encoded = msgspec.msgpack.Decoder(Encoded).decode
