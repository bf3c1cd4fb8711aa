"""The error tree, the same on both sides of the wire.

An error travels as `{"code", "message", "hint"}`. `code` is stable: programs may match on it.
`hint` says what to do next, for a person.
"""

from __future__ import annotations

from typing import ClassVar


class AiosError(Exception):
    """Any error that a system call can end with."""

    code: ClassVar[str] = "error"
    default_hint: ClassVar[str] = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.default_hint

    def to_wire(self) -> dict[str, str]:
        return {"code": self.code, "message": self.message, "hint": self.hint}

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class Internal(AiosError):
    """The kernel failed to serve the call: a defect of AIOS, recorded in the kernel's log."""

    code = "internal"
    default_hint = "see kernel.log in the AIOS home"


class Malformed(AiosError):
    """The message is not a system call: bad msgpack, wrong shape, a field missing or unknown."""

    code = "call.malformed"
    default_hint = "see docs/abi.md"


class TooBig(AiosError):
    """The message passes the size of a system call, 64 KiB."""

    code = "call.too_big"
    default_hint = "send it in several calls, or the path of a file that has it"


class UnknownCall(AiosError):
    """The table has no call of this name."""

    code = "call.unknown"
    default_hint = "see docs/abi.md"


class OutOfOrder(AiosError):
    """The call does not fit the connection's state: before hello, after exit, an id in use."""

    code = "call.out_of_order"
    default_hint = "see docs/abi.md"


class Cancelled(AiosError):
    """The call ended because its caller, or the end of its context, asked for it."""

    code = "call.cancelled"


class TimedOut(AiosError):
    """Nothing came within the time that the caller gave."""

    code = "call.timed_out"


class BadVersion(AiosError):
    """The caller speaks another version of the ABI than the kernel."""

    code = "hello.version"


class BadToken(AiosError):
    """The one-time token is wrong, used up, or presented by another process."""

    code = "hello.token"


class Denied(AiosError):
    """The access manager refused the call; `rule` says why, for the audit log."""

    code = "access.denied"

    def __init__(self, message: str, hint: str = "", rule: str = "") -> None:
        super().__init__(message, hint)
        self.rule = rule


class NotFound(AiosError):
    """There is no process, context or object of that name for this caller."""

    code = "not_found"


class LimitReached(AiosError):
    """A limit of the agent, or of the kernel, would be passed."""

    code = "limit"


class NoProgram(AiosError):
    """The program to spawn does not exist, or cannot be started."""

    code = "process.no_program"


class ProcessGone(AiosError):
    """The process that the call depends on has ended."""

    code = "process.gone"
    default_hint = "`aios ps` lists who is alive"


class ContextFull(AiosError):
    """The context's window has no room for what was to be appended."""

    code = "context.full"


class ContextBusy(AiosError):
    """The context already runs a generation."""

    code = "context.busy"


class ContextForeign(AiosError):
    """The context was computed with another model than the one that is loaded."""

    code = "context.foreign"


class BadInput(AiosError):
    """Well-formed, but not usable: an unknown policy, a token out of the vocabulary, no text."""

    code = "bad_input"


class BadGrammar(AiosError):
    """No answer can be held to this schema or grammar: it is malformed, uses what is not supported,
    or takes too much work."""

    code = "llm.bad_grammar"
    default_hint = "docs/agents.md says what a schema or a grammar may hold"


class NotJson(AiosError):
    """The answer was cut before its end, held to no schema, or has no value that fits it: raised on
    the caller's side only."""

    code = "llm.not_json"
    default_hint = "generate with a schema, and with max_tokens enough for the longest answer"


class ModelError(AiosError):
    """The model's file is missing, truncated, or not a GGUF that llama.cpp can load."""

    code = "model.invalid"


class NoRoom(AiosError):
    """There is no memory for the KV cache that was asked for."""

    code = "model.no_room"


class DiskFull(AiosError):
    """The kernel's journal cannot grow: calls that change something are refused until it can."""

    code = "disk.full"
    default_hint = "make room on the disk of the AIOS home"


class StoreFull(AiosError):
    """The store has reached the size that the settings allow."""

    code = "store.full"
    default_hint = "delete something, or raise store_bytes in config.toml"


class StoreDamaged(AiosError):
    """The store's file is cut short, changed, of a later version, or its disk has failed."""

    code = "store.damaged"
    default_hint = "restore a backup"


class AuditDamaged(AiosError):
    """The audit log is not what was written: something was changed, cut off, or lost."""

    code = "audit.damaged"
    default_hint = "`aios audit verify` says where; docs/audit.md what that means"


class Conflict(AiosError):
    """The value to be replaced has changed since the caller saw it."""

    code = "store.conflict"
    default_hint = "read it again, then decide"


class UploadGone(AiosError):
    """There is no such upload of this process: it was put, or has ended with the kernel."""

    code = "store.upload_gone"
    default_hint = "send it again from its beginning"


class BackendDown(AiosError):
    """The folder or bucket that contents are kept in cannot be reached, or refuses."""

    code = "store.backend"
    default_hint = "see to it, then try again"


class IndexFailed(AiosError):
    """The index of storage cannot be searched: its process died over and over, or cannot start."""

    code = "index.failed"
    default_hint = "see log/index.log in the AIOS home; `aios sto index --rebuild` makes it anew"


class KeyMissing(AiosError):
    """The home is encrypted, and there is no key file or passphrase: on the starter's side."""

    code = "key.missing"
    default_hint = "set key_file or AIOS_KEY_FILE, or start it in a terminal, which asks"


class KeyWrong(AiosError):
    """The key file or passphrase is not that of this home: on the starter's side."""

    code = "key.wrong"
    default_hint = "docs/security.md says which key a home has; without it nothing can be read"


class ToolArguments(AiosError):
    """The arguments do not fit the tool's schema: it was not called."""

    code = "tool.arguments"


class ToolFailed(AiosError):
    """The tool refused, or raised an error; the message is its own."""

    code = "tool.failed"


class ToolCrashed(AiosError):
    """The process that ran the tool has died."""

    code = "tool.crashed"


class ToolTimeout(AiosError):
    """The tool was not done in time, and has been ended."""

    code = "tool.timeout"


class ToolUnknown(AiosError):
    """A tool that changes something was interrupted: it may have made the change."""

    code = "tool.unknown"
    default_hint = "look whether it has happened before you try again"


class CoreFailed(AiosError):
    """The LLM core died too often under this call, or while it loaded; it is tried again."""

    code = "core.failed"
    default_hint = "see log/core.log in the AIOS home"


class KernelGone(AiosError):
    """No kernel answers: raised on the caller's side only."""

    code = "kernel.gone"
    default_hint = "start one with `aios start --detach`"


class HomeBusy(AiosError):
    """Another AIOS runs in this home: raised on the starter's side only."""

    code = "home.busy"


def _tree(cls: type[AiosError]) -> dict[str, type[AiosError]]:
    found = {cls.code: cls}
    for sub in cls.__subclasses__():
        found |= _tree(sub)
    return found


BY_CODE: dict[str, type[AiosError]] = _tree(AiosError)


def from_wire(body: object) -> AiosError:
    """Make the typed error of a FAILED reply; an unknown code becomes a plain AiosError."""
    if not isinstance(body, dict):
        return Malformed(f"an error reply without a body: {body!r}")
    cls = BY_CODE.get(str(body.get("code")), AiosError)
    return cls(str(body.get("message", "")), str(body.get("hint", "")))
