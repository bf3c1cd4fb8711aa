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


class AsyncCalls:
    """Awaits system calls on the connection of `aios`, in one event loop. Methods of `aios` itself
    block: call them by `blocking`.

    If the system stops, every call that waits raises KernelGone.
    """

    def __init__(self, aios: Aios) -> None:
        self.aios = aios
        self.lost: AiosError | None = None  # the error that ended the connection
        self._arrived = asyncio.Event()  # one for each turn, which wakes all waiters
        self._wakeup = asyncio.Event()
        self._task = asyncio.create_task(self._take())  # asyncio itself holds it weakly

    def start(self, name: str, /, **args: Any) -> Pending:
        """Send a call."""
        if self.lost:
            raise self.lost
        call = self.aios.start(name, **args)
        self._wakeup.set()
        return call

    async def pieces(self, call: Pending) -> AsyncIterator[Any]:
        """Iterate over the replies before the final one, which is in `call.body` afterwards.

        Raises:
            AiosError: the call failed.
        """
        while True:
            while call.pieces:
                yield call.pieces.popleft()
            if call.ended:
                break
            if self.lost:
                raise self.lost
            await self._arrived.wait()
        if call.error is not None:
            raise call.error

    async def call(self, reply: type[R], name: str, /, **args: Any) -> R:
        """Make a call and return its final reply. Cancelling the task cancels the call."""
        call = self.start(name, **args)
        with self.cancelling(call):
            async for _ in self.pieces(call):
                pass
        return msgspec.convert(call.body, reply)

    @contextlib.contextmanager
    def cancelling(self, call: Pending) -> Iterator[None]:
        """Cancel `call` if the body is cancelled."""
        try:
            yield
        except asyncio.CancelledError:
            with contextlib.suppress(KernelGone):
                self.start("call.cancel", call=call.id)
            raise

    def blocking(self, use: Callable[[], R]) -> R:
        """Call `use`, which uses `aios`, and return its result. All other tasks wait meanwhile."""
        try:
            return use()
        finally:
            self._wakeup.set()

    async def _take(self) -> None:
        connection = self.aios.connection
        try:
            while True:
                with contextlib.suppress(TimedOut):  # then there was nothing
                    connection.pump(0.0)
                self._wake_all()
                if not connection.lost:
                    await self._readable(connection.descriptors())
        except AiosError as error:
            self.lost = error
            self._wake_all()

    def _wake_all(self) -> None:
        came, self._arrived = self._arrived, asyncio.Event()
        came.set()

    async def _readable(self, descriptors: list[int]) -> None:
        """Wait until a reply may have come, or a call was sent."""
        loop = asyncio.get_running_loop()
        for descriptor in descriptors:
            loop.add_reader(descriptor, self._wakeup.set)
        try:
            await self._wakeup.wait()
        finally:
            for descriptor in descriptors:
                loop.remove_reader(descriptor)
        self._wakeup.clear()
