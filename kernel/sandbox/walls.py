"""The walls around an agent's process: what it does to itself right before its program runs.

Each is a means of Linux. init finds out which there are (`found`), the kernel shows it, and a
setting says whether an agent may run where one is missing.
"""

from __future__ import annotations

import importlib.util
import os
import resource
import sys
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta

from aios.syscalls.errors import Denied, LimitReached
from aios.syscalls.home import CERTIFICATE_VARIABLES
from aios.syscalls.proc import Reach

from ..lib.linux import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl, real
from ..lib.sweeper import remove
from . import cgroup, landlock, mount_namespace, seccomp
from .notifications import hand_over
from .path_observer import MAGIC, Witness, is_in

# What programs need of the system; neither secrets nor sockets are in there.
SYSTEM = (
    "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/sys/devices/system/cpu",
    *("/etc/" + name for name in (
        "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "timezone", "alternatives",
        "passwd", "group", "hosts", "host.conf", "resolv.conf", "nsswitch.conf", "gai.conf",
        "services", "protocols", "ssl", "pki", "ca-certificates", "mime.types", "os-release",
        "locale.alias", "fonts", "debian_version", "redhat-release", "lsb-release", "inputrc",
        "terminfo", "networks", "rpc", "magic", "xattr.conf", "perl", "python3", "manpath.config",
        *(f"python3.{minor}" for minor in range(9, 20)),
        *(f"java-{number}-openjdk" for number in range(8, 40)),
    )),
    *("/proc/" + name for name in (
        "self", "cpuinfo", "meminfo", "stat", "loadavg", "uptime", "version", "filesystems",
        "sys/vm/overcommit_memory", "sys/kernel/random",
    )),
    "/dev/random", "/dev/urandom",
)  # fmt: skip
DEVICES = ("/dev/null", "/dev/zero", "/dev/full")
SHARED = "/dev/shm"  # where there is a view, each agent has its own
WHOLE = ("/proc", "/etc")  # seen as one mount; Landlock tells apart what is in them
USER_NAMESPACE = "user namespace"
MOST, PATHS = 256, 48 << 10  # entries of one kind in a reach; bytes of all paths
FEWER = "name a folder in the place of what is in it"
LANDLOCK_NEEDS = {"files": 3, "ports": 4, "signals": 6}  # versions of its ABI
R = TypeVar("R", bound=Reach)


class Walls(Reach, kw_only=True):
    """How agents are walled in, and what all of them reach."""

    off: bool = False  # there are none: an agent can do whatever its user can
    tasks: Annotated[int, Meta(ge=16)] = 128  # processes and threads of its own, at once
    files: Annotated[int, Meta(ge=32)] = 1024  # descriptors open in a process
    file_bytes: Annotated[int, Meta(ge=4096)] = 1 << 30  # the longest file it can write
    memory: Annotated[int, Meta(ge=1 << 28)] = 8 << 30  # of a process
    shm_bytes: Annotated[int, Meta(ge=1 << 12)] = 64 << 20  # of memory that its processes share


def joined(one: R, other: Reach) -> R:
    """`one`, and what `other` reaches. Raises LimitReached for more than init would take, or the
    kernel that reads it in the journal."""
    both: dict[str, Any] = {}
    for name in Reach.__struct_fields__:
        a, b = getattr(one, name), getattr(other, name)
        both[name] = list(dict.fromkeys([*a, *b])) if isinstance(a, list) else a or b
    paths = [*both["read"], *both["write"]]
    if max(len(both[name]) for name in ("read", "write", "ports")) > MOST:
        raise LimitReached(
            f"its reach is too much: {MOST} paths, and as many ports, are the most", FEWER
        )
    if sum(len(path.encode()) for path in paths) > PATHS:
        raise LimitReached(f"its reach is too much: the paths have more than {PATHS} bytes", FEWER)
    return msgspec.structs.replace(one, **both)


def found(cgroups: cgroup.Groups | None) -> dict[str, str]:
    """What there is on this Linux, by what it keeps in; "" where it is missing."""
    abi = landlock.abi()
    walls = {"privileges": "no_new_privs, no capabilities"}
    for name, needed in LANDLOCK_NEEDS.items():
        walls[name] = f"Landlock ABI {abi}" if abi >= needed else ""
    walls["calls"] = "seccomp" if _works(_try_seccomp) else ""
    walls["view"] = "mount namespace" if _works(lambda: mount_namespace.enter((), ())) else ""
    counted = os.getuid() != 0 and walls["view"]  # such a namespace has its own RLIMIT_NPROC
    walls["tasks"] = cgroups.name if cgroups else USER_NAMESPACE if counted else ""
    return walls


