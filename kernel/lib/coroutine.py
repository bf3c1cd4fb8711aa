"""Work that waits, as coroutines, each resumed by the one thing that it waits for.

There is no queue of tasks: whoever ends a Wait resumes its coroutine at once, in the kernel's loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, Generic, TypeVar

from aios.syscalls.errors import AiosError

from . import defects
from .callbacks import After

T = TypeVar("T")


class Wait(Generic[T]):
    """One result that is to come, for the one coroutine that awaits it.

    Args:
        cancel: runs where the call is cancelled, which then ends by this result. Without it, a
            cancelled call ends with Cancelled.
        shielded: what is waited for cannot be taken back: the coroutine goes on with it when its
            call has ended.
    """

    __slots__ = ("cancel", "error", "is_over", "result", "resume", "shielded")

    def __init__(self, *, cancel: Callable[[], None] | None = None, shielded: bool = False) -> None:
        self.cancel, self.shielded = cancel, shielded
        self.is_over = False
        self.result: T
        self.error: AiosError | None = None
        self.resume: Callable[[], None] | None = None

    def done(self, result: T) -> None:
        """End it with a result. One that is over takes no other."""
        if not self.is_over:
            self.result = result
            self._end()

    def fail(self, error: AiosError) -> None:
        """End it: the coroutine gets `error` raised where it waits."""
        if not self.is_over:
            self.error = error
            self._end()

    def tell(self, done: Callable[[T], object], fail: Callable[[AiosError], object]) -> None:
        """Have one of these hear the end, where no coroutine awaits it."""

        def over() -> None:
            if self.error is not None:
                fail(self.error)
            else:
                done(self.result)

        self.resume = over
        if self.is_over:
            over()

    def _end(self) -> None:
        self.is_over = True
        resume, self.resume = self.resume, None
        if resume is not None:
            resume()

    def __await__(self) -> Generator[Wait[Any], None, T]:
        if not self.is_over:
            yield self
        if self.error is not None:
            # An error that is kept would keep the frames that it was raised in, and these the wait.
            error, self.error = self.error, None
            try:
                raise error.with_traceback(None)
            finally:
                del error
        return self.result


async def within(
    wait: Wait[T], seconds: float | None, after: After,
    late: Callable[[], None],
) -> T:  # fmt: skip
    """Await it, and have `late` end it in so many seconds."""
    timer = None if seconds is None else after(seconds, late)
    try:
        return await wait
    finally:
        if timer is not None:
            timer.cancel()


class Driver:
    """A coroutine on its way, or a Wait; in the end `done` gets its result, or `fail` what it
    raises."""

    __slots__ = ("done", "fail", "is_running", "is_stopped", "wait", "work")

    def __init__(
        self, work: Awaitable[T], done: Callable[[T], object], fail: Callable[[AiosError], object]
    ) -> None:
        self.work, self.done, self.fail = work.__await__(), done, fail
        self.wait: Wait[Any] | None = None
        self.is_running = self.is_stopped = False

    def go_on(self) -> None:
        """Run it until it waits."""
        self.wait, self.is_running = None, True
        try:
            wait = self.work.send(None)
        except StopIteration as end:
            self.done(end.value)
        except AiosError as error:
            self.fail(error.with_traceback(None))
        except Exception:  # noqa: BLE001 (a defect of the kernel: its caller is told)
            self.fail(defects.report())
        else:
            self.is_running = False
            self.wait, wait.resume = wait, self.go_on
            if self.is_stopped:
                self.stop()

    def stop(self) -> None:
        """End it without a result, at the next thing that it may stop waiting for."""
        self.is_stopped = True
        if self.is_running or self.wait is None or self.wait.shielded:
            return
        self.wait.resume = None
        self.wait = None
        self.work.close()


def background(work: Awaitable[object], fail: Callable[[AiosError], object]) -> None:
    """Run what no call waits for; `fail` hears what it raises."""
    Driver(work, lambda _: None, fail).go_on()
