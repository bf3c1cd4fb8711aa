"""Grammars over a vocabulary of bytes, and answers that they allow."""

from __future__ import annotations

import random
from typing import Any

from aios.kernel.core.grammar import Grammars
from aios.syscalls.llm import Decoding

END = 256

BYTES = Grammars([*(bytes([byte]) for byte in range(256)), b""], [END], list)


def takes(text: str, **asked: Any) -> bool:
    """Return whether `text` may be a whole answer, for a model whose tokens are bytes."""
    grammar = BYTES.start(Decoding(**asked), [])
    for byte in text.encode():
        if byte not in grammar.allowed():
            return False
        grammar.accept(byte)
    assert grammar.complete <= (grammar.allowed().tolist() == [END])
    return END in grammar.allowed()


SHORT = {*b'"]},:', END}  # what brings a random answer to its end


def drawn(grammar: str, seed: int) -> str:
    """An answer that `grammar` allows, drawn byte by byte."""
    dice = random.Random(seed)
    state, out = BYTES.start(Decoding(grammar=grammar), []), bytearray()
    while (allowed := state.allowed().tolist()) != [END]:
        ends = [byte for byte in allowed if byte in SHORT]
        byte = dice.choice(ends if ends and dice.random() < 0.4 else allowed)
        if byte == END:
            break
        out.append(byte)
        state.accept(byte)
    return out.decode()
