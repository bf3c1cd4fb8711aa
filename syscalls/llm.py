"""The messages about the model and its contexts: the `llm.` calls."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, UnsetType

from .base import CtxId, Message, Name, Pid, Reply

Token = Annotated[int, Meta(ge=0, le=2**31 - 1)]
MAX_GRAMMAR_CHARS = 49152
Grammar = Annotated[str, Meta(min_length=1, max_length=MAX_GRAMMAR_CHARS)]
Finish = Literal["stop", "length", "context_full", "cancelled"]
Role = Literal["system", "developer", "user", "assistant", "tool", "tools"]


class ChatMessage(Message):
    """One message of a chat. With the role "tools", which only a system message may precede, its
    content is a JSON list of functions ({"type": "function", "function": {"name", "description",
    "parameters"}}) for the model's chat template; `bad_input` if the template knows no tools."""

    role: Role
    content: str


class PastMessage(Reply):
    role: str  # as in ChatMessage; of text that was no message "text"
    content: str


# A full window: the call fails; the oldest turns go; they go, and the model sums them up; they go,
# and come back when a message is about them. The first message stays.
OnFull = Literal["error", "slide", "summarize", "recall"]
Messages = Annotated[list[ChatMessage], Meta(min_length=1)]
TokenIds = Annotated[list[Token], Meta(min_length=1)]


class Open(Message):
    """Open a context; one with a `name` outlives its process, and is opened again by that name.

    It belongs to the principal, as memory and storage do; a person opens another's by its `owner`.
    """

    system: str | None = None  # enters a new context only
    name: Name | None = None
    on_full: OnFull | None = None  # error, unless the context had another
    owner: Annotated[str, Meta(min_length=1, max_length=4096)] | None = None  # of the one named


class Opened(Reply):
    ctx: CtxId
    window: int
    used: int = 0  # tokens that are in it


class Fork(Message):
    """Copy a context. Tokens that both have in common are computed once."""

    ctx: CtxId
    name: Name | None = None


class Checkpoint(Message):
    """Remember the state of a context as `name`, in place of an earlier one."""

    ctx: CtxId
    name: Name


class Rollback(Message):
    """Go back to a checkpoint, which is kept."""

    ctx: CtxId
    name: Name


class Used(Reply):
    used: int
    window: int


class ContextInfo(Reply):
    ctx: CtxId
    owner: str  # the principal whose it is; of a person's program, its name
    pid: Pid  # 0: nobody has it open
    name: str | None
    used: int
    state: Literal["idle", "busy", "asleep"]
    on_full: OnFull
    checkpoints: list[str]


class Append(Message):
    """Append exactly one of chat messages, raw text, token ids.

    Control tokens are recognized in raw text only. Raw text and token ids take the right `llm.raw`,
    which rules about `llm` cover.
    """

    ctx: CtxId
    messages: Messages | None = None
    text: str | None = None
    tokens: TokenIds | None = None


class Moved(Reply):
    """The turns that left a full window for this call, and those that came back."""

    tokens: int  # in the context before, less those that are in it now
    dropped: list[PastMessage]  # the oldest
    summary: str | None  # of all that was ever dropped
    recalled: list[PastMessage]


class Appended(Reply):
    added: int
    used: int
    window: int
    moved: Moved | None = None


class Sampling(Message):
    """How the next token is drawn from the logits; the draw depends on (seed, position) alone."""

    temperature: Annotated[float, Meta(ge=0, le=10)] = 0.0  # 0: greedy
    top_k: Annotated[int, Meta(ge=0, le=2**20)] = 0  # 0: off
    top_p: Annotated[float, Meta(gt=0, le=1)] = 1.0
    min_p: Annotated[float, Meta(ge=0, le=1)] = 0.0
    repeat_penalty: Annotated[float, Meta(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Meta(ge=-2, le=2)] = 0.0
    penalty_last: Annotated[int, Meta(ge=0, le=4096)] = 64  # tokens that the penalties look back
    seed: Annotated[int, Meta(ge=0, le=2**32 - 1)] = 0


class Decoding(Sampling):
    """Sampling, and when to stop, and the details to report of each token."""

    max_tokens: Annotated[int, Meta(ge=1, le=2**20)] = 256
    stop: Annotated[
        list[Annotated[str, Meta(min_length=1, max_length=256)]], Meta(max_length=16)
    ] = []
    ignore_eos: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None  # alternatives listed per token
    digest: bool = False  # chain a hash of each step's raw logits
    schema: dict[str, Any] | None = None  # JSON Schema that the answer fits
    grammar: Grammar | None = None  # or this GBNF


class Generate(Decoding):
    """Generate in context `ctx`, or in one that lives for this call only.

    Append `messages`, `text` or `tokens` first, as llm.append does.
    """

    ctx: CtxId | None = None
    messages: Messages | None = None
    text: str | None = None
    tokens: TokenIds | None = None
    stream: bool = True


class Logprob(Reply):
    token: int
    logprob: float
    top: list[tuple[int, float]]


class Piece(Reply):
    text: str  # complete UTF-8, never part of a stop string
    tokens: list[int]
    logprobs: list[Logprob] | UnsetType = UNSET


class Usage(Reply):
    prompt: int  # tokens that this call appended
    completion: int
    context: int  # tokens in the context at the end


class Timings(Reply):
    waiting: float  # ready to run, but not in a slot's turn
    prefill: float
    decode: float
    ttft: float | None  # from the call to its first token
    turnaround: float  # from the call to its end
    switches: int  # times the context was preempted


class Result(Reply):
    text: str
    tokens: list[int]
    finish: Finish
    usage: Usage
    timings: Timings
    digest: str | None = None  # hex of the 32-byte chained hash
    moved: Moved | None = None
    logprobs: list[Logprob] | UnsetType = UNSET


class Tokenize(Message):
    text: str | None = None
    messages: Messages | None = None  # as the model's chat template renders them


class Tokens(Reply):
    tokens: list[int]


class Detokenize(Message):
    tokens: list[Token]


class Text(Reply):
    text: str


class Close(Message):
    ctx: CtxId
    forget: bool = False  # else a context with a name is kept, asleep
