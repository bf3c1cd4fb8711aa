"""A store loses nothing that was acknowledged, however it is killed, encrypted or not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import fewer
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from opened_store import Opened
from waits import hear

from aios.kernel.lib.encryption import AeadCodec, ChecksumCodec, KeyRing, ValueCodec
from aios.kernel.store.transaction import Txn
from aios.syscalls.errors import Conflict

RING = bytes(range(32)).hex()
KEEPERS: list[ValueCodec] = [
    ChecksumCodec(),
    AeadCodec(KeyRing({b"ring": bytes.fromhex(RING)}, b"ring")),
]
WRITER = """
import os, sys
from pathlib import Path
from aios.kernel.lib.coroutine import Driver
from aios.kernel.store.store import Store
from aios.kernel.lib.encryption import ChecksumCodec, KeyRing, AeadCodec
codec = AeadCodec(KeyRing({b"ring": bytes.fromhex(sys.argv[3])}, b"ring")) if sys.argv[3:] else None
store = Store(Path(sys.argv[1]), lambda run: run(), codec=codec or ChecksumCodec())
def put(number):
    def do(txn):
        for half in (b"a", b"b"):
            txn.put("memory", half + b"%d" % number, b"%d" % number * 50)
    return do
number = int(sys.argv[2])
while True:
    os.read(0, 1)
    for _ in range(20):
        line = b"%d\\n" % number
        work = store.write(put(number), size=100)
        Driver(work, lambda _, line=line: os.write(1, line), print).go_on()
        number += 1
"""


@pytest.mark.parametrize("codec", KEEPERS)
def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path, codec: ValueCodec) -> None:
    acknowledged: list[int] = []
    for round_ in range(4):
        first = 1000 * round_
        command = [sys.executable, "-c", WRITER, str(tmp_path), str(first), RING]
        command = command[: 5 + isinstance(codec, AeadCodec)]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as writer:
            assert writer.stdin is not None
            assert writer.stdout is not None
            writer.stdin.write(b"xxx")
            data = b""
            while data.count(b"\n") < 10 * (round_ + 1):
                data += os.read(writer.stdout.fileno(), 1 << 16)
            writer.send_signal(signal.SIGKILL)
            data += writer.stdout.read()
        acknowledged += map(int, data.split(b"\n")[:-1])
        opened = Opened(tmp_path, codec=codec)
        for number in acknowledged:
            assert opened.get(b"a%d" % number) == opened.get(b"b%d" % number) == b"%d" % number * 50
        halves = opened.store.read(
            lambda txn: [{key[1:] for key, _ in txn.scan("memory", half)} for half in (b"a", b"b")]
        )
        assert halves[0] == halves[1]
        opened.store.close()


class Machine(RuleBasedStateMachine):
    """Against a dict; the store is closed and opened, and its file as it is at any moment, with
    what no reply has come for yet, opened as after a power cut."""

    codec: ValueCodec = ChecksumCodec()

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.opened = Opened(self.folder / "0", codec=self.codec)
        self.model: dict[bytes, bytes] = {}
        self.count = 0

    keys = st.sampled_from([b"a", b"b", b"c" * 400, b"\x00", b"\xff"])
    values = st.sampled_from([b"", b"1", b"x" * 300, b"y" * 9000])

    @rule(key=keys, value=values)
    def put(self, key: bytes, value: bytes) -> None:
        assert self.opened.put(key, value) is None
        self.model[key] = value

    @rule(key=keys)
    def delete(self, key: bytes) -> None:
        found = self.opened.write(lambda txn: txn.delete("memory", key))
        assert found == [self.model.pop(key, None) is not None]

    @rule(changes=st.dictionaries(keys, values), fails=st.booleans())
    def batch(self, changes: dict[bytes, bytes], *, fails: bool) -> None:
        def do(txn: Txn) -> None:
            for key, value in changes.items():
                txn.put("memory", key, value)
            if fails:
                raise Conflict("no")

        assert isinstance(self.opened.write(do)[0], Conflict if fails else type(None))
        if not fails:
            self.model |= changes

    @rule()
    def reopen(self) -> None:
        self.opened.store.close()
        self.opened = Opened(self.opened.store.folder, codec=self.codec)

    @rule(key=keys, value=values)
    def crash(self, key: bytes, value: bytes) -> None:
        """The file is copied while a write may be on its way: it is there, or it is not."""
        answers: list[Any] = []
        hear(self.opened.store.write(lambda txn: txn.put("memory", key, value)), answers.append)
        self.count += 1
        copy = self.folder / str(self.count)
        copy.mkdir()
        shutil.copy(self.opened.store.path, copy)
        self.opened.loop.wait(answers, 1)
        self.opened.store.close()
        self.opened = Opened(copy, codec=self.codec)
        if self.opened.get(key) == value:
            self.model[key] = value

    @invariant()
    def it_holds_the_model(self) -> None:
        held = self.opened.store.read(lambda txn: dict(txn.scan("memory", b"")))
        assert held == self.model

    def teardown(self) -> None:
        self.opened.store.close()
        shutil.rmtree(self.folder)


Machine.TestCase.settings = fewer(4)
TestMachine = Machine.TestCase


class SealedMachine(Machine):
    codec: ValueCodec = KEEPERS[1]


SealedMachine.TestCase.settings = fewer(10)
TestSealedMachine = SealedMachine.TestCase
