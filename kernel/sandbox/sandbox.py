"""The sandbox of an agent's process, which the process enters right before its program runs.

It is made of independent mechanisms of Linux. init finds out which exist (`detect`), the kernel
shows them, and a setting decides whether an agent may run where one is missing.
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
from aios.syscalls.proc import SandboxGrants

from ..lib.linux import PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl, real
from ..lib.sweeper import remove
from . import cgroup, landlock, mount_namespace, seccomp
from .path_observer import PROC_SELF_LINKS, PathObserver, is_in
from .seccomp_notify import send_listener

# The parts of the system that programs need; they hold neither secrets nor sockets.
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
SHM = "/dev/shm"  # each agent has its own, in a mount namespace
WHOLE_FOLDERS = ("/proc", "/etc")  # one mount each: Landlock protects the rest of their contents
USER_NAMESPACE = "user namespace"
MAX_ENTRIES, MAX_PATH_BYTES = 256, 48 << 10  # entries of each list; bytes of all paths
FEWER = "name a folder in the place of what is in it"
LANDLOCK_NEEDS = {"files": 3, "ports": 4, "signals": 6}  # the first version of its ABI
R = TypeVar("R", bound=SandboxGrants)


class SandboxPolicy(SandboxGrants, kw_only=True):
    """The limits of all agents, and what all of them are granted: the setting `walls`."""

    off: bool = False  # no sandbox: an agent can do whatever its user can
    tasks: Annotated[int, Meta(ge=16)] = 128  # processes and threads at once
    files: Annotated[int, Meta(ge=32)] = 1024  # open descriptors of a process
    file_bytes: Annotated[int, Meta(ge=4096)] = 1 << 30  # of the longest file that it can write
    memory: Annotated[int, Meta(ge=1 << 28)] = 8 << 30  # bytes of a process
    shm_bytes: Annotated[int, Meta(ge=1 << 12)] = 64 << 20  # of the memory that its processes share


def merge_grants(one: R, other: SandboxGrants) -> R:
    """Return `one` with what `other` grants.

    Raises:
        LimitReached: it is more than init or the kernel's journal would accept.
    """
    both: dict[str, Any] = {}
    for name in SandboxGrants.__struct_fields__:
        a, b = getattr(one, name), getattr(other, name)
        both[name] = list(dict.fromkeys([*a, *b])) if isinstance(a, list) else a or b
    paths = [*both["read"], *both["write"]]
    if max(len(both[name]) for name in ("read", "write", "ports")) > MAX_ENTRIES:
        raise LimitReached(
            f"its sandbox grants are too much: at most {MAX_ENTRIES} paths, and as many ports",
            FEWER,
        )
    if sum(len(path.encode()) for path in paths) > MAX_PATH_BYTES:
        raise LimitReached(
            f"its sandbox grants are too much: the paths have more than {MAX_PATH_BYTES} bytes",
            FEWER,
        )
    return msgspec.structs.replace(one, **both)


def detect(cgroups: cgroup.AgentCgroups | None) -> dict[str, str]:
    """Return how this Linux can enforce each part of the sandbox; "" where it cannot."""
    abi = landlock.abi()
    mechanisms = {"privileges": "no_new_privs, no capabilities"}
    for name, needed in LANDLOCK_NEEDS.items():
        mechanisms[name] = f"Landlock ABI {abi}" if abi >= needed else ""
    mechanisms["calls"] = "seccomp" if _succeeds(_try_seccomp) else ""
    mechanisms["view"] = (
        "mount namespace" if _succeeds(lambda: mount_namespace.enter((), ())) else ""
    )
    counted = (
        os.getuid() != 0 and mechanisms["view"]
    )  # a user namespace counts RLIMIT_NPROC by itself
    mechanisms["tasks"] = cgroups.name if cgroups else USER_NAMESPACE if counted else ""
    return mechanisms


def check(policy: SandboxPolicy, mechanisms: dict[str, str]) -> None:
    """Refuse to start an agent where its policy demands mechanisms that are missing. Raises
    Denied.
    """
    missing = [name for name, how in mechanisms.items() if not how]
    if policy.all_walls and missing:
        raise Denied(
            f"this Linux has no wall for {', '.join(missing)}, and all are asked for",
            "see docs/walls.md",
        )


def _succeeds(attempt: Callable[[], object]) -> bool:
    """Try in a child process whether `attempt` works on this Linux."""
    os_pid = os.fork()
    if os_pid == 0:
        try:
            attempt()
            os._exit(0)
        except OSError:
            os._exit(1)
    return os.waitpid(os_pid, 0)[1] == 0


def _try_seccomp() -> None:
    drop_privileges()
    code = seccomp_filter(network=False, processes=False, modes=False, signals=False)
    seccomp.install(code, listen=True)


@cache
def python_paths() -> tuple[str, ...]:
    """List where this interpreter and the packages that agents import are."""
    names = ("syscalls", "agents", "examples")
    packages = [importlib.util.find_spec(f"aios.{name}") for name in names]
    locations = [
        place for spec in packages if spec for place in spec.submodule_search_locations or []
    ]
    found = [sys.prefix, sys.base_prefix, *sys.path, *locations]
    # An entry without "/" is the name of an import hook.
    return tuple(dict.fromkeys(path for path in found if path.startswith("/")))


def certificate_paths() -> list[str]:
    """List the certificates that the person told programs to trust."""
    named = (os.environ.get(name, "") for name in CERTIFICATE_VARIABLES)
    return [path for path in named if path.startswith("/")]


def withheld_certificates(home: Path) -> list[str]:
    """List those of the certificates that no agent may read, since a home would be readable too."""
    return [path for path in certificate_paths() if not is_harmless(path, home)]


@cache
def shared_paths(home: Path) -> tuple[list[str], list[str]]:
    """Return what all agents read, and these paths with devices as the mount namespace takes them.

    Devices are mounted read-only: agents can write to them, but not change their modes.
    """
    found = [*python_paths(), *certificate_paths()]
    read = [*SYSTEM, *(path for path in found if is_harmless(path, home)), str(home / "run")]
    seen = {
        next((top for top in WHOLE_FOLDERS if path.startswith(top + "/")), path) for path in read
    }
    return read, list(mount_namespace.real([*seen, *DEVICES]))


@cache
def seccomp_filter(*, network: bool, processes: bool, modes: bool, signals: bool) -> bytes:
    """Assemble the part of the filter that is the same for all agents with these grants."""
    rules = seccomp.rules(network=network, processes=processes, modes=modes, signals=signals)
    observed = seccomp.assemble_notify(seccomp.observed_calls(modes=modes))
    return seccomp.assemble(rules, notify=True) + observed


@cache
def real_shared_paths(home: Path) -> list[str]:
    """List the real paths that all agents read, without those that differ for each process."""
    return [os.path.realpath(path) for path in shared_paths(home)[0] if path not in PROC_SELF_LINKS]


def path_observer(
    policy: SandboxPolicy, mechanisms: dict[str, str], home: Path, key: int
) -> PathObserver:
    """Make the observer of an agent with this policy."""
    shared = [SHM] if mechanisms["view"] else []
    own = [*DEVICES, *shared, str(AgentDirectory(home, key).own), *policy.write]
    read, write = (map(real, paths) for paths in (policy.read, own))
    return PathObserver([*real_shared_paths(home), *read], write, policy.ports)


def can_read(policy: SandboxPolicy, home: Path, key: int, path: str) -> bool:
    """Tell whether an agent with this policy may read the file that `path` leads to."""
    own = str(AgentDirectory(home, key).own)
    names = {*real_shared_paths(home), *map(real, (*policy.read, *policy.write, own))}
    found = real(path)
    return policy.off or (found != "" and is_in(found, names))


class AgentDirectory:
    """The folder of its own that an agent has."""

    def __init__(self, home: Path, key: int) -> None:
        self.home = home
        self.own = home / "agents" / str(key)
        self.temporary = self.own / "tmp"

    def make(self) -> None:
        """Make the folder anew and empty, and have the environment point to it. Raises OSError."""
        remove(self.own)
        self.temporary.mkdir(mode=0o700, parents=True)
        os.environ |= {
            "HOME": str(self.own), "TMPDIR": str(self.temporary),
            "GIT_CONFIG_NOSYSTEM": "1", # not granted, as it may hold tokens: git would fail
        }  # fmt: skip


def is_harmless(folder: str, home: Path) -> bool:
    """Tell whether an agent may read a whole folder: no part of a home is in it or around it."""
    real = os.path.realpath(folder)
    if Path(real).is_relative_to(home.resolve()):
        return False
    return not any(path.resolve().is_relative_to(real) for path in (home, Path.home()))


def import_folder(program: str, home: Path) -> str:
    """Return the folder from which a user's program imports, or "" if an agent may not read
    that.
    """
    folder = str(Path(program).resolve().parent)
    return folder if is_harmless(folder, home) else ""


def program_paths(program: str, home: Path) -> list[str]:
    """List what of a user's program may be read: the file, and its folder where that is
    harmless.
    """
    folder = import_folder(program, home)
    if folder and os.path.realpath(program) == program:
        return [folder]
    return [program, *filter(None, [folder])]


def apply(
    policy: SandboxPolicy,
    mechanisms: dict[str, str],
    directory: AgentDirectory,
    cwd: str,
    channel: int,
) -> None:
    """Confine this process for good.

    It can be in `cwd`, whatever it can read there. Over `channel` init gets the seccomp listener.

    Raises:
        OSError: one of the mechanisms that were detected fails.
    """
    read, seen = shared_paths(directory.home)
    write = [*DEVICES, str(directory.own), *policy.write]
    Path("/proc/self/oom_score_adj").write_text(
        "500"
    )  # without memory, agents end before kernel and core
    sys.dont_write_bytecode = True  # it may not write beside modules, and each try is recorded
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    search = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = granted_search_path(directory.home, search, [*policy.read, *policy.write])
    if mechanisms["view"]:
        shown = [*seen, *mount_namespace.real(policy.read)]
        writable = mount_namespace.real([str(directory.own), *policy.write])
        mount_namespace.enter(
            shown, writable, os.path.realpath(cwd), shared=(SHM, policy.shm_bytes)
        )
        write.append(SHM)
        _reopen_stdin()
    observed = (("/proc/self/mem", os.O_RDONLY), ("/", os.O_PATH)) if mechanisms["calls"] else ()
    opened = [os.open(*each) for each in observed]
    _set_limits(policy, mechanisms)
    drop_privileges()
    if landlock.abi():
        landlock.restrict([*read, *policy.read], write, policy.ports)
    if mechanisms["calls"]:
        network = bool(policy.ports and mechanisms["ports"])
        code = seccomp_filter(
            network=network, processes=policy.processes,
            modes=bool(mechanisms["view"]), signals=bool(mechanisms["signals"]),
        )  # fmt: skip
        code += seccomp.assemble(seccomp.signal_rules(os.getpid()), notify=True)
        listener = seccomp.install(code, listen=True)
        send_listener(channel, listener, *opened)
    _set_limit(resource.RLIMIT_NOFILE, policy.files, halve=True)


@cache
def search_folders(home: Path, search: str) -> list[tuple[str, str, bool]]:
    """List the folders of a PATH, their real paths, and whether all agents may read in them."""
    found = [(folder, os.path.realpath(folder)) for folder in search.split(":")]
    return [(folder, real, overlaps(real, real_shared_paths(home))) for folder, real in found]


def granted_search_path(home: Path, search: str, read: Iterable[str]) -> str:
    """Return the part of a PATH in which an agent may read something.

    Each other folder would be tried, and recorded as refused, whenever a program is looked for.
    """
    more = [os.path.realpath(path) for path in read]
    found = search_folders(home, search)
    reached = [name for name, real, all_do in found if all_do or overlaps(real, more)]
    return ":".join(reached) or os.defpath


def overlaps(folder: str, paths: Iterable[str]) -> bool:
    """Tell whether one of these paths is in the folder, or the folder in it."""
    return any(
        f"{folder}/".startswith(f"{path}/") or path.startswith(f"{folder}/") for path in paths
    )


def _reopen_stdin() -> None:
    """Open stdin within the mount namespace: there agents cannot change the mode of the device."""
    stdin = os.open(os.devnull, os.O_RDONLY)
    os.dup2(stdin, 0)
    os.close(stdin)


def drop_privileges() -> None:
    """Give up all privileges for good, also those of programs that are executed later.

    No other process of this user may look into this one until it executes a program.
    """
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_DUMPABLE, 0)
    drop_capabilities()


def _set_limits(policy: SandboxPolicy, mechanisms: dict[str, str]) -> None:
    """Set the resource limits of a policy.

    Programs reserve more addresses than they use: node 10 GiB for each memory of WebAssembly,
    AddressSanitizer 14 TiB. So an agent that may start processes, and can have the memory of many
    anyway, is limited in the data it writes and not in addresses.
    """
    limits = {
        resource.RLIMIT_FSIZE: policy.file_bytes,
        resource.RLIMIT_DATA: policy.memory,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_CORE: 0,
    }
    if not policy.processes:
        limits[resource.RLIMIT_AS] = policy.memory
    if mechanisms["tasks"] == USER_NAMESPACE:
        limits[resource.RLIMIT_NPROC] = policy.tasks
    for which, most in limits.items():
        _set_limit(which, most)


def _set_limit(which: int, most: int, *, halve: bool = False) -> None:
    """Limit this process to `most`, or to its hard limit if that is less; with `halve` to half of
    that.

    Linux refuses to pass a descriptor to a process whose limit is below the number that its user
    has in flight. So an agent passes its listener with the limit that init has, and half of that is
    the most that other agents can have in flight.
    """
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard // 2 if halve else hard)
    resource.setrlimit(which, (most, most))
