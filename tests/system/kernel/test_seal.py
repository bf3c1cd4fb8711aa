"""Encryption at rest: changed or moved values are detected, and no content is found in a home."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from commands import run as run_aios
from conftest import Boot, eventually, on_tiny
from helpers import kill_kernel, run
from hypothesis import given
from hypothesis import strategies as st

from aios.agents import Aios, connect
from aios.kernel.config import Config
from aios.kernel.core.disk import HEADER as FILE_HEADER
from aios.kernel.core.disk import BadBlock, BlockName, Disk
from aios.kernel.init import keyring
from aios.kernel.init.keyring import KeyRequest, WrappedRing, rotate, unlock, unwrap, wrap
from aios.kernel.journal import FRAME, Journal, read
from aios.kernel.lib.encryption import (
    HEADER,
    AeadCodec,
    ChecksumCodec,
    Damaged,
    KeyRing,
    ValueCodec,
)
from aios.kernel.storage.backends import EncryptedBackend, FolderBackend, encrypted
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, KeyMissing, KeyWrong, StoreDamaged

RING = KeyRing.new()
KEEPERS: list[ValueCodec] = [ChecksumCodec(), AeadCodec(RING)]

tables, keys = st.sampled_from(["memory", "log"]), st.binary(max_size=20)


# --- one value ------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", KEEPERS)
@given(table=tables, key=keys, data=st.binary(max_size=300), change=st.integers(1, 255))
def test_every_changed_byte_is_found(
    codec: ValueCodec, table: str, key: bytes, data: bytes, change: int
) -> None:
    kept = codec.encode(table, key, data)
    assert len(kept) == len(data) + codec.overhead
    assert codec.decode(table, key, kept) == data
    for at in range(len(kept)):
        changed = bytearray(kept)
        changed[at] ^= change
        with pytest.raises(Damaged):
            codec.decode(table, key, bytes(changed))
        with pytest.raises(Damaged):
            codec.decode(table, key, kept[:at])


@given(places=st.lists(st.tuples(tables, keys), min_size=2, max_size=2, unique=True))
def test_what_was_moved_is_refused(places: list[tuple[str, bytes]]) -> None:
    seal = AeadCodec(RING)
    kept = seal.encode(*places[0], b"mine")
    with pytest.raises(Damaged, match="not what was sealed there"):
        seal.decode(*places[1], kept)


@given(data=st.binary(min_size=8, max_size=100))
def test_a_sealed_value_says_nothing_twice(data: bytes) -> None:
    seal = AeadCodec(RING)
    first, second = seal.encode("memory", b"k", data), seal.encode("memory", b"k", data)
    assert first[HEADER.size :] != second[HEADER.size :]
    assert data not in first[HEADER.size :]


def test_no_nonce_comes_twice_in_threads_or_processes() -> None:
    seals = [AeadCodec(RING), AeadCodec(RING)]
    heads: list[bytes] = []

    def close(seal: AeadCodec) -> None:
        heads.extend(seal.encode("memory", b"k", b"")[: HEADER.size] for _ in range(2000))

    threads = [threading.Thread(target=close, args=(seal,)) for seal in seals * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(heads)) == 12_000


def test_a_rotated_ring_opens_what_is_older_and_no_other_does() -> None:
    old = AeadCodec(RING)
    new = AeadCodec(RING.rotated())
    assert new.decode("t", b"k", old.encode("t", b"k", b"data")) == b"data"
    assert new.encode("t", b"k", b"")[:4] != old.encode("t", b"k", b"")[:4]
    with pytest.raises(Damaged, match="which the ring has not"):
        old.decode("t", b"k", new.encode("t", b"k", b"data"))


# --- files ----------------------------------------------------------------------------------------


def test_a_frame_of_the_journal_holds_where_it_was_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j", lambda run: run(), codec=AeadCodec(RING))
    ends = []
    for item in (b"one", b"two"):
        journal.put("row", item)
        assert journal.commit()
        ends.append(journal.at)
    journal.close()
    assert read(tmp_path / "j", codec=AeadCodec(RING))[0] == {"row": [b"two"]}
    with pytest.raises(StoreDamaged, match="which the ring has not"):
        read(tmp_path / "j", codec=AeadCodec(KeyRing.new()))
    log = tmp_path / "j" / f"log-{journal.number}"
    data = log.read_bytes()
    first, second = data[: ends[0]], data[ends[0] : ends[1]]
    assert b"one" not in data
    log.write_bytes(second + first + data[ends[1] :])
    with pytest.raises(StoreDamaged, match="damaged at byte 8"):
        read(tmp_path / "j", codec=AeadCodec(RING))
    log.write_bytes(first + second[: FRAME.size + 5] + bytes(100))  # torn, as a power cut does
    assert read(tmp_path / "j", codec=AeadCodec(RING))[0] == {"row": [b"one"]}


def test_a_kv_block_is_sealed_under_a_name_that_tells_nothing(tmp_path: Path) -> None:
    name, other = BlockName(b"k" * 16, 64, 3), BlockName(b"o" * 16, 64, 3)
    rows = np.arange(90, dtype=np.uint8)
    disk = Disk(tmp_path, b"m" * 16, 1 << 20, seal=AeadCodec(RING))
    disk.write(name, rows)
    disk.write(other, rows)
    one, two = sorted(disk.folder.iterdir())
    assert b"k" * 16 not in one.read_bytes() + two.read_bytes()
    assert rows.tobytes()[:16] not in one.read_bytes()
    assert (b"k" * 16).hex() not in one.name + two.name
    again = Disk(tmp_path, b"m" * 16, 1 << 20, seal=AeadCodec(RING))
    assert sorted(found for found, _ in again.found) == [name, other]
    assert (again.read(name, 90) == rows).all()
    heads = [path.read_bytes()[: FILE_HEADER.size] for path in (one, two)]
    bodies = [path.read_bytes()[FILE_HEADER.size :] for path in (one, two)]
    crc = [head[-4:] for head in heads]
    one.write_bytes(heads[0][:-4] + crc[1] + bodies[1])  # whole, and another's
    with pytest.raises(BadBlock, match="not what was sealed there"):
        [again.read(each, 90) for each in (name, other)]
    assert Disk(tmp_path, b"m" * 16, 1 << 20, seal=AeadCodec(RING.rotated())).found == []


def test_chunks_elsewhere_are_sealed_by_name(tmp_path: Path) -> None:
    place = EncryptedBackend(FolderBackend(tmp_path / "blobs"), AeadCodec(RING))
    place.put("aa01", b"content of one")
    place.put("aa02", b"content of two")
    assert place.get("aa01") == b"content of one"
    assert place.get("aa03") is None
    folder = tmp_path / "blobs" / "aa"
    assert not any(b"content" in file.read_bytes() for file in folder.iterdir())
    (folder / "aa01").write_bytes((folder / "aa02").read_bytes())
    with pytest.raises(StoreDamaged, match="aa01"):
        place.get("aa01")
    place.delete("aa01")
    assert [*place.names()] == ["aa02"]


# --- the ring -------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrap with little work; each wrapping says how much it took."""
    monkeypatch.setattr(keyring, "SCRYPT_N", 2)


