"""The model behind an engine of llama.cpp is known by all that decides its bits."""

from __future__ import annotations

import os
from pathlib import Path

from models import tiny_model

from aios.kernel.core.gguf import describe, file_bytes, identity, requantize
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.variants import sha256

WINDOW = 320


def test_all_that_decides_the_bits_is_in_the_fingerprint(tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "tiny.gguf")
    engine = LlamaEngine(path, slots=3, window=WINDOW, threads=1)
    same = LlamaEngine(path, slots=2, window=256, threads=1)
    more = LlamaEngine(path, slots=2, window=256, threads=2)
    small = LlamaEngine(path, slots=2, window=256, threads=1, cache="q8_0")
    prints = [engine.fingerprint(3), engine.fingerprint(0)]
    prints += [each.fingerprint(3) for each in (more, small)]
    assert same.fingerprint(3) == engine.fingerprint(3)
    copy = tmp_path / "model.gguf"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    copy.write_bytes(content)
    same.path = copy
    prints.append(same.fingerprint(3))
    assert len(set(prints)) == len(prints)
    for each in (engine, same, more, small):
        each.close()


def test_a_model_in_several_files_is_known_by_all_of_them(tmp_path: Path) -> None:
    """The first may have no more than the words of the model, the same in many."""
    first = tiny_model(tmp_path / "tiny.gguf", split=8)
    *_, last = sorted(tmp_path.iterdir())
    assert last != first
    engine = LlamaEngine(first, slots=2, window=256, threads=1)
    before = identity(first), sha256(first), engine.fingerprint(2)
    content = bytearray(last.read_bytes())
    content[-1] ^= 1
    last.write_bytes(content)
    os.utime(last, (1, 1))
    assert identity(first) != before[0]
    assert sha256(first) != before[1]
    assert engine.fingerprint(2) != before[2]
    assert file_bytes(first) == sum(each.stat().st_size for each in tmp_path.iterdir())
    requantize(first, tmp_path / "whole.gguf", "q4_0", 1)
    assert describe(tmp_path / "whole.gguf") == ("Q4_0", engine.params)
    engine.close()
