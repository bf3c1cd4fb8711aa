"""System calls in asyncio: many at once on one connection, each awaited by its own task."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import msgspec

from aios.syscalls.errors import AiosError, KernelGone, TimedOut

from .aios import Aios
from .connection import Pending

R = TypeVar("R")


class AwaitedCalls:
    """Takes the replies of `aios`. What that has itself blocks, and is used by way of `blocking`.

    To be made in a running event loop, and of use until that ends. All that waits raises
    KernelGone, should the system stop.
    """

    def __init__(self, aios: Aios) -> None:
        self.aios = aios
        self.lost: AiosError | None = None  # what kept it from taking replies
        self._came = asyncio.Event()  # one for each turn: all who wait look again
        self._look = asyncio.Event()
        self._task = asyncio.create_task(self._take())  # asyncio itself holds it weakly

    def start(self, name: str, /, **args: Any) -> Pending:
        """Send a call."""
        if self.lost:
            raise self.lost
        call = self.aios.start(name, **args)
        self._look.set()
        return call

    async def pieces(self, call: Pending) -> AsyncIterator[Any]:
        """The replies before the final one, which is in `call.body` at the end of them.

        Raises:
            AiosError: what the call ended with.
        """
        while True:
            while call.pieces:
                yield call.pieces.popleft()
            if call.ended:
                break
            if self.lost:
                raise self.lost
            await self._came.wait()
        if call.error is not None:
            raise call.error

    async def call(self, reply: type[R], name: str, /, **args: Any) -> R:
        """A call's final reply. The call is cancelled with the task that waits for it."""
        call = self.start(name, **args)
        with self.cancelling(call):
            async for _ in self.pieces(call):
                pass
        return msgspec.convert(call.body, reply)

    @contextlib.contextmanager
    def cancelling(self, call: Pending) -> Iterator[None]:
        """End `call` where the body is cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            with contextlib.suppress(KernelGone):
                self.start("call.cancel", call=call.id)
            raise

    def blocking(self, use: Callable[[], R]) -> R:
        """What a use of `aios` returns; all other tasks stand still until then."""
        try:
            return use()
        finally:
            self._look.set()

    async def _take(self) -> None:
        connection = self.aios.connection
        try:
            while True:
                with contextlib.suppress(TimedOut):  # then there was nothing
                    connection.pump(0.0)
                self._tell()
                if not connection.lost:
                    await self._readable(connection.descriptors())
        except AiosError as error:
            self.lost = error
            self._tell()

    def _tell(self) -> None:
        came, self._came = self._came, asyncio.Event()
        came.set()

    async def _readable(self, descriptors: list[int]) -> None:
        """Wait until something may have come, or a call was sent."""
        loop = asyncio.get_running_loop()
        for descriptor in descriptors:
            loop.add_reader(descriptor, self._look.set)
        try:
            await self._look.wait()
        finally:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
        self._look.clear()