@pytest.mark.usefixtures("quick")
def test_a_wrapped_ring_opens_by_its_secret_alone() -> None:
    wrapped = wrap(RING, b"secret")
    assert unwrap(wrapped, b"secret") == RING
    assert wrap(RING, b"secret").sealed != wrapped.sealed
    with pytest.raises(KeyWrong):
        unwrap(wrapped, b"Secret")


@pytest.mark.usefixtures("quick")
def test_a_changed_ring_is_never_another(tmp_path: Path) -> None:
    keyring.write(tmp_path, wrap(RING, b"secret"))
    path = keyring.path_of(tmp_path)
    assert path.stat().st_mode & 0o77 == 0
    whole = path.read_bytes()
    found = 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        try:
            wrapped = keyring.read(tmp_path)
        except StoreDamaged:
            found += 1
        else:
            assert isinstance(wrapped, WrappedRing)  # bits that base64 does not use
            assert unwrap(wrapped, b"secret") == RING
    assert found > len(whole) - 5


def config(home: Path, **settings: Any) -> Config:
    return Config(home=str(home), **{"encrypt": True, **settings})


@pytest.mark.usefixtures("quick")
def test_what_a_home_is_opened_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIOS_KEY_FILE", raising=False)
    (tmp_path / "key").write_bytes(os.urandom(32))
    (tmp_path / "empty").touch()
    with pytest.raises(KeyMissing, match="there is no key"):
        unlock(config(tmp_path), KeyRequest())
    for name in ("empty", "none"):
        with pytest.raises(KeyMissing, match=name):
            unlock(config(tmp_path, key_file=str(tmp_path / name)), KeyRequest())
    assert not keyring.path_of(tmp_path).exists()
    ring = unlock(config(tmp_path, key_file=str(tmp_path / "key")), KeyRequest())
    monkeypatch.setenv("AIOS_KEY_FILE", str(tmp_path / "key"))
    assert unlock(config(tmp_path), KeyRequest()) == ring
    monkeypatch.delenv("AIOS_KEY_FILE")
    with pytest.raises(KeyWrong):
        unlock(config(tmp_path), KeyRequest("a passphrase"))
    with pytest.raises(BadInput, match="is encrypted"):
        unlock(config(tmp_path, encrypt=False), KeyRequest())


