"""The load of the agents bench, and our side of it: a system, and an agent process a chat."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from aios.agents import Aios, connect

from .common import Progress, race, system, text, threads

SLOTS, WINDOW = 8, 1024  # the longest chat comes to about 770 tokens
SYSTEM_TOKENS, USER_TOKENS = 393, 30
STRIDE_TOKENS = 20  # of text, between the beginnings of two messages
ANSWER_TOKENS = 32
PAUSE_S = 0.5  # that a tool takes between two turns
TALKER = str(Path(__file__).with_name("talker.py"))


class Chat(NamedTuple):
    system: str
    user: list[str]  # turn by turn


class Turn(NamedTuple):
    began: float  # monotonic seconds, the same clock on both sides
    ended: float
    generated: int  # tokens
    prefilled: int  # tokens: ours as they entered, the peer's as they were computed


def make_chats(aios: Aios, agents: int, turns: int) -> list[Chat]:
    """Make a chat for each agent: with one system prompt, of 400 tokens in the chat template, and
    messages of real text, no two alike."""
    tokens = aios.tokenize(text())
    begins = range(SYSTEM_TOKENS, SYSTEM_TOKENS + agents * turns * STRIDE_TOKENS, STRIDE_TOKENS)
    said = [aios.detokenize(tokens[at : at + USER_TOKENS]) for at in begins]
    shared = aios.detokenize(tokens[:SYSTEM_TOKENS])
    return [Chat(shared, said[agent::agents]) for agent in range(agents)]


def figures(turns: list[Turn]) -> dict[str, Any]:
    """Return the seconds and tokens of all chats together."""
    return {
        "makespan": max(turn.ended for turn in turns) - min(turn.began for turn in turns),
        "turn_p50": median(turn.ended - turn.began for turn in turns),
        "generated": sum(turn.generated for turn in turns),
        "prefilled": sum(turn.prefilled for turn in turns),
    }


def our_side(
    progress: Progress, agents: int, turns: int, **settings: Any
) -> tuple[list[Chat], dict[str, Any]]:
    """Return the chats, and their figures on our side; `settings` override those of the bench."""
    settings = {"slots": SLOTS, "ctx": WINDOW, "threads": threads(), **settings}
    with system(progress, **settings) as home, connect(home, "bench") as aios:
        chats = make_chats(aios, agents, turns)
        progress(f"{agents} agents, {turns} turns each")
        found = figures(our_round(aios, chats))
        stats = aios.stats()
    found["prefilled"] += stats.replayed - stats.shared
    return chats, found | {"switches": stats.switches}


def our_round(aios: Aios, chats: list[Chat]) -> list[Turn]:
    task = {"count": ANSWER_TOKENS, "pause": PAUSE_S}
    ends = race(aios, TALKER, [{**task, **chat._asdict()} for chat in chats])
    return [Turn(*turn) for end in ends for turn in end.result]
