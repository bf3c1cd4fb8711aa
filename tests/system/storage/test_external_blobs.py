"""A system whose contents are elsewhere than in its store: used, killed, damaged, moved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from bucket import bucket_at
from conftest import Boot, eventually, on_tiny
from helpers import kill_kernel

from aios.agents import connect
from aios.kernel.storage.backends import FolderBackend
from aios.kernel.storage.catalog import KEY_BYTES
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, StoreDamaged


@pytest.fixture(params=["folder", "bucket"])
def settings(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    if request.param == "folder":
        return {"blobs": f"file://{tmp_path}/blobs"}
    options = bucket_at(request.getfixturevalue("server"), "kernel", monkeypatch)
    return {"blobs": "s3://kernel/aios", "blobs_options": options}


def test_storage_whose_contents_are_elsewhere(boot: Boot, settings: dict[str, Any]) -> None:
    content = os.urandom(700_000)
    system = boot(**settings)
    with connect(system.home) as aios:
        aios.sto_put("small", b"small")
        aios.sto_put("empty", b"")
        aios.sto_put("large", content)
        assert aios.sto_get("large") == content
        assert (aios.sto_get("small"), aios.sto_get("empty")) == (b"small", b"")
        kill_kernel(aios)
        assert aios.sto_get("large") == content
        found = aios.sto_verify().wait()
        assert (found["problems"], found["chunks"]) == ([], 4)
        aios.sto_purge("large")
        aios.sto_put("small", b"other")
        assert aios.sto_compact(keep=1).wait()["versions"] == 1
        assert aios.sto_verify().wait()["chunks"] == 1
        assert aios.check() == []


def test_what_a_death_left_over_is_compacted(boot: Boot, tmp_path: Path) -> None:
    system = boot(blobs=f"file://{tmp_path}/blobs")
    with connect(system.home) as aios:
        aios.sto_put("a", b"kept")
        FolderBackend(tmp_path / "blobs").put("cd" * KEY_BYTES, b"left over")
        assert aios.sto_compact().wait() == {"versions": 0, "chunks": 1}
        eventually(lambda: len(list(FolderBackend(tmp_path / "blobs").names())) == 1)
        assert aios.sto_get("a") == b"kept"


def test_a_content_that_was_changed_is_found(boot: Boot, tmp_path: Path) -> None:
    system = boot(blobs=f"file://{tmp_path}/blobs")
    with connect(system.home) as aios:
        aios.sto_put("a", b"right")
        aios.sto_put("b", b"lost")
        for file in (tmp_path / "blobs").glob("??/*"):
            if file.read_bytes() == b"right":
                file.write_bytes(b"wrong")
            else:
                file.unlink()
        for path in "ab":
            with pytest.raises(StoreDamaged):
                aios.sto_get(path)
        assert len(aios.sto_verify().wait()["problems"]) == 2


def test_another_place_than_the_contents_are_in_is_refused(homes: Path, tmp_path: Path) -> None:
    home = homes / "moved"
    for blobs, works in (("lmdb", True), (f"file://{tmp_path}/blobs", False), ("lmdb", True)):
        system = System(home, on_tiny(home, slots=1, ctx=256, blobs=blobs), detach=True)
        try:
            system.ready()
            with connect(home) as aios:
                if works:
                    aios.sto_put("a", b"here")
                    assert aios.sto_get("a") == b"here"
                else:
                    with pytest.raises(BadInput, match="are in lmdb"):
                        aios.sto_get("a")
                    assert aios.status().home == str(home)
        finally:
            system.end()