def check(walls: Walls, have: dict[str, str]) -> None:
    """Raises Denied where an agent with `walls` may not start."""
    missing = [name for name, how in have.items() if not how]
    if walls.all_walls and missing:
        raise Denied(
            f"this Linux has no wall for {', '.join(missing)}, and all are asked for",
            "see docs/walls.md",
        )


def _works(wall: Callable[[], object]) -> bool:
    """Whether it can be put up: a child tries."""
    os_pid = os.fork()
    if os_pid == 0:
        try:
            wall()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(os_pid, 0)[1] == 0


def _try_seccomp() -> None:
    drop_privileges()
    code = calls_filter(network=False, processes=False, modes=False, signals=False)
    seccomp.install(code, listen=True)


@cache
def python() -> tuple[str, ...]:
    """Where this interpreter and what it imports are."""
    names = ("syscalls", "agents", "examples")
    packages = [importlib.util.find_spec(f"aios.{name}") for name in names]
    places = [place for spec in packages if spec for place in spec.submodule_search_locations or []]
    found = [sys.prefix, sys.base_prefix, *sys.path, *places]
    # One without "/" is the name of an import hook.
    return tuple(dict.fromkeys(path for path in found if path.startswith("/")))


def certificates() -> list[str]:
    """Where the person says that those are whom programs trust."""
    named = (os.environ.get(name, "") for name in CERTIFICATE_VARIABLES)
    return [path for path in named if path.startswith("/")]


def withheld(home: Path) -> list[str]:
    """What the person says of these that no agent reads all the same."""
    return [path for path in certificates() if not is_harmless(path, home)]


@cache
def common(home: Path) -> tuple[list[str], list[str]]:
    """What all agents of a system read, and the same as `view` wants it, with devices: these are
    shown read-only, so they can be written to, and their modes stay as they are."""
    found = [*python(), *certificates()]
    read = [*SYSTEM, *(path for path in found if is_harmless(path, home)), str(home / "run")]
    seen = {next((top for top in WHOLE if path.startswith(top + "/")), path) for path in read}
    return read, list(mount_namespace.real([*seen, *DEVICES]))


@cache
def calls_filter(*, network: bool, processes: bool, modes: bool, signals: bool) -> bytes:
    rules = seccomp.rules(network=network, processes=processes, modes=modes, signals=signals)
    watched = seccomp.watch(seccomp.watched(modes=modes))
    return seccomp.assemble(rules, notify=True) + watched


@cache
def common_real(home: Path) -> list[str]:
    """What all agents of a system read, by its real name, but for what is each its own."""
    return [os.path.realpath(path) for path in common(home)[0] if path not in MAGIC]


def witness(walls: Walls, have: dict[str, str], home: Path, key: int) -> Witness:
    """Of an agent with these walls."""
    shared = [SHARED] if have["view"] else []
    own = [*DEVICES, *shared, str(Room(home, key).own), *walls.write]
    read, write = (map(real, paths) for paths in (walls.read, own))
    return Witness([*common_real(home), *read], write, walls.ports)


def reaches(walls: Walls, home: Path, key: int, path: str) -> bool:
    """Whether an agent with these walls reads what a path leads to."""
    own = str(Room(home, key).own)
    names = {*common_real(home), *map(real, (*walls.read, *walls.write, own))}
    found = real(path)
    return walls.off or (found != "" and is_in(found, names))


class Room:
    """An agent's own folder."""

    def __init__(self, home: Path, key: int) -> None:
        self.home = home
        self.own = home / "agents" / str(key)
        self.temporary = self.own / "tmp"

    def make(self) -> None:
        """Its folder, empty, where its program looks for one. Raises OSError."""
        remove(self.own)
        self.temporary.mkdir(mode=0o700, parents=True)
        os.environ |= {
            "HOME": str(self.own), "TMPDIR": str(self.temporary),
            "GIT_CONFIG_NOSYSTEM": "1",  # it may hold tokens, and git ends where it cannot read it
        }  # fmt: skip


def is_harmless(folder: str, home: Path) -> bool:
    """Whether all in it may be read: it is not in this system's home, and neither that nor the
    user's is below it."""
    real = os.path.realpath(folder)
    if Path(real).is_relative_to(home.resolve()):
        return False
    return not any(path.resolve().is_relative_to(real) for path in (home, Path.home()))


def beside(program: str, home: Path) -> str:
    """The folder that a user's program is in, whose modules it imports; "": it may not read it."""
    folder = str(Path(program).resolve().parent)
    return folder if is_harmless(folder, home) else ""


