"""A generation: its request, its progress, and its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from msgspec import UNSET, Raw, Struct, msgpack
from msgspec.structs import replace

from aios.syscalls.llm import Decoding, Finish, Moved, PastMessage, Piece, Result, Timings, Usage

from ..core.protocol import Out
from ..entry.call import Call
from ..lib.coroutine import Wait
from .contexts import Context
from .scheduler.task import Task

D = TypeVar("D", bound=Decoding)

_encode = msgpack.Encoder().encode


def packed(asked: D) -> D:
    """Return a request with its schema as bytes: objects may take seventy times the room."""
    return replace(asked, schema=asked.schema and Raw(_encode(asked.schema)))


class GenerationState(Struct, kw_only=True):
    """A generation's request and progress, from which it goes on after the kernel's death."""

    call: int  # its id; 0: the kernel itself needs the answer, while it serves a call
    decoding: Decoding
    stream: bool
    prompt: int  # tokens that the call appended
    began: float  # monotonic
    prefill: float = 0.0
    decode: float = 0.0
    waiting: float = 0.0
    ttft: float | None = None
    switches: int = 0
    pieces: list[Piece] = []  # one a token
    digest: bytes = b""
    held: str = ""  # text that the core held back, while preempted
    cancelled: bool = False
    moved: Moved | None = None
    given: list[PastMessage] = []  # messages before the answer, for the interaction log

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def drawn(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)

    def take(self, out: Out) -> Piece | None:
        """Add the output of one step of the core, and return the piece for the caller, if any."""
        if out.digest:
            self.digest = out.digest
        if out.token is None:
            return None
        # As bytes: as objects those of 20 alternatives take 3 KB.
        some: Any = UNSET if out.logprob is None else [Raw(_encode(out.logprob))]
        piece = Piece(text=out.text, tokens=[out.token], logprobs=some)
        self.held = ""
        self.pieces.append(piece)
        return piece


@dataclass
class Generation:
    """A generation that a call waits for."""

    run: int  # reports of the core about an earlier run in this context have another
    call: Call
    end: Wait[Result]
    context: Context
    state: GenerationState
    task: Task
    turn: float | None = None  # when its turn began, while it has one
    prefetched: bool = False  # since its turn ended
    tail: str = ""  # text that came with its end
    deaths: int = 0  # of cores under it, since its last token
    finish: Finish | Literal["failed"] = "failed"

    def stop_clock(self, now: float) -> None:
        """Account for the time of this turn."""
        if self.turn is not None:
            if self.state.ttft is None:
                self.state.prefill += now - self.turn
            else:
                self.state.decode += now - self.turn
        self.turn = None

    def result(self, finish: Finish, now: float) -> Result:
        """Return the final reply of its call."""
        state = self.state
        logprobs = [each for piece in state.pieces for each in piece.logprobs or []]
        return Result(
            text=state.text + self.tail,
            tokens=[token for piece in state.pieces for token in piece.tokens],
            finish=finish,
            usage=self.usage(),
            timings=Timings(
                waiting=self.task.waited(now),
                prefill=state.prefill,
                decode=state.decode,
                ttft=state.ttft,
                turnaround=now - state.began,
                switches=self.task.switches,
            ),
            digest=state.digest.hex() or None,
            moved=state.moved,
            logprobs=UNSET if state.decoding.logprobs is None else logprobs,
        )

    def usage(self) -> Usage:
        used = self.context.used
        return Usage(prompt=self.state.prompt, completion=self.state.drawn, context=used)
