"""Files of KV blocks: whatever happens to one, it is read as it was written or refused."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from aios.kernel.core.disk import HEADER, PART_SUFFIX, BadBlock, BlockName, CodecName, Disk
from aios.syscalls.errors import BadInput

MINE, OTHER = b"m" * 16, b"o" * 16
NAME = BlockName(bytes(range(16)), 64, 3)
ROWS = np.random.default_rng(1).integers(0, 256, 90, np.uint8)
BUDGET = 1 << 30


@pytest.fixture(params=["plain", "zstd"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    return Disk(tmp_path, MINE, BUDGET, request.param)


def test_rows_come_back_and_are_found_again(disk: Disk, tmp_path: Path) -> None:
    size = disk.write(NAME, ROWS)
    assert disk.read(NAME, ROWS.size).tobytes() == ROWS.tobytes()
    path = disk.folder / str(NAME)
    assert path.stat().st_size == size
    codec: CodecName = "zstd" if type(disk.codec).__name__ == "ZstdCodec" else "plain"
    again = Disk(tmp_path, MINE, BUDGET, codec)
    assert again.found == [(NAME, size)]
    assert again.read(NAME, ROWS.size).tobytes() == ROWS.tobytes()
    disk.remove(NAME)
    disk.remove(NAME)
    assert list(disk.folder.iterdir()) == []


def test_cut_short_at_any_byte_it_is_refused(disk: Disk) -> None:
    path = disk.folder / str(NAME)
    disk.write(NAME, ROWS)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(BadBlock):
            disk.read(NAME, ROWS.size)
    path.write_bytes(whole + b"x")
    with pytest.raises(BadBlock):
        disk.read(NAME, ROWS.size)


def test_changed_at_any_bit_it_is_refused(disk: Disk) -> None:
    path = disk.folder / str(NAME)
    disk.write(NAME, ROWS)
    whole = path.read_bytes()
    for at in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[at // 8] ^= 1 << at % 8
        path.write_bytes(changed)
        with pytest.raises(BadBlock):
            disk.read(NAME, ROWS.size)


def test_a_file_under_another_name_is_refused(disk: Disk) -> None:
    disk.write(NAME, ROWS)
    other = NAME._replace(key=b"k" * 16)
    (disk.folder / str(NAME)).rename(disk.folder / str(other))
    with pytest.raises(BadBlock):
        disk.read(other, ROWS.size)
    with pytest.raises(FileNotFoundError):
        disk.read(NAME, ROWS.size)


def test_what_another_model_or_codec_wrote_is_not_looked_at(tmp_path: Path) -> None:
    theirs = Disk(tmp_path, OTHER, BUDGET)
    theirs.write(NAME, ROWS)
    copy = (theirs.folder / str(NAME)).read_bytes()
    packed = Disk(tmp_path, MINE, BUDGET, "zstd")
    assert packed.found == []
    assert not theirs.folder.exists()
    mine = Disk(tmp_path, MINE, BUDGET)
    assert not packed.folder.exists()
    (mine.folder / str(NAME)).write_bytes(copy)  # even where somebody copied it here
    with pytest.raises(BadBlock):
        mine.read(NAME, ROWS.size)


def test_what_was_left_half_written_is_removed(tmp_path: Path) -> None:
    disk = Disk(tmp_path, MINE, BUDGET)
    for name in (
        f"{NAME}{PART_SUFFIX}",
        "x",
        "00-1",
        f"{NAME}-1",
        f"{NAME.key.hex().upper()}-64-3",
    ):
        (disk.folder / name).write_bytes(b"half")
    (tmp_path / "a file that is not ours").write_bytes(b"")
    assert Disk(tmp_path, MINE, BUDGET).found == []
    assert list(disk.folder.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = Disk(tmp_path, MINE, BUDGET)
    part = disk.folder / f"{NAME}{PART_SUFFIX}"
    part.symlink_to("/dev/full")  # every write there ends in ENOSPC
    with pytest.raises(OSError, match="No space left"):
        disk.write(NAME, ROWS)
    assert list(disk.folder.iterdir()) == []
    assert disk.write(NAME, ROWS) == HEADER.size + ROWS.size


def test_a_folder_that_cannot_be_is_an_error_for_people(tmp_path: Path) -> None:
    (tmp_path / "kv").write_bytes(b"")
    with pytest.raises(BadInput, match=r"cannot keep snapshots in .*disk_bytes to 0"):
        Disk(tmp_path / "kv", MINE, BUDGET)


def test_zstd_without_its_package_is_an_error_for_people(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BadInput, match=r"zstandard.*aios-system\[compact\]"):
        Disk(tmp_path, MINE, BUDGET, "zstd")


def test_zstd_takes_less_room_for_values_alike(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=5000).astype(np.float16)
    size = Disk(tmp_path, MINE, BUDGET, "zstd").write(NAME, values.view(np.uint8))
    assert size < 0.95 * values.nbytes
