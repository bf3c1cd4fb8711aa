"""Agents: 24 chats of 5 turns with one system prompt, against llama-server under the same load.

A turn is a message of 30 tokens and a greedy answer of 32, end of turn or not; between two turns
0.5 s pass in a tool. Both sides get the same texts, the same chat template, file, threads, slots
and tokens a slot. Ours keeps each chat in a context of an agent process; the peer gets the whole
chat with every turn, as clients of its API send it, and its prompt cache is on, as it is by
default. `fitted` is ours again with the model as BF16, which `aios model fit` picks here.
"""

from __future__ import annotations

import http.client
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from aios.kernel.core.gguf import requantize

from .chats import ANSWER_TOKENS, PAUSE_S, SLOTS, WINDOW, Chat, Turn, figures, our_side
from .common import Progress, Target, model, threads
from .peer import PEER, server

TARGET = Target(0.33)
AGENTS, TURNS = 24, 5


def run(progress: Progress, agents: int = AGENTS, turns: int = TURNS) -> dict[str, Any]:
    chats, ours = our_side(progress, agents, turns)
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        fitted = Path(folder) / "bf16.gguf"
        requantize(model(), fitted, "bf16", threads())
        _, ours["fitted"] = our_side(progress, agents, turns, model=str(fitted))
    with server(progress, SLOTS, WINDOW) as address:
        progress(f"the peer: {agents} agents, {turns} turns each")
        peer = figures(peer_round(address, chats))
    ours["fitted"]["ratio"] = ours["fitted"]["makespan"] / peer["makespan"]
    return {
        "ratio": ours["makespan"] / peer["makespan"],
        "ours": {**ours, "agents": agents, "turns": turns},
        "peer": {**peer, "server": PEER},
    }


def peer_round(address: str, chats: list[Chat]) -> list[Turn]:
    """Let a client hold each chat, in a thread of its own."""
    with ThreadPoolExecutor(len(chats)) as clients:
        talks = clients.map(lambda chat: talk(address, chat), chats)
        return [turn for turns in talks for turn in turns]


def talk(address: str, chat: Chat) -> list[Turn]:
    messages = [{"role": "system", "content": chat.system}]
    turns = []
    for number, said in enumerate(chat.user):
        if number:
            time.sleep(PAUSE_S)  # the tool works
        messages.append({"role": "user", "content": said})
        began = time.monotonic()
        answer = complete(address, messages)
        ended = time.monotonic()
        messages.append(
            {"role": "assistant", "content": answer["choices"][0]["message"]["content"]}
        )
        timings = answer["timings"]
        turns.append(Turn(began, ended, timings["predicted_n"], timings["prompt_n"]))
    return turns


def complete(address: str, messages: list[dict[str, str]]) -> dict[str, Any]:
    request = {
        "messages": messages, "max_tokens": ANSWER_TOKENS, "ignore_eos": True,
        "temperature": 0, "samplers": ["temperature"],  # greedy without the default chain's cost
    }  # fmt: skip
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(request), headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    if response.status != http.client.OK:
        raise RuntimeError(f"the peer answered {response.status}: {body.decode()}")
    answer: dict[str, Any] = json.loads(body)
    return answer
