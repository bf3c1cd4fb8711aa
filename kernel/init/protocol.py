"""What init and the kernel say to each other: msgpack over an inherited SEQPACKET socket."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from ..sandbox.walls import Walls

FATAL = 78  # the exit code where starting it again would not help (EX_CONFIG)


class Frame(Struct, tag_field="t"):
    """Base of all that travels between init and kernel."""


class StartAgent(Frame):
    """Fork a child that runs `program` with an SDK, or exec it when it has a slash and no .py."""

    key: int
    program: str
    args: list[str]
    token: bytes
    cwd: str  # "": its own folder
    log: str
    walls: Walls


class StartService(Frame):
    """Of the kernel's own: a core, the index. Their keys are below 1."""

    key: int
    argv: list[str]
    log: str
    ring: bool = False  # it is to have the data keys, at the descriptor TOKEN_FD


class SignalChild(Frame):
    """To the child's whole process group."""

    os_pid: int
    signal: int


class Heard(Frame):
    """The kernel knows that a child has ended, and will not forget it."""

    os_pid: int


class Census(Frame):
    """The first word to a kernel: what there is to take over from the one before it, in parts."""

    system: str  # another for each init
    children: dict[int, int]  # OS pid: key
    paused: list[int]  # OS pids
    gone: list[Gone]  # not heard of yet
    more: bool  # another part follows
    crashed: str = ""  # the signal that ended the kernel before, where nobody killed it
    walls: dict[str, str] = {}  # what there is on this Linux, by what it keeps in


class Started(Frame):
    key: int
    os_pid: int


class StartFailed(Frame):
    key: int
    error: dict[str, str]


class Gone(Frame):
    """A child has ended: its exit code, or 128 + the signal that ended it."""

    key: int
    os_pid: int
    code: int
    signal: str  # "" or a name like "KILL"


class Paused(Frame):
    os_pid: int
    paused: bool  # False: it goes on


class Refused(Frame):
    """An agent's process made a system call of Linux that is not for it, or named by it what it
    does not reach; told once of each."""

    key: int
    call: str
    object: str  # a path or address, or the arguments that the call was refused for
    needs: str = ""  # what of a Reach would let it through


class WindUp(Frame):
    """init was told to end: the kernel shall end its agents, then itself."""


PART = 1000  # children in one part of a census
ToInit = StartAgent | StartService | SignalChild | Heard
ToKernel = Census | Started | StartFailed | Gone | Paused | Refused | WindUp

encode = msgspec.msgpack.Encoder().encode
decode_to_init = msgspec.msgpack.Decoder(ToInit).decode
decode_to_kernel = msgspec.msgpack.Decoder(ToKernel).decode
FRAME_BYTES = 128 * 1024
