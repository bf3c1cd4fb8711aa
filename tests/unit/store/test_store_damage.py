"""A store whose file is damaged, cut short, of another kind or of a later version."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from opened_store import Opened

from aios.kernel.store import store as module
from aios.kernel.store.probe import try_store
from aios.syscalls.errors import StoreDamaged


def filled(folder: Path) -> Path:
    opened = Opened(folder)
    for number in range(20):
        opened.put(b"key %d" % number, b"value %d " % number * 100)
    opened.store.close()
    return opened.store.path


def test_a_changed_value_is_found_out(tmp_path: Path) -> None:
    path = filled(tmp_path)
    data = path.read_bytes()
    at = data.rindex(b"value 7 value 7")
    path.write_bytes(data[:at] + b"V" + data[at + 1 :])
    opened = Opened(tmp_path)
    with pytest.raises(StoreDamaged, match="key 7"):
        opened.get(b"key 7")
    assert opened.get(b"key 8") == b"value 8 " * 100
    opened.store.close()


@pytest.mark.parametrize("left", [100, 4096, 5000, 8192, 40_000])
def test_a_file_cut_short_is_refused(left: int, tmp_path: Path) -> None:
    os.truncate(filled(tmp_path), left)
    with pytest.raises(StoreDamaged) as refused:
        Opened(tmp_path)
    assert "backup" in refused.value.hint
    with pytest.raises(StoreDamaged):  # the lock was let go
        Opened(tmp_path)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(StoreDamaged):
        Opened(tmp_path)
    (tmp_path / "file").write_text("where the folder should be")
    with pytest.raises(StoreDamaged, match="cannot open the store"):
        Opened(tmp_path / "file")


def test_what_reading_would_crash_is_found_by_another_process(tmp_path: Path) -> None:
    """LMDB ends the process that meets a page of a wrong kind."""
    try_store(tmp_path)  # there is none yet
    path = filled(tmp_path)
    try_store(tmp_path)
    data = bytearray(path.read_bytes())
    leaf = data.index(b"value 7 value 7") // 4096 * 4096
    data[leaf : leaf + 4096] = bytes(4096)
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match="cannot be read") as refused:
        try_store(tmp_path)
    assert "backup" in refused.value.hint


def test_a_store_of_a_later_version_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FORMAT", 2)
    filled(tmp_path)
    monkeypatch.setattr(module, "FORMAT", 1)
    data = (tmp_path / "data.mdb").read_bytes()
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="format 2"):
            Opened(tmp_path)
    assert (tmp_path / "data.mdb").read_bytes() == data
