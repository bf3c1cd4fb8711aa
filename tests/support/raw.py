"""A caller without the SDK: pyzmq and msgpack, and whatever bytes a test wants to send."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import msgpack
import zmq

from aios.syscalls.home import endpoint
from aios.syscalls.wire import ABI_VERSION, DONE, FAILED, PIECE

PATIENCE = 30_000  # ms a reply may take on a busy machine

Reply = tuple[int, int, Any]


class Raw:
    """One DEALER socket; says hello unless told not to."""

    def __init__(
        self, home: Path, *, hello: bool = True, route: bytes | None = None, unread: int = 0,
        first: int = 1,
    ) -> None:  # fmt: skip
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, unread)
        self.socket.setsockopt(zmq.SNDTIMEO, PATIENCE)
        if route is not None:
            self.socket.setsockopt(zmq.ROUTING_ID, route)
        self.socket.connect(endpoint(home))
        self.ids = itertools.count(first)
        self.pid = self.done("hello", version=ABI_VERSION)["pid"] if hello else 0

    def send(self, *frames: bytes) -> None:
        self.socket.send_multipart(frames)

    def start(self, call: str, /, **args: Any) -> int:
        """Send a call; its id."""
        call_id = next(self.ids)
        self.send(msgpack.packb([call_id, call, args]))
        return call_id

    def reply(self) -> Reply:
        assert self.socket.poll(PATIENCE), "no reply"
        call_id, kind, body = msgpack.unpackb(self.socket.recv(), strict_map_key=False)
        assert kind in (DONE, FAILED, PIECE)
        return call_id, kind, body

    def final(self, call_id: int) -> tuple[int, Any]:
        """Kind and body of the final reply of `call_id`; replies to other calls are dropped."""
        while True:
            found, kind, body = self.reply()
            if found == call_id and kind != PIECE:
                return kind, body

    def done(self, call: str, /, **args: Any) -> Any:
        kind, body = self.final(self.start(call, **args))
        assert kind == DONE, body
        return body

    def error(self, call: str, /, **args: Any) -> dict[str, str]:
        return self.failed(self.start(call, **args))

    def failed(self, call_id: int) -> dict[str, str]:
        """The error that `call_id` ends with (0: what could not be read)."""
        kind, body = self.final(call_id)
        assert kind == FAILED, body
        assert body.keys() == {"code", "message", "hint"}
        assert body["message"]
        return dict(body)

    def waiting(self) -> Iterator[Reply]:
        """The replies that are there already."""
        while self.socket.poll(0):
            yield self.reply()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.pid:
            self.start("proc.exit")
            self.socket.setsockopt(zmq.LINGER, 500)
        self.close()


@contextlib.contextmanager
def made_again(
    home: Path, calls: Sequence[tuple[str, dict[str, Any]]], meanwhile: Callable[[], None]
) -> Iterator[Raw]:
    """Make the calls, and after `meanwhile` the same again, as if no reply had come: each has the
    reply that it had. The process that has made them is yielded, as it has come back."""
    with Raw(home, hello=False) as raw:
        welcome = raw.done("hello", version=ABI_VERSION, name="raw")
        first = next(raw.ids) + 1
        replies = [raw.final(raw.start(name, **args)) for name, args in calls]
        assert [kind for kind, _ in replies] == [DONE] * len(calls)
        meanwhile()
        with Raw(home, hello=False, first=first - 1) as again:
            back = {"pid": welcome["pid"], "secret": welcome["secret"]}
            assert again.done("hello", version=ABI_VERSION, back=back)["pid"] == welcome["pid"]
            for (name, args), reply in zip(calls, replies, strict=True):
                assert again.final(again.start(name, **args)) == reply
            yield again
