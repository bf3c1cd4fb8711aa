"""Backups, wherever contents are: taken while the system runs, restored as the guide says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import commands
import pytest
from bucket import bucket_at, put
from conftest import Boot, eventually, run_system

from aios.agents import Aios, connect
from aios.kernel.storage.backends import FolderBackend
from aios.syscalls.errors import BadInput, Cancelled, Malformed, StoreDamaged

SMALL = {"slots": 1, "ctx": 256}
CONTENTS = {f"n{number}": os.urandom(3000) for number in range(120)} | {"big": os.urandom(900_000)}


@pytest.fixture(params=["lmdb", "folder", "bucket"])
def kind(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


@pytest.fixture
def settings(
    request: pytest.FixtureRequest, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    if kind == "bucket":
        options = bucket_at(request.getfixturevalue("server"), "first", monkeypatch)
        return {"blobs": "s3://first/aios", "blobs_options": options}
    return {"blobs": f"file://{tmp_path}/blobs"} if kind == "folder" else {}


@contextmanager
def restored(home: Path, copy: Path, settings: dict[str, Any]) -> Iterator[Aios]:
    """A system of this home with the store of a backup."""
    (home / "store").mkdir(parents=True)
    (copy / "data.mdb").rename(home / "store" / "data.mdb")
    for system in run_system(home, SMALL | settings):
        with connect(system.home) as aios:
            yield aios


def test_backed_up_and_restored(
    boot: Boot, homes: Path, tmp_path: Path, kind: str, settings: dict[str, Any],
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """All of it is purged while the contents are copied, and other things are put."""
    copy = tmp_path / "copy"
    with connect(boot(**SMALL | settings).home) as aios:
        for path, content in CONTENTS.items():
            aios.sto_put(path, content)
        aios.sto_put("big", b"newer")
        call = aios.sto_backup(str(copy))
        if kind != "lmdb":
            eventually((copy / "blobs" / "ff").exists)
            for path in CONTENTS:
                aios.sto_purge(path)
            aios.sto_put("later", b"later")
        report = call.wait()
        assert report == {"chunks": 0 if kind == "lmdb" else len(CONTENTS) + 4, "missing": 0}
        left = 1 if kind != "lmdb" else len(CONTENTS) + 4
        assert aios.sto_verify().wait()["chunks"] == left
        eventually(lambda: aios.sto_compact().wait()["chunks"] == 0)
    if kind == "bucket":
        server = request.getfixturevalue("server")
        options = bucket_at(server, "second", monkeypatch)
        settings = {"blobs": "s3://second", "blobs_options": options}
        upload(server, "second", copy / "blobs")
    elif kind == "folder":
        settings = {"blobs": f"file://{copy}/blobs"}
    with restored(homes / f"restored-{kind}", copy, settings) as aios:
        for path, content in CONTENTS.items():
            assert aios.sto_get(path, 1) == content
        assert aios.sto_get("big") == b"newer"
        assert [*aios.sto_list("later")] == []
        assert aios.sto_verify().wait()["problems"] == []
        aios.sto_put("n1", b"goes on")
        assert aios.sto_get("n1") == b"goes on"


def upload(server: str, bucket: str, blobs: Path) -> None:
    for name in FolderBackend(blobs).names():
        put(server, f"{bucket}/{name}", (blobs / name[:2] / name).read_bytes())


def test_a_backup_knows_that_its_contents_are_beside_it(
    boot: Boot, homes: Path, tmp_path: Path
) -> None:
    """The default setting would take the store for one with all in it, and find nothing."""
    system = boot(**SMALL, blobs=f"file://{tmp_path}/blobs")
    with connect(system.home) as aios:
        aios.sto_put("a", b"here")
        aios.sto_backup(str(tmp_path / "copy")).wait()
    home = homes / "restored-wrong"
    with (
        restored(home, tmp_path / "copy", {}) as aios,
        pytest.raises(BadInput, match="`blobs` of a backup, not in lmdb"),
    ):
        aios.sto_get("a")
    for blobs in ("copy/blobs", "other"):  # once they are somewhere, they are not elsewhere
        for _ in run_system(home, SMALL | {"blobs": f"file://{tmp_path}/{blobs}"}):
            with connect(home) as aios:
                if blobs == "copy/blobs":
                    assert aios.sto_get("a") == b"here"
                else:
                    with pytest.raises(BadInput, match="copy/blobs, not in"):
                        aios.sto_get("a")


def test_a_backup_of_an_encrypted_home_says_what_it_takes(
    boot: Boot, homes: Path, tmp_path: Path
) -> None:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    system = boot(**SMALL, encrypt=True, key_file=str(tmp_path / "key"))
    with connect(system.home) as aios:
        aios.sto_put("a", b"here")
        aios.sto_backup(str(tmp_path / "copy")).wait()
    with (
        restored(homes / "restored-in-clear", tmp_path / "copy", {}) as aios,
        pytest.raises(StoreDamaged, match=r"`encrypt` and keys/data.json"),
    ):
        aios.sto_get("a")


def test_what_is_missing_is_told_and_the_rest_is_there(boot: Boot, tmp_path: Path) -> None:
    system = boot(**SMALL, blobs=f"file://{tmp_path}/blobs")
    with connect(system.home) as aios:
        for name in ("one", "two", "three"):
            aios.sto_put(name, name.encode())
    for file in (tmp_path / "blobs").glob("??/*"):
        if file.read_bytes() == b"two":
            file.unlink()
    done = commands.run(system.home, "sto", "backup", str(tmp_path / "copy"))
    assert done.returncode == 1
    assert done.stdout.startswith("missing: 1 chunk; `aios sto verify` names them\n")
    kept = sorted(file.read_bytes() for file in (tmp_path / "copy" / "blobs").glob("??/*"))
    assert kept == [b"one", b"three"]


def test_a_backup_that_ends_early_leaves_nothing(boot: Boot, tmp_path: Path) -> None:
    system = boot(**SMALL, blobs=f"file://{tmp_path}/blobs")
    with connect(system.home) as aios:
        for path, content in CONTENTS.items():
            aios.sto_put(path, content)
        call = aios.sto_backup(str(tmp_path / "copy"))
        eventually((tmp_path / "copy" / "blobs" / "ff").exists)
        aios.cancel(call.id)
        with pytest.raises(Cancelled):
            call.wait()
        assert not (tmp_path / "copy").exists()
        aios.sto_purge("big")
        eventually(lambda: aios.sto_compact().wait()["chunks"] == 0)
        names = [*FolderBackend(tmp_path / "blobs").names()]
        assert len(names) == len(CONTENTS) - 1


@pytest.mark.parametrize("target", ["there", "/proc/none", "relative", "/nul\0"])
def test_where_no_backup_can_be(boot: Boot, tmp_path: Path, target: str) -> None:
    (tmp_path / "there").mkdir()
    with connect(boot(**SMALL).home) as aios, pytest.raises((BadInput, Malformed)):
        aios.sto_backup(target if target != "there" else str(tmp_path / target)).wait()
    assert [*(tmp_path / "there").iterdir()] == []