def shown(program: str, home: Path) -> list[str]:
    """What of a user's program may be read: it and what is beside it, where that is harmless."""
    folder = beside(program, home)
    if folder and os.path.realpath(program) == program:
        return [folder]
    return [program, *filter(None, [folder])]


def put_up(walls: Walls, have: dict[str, str], room: Room, cwd: str, line: int) -> None:
    """Wall this process in, for good; `cwd` it can be in, whatever it can read there, and over
    `line` init hears of what is refused.

    Raises:
        OSError: one of the walls that are here cannot be put up.
    """
    read, seen = common(room.home)
    write = [*DEVICES, str(room.own), *walls.write]
    Path("/proc/self/oom_score_adj").write_text("500")  # it goes before kernel and core do
    sys.dont_write_bytecode = True  # beside modules that it only reads: each would be told of
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    search = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = within_reach(room.home, search, [*walls.read, *walls.write])
    if have["view"]:
        shown = [*seen, *mount_namespace.real(walls.read)]
        of_view = mount_namespace.real([str(room.own), *walls.write])
        mount_namespace.enter(
            shown, of_view, os.path.realpath(cwd), shared=(SHARED, walls.shm_bytes)
        )
        write.append(SHARED)
        _renew_stdin()
    eyes = (("/proc/self/mem", os.O_RDONLY), ("/", os.O_PATH)) if have["calls"] else ()
    opened = [os.open(*eye) for eye in eyes]
    _limit(walls, have)
    drop_privileges()
    if landlock.abi():
        landlock.restrict([*read, *walls.read], write, walls.ports)
    if have["calls"]:
        network = bool(walls.ports and have["ports"])
        code = calls_filter(
            network=network, processes=walls.processes,
            modes=bool(have["view"]), signals=bool(have["signals"]),
        )  # fmt: skip
        code += seccomp.assemble(seccomp.to_others(os.getpid()), notify=True)
        listener = seccomp.install(code, listen=True)
        hand_over(line, listener, *opened)
    _limit_to(resource.RLIMIT_NOFILE, walls.files, reserve=True)


@cache
def searched(home: Path, search: str) -> list[tuple[str, str, bool]]:
    """The folders of a PATH, by their real names too, and whether all agents reach them."""
    found = [(folder, os.path.realpath(folder)) for folder in search.split(":")]
    return [(folder, real, meets(real, common_real(home))) for folder, real in found]


def within_reach(home: Path, search: str, read: Iterable[str]) -> str:
    """Of a PATH the folders in which an agent that reads `read` as well reaches something: each of
    the others would be tried, and told of, whenever a program is looked for."""
    more = [os.path.realpath(path) for path in read]
    found = searched(home, search)
    reached = [name for name, real, all_do in found if all_do or meets(real, more)]
    return ":".join(reached) or os.defpath


def meets(folder: str, paths: Iterable[str]) -> bool:
    """Whether one of these paths is in the folder, or the folder in it."""
    return any(
        f"{folder}/".startswith(f"{path}/") or path.startswith(f"{folder}/") for path in paths
    )


def _renew_stdin() -> None:
    """Open it as the view shows it: the mode of a device is one for all processes."""
    stdin = os.open(os.devnull, os.O_RDONLY)
    os.dup2(stdin, 0)
    os.close(stdin)


def drop_privileges() -> None:
    """No program that is executed from here on gets any; nobody else of this user may look into
    this process, until it executes one."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    drop_capabilities()


def _limit(walls: Walls, have: dict[str, str]) -> None:
    """Programs reserve more addresses than they use: node 10 GiB for each memory of WebAssembly,
    AddressSanitizer 14 TiB. So whoever can have the memory of many processes anyway is limited in
    what each can write of its own, and not in addresses."""
    limits = {
        resource.RLIMIT_FSIZE: walls.file_bytes,
        resource.RLIMIT_DATA: walls.memory,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if not walls.processes:
        limits[resource.RLIMIT_AS] = walls.memory
    if have["tasks"] == USER_NAMESPACE:
        limits[resource.RLIMIT_NPROC] = walls.tasks
    for which, most in limits.items():
        _limit_to(which, most)


def _limit_to(which: int, most: int, *, reserve: bool = False) -> None:
    """Limit this process to `most`, or to what it has, if that is less; with `reserve` to half of
    that.

    Linux refuses to pass a descriptor to whoever has a lower limit of them than its user has under
    way. So an agent hands its listener over with the limit that init has, and half of that is the
    most that other agents, with theirs, can have under way.
    """
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard // 2 if reserve else hard)
    resource.setrlimit(which, (most, most))
