"""The frames between init and the kernel: msgpack over an inherited SEQPACKET socket."""

from __future__ import annotations

import msgspec
from msgspec import Struct, field

from ..sandbox.sandbox import SandboxPolicy

FATAL = 78  # the exit code where starting it again would not help (EX_CONFIG)


class InitFrame(Struct, tag_field="t"):
    """Base of the frames between init and kernel."""


class StartAgent(InitFrame):
    """Fork an agent that runs `program` with an SDK, or exec it when it has a slash and no .py."""

    key: int
    program: str
    args: list[str]
    token: bytes
    cwd: str  # "": the agent's own folder
    log: str
    policy: SandboxPolicy = field(name="walls")


class StartService(InitFrame):
    """Start a part of the system: a core, the index, the gateway. Their keys are below 1."""

    key: int
    argv: list[str]
    log: str
    ring: bool = False  # pass the data keys, at the descriptor TOKEN_FD


class SignalChild(InitFrame):
    """Send a signal to the child's whole process group."""

    os_pid: int
    signal: int


class ExitAcknowledged(InitFrame, tag="Heard"):
    """The kernel has recorded the end of a child: init can forget it."""

    os_pid: int


class Takeover(InitFrame, tag="Census"):
    """The first frame to a kernel: all that it takes over from the previous one, in parts."""

    system: str  # random, a new one for each init
    children: dict[int, int]  # OS pid: key
    paused: list[int]  # OS pids
    gone: list[Gone]  # ends that no kernel has acknowledged
    more: bool  # another part follows
    crashed: str = ""  # the signal that ended the previous kernel, unless somebody killed it
    mechanisms: dict[str, str] = field(default_factory=dict, name="walls")  # see sandbox.detect


class Started(InitFrame):
    """A child runs."""

    key: int
    os_pid: int


class StartFailed(InitFrame):
    """A child could not be started."""

    key: int
    error: dict[str, str]


class Gone(InitFrame):
    """A child ended, with its exit code or 128 + the signal."""

    key: int
    os_pid: int
    code: int
    signal: str  # "" or a name like "KILL"
    lost: int = 0  # bytes of its output that a full disk had no room for


class Paused(InitFrame):
    """A child was stopped or resumed by a signal."""

    os_pid: int
    paused: bool  # False: it was resumed


class SandboxRefusal(InitFrame, tag="Refused"):
    """An agent made a system call of Linux that it was not granted. Each refusal is reported
    once.
    """

    key: int
    call: str
    object: str  # a path or address, or the arguments that were refused
    needs: str = ""  # the field of SandboxGrants that would grant it


class WindUp(InitFrame):
    """init was asked to end: the kernel shall end its agents, then itself."""


TAKEOVER_CHILDREN = 1000  # in one part of a takeover
ToInit = StartAgent | StartService | SignalChild | ExitAcknowledged
ToKernel = Takeover | Started | StartFailed | Gone | Paused | SandboxRefusal | WindUp

encode = msgspec.msgpack.Encoder().encode
decode_to_init = msgspec.msgpack.Decoder(ToInit).decode
decode_to_kernel = msgspec.msgpack.Decoder(ToKernel).decode
MAX_FRAME_BYTES = 128 * 1024
