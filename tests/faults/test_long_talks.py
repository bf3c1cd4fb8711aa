"""Conversations of many times their window, by each way to make room."""

from __future__ import annotations

from typing import Any

import pytest
from conftest import Boot
from helpers import FACT, WINDOW, talk

from aios.agents import connect


@pytest.mark.faults
@pytest.mark.parametrize("on_full", ["slide", "summarize", "recall"])
def test_a_conversation_goes_on_past_its_window(boot: Boot, on_full: Any, full: bool) -> None:
    """To 20 times its length, at full length; the first turn is found again under recall."""
    turns = 12 if not full else 20 * WINDOW // 34
    system = boot(slots=2, ctx=WINDOW)
    with connect(system.home) as aios, aios.open("You are terse.", on_full=on_full) as context:
        moved = talk(context, turns)
        left = [each for each in moved if each is not None and each.dropped]
        assert len(left) >= 2
        gone = [message.content for each in left for message in each.dropped]
        assert gone[0] == FACT
        lines = [line for line in gone if line.startswith("Tell me one thing")]
        asked = [f"Tell me one thing about the number {n}." for n in range(1, turns)]
        assert lines == asked[: len(lines)]  # oldest first, each once
        assert all(each.tokens > 0 for each in left)
        assert all((each.summary is not None) == (on_full == "summarize") for each in left)
        if full:
            assert aios.whoami().tokens > 20 * WINDOW
        if on_full == "recall":
            answer = context.generate("What is my sister's parrot called?", max_tokens=24).result()
            assert answer.moved is not None
            assert FACT in [message.content for message in answer.moved.recalled]
