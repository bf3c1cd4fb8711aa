"""All that agents print is logged, in order, up to their ends; of a flood the last part."""

from __future__ import annotations

import errno
import os
import selectors
from collections.abc import Iterator
from pathlib import Path

import pytest

from aios.kernel.init.outputs import HOLE_BYTES, MAX_LOG_BYTES, READ_BYTES, Outputs

LINE = b"%015d\n"
LINES = READ_BYTES // 16  # in as much as a pipe holds


class Init:
    """init's loop, as far as it reads output, and one agent."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "agent-1.log"
        self.selector = selectors.DefaultSelector()
        self.outputs = Outputs(self.selector)
        self.writer = self.outputs.open(1, str(self.log))

    def turn(self) -> None:
        for key, _ in self.selector.select(0):
            key.data()

    def close(self) -> None:
        self.outputs.close()
        os.close(self.writer)
        self.selector.close()


@pytest.fixture
def init(tmp_path: Path) -> Iterator[Init]:
    init = Init(tmp_path)
    yield init
    init.close()
    assert init.outputs.outputs == {}


def flood(init: Init, pipes: int) -> None:
    """Print as much as fills the pipe, several times."""
    for number in range(pipes):
        lines = range(number * LINES, (number + 1) * LINES)
        os.write(init.writer, b"".join(LINE % line for line in lines))
        init.turn()


def test_what_was_printed_before_the_end_is_in_the_log(init: Init) -> None:
    os.write(init.writer, b"first\n")
    init.turn()
    assert init.log.read_bytes() == b"first\n"
    flood(init, 1)
    os.write(init.writer, b"last words")
    init.outputs.ended(1)  # the other end is still open, as that of a child of it is
    assert init.log.read_bytes().endswith(LINE % (LINES - 1) + b"last words")
    with pytest.raises(BrokenPipeError):
        os.write(init.writer, b"after the end")


def test_of_a_flood_the_last_is_kept_where_it_was(init: Init) -> None:
    pipes = 3 * MAX_LOG_BYTES // READ_BYTES
    flood(init, pipes)
    found = init.log.stat()
    assert found.st_size == pipes * READ_BYTES
    assert found.st_blocks * 512 <= MAX_LOG_BYTES + HOLE_BYTES + READ_BYTES
    with init.log.open("rb") as log:
        log.seek(-MAX_LOG_BYTES, os.SEEK_END)
        first = (found.st_size - MAX_LOG_BYTES) // 16
        for line in range(first, pipes * LINES):
            assert log.read(16) == LINE % line


def test_where_no_holes_can_be_made_it_begins_again(
    init: Init, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_fd: int, _end: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no holes here")

    monkeypatch.setattr("aios.kernel.init.outputs.punch_hole", refused)
    pipes = 3 * MAX_LOG_BYTES // READ_BYTES
    flood(init, pipes)
    assert init.log.stat().st_size <= MAX_LOG_BYTES + HOLE_BYTES + READ_BYTES
    assert init.log.read_bytes().endswith(LINE % (pipes * LINES - 1))


def test_a_full_disk_keeps_nobody_from_printing(init: Init) -> None:
    init.log.unlink()
    init.log.mkdir()  # what cannot be written to
    flood(init, 3)
    init.log.rmdir()
    os.write(init.writer, b"there is room again\n")
    init.turn()
    assert init.log.read_bytes() == b"there is room again\n"


def test_a_log_of_an_earlier_boot_or_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"kept")
    (tmp_path / "agent-1.log").symlink_to(tmp_path / "elsewhere")
    init = Init(tmp_path)
    os.write(init.writer, b"new")
    init.close()
    assert init.log.read_bytes() == b"new"
    assert (tmp_path / "elsewhere").read_bytes() == b"kept"


@pytest.mark.parametrize("closed", [True, False])
def test_the_bytes_that_a_full_disk_had_no_room_for_are_counted(init: Init, closed: bool) -> None:
    """Also when all that could print have closed the pipe before the end is known."""
    output = init.outputs.outputs[1]
    os.write(init.writer, b"first\n")
    init.turn()
    output.path = Path("/dev/full")
    os.write(init.writer, b"second\n")
    init.turn()
    output.path = init.log
    os.write(init.writer, b"third\n")
    init.turn()
    if closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), init.writer)
        init.turn()
        assert init.outputs.outputs == {}
    assert init.outputs.ended(1) == len(b"second\n")
    assert init.outputs.ended(1) == 0
    assert init.log.read_bytes() == b"first\nthird\n"
