"""The peer: llama-server, as the package xllamacpp carries it."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from multiprocessing.connection import Connection

import xllamacpp

import aios.kernel.core  # noqa: F401 (its environment: what the child's libgomp reads)

from .common import Progress, model, threads
from .load import AGENTS, WINDOW, Round, Spans

PEER = "llama-server in xllamacpp " + version("xllamacpp")


@contextmanager
def peer_server(progress: Progress) -> Iterator[Round]:
    """Yield the function that plays the throughput bench's rounds."""
    with server(progress, AGENTS, WINDOW) as address:
        yield lambda prompts, new: peer_round(address, prompts, new)


@contextmanager
def server(progress: Progress, slots: int, window: int) -> Iterator[str]:
    """Yield the address of a llama-server, in a process of its own, with the embedded model.

    Its threads wait at barriers as those of our core do (aios.kernel.core says why): with libgomp's
    defaults a round of it took minutes here.
    """
    progress("starting the peer")
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    settings = (str(model()), slots, window, threads())
    process = spawn.Process(target=serve_peer, args=(there, *settings), daemon=True)
    process.start()
    there.close()
    try:
        yield here.recv()
    finally:
        process.kill()
        process.join()


def serve_peer(pipe: Connection, model: str, slots: int, window: int, n_threads: int) -> None:
    """Run the server until killed; its address goes into `pipe`.

    All other settings are llama-server's defaults, which cost the least: continuous batching,
    flash attention, a KV stream a slot, batches of 2,048 in parts of 512. Mean processor time of
    three rounds of this load, on a busy machine: 20.1 s; with one KV cache for all (kv_unified)
    20.5 s; with batches of 64 20.7 s; with flash attention forced instead of automatic 20.2 s.
    """
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 1)
    os.dup2(quiet, 2)
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_gpu_layers = 0
    params.n_parallel = slots
    params.n_ctx = slots * window
    params.fit_params = False  # take these settings as they are
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = n_threads
    params.port = 0
    server = xllamacpp.Server(params)
    pipe.send(server.listening_address)
    threading.Event().wait()


def peer_round(address: str, prompts: list[list[int]], new: int) -> Spans:
    spans: Spans = []
    start = threading.Barrier(len(prompts))

    def client(tokens: list[int]) -> None:
        start.wait()
        spans.append(complete(address, tokens, new))

    clients = [threading.Thread(target=client, args=(tokens,)) for tokens in prompts]
    for thread in clients:
        thread.start()
    for thread in clients:
        thread.join()
    return spans


def complete(address: str, tokens: list[int], new: int) -> tuple[float, float, int]:
    """Stream one completion. Return when it began, when it ended, and its tokens."""
    began = time.monotonic()
    connection = http.client.HTTPConnection(address.removeprefix("http://"))
    request = {
        "prompt": tokens, "n_predict": new, "ignore_eos": True, "stream": True,
        "cache_prompt": False,  # each round is to prefill, as ours does
        "temperature": 0, "samplers": ["temperature"],  # greedy without the default chain's cost
    }  # fmt: skip
    connection.request("POST", "/completion", json.dumps(request))
    pieces = [
        json.loads(line.removeprefix(b"data: "))
        for line in connection.getresponse()
        if line.startswith(b"data: ")
    ]
    connection.close()
    return began, time.monotonic(), int(pieces[-1]["tokens_predicted"])
