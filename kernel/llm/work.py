"""A generation: its request, what it has done so far, and its result."""

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
from .scheduler import Task

D = TypeVar("D", bound=Decoding)

_encode = msgpack.Encoder().encode


def packed(asked: D) -> D:
    """Return the same with its schema as bytes: as objects that may take seventy times the room."""
    return replace(asked, schema=asked.schema and Raw(_encode(asked.schema)))


class Work(Struct, kw_only=True):
    """A generation's request and progress, from which it goes on after the kernel's death."""

    call: int  # its id; 0: the kernel itself needs it, on the way of a call
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
    given: list[PastMessage] = []  # what the answer follows, for the interaction log

    @property
    def text(self) -> str:
        return "".join(piece.text for piece in self.pieces)

    @property
    def drawn(self) -> int:
        return sum(len(piece.tokens) for piece in self.pieces)

    def take(self, out: Out) -> Piece | None:
        """Take the output of one step of the core."""
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

    run: int  # what the core still reports of an earlier run in this context has another
    call: Call
    end: Wait[Result]
    context: Context
    work: Work
    task: Task
    turn: float | None = None  # when its turn began, while it has one
    prefetched: bool = False  # since that
    tail: str = ""  # text that came with its end
    deaths: int = 0  # of the core while it had a slot, since its last token
    finish: Finish | Literal["failed"] = "failed"

    def stop_clock(self, now: float) -> None:
        """Account for the time of this turn."""
        if self.turn is not None:
            if self.work.ttft is None:
                self.work.prefill += now - self.turn
            else:
                self.work.decode += now - self.turn
        self.turn = None

    def result(self, finish: Finish, now: float) -> Result:
        """Return the final reply of its call."""
        work = self.work
        logprobs = [each for piece in work.pieces for each in piece.logprobs or []]
        return Result(
            text=work.text + self.tail,
            tokens=[token for piece in work.pieces for token in piece.tokens],
            finish=finish,
            usage=self.usage(),
            timings=Timings(
                waiting=self.task.waited(now),
                prefill=work.prefill,
                decode=work.decode,
                ttft=work.ttft,
                turnaround=now - work.began,
                switches=self.task.switches,
            ),
            digest=work.digest.hex() or None,
            moved=work.moved,
            logprobs=UNSET if work.decoding.logprobs is None else logprobs,
        )

    def usage(self) -> Usage:
        used = self.context.used
        return Usage(prompt=self.work.prompt, completion=self.work.drawn, context=used)
