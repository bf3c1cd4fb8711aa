"""System calls: the round trip through SDK, kernel and back, against a raw echo.

The echo is pyzmq and msgpack, ROUTER and DEALER over ipc, the same message both ways: what a
system call cannot be quicker than.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import msgpack
import zmq

from aios.agents import Aios, connect

from .common import Progress, Target, system, timed

TARGET = Target(2.0)
ROUNDS, CALLS, PIPELINED, IN_FLIGHT = 5, 500, 5000, 100

Trip = Callable[[], object]
Pipeline = Callable[[int], float]  # number of calls: calls a second


def run(progress: Progress, calls: int = CALLS, pipelined: int = PIPELINED) -> dict[str, Any]:
    with (
        system(progress, slots=1, ctx=256) as home,
        connect(home, "bench") as aios,
        echo_client() as echo,
    ):
        sides: list[tuple[Trip, Pipeline]] = [
            (aios.policy, lambda count: our_rate(aios, count)),
            (lambda: echo_trip(echo), lambda count: echo_rate(echo, count)),
        ]
        trips: list[list[float]] = [[], []]
        rates: list[list[float]] = [[], []]
        for number in range(ROUNDS):
            progress(f"round {number + 1} of {ROUNDS}")
            for i, (trip, rate) in enumerate(sides):
                trips[i].append(median(timed(trip, calls)))
                rates[i].append(rate(pipelined))
    ours, peer = (
        {"round_trip": median(trip), "pipelined_per_second": median(rate)}
        for trip, rate in zip(trips, rates, strict=True)
    )
    ours["pipelined_ratio"] = ours["pipelined_per_second"] / peer["pipelined_per_second"]
    ratio = ours["round_trip"] / peer["round_trip"]
    return {"ratio": ratio, "ours": ours, "peer": peer}


def our_rate(aios: Aios, count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count // IN_FLIGHT):
        calls = [aios.start("kernel.policy") for _ in range(IN_FLIGHT)]
        for call in calls:
            call.wait()
    return count / (time.perf_counter() - begin)


# --- the peer ------------------------------------------------------------------------------------


def serve_echo(endpoint: str) -> None:
    """Answer until killed."""
    router = zmq.Context().socket(zmq.ROUTER)
    router.bind(endpoint)
    while True:
        route, data = router.recv_multipart()
        router.send_multipart([route, msgpack.packb(msgpack.unpackb(data))])


@contextmanager
def echo_client() -> Iterator[zmq.Socket[bytes]]:
    with tempfile.TemporaryDirectory(prefix="aios-") as folder:
        endpoint = f"ipc://{folder}/echo.sock"
        process = multiprocessing.get_context("spawn").Process(
            target=serve_echo, args=(endpoint,), daemon=True
        )
        process.start()
        client: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        client.connect(endpoint)
        try:
            yield client
        finally:
            client.close(linger=0)
            process.kill()
            process.join()


def _ask(client: zmq.Socket[bytes], call: int) -> None:
    client.send(msgpack.packb([call, "kernel.policy", {}]))


def echo_trip(client: zmq.Socket[bytes]) -> None:
    _ask(client, 1)
    msgpack.unpackb(client.recv())


def echo_rate(client: zmq.Socket[bytes], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count // IN_FLIGHT):
        for call in range(IN_FLIGHT):
            _ask(client, call)
        for _ in range(IN_FLIGHT):
            msgpack.unpackb(client.recv())
    return count / (time.perf_counter() - begin)
