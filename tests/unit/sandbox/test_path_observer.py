"""init reads the arguments of Linux's calls: it finds where a path leads, and always has an
answer.
"""

from __future__ import annotations

import ctypes
import os
import signal
import tracemalloc
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aios.kernel.lib.linux import libc
from aios.kernel.sandbox.path_observer import MAX_PATH_STEPS, WATCHED_CALLS, PathObserver, resolved
from aios.kernel.sandbox.seccomp_notify import MAX_REPORTS, SeccompListener

MEMORY = os.open("/proc/self/mem", os.O_RDONLY)
ROOT = os.open("/", os.O_PATH)
PR_SET_NAME = 15
NAMES = st.sampled_from(["a", "b", "c", "..", ".", ""])
PATHS = st.lists(NAMES, min_size=1, max_size=6).map("/".join)
ENTRIES = st.lists(
    st.tuples(
        st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=3), st.none() | PATHS
    ),
    max_size=8,
)  # where, and what a link there says; None: a folder


def planted(place: Path, entries: list[tuple[list[str], str | None]]) -> None:
    for where, target in entries:
        path = place.joinpath(*where)
        inside = path.parent.is_dir() and path.parent.resolve().is_relative_to(place)
        if inside and not os.path.lexists(path):
            if target is None:
                path.mkdir()
            else:
                path.symlink_to(f"{place}/{target}" if target.startswith("/") else target or ".")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(ENTRIES, PATHS)
def test_a_path_leads_where_linux_takes_it(
    tmp_path: Path, entries: list[tuple[list[str], str | None]], path: str
) -> None:
    place = tmp_path / uuid.uuid4().hex
    place.mkdir()
    planted(place, entries)
    full = f"{place}/{path}"
    try:
        found = os.open(full, os.O_PATH)
    except OSError:
        assert resolved(ROOT, os.getpid(), full, follows=True).startswith("/")  # and ends
        return
    assert resolved(ROOT, os.getpid(), full, follows=True) == str(
        Path(f"/proc/self/fd/{found}").readlink()
    )
    os.close(found)
    found = os.open(full, os.O_PATH | os.O_NOFOLLOW)
    assert resolved(ROOT, os.getpid(), full, follows=False) == str(
        Path(f"/proc/self/fd/{found}").readlink()
    )
    os.close(found)


def test_a_path_of_many_steps_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("./" * 100 + "loop")
    assert resolved(ROOT, os.getpid(), f"{tmp_path}/loop", follows=True) == "/"
    most = "/a" * (MAX_PATH_STEPS - 2)
    assert resolved(ROOT, os.getpid(), most, follows=True) == most
    assert resolved(ROOT, os.getpid(), most + "/a", follows=True) == "/"


HELD = ctypes.create_string_buffer(8192)
ARGS = st.one_of(
    st.integers(0, 2**64 - 1), st.sampled_from([0, 1, 3, 2**64 - 100, 2**63, 2**63 - 1]),
    st.integers(0, len(HELD)).map(lambda at: ctypes.addressof(HELD) + at),
)  # fmt: skip


def observer() -> PathObserver:
    """Make an observer of this process."""
    found = PathObserver(["/usr"], ["/tmp"], [80])
    found.attach(os.getpid(), MEMORY, ROOT)
    return found


@given(
    st.sampled_from(WATCHED_CALLS), st.lists(ARGS, min_size=6, max_size=6),
    st.one_of(st.binary(max_size=300), PATHS.map(str.encode), st.just(b"/x" * 4096)),
)  # fmt: skip
def test_whatever_the_arguments_are_there_is_an_answer(
    call: str, args: list[int], held: bytes
) -> None:
    HELD.raw = held[: len(HELD)].ljust(len(HELD), b"\0")
    for said, _ in observer().not_granted(call, os.getpid(), args):
        assert said.encode()


@pytest.mark.parametrize(
    ("path", "said"),
    [
        (b"/usr/lib", []), (b"/usr/../etc/shadow", ["/etc/shadow by /usr/../etc/shadow"]),
        (b"/usrs", ["/usrs"]), (b"/\xff", ["/\\xff"]),
        (b"/proc/self/root/etc/x", ["/etc/x by /proc/self/root/etc/x"]),
    ],
)  # fmt: skip
def test_what_is_out_of_reach_is_told_by_its_real_name(path: bytes, said: list[str]) -> None:
    HELD.raw = path.ljust(len(HELD), b"\0")
    args = [2**64 - 100, ctypes.addressof(HELD), os.O_RDONLY, 0, 0, 0]
    found = [real for real, _ in observer().not_granted("openat", os.getpid(), args)]
    assert found == said


def test_what_was_told_of_an_agent_takes_little_memory() -> None:
    lengths = []
    listener = SeccompListener(
        -1, observer(), WATCHED_CALLS, lambda *said: lengths.append(len(said[1]))
    )
    tracemalloc.start()
    try:
        for number in range(2 * MAX_REPORTS):
            for _ in range(2):
                listener._report("openat", f"/{number}/" + "x" * 4000, "read")
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert len(lengths) == MAX_REPORTS
    assert held < 1 << 18


def test_whatever_bytes_a_process_is_named_by_it_is_looked_at() -> None:
    """init looks at it: an exception there would end the whole system."""
    named, name = os.pipe()
    child = os.fork()
    if child == 0:
        libc.prctl(PR_SET_NAME, b"\xff\nPPid:\t1")
        os.close(name)
        signal.pause()
    os.close(name)
    try:
        assert os.read(named, 1) == b""
        assert observer().is_descendant(child)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(named)
