"""Coroutines that serve calls: resumed, failed, stopped."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from aios.kernel.lib.coroutine import Driver, Wait, background
from aios.syscalls.errors import AiosError, Cancelled, Internal, NotFound


class Work:
    """A coroutine of three waits, and what became of it."""

    def __init__(self, *, shielded: bool = False) -> None:
        self.waits: list[Wait[int]] = [Wait(), Wait(shielded=shielded), Wait()]
        self.got: list[int] = []
        self.released = 0
        self.ends: list[Any] = []
        self.driver = Driver(self.run(), self.ends.append, self.ends.append)

    async def run(self) -> int:
        try:
            for wait in self.waits:
                self.got.append(await wait)
        finally:
            self.released += 1
        return sum(self.got)


def test_it_goes_on_as_soon_as_what_it_waits_for_is_there() -> None:
    work = Work()
    work.driver.go_on()
    work.waits[1].done(20)  # before anybody waits for it
    work.waits[0].done(1)
    assert (work.got, work.ends, work.released) == ([1, 20], [], 0)
    work.waits[2].done(300)
    assert (work.got, work.ends, work.released) == ([1, 20, 300], [321], 1)


def test_an_error_is_raised_where_it_waits() -> None:
    work, error = Work(), NotFound("gone")
    work.driver.go_on()
    work.waits[0].fail(error)
    assert (work.ends, work.released) == ([error], 1)


def test_what_is_over_takes_no_other_end() -> None:
    work = Work()
    work.driver.go_on()
    work.waits[0].done(1)
    work.waits[0].done(2)
    work.waits[0].fail(NotFound("gone"))
    assert (work.got, work.ends) == ([1], [])


def test_one_that_is_stopped_releases_what_it_has_and_says_nothing() -> None:
    work = Work()
    work.driver.go_on()
    work.driver.stop()
    assert (work.ends, work.released) == ([], 1)
    work.waits[0].done(1)
    assert work.got == []


def test_one_that_is_shielded_is_stopped_behind_what_it_waits_for() -> None:
    work = Work(shielded=True)
    work.driver.go_on()
    work.waits[0].done(1)
    work.driver.stop()
    assert work.released == 0
    work.waits[1].done(2)
    assert (work.got, work.ends, work.released) == ([1, 2], [], 1)


def test_one_that_stops_itself_ends_where_it_waits_next() -> None:
    async def run() -> None:
        driver.stop()
        said.append("on")
        try:
            await Wait()
        finally:
            said.append("released")

    said: list[str] = []
    driver = Driver(run(), lambda _: said.append("done"), lambda _: said.append("failed"))
    driver.go_on()
    assert said == ["on", "released"]


def test_a_wait_tells_its_end_without_a_coroutine() -> None:
    first, second, heard = Wait[int](), Wait[int](), list[Any]()
    first.tell(heard.append, heard.append)
    first.done(1)
    second.fail(NotFound("gone"))
    second.tell(heard.append, heard.append)
    assert (heard[0], type(heard[1])) == (1, NotFound)


def test_a_defect_is_told_and_no_other_work_hears_of_it(capfd: Any) -> None:
    async def run() -> None:
        await wait
        raise KeyError("a defect")

    wait: Wait[None] = Wait()
    errors: list[AiosError] = []
    background(run(), errors.append)
    wait.done(None)
    assert [type(error) for error in errors] == [Internal]
    assert "a defect" in capfd.readouterr().err


def test_an_error_that_is_kept_does_not_grow() -> None:
    kept = Cancelled("no more")
    heard: list[AiosError] = []

    async def run() -> None:
        wait: Wait[None] = Wait()
        wait.fail(kept)
        await wait

    for _ in range(100):
        background(run(), heard.append)
    assert (len(heard), kept.__traceback__) == (100, None)


def test_what_has_failed_is_gone_without_the_garbage_collector() -> None:
    class Large:
        pass

    async def run(large: Large, wait: Wait[None]) -> None:
        await wait

    gone: list[str] = []
    gc.disable()
    try:
        large, wait = Large(), Wait[None]()
        weakref.finalize(large, gone.append, "large")
        background(run(large, wait), lambda _: None)
        del large
        wait.fail(NotFound("nothing"))
        del wait
        assert gone == ["large"]
    finally:
        gc.enable()
