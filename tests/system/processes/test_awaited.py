"""System calls in asyncio: many tasks on one connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from conftest import Boot
from helpers import kill_kernel

from aios.agents import Aios, connect
from aios.agents.sdk.async_calls import AsyncCalls
from aios.syscalls.base import Done
from aios.syscalls.errors import Cancelled, KernelGone, NotFound
from aios.syscalls.llm import Text, Tokens
from aios.syscalls.msg import Mail
from aios.syscalls.proc import ProcessInfo


def use(aios: Aios, body: Callable[[AsyncCalls], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        async with asyncio.timeout(60):
            return await body(AsyncCalls(aios))

    return asyncio.run(run())


async def waiting_mail(calls: AsyncCalls) -> asyncio.Task[Mail]:
    """A task with a call that the kernel has, and that waits for mail."""
    mail = asyncio.create_task(calls.call(Mail, "msg.recv"))
    await asyncio.sleep(0)  # until it has been sent
    await calls.call(ProcessInfo, "proc.whoami")
    return mail


def test_many_tasks_each_get_their_own(aios: Aios) -> None:
    async def body(calls: AsyncCalls) -> None:
        async def ask(number: int) -> None:
            for step in range(50):
                text = f"{number} {step}"
                got = await calls.call(Tokens, "llm.tokenize", text=text)
                back = await calls.call(Text, "llm.detokenize", tokens=got.tokens)
                assert back.text == text

        await asyncio.gather(*(ask(number) for number in range(20)))

    use(aios, body)


def test_a_call_that_waits_holds_up_no_other(aios: Aios) -> None:
    async def body(calls: AsyncCalls) -> str:
        mail = await waiting_mail(calls)
        me = await calls.call(ProcessInfo, "proc.whoami")
        assert not mail.done()
        assert calls.blocking(lambda: aios.whoami().pid) == me.pid
        await calls.call(Done, "msg.send", to=me.pid, body="hello")
        return str((await mail).body)

    assert use(aios, body) == "hello"


def test_a_call_ends_with_its_task(aios: Aios) -> None:
    async def body(calls: AsyncCalls) -> None:
        mail = await waiting_mail(calls)
        mail.cancel()
        await asyncio.wait([mail])
        with pytest.raises(NotFound):
            await calls.call(Done, "proc.kill", pid=10**6)

    use(aios, body)
    aios.send(aios.pid, "for the next")
    assert aios.recv(timeout=60).body == "for the next"


def test_the_kernel_s_death_and_the_system_s(boot: Boot) -> None:
    system = boot()

    async def body(calls: AsyncCalls) -> None:
        mail = await waiting_mail(calls)
        with connect(system.home) as other:
            kill_kernel(other)
            other.send(calls.aios.pid, "after it")
        assert (await mail).body == "after it"
        mail = await waiting_mail(calls)
        system.end()
        with pytest.raises(Cancelled):
            await mail
        with pytest.raises(KernelGone):
            await calls.call(ProcessInfo, "proc.whoami")

    with connect(system.home) as aios:
        use(aios, body)