@pytest.mark.usefixtures("quick")
def test_a_home_in_clear_and_one_whose_ring_is_lost_are_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "data.mdb").touch()
    with pytest.raises(BadInput, match="holds data") as refused:
        unlock(config(tmp_path), KeyRequest("a passphrase"))
    assert "restore" in refused.value.hint
    assert not keyring.path_of(tmp_path).exists()


@pytest.mark.usefixtures("quick")
def test_rotation_keeps_all_keys_and_takes_another_secret(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="not encrypted"):
        rotate(config(tmp_path), KeyRequest("one"))
    first = unlock(config(tmp_path), KeyRequest("one"))
    with pytest.raises(KeyWrong):
        rotate(config(tmp_path), KeyRequest("other"))
    second = rotate(config(tmp_path), KeyRequest("one", new_passphrase="two"))
    assert first.keys.items() <= second.keys.items()
    assert second.current not in first.keys
    assert unlock(config(tmp_path), KeyRequest("two")) == second
    with pytest.raises(KeyWrong):
        unlock(config(tmp_path), KeyRequest("one"))
    (tmp_path / "key").write_bytes(b"a file")
    rotate(config(tmp_path), KeyRequest("two", new_key_file=str(tmp_path / "key")))
    assert len(unlock(config(tmp_path, key_file=str(tmp_path / "key")), KeyRequest()).keys) == 3


# --- a system -------------------------------------------------------------------------------------

SAID = {what: f"{what}-xylophone" for what in ("value", "content", "prompt", "message", "system")}
AGENT = "aios.mem_put({'k': 'value-xylophone'})\naios.recv()\naios.recv()"


def talk(aios: Aios, program: str) -> list[int]:
    """Use each text of SAID once, and leave it in the system. Return the tokens of an answer."""
    aios.mem_put({"key": SAID["value"]})
    aios.sto_put("notes/plan", SAID["content"])
    agent = aios.spawn(program, SAID["message"])
    aios.send(agent, SAID["message"])
    context = aios.open(system=SAID["system"], name="talk")
    answer = context.generate(SAID["prompt"], max_tokens=20, ignore_eos=True).tokens
    aios.sto_search("xylophone", fresh=True)
    run(aios, "Hello.", max_tokens=2)  # a step: what is idle before it goes to disk
    eventually(lambda: aios.stats().written)
    return answer


