"""The probe of a grammar: a process compiles it first, under limits that Linux enforces.

llguidance bounds the work of a step, but not the work of compiling: a schema of 3 KB that
intersects 40 patterns takes hours, and another of 60 bytes takes 500 MB.
"""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from aios.syscalls.errors import BadGrammar

CPU_S, MEMORY_BYTES = 0.5, 1 << 30  # processor time; address space


def limits(tokens: int) -> LLParserLimits:
    """Return the limits of compiling and of a step, for a vocabulary of so many tokens. Twice the
    tokens take twice the items; with 152,000 the limit is reached after 40 ms."""
    return LLParserLimits(
        max_lexer_states=10_000,
        initial_lexer_fuel=200_000,
        step_lexer_fuel=50_000,
        step_max_items=max(20_000, tokens // 2),
        verbose_errors=False,
    )


class TokenPieces:
    """The bytes of each token, in the form that llguidance takes a tokenizer."""

    def __init__(
        self, pieces: list[bytes], ends: list[int], tokenize: Callable[[bytes], list[int]]
    ) -> None:
        self.tokens = pieces
        self.eos_token_id, self.bos_token_id = ends[0], None
        self.special_token_ids = ends
        self.tokenize = tokenize

    def __call__(self, text: bytes) -> list[int]:
        return self.tokenize(text)


def probe(source: str) -> None:
    """Compile `source` in a process of its own.

    Raises:
        BadGrammar: compiling takes more than the limits.
    """
    command = [sys.executable, "-P", "-m", "aios.kernel.core.grammar_probe"]
    done = subprocess.run(command, input=source.encode(), capture_output=True, check=False)
    if done.returncode:
        limits = f"{CPU_S} s of processor time, {MEMORY_BYTES >> 20} MiB"
        raise BadGrammar(f"it takes too much to compile (the limits are {limits})")


def main() -> None:
    """Compile the grammar on stdin. An invalid one ends well: the core says what is wrong with it.
    A vocabulary of 256 bytes and an end will do, since the time hardly depends on it."""
    pieces = [*(bytes([byte]) for byte in range(256)), b""]
    tokenizer = LLTokenizer(TokenizerWrapper(TokenPieces(pieces, [256], list)), slices=[])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal ends the process
    matcher = LLMatcher(tokenizer, sys.stdin.read(), log_level=0, limits=limits(len(pieces)))
    if not matcher.is_error():
        matcher.compute_bitmask()


if __name__ == "__main__":
    main()
