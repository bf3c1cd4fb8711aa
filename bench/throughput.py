"""Throughput: 16 agents generate at once, against llama-server under the same load.

Both sides get the same token ids, greedy, the same number of new tokens, the same file, threads,
slots and tokens a slot, and both stream: ours to 16 agent processes, the peer to 16 threads that
read server-sent events over HTTP.
"""

from __future__ import annotations

from statistics import median
from typing import Any

from .common import Progress, Target
from .load import AGENTS, make_prompts, our_system, tokens_per_second
from .peer import PEER, peer_server

TARGET = Target(0.95, at_least=True)
ROUNDS = 3
NEW_TOKENS = 128  # that each agent generates


def run(progress: Progress) -> dict[str, Any]:
    with our_system(progress) as (aios, ours), peer_server(progress) as peer:
        prompts = make_prompts(aios)
        rates: dict[str, list[float]] = {"ours": [], "peer": []}
        for number in range(ROUNDS + 1):
            for side, play in (("ours", ours), ("peer", peer)):
                progress(f"round {number} of {ROUNDS}: {side}")
                rate = tokens_per_second(play(prompts, NEW_TOKENS))
                if number:  # round 0 warms up
                    rates[side].append(rate)
    middle = {side: median(rounds) for side, rounds in rates.items()}
    load = {
        "agents": AGENTS,
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": AGENTS * NEW_TOKENS,
    }
    return {
        "ratio": middle["ours"] / middle["peer"],
        "ours": {"tokens_per_second": middle["ours"], "rounds": rates["ours"], **load},
        "peer": {"tokens_per_second": middle["peer"], "rounds": rates["peer"], "server": PEER},
    }
