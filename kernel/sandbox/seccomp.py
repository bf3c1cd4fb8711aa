"""Seccomp: refuse system calls that no agent needs and that nothing else in the sandbox stops.

The filter is a list of rules, assembled to BPF here: libseccomp would have to be on the machine,
and its bindings on PyPI are not maintained.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from ..lib.linux import ON_ARM, syscall
from .path_observer import WATCHED_CALLS

SECCOMP, SET_FILTER, NEW_LISTENER = 277 if ON_ARM else 317, 1, 8
ARCH = 0xC00000B7 if ON_ARM else 0xC000003E
NEWEST_CALL = 467  # Linux 6.13: later calls are refused
KILL, ALLOW, ERRNO, NOTIFY = 0x80000000, 0x7FFF0000, 0x00050000, 0x7FC00000
LOAD, AND, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x54, 0x15, 0x35, 0x45, 0x06
NR_AT, ARCH_AT, ARGS_AT = 0, 4, 16  # offsets in the data of a filter, little-endian

# Numbers on x86-64 and on arm64; -1: there is no such call.
NUMBERS: dict[str, tuple[int, int]] = {
    # other processes
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_getfd": (438, 438), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "migrate_pages": (256, 238), "move_pages": (279, 239),
    "perf_event_open": (298, 241), "capset": (126, 91),
    # mounts, namespaces, identities of files
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "setns": (308, 268), "unshare": (272, 97),
    "open_by_handle_at": (304, 265), "swapon": (167, 224), "swapoff": (168, 225),
    "quotactl": (179, 60), "quotactl_fd": (443, 443), "fanotify_init": (300, 262),
    "fanotify_mark": (301, 263),
    # keys, and the user's shared queues and memory of System V and POSIX
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195), "semget": (64, 190),
    "semop": (65, 193), "semctl": (66, 191), "semtimedop": (220, 192), "msgget": (68, 186),
    "msgsnd": (69, 189), "msgrcv": (70, 188), "msgctl": (71, 187), "mq_open": (240, 180),
    "mq_unlink": (241, 181), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # parts of Linux with a history of vulnerabilities
    "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426), "io_uring_register": (427, 427), "personality": (135, 92),
    "modify_ldt": (154, -1), "lookup_dcookie": (212, 18), "vhangup": (153, 58),
    "syslog": (103, 116), "uselib": (134, -1), "nfsservctl": (180, 42),
    # the machine
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "init_module": (175, 105),
    "finit_module": (313, 273), "delete_module": (176, 106), "reboot": (169, 142),
    "acct": (163, 89), "ioperm": (173, -1), "iopl": (172, -1), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
    "sethostname": (170, 161), "setdomainname": (171, 162),
    # an agent serves nobody: others reach it through the kernel
    "bind": (49, 200), "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    # owners, modes and attributes of files, which Landlock leaves alone: MODES
    "chown": (92, -1), "lchown": (94, -1), "fchown": (93, 55), "fchownat": (260, 54),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "removexattr": (197, 14),
    "lremovexattr": (198, 15), "fremovexattr": (199, 16), "setxattrat": (463, 463),
    "removexattrat": (466, 466),
    "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452),
    "utime": (132, -1), "utimes": (235, -1), "futimesat": (261, -1), "utimensat": (280, 88),
    # refused for some arguments only, below
    "fork": (57, -1), "vfork": (58, -1), "clone": (56, 220), "clone3": (435, 435),
    "socket": (41, 198), "socketpair": (53, 199), "sendto": (44, 206), "sendmsg": (46, 211),
    "sendmmsg": (307, 269),
    "prctl": (157, 167), "prlimit64": (302, 261), "setpriority": (141, 140),
    "openat2": (437, 437),
    "ioprio_set": (251, 30), "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "kill": (62, 129), "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434), "tkill": (200, 130),
    "pidfd_send_signal": (424, 424), "fcntl": (72, 25), "ioctl": (16, 29),
    # observed, and let through: path_observer.py
    "open": (2, -1), "openat": (257, 56), "creat": (85, -1), "truncate": (76, 45),
    "chdir": (80, 49), "execve": (59, 221), "execveat": (322, 281), "mkdir": (83, -1),
    "mkdirat": (258, 34), "rmdir": (84, -1), "unlink": (87, -1), "unlinkat": (263, 35),
    "symlink": (88, -1), "symlinkat": (266, 36), "link": (86, -1), "linkat": (265, 37),
    "mknod": (133, -1), "mknodat": (259, 33),
    "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "connect": (42, 203),
}  # fmt: skip
SIGNALS = ("kill", "tgkill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open")
BY_ARGUMENTS = (
    "fork", "vfork", "clone", "clone3", "socket", "socketpair", "sendto", "sendmsg", "sendmmsg",
    "prctl", "prlimit64", "setpriority", "ioprio_set", "sched_setaffinity", "sched_setparam",
    "sched_setscheduler", "sched_setattr", "openat2", "pidfd_send_signal", "fcntl", "ioctl",
    *SIGNALS,
)  # fmt: skip
MODES = (
    "chmod", "fchmod", "fchmodat", "fchmodat2", "utime", "utimes", "futimesat", "utimensat",
    "chown", "lchown", "fchown", "fchownat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat",
    "removexattr", "lremovexattr", "fremovexattr", "removexattrat",
)  # fmt: skip
NAMES = {numbers[ON_ARM]: name for name, numbers in NUMBERS.items() if numbers[ON_ARM] >= 0}

THREAD, NAMESPACES = 0x10000, 0x7E020080  # flags of clone
FASTOPEN = 0x20000000  # of send: it connects, and Landlock does not check it
UNIX, INET, INET6, TCP = 1, 2, 10, 6
STREAM, DATAGRAM, RAW = 1, 2, 3  # kinds of sockets; a raw Unix socket is one of datagrams
LEASES = (1024, 1040)  # F_SETLEASE, F_SETDELEG: others who open the file wait 45 s
SETID = 0o6000  # mode bits: a program runs as the owner of its file
CREATES = 0o100 | 0o20000000  # O_CREAT and O_TMPFILE, where open takes a mode
SETS_MODE = {  # the position of the mode
    "chmod": 1, "fchmod": 1, "fchmodat": 2, "fchmodat2": 2, "creat": 1, "mknod": 1, "mknodat": 2,
}  # fmt: skip
MAKES = {"mknod": 1, "mknodat": 2}  # the position of the mode, which holds the kind of file
FILE_KINDS, FIFO, PLAIN = 0o170000, 0o010000, (0, 0o100000)
OPENS = {"open": 1, "openat": 2}  # the position of the flags; the mode is next
SETS_OWNER = {
    "chown": 1,
    "lchown": 1,
    "fchown": 1,
    "fchownat": 2,
}  # the position of the user; the group is next
SETS_RECEIVER = ( # who gets a descriptor's signals: F_SETOWN[_EX], FIOSETOWN, SIOCSPGRP
    ("fcntl", 8), ("fcntl", 15), ("ioctl", 0x8901), ("ioctl", 0x8902),
)  # fmt: skip
SAME = 0xFFFFFFFF  # as an owner: keep it
KIND = 0xF  # the mask of a socket's type; the rest are flags
PRCTLS = (1, 4, 35, 0x59616D61)  # SET_PDEATHSIG, SET_DUMPABLE, SET_MM, SET_PTRACER


class ArgumentTest(NamedTuple):
    """Holds where (argument & mask) compares so with `value`; with `unless`, where it does not."""

    at: int  # the position of the argument
    compare: int
    value: int
    unless: bool = False
    mask: int = 0xFFFFFFFF

    def holds(self, args: Sequence[int]) -> bool:
        value = args[self.at] & self.mask
        compared = {
            EQUAL: value == self.value,
            AT_LEAST: value >= self.value,
            ANY_BIT: bool(value & self.value),
        }
        return compared[self.compare] != self.unless


class SeccompRule(NamedTuple):
    """A call is refused where all of the tests hold."""

    call: str
    tests: tuple[ArgumentTest, ...] = ()
    number: int = errno.EPERM


@cache
def observed_calls(*, modes: bool) -> frozenset[str]:
    """Return the calls that init looks at and lets through; it refuses the others that it gets."""
    return frozenset(WATCHED_CALLS) if modes else frozenset(WATCHED_CALLS).difference(MODES)


def rules(*, network: bool, processes: bool, modes: bool, signals: bool) -> list[SeccompRule]:
    """Return the rules for an agent that may use TCP, start processes, change modes of files, and
    signal by descriptors, where Landlock checks the receiver.
    """
    conditional = observed_calls(modes=modes).union(BY_ARGUMENTS, MODES if modes else ())
    found = [SeccompRule(name) for name in NUMBERS if name not in conditional]
    found += [SeccompRule("prctl", (ArgumentTest(0, EQUAL, option),)) for option in PRCTLS]
    found += [
        SeccompRule(name, (ArgumentTest(0, AT_LEAST, 1),))  # a pid: the caller's own is 0
        for name in ("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setattr")
    ]
    another = ArgumentTest(
        1, EQUAL, 0, unless=True
    )  # threads of libzmq set their own policy, by number
    found.append(SeccompRule("sched_setscheduler", (ArgumentTest(0, AT_LEAST, 1), another)))
    for name, of_processes in (("setpriority", 0), ("ioprio_set", 1)):
        found.append(SeccompRule(name, (ArgumentTest(0, EQUAL, of_processes, unless=True),)))
        found.append(SeccompRule(name, (ArgumentTest(1, AT_LEAST, 1),)))
    found.append(SeccompRule("clone", (ArgumentTest(0, ANY_BIT, NAMESPACES),)))
    found += [SeccompRule("fcntl", (ArgumentTest(1, EQUAL, how),)) for how in LEASES]
    # Their flags are in memory, where no filter can look: C libraries fall back to clone, openat.
    found += [SeccompRule(name, number=errno.ENOSYS) for name in ("clone3", "openat2")]
    if not processes:
        found += [
            SeccompRule("fork"),
            SeccompRule("vfork"),
            SeccompRule("clone", (ArgumentTest(0, ANY_BIT, THREAD, True),)),
        ]
    if not signals:
        found.append(SeccompRule("pidfd_send_signal"))
        found += [SeccompRule(name, (ArgumentTest(1, EQUAL, how),)) for name, how in SETS_RECEIVER]
    return found + file_rules() + _socket_rules(network=network)


@cache
def file_rules() -> list[SeccompRule]:
    """Return the rules about files that hold in calls that are otherwise allowed.

    No agent leaves a setuid file behind, gives a file away, or makes other nodes than pipes and
    plain files.
    """
    found = [
        SeccompRule(call, (ArgumentTest(at, ANY_BIT, SETID),)) for call, at in SETS_MODE.items()
    ]
    for call, at in OPENS.items():
        found.append(
            SeccompRule(
                call, (ArgumentTest(at, ANY_BIT, CREATES), ArgumentTest(at + 1, ANY_BIT, SETID))
            )
        )
    for call, at in MAKES.items():
        kinds = [
            ArgumentTest(at, EQUAL, kind, unless=True, mask=FILE_KINDS) for kind in (FIFO, *PLAIN)
        ]
        found.append(SeccompRule(call, tuple(kinds)))
    for call, at in SETS_OWNER.items():
        for which, own in ((at, os.getuid()), (at + 1, os.getgid())):
            other = (
                ArgumentTest(which, EQUAL, own, unless=True),
                ArgumentTest(which, EQUAL, SAME, unless=True),
            )
            found.append(SeccompRule(call, other))
    return found


def is_refused(call: str, args: Sequence[int]) -> bool:
    """Tell whether an otherwise allowed call is refused for its arguments."""
    rules = [rule for rule in file_rules() if rule.call == call]
    return any(all(test.holds(args) for test in rule.tests) for rule in rules)


def signal_rules(os_pid: int) -> list[SeccompRule]:
    """Return rules against signals to any process but `os_pid`; init allows those to descendants.

    Landlock refuses the others as well, but only from Linux 6.12 on, and without a record.
    """
    another = (ArgumentTest(0, EQUAL, os_pid, unless=True), ArgumentTest(0, EQUAL, 0, unless=True))
    return [SeccompRule(name, another) for name in SIGNALS]


def _socket_rules(*, network: bool) -> list[SeccompRule]:
    """Allow connected Unix sockets, and with `network` TCP, where Landlock knows the port.

    Datagram sockets are refused: they send to any name without connecting, also half a pair.
    """
    not_unix = ArgumentTest(0, EQUAL, UNIX, unless=True)
    streams = [SeccompRule("socket", (ArgumentTest(1, EQUAL, STREAM, unless=True, mask=KIND),))]
    streams += [
        SeccompRule("socketpair", (ArgumentTest(1, EQUAL, k, mask=KIND),)) for k in (DATAGRAM, RAW)
    ]
    if not network:
        return [SeccompRule("socket", (not_unix,)), *streams]
    others = [ArgumentTest(0, EQUAL, family, unless=True) for family in (INET, INET6)]
    unlike_tcp = [ArgumentTest(2, EQUAL, 0, unless=True), ArgumentTest(2, EQUAL, TCP, unless=True)]
    sends = {"sendto": 3, "sendmsg": 2, "sendmmsg": 3}  # the position of the flags
    return [
        SeccompRule("socket", (not_unix, *others)),
        *streams,
        SeccompRule("socket", (not_unix, *unlike_tcp)),
        *[SeccompRule(name, (ArgumentTest(at, ANY_BIT, FASTOPEN),)) for name, at in sends.items()],
    ]


@cache
def deciding_arguments(call: str) -> tuple[int, ...]:
    """Return the positions of the arguments that decide whether a call is refused."""
    every = rules(network=True, processes=False, modes=True, signals=False) + signal_rules(0)
    return tuple(sorted({test.at for rule in every if rule.call == call for test in rule.tests}))


def assemble_notify(calls: Iterable[str]) -> bytes:
    """Assemble the part of a filter that passes these calls to the listener."""
    return b"".join(
        _step(LOAD, NR_AT) + _step(EQUAL, number, 0, 1) + _step(RETURN, NOTIFY)
        for number in (NUMBERS[call][ON_ARM] for call in calls) if number >= 0
    )  # fmt: skip


def assemble(refused: list[SeccompRule], *, notify: bool) -> bytes:
    """Assemble the part of a filter that refuses by these rules.

    With `notify` the listener gets each call that is refused with EPERM.
    """
    code = b""
    for rule in refused:
        number = NUMBERS[rule.call][ON_ARM]
        if number >= 0:
            tell = notify and rule.number == errno.EPERM
            end = _step(RETURN, NOTIFY if tell else ERRNO | rule.number)
            body = _tests(rule.tests) + end
            code += _step(LOAD, NR_AT) + _step(EQUAL, number, 0, len(body) // 8) + body
    return code


def _tests(tests: tuple[ArgumentTest, ...]) -> bytes:
    """Assemble tests: fall through where all hold, else jump over the instruction that follows."""
    code = b""
    for done, test in enumerate(tests, 1):
        away = 3 * (len(tests) - done) + 1
        yes, no = (away, 0) if test.unless else (0, away)
        code += _step(LOAD, ARGS_AT + 8 * test.at) + _step(AND, test.mask)
        code += _step(test.compare, test.value, yes, no)
    return code


def _step(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


def install(code: bytes, *, listen: bool) -> int:
    """Install the filter `code` in this process and all that it starts, for good.

    Returns the listener's descriptor with `listen`, else 0. Needs `no_new_privs`.

    Raises:
        OSError: there is no seccomp.
    """
    program = _step(LOAD, ARCH_AT) + _step(EQUAL, ARCH, 1, 0) + _step(RETURN, KILL)
    program += _step(LOAD, NR_AT) + _step(AT_LEAST, NEWEST_CALL, 0, 1)  # also all calls of x32
    program += _step(RETURN, NOTIFY if listen else ERRNO | errno.ENOSYS)
    program += code + _step(RETURN, ALLOW)
    held = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(held))
    return syscall(SECCOMP, SET_FILTER, NEW_LISTENER if listen else 0, header)