def found(home: Path, answer: list[int]) -> set[str]:
    """Return the texts that are found anywhere below a home."""
    data = b"\0".join(path.read_bytes() for path in home.rglob("*") if path.is_file())
    needles = {what: text.encode() for what, text in SAID.items()}
    needles["tokens"] = b"".join(map(msgpack.packb, answer[4:9]))
    return {what for what, needle in needles.items() if needle in data}


@pytest.mark.parametrize("encrypt", [True, False])
def test_what_is_said_is_in_the_files_of_a_home_in_clear_only(
    boot: Boot, tmp_path: Path, program: Callable[[str], str], *, encrypt: bool
) -> None:
    (tmp_path / "key").write_bytes(os.urandom(32))
    settings = {"encrypt": encrypt, "key_file": str(tmp_path / "key"), "idle_ttl": 0.0}
    system = boot(blobs=f"file://{tmp_path}/blobs", **settings)
    with connect(system.home, "test") as aios:
        answer = talk(aios, program(AGENT))
        live = found(system.home, answer) | found(tmp_path / "blobs", answer)
        expected = set() if encrypt else {*SAID, "tokens"}
        assert live == expected
        copy = tmp_path / "copy"
        assert aios.sto_backup(str(copy)).wait()["chunks"] > 0
        assert found(copy, answer) & {"value", "content"} == expected & {"value", "content"}
        kill_kernel(aios)
        assert aios.mem_get(["key"]) == {"key": SAID["value"]}
        assert aios.check() == []
    system.end()
    assert found(system.home, answer) | found(tmp_path / "blobs", answer) <= expected
    key = {"key_file": str(tmp_path / "key")}
    seal = AeadCodec(unlock(config(system.home, **key), KeyRequest())) if encrypt else None
    place = encrypted(FolderBackend(copy / "blobs"), seal)
    assert SAID["content"].encode() in [place.get(name) for name in place.names()]


def again(home: Path, **given: Any) -> System:
    system = System(home, on_tiny(home, slots=1, ctx=256, encrypt=True), detach=True, **given)
    system.ready()
    return system


def test_a_system_starts_with_its_key_alone_and_reads_what_an_older_key_wrote(
    homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = homes / "sealed"
    monkeypatch.delenv("AIOS_KEY_FILE", raising=False)
    with pytest.raises(KeyMissing):
        again(home)
    system = again(home, passphrase="correct horse")
    try:
        with connect(home, "test") as aios:
            aios.sto_put("first", "written before")
            aios.open(system="Be brief.", name="talk")
        rotated = run_aios(home, "key", "rotate")
        assert rotated.returncode == 75, rotated.stderr  # it runs
    finally:
        system.end()
    for wrong in ("", "wrong horse"):
        with pytest.raises(KeyMissing if not wrong else KeyWrong):
            again(home, passphrase=wrong)
    (home / "config.toml").write_text("encrypt = true\n")
    (tmp_path / "key").write_bytes(os.urandom(32))
    request = KeyRequest("correct horse", new_key_file=str(tmp_path / "key"))
    rotate(config(home), request)
    monkeypatch.setenv("AIOS_KEY_FILE", str(tmp_path / "key"))
    rotated = run_aios(home, "key", "rotate", "--json")
    assert rotated.returncode == 0, rotated.stderr
    system = again(home)
    try:
        with connect(home, "test") as aios:
            assert aios.sto_get("first") == b"written before"
            aios.sto_put("second", "written after")
            assert [context.name for context in aios.contexts()] == ["talk"]
            assert aios.sto_search("before", fresh=True).hits[0].path == "first"
            assert aios.sto_verify().wait()["problems"] == []
    finally:
        system.end()
