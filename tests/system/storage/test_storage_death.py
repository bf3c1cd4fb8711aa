"""Kill the kernel under those who store: each change is done once, none that was said is lost."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from conftest import Boot, eventually
from helpers import kill_kernel
from raw import made_again

from aios.agents import Aios, connect
from aios.syscalls.errors import UploadGone

Program = Callable[[str], str]
BIG = os.urandom(1 << 20) * 5


def test_a_put_whose_reply_was_lost_is_done_once(boot: Boot) -> None:
    """By hand: the same bytes to the next kernel."""
    system = boot()
    calls: list[tuple[str, dict[str, Any]]] = [
        ("sto.put", {"path": "a", "data": b"1"}),
        ("sto.batch", {"changes": [{"path": "a", "data": b"2"}, {"path": "b", "data": b"2"}]}),
        ("sto.rollback", {"path": "a", "version": 1}),
        ("sto.delete", {"path": "b"}),
        ("sto.put", {"path": "c", "data": b"1", "if_version": 0}),
        ("sto.share", {"prefix": "a", "to": "/x"}),
        ("sto.purge", {"path": "c"}),
    ]
    with connect(system.home) as aios:
        with made_again(system.home, calls, lambda: kill_kernel(aios)):
            pass
        assert [info.version for info in aios.sto_history("a")] == [3, 2, 1]
        assert [info.version for info in aios.sto_history("b")] == [2, 1]
        assert aios.sto_verify().wait()["problems"] == []
        assert aios.check() == []


def test_kernels_killed_while_agents_put(boot: Boot, program: Program) -> None:
    """Each version that was acknowledged is there once, and nothing beside them."""
    system = boot()
    path = program(
        "versions = []\n"
        "for number in range(300):\n"
        "    info = aios.sto_put(f'p/{number % 7}', b'%d of ' % number + task.encode() * 50)\n"
        "    versions.append([number, info.path, info.version])\n"
        "return versions"
    )
    with connect(system.home) as aios:
        names = [f"w{number}" for number in range(4)]
        pids = [aios.spawn(path, name, name=name) for name in names]
        for _ in range(3):
            at = [_count(aios, name) for name in names]
            eventually(partial(_further, aios, names, pids, at))
            kill_kernel(aios)
        for name, pid in zip(names, pids, strict=True):
            exited = aios.wait(pid, timeout=60)
            assert exited.code == 0, aios.log(pid).data
            for number, where, version in exited.result:
                content = aios.sto_get(where, version, owner=f"/{name}")
                assert content == b"%d of " % number + name.encode() * 50
            assert _count(aios, name) == 300
        assert aios.sto_verify().wait()["problems"] == []


def _count(aios: Aios, name: str) -> int:
    return sum(info.version for info in aios.sto_list(owner=f"/{name}"))


def _further(aios: Aios, names: list[str], pids: list[int], at: list[int]) -> bool:
    """Tell whether each writer that is alive has put more objects."""
    alive = {row.pid for row in aios.ps()}
    return all(
        pid not in alive or _count(aios, name) > before + 10
        for name, pid, before in zip(names, pids, at, strict=True)
    )


def test_a_kernel_killed_under_an_upload(boot: Boot) -> None:
    """The pieces sent are gone; the SDK sends them again, and a raw caller gets an error."""
    system = boot()
    with connect(system.home) as aios, connect(system.home, "second") as second:
        upload = second.sto_upload(io.BytesIO(BIG))
        reads = 0

        class Killing(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                nonlocal reads
                reads += 1
                if reads == 40:
                    kill_kernel(aios)
                return super().read(size)

        assert second.sto_put("big", Killing(BIG)).version == 1
        assert second.sto_get("big") == BIG
        with pytest.raises(UploadGone):
            second.sto_batch([{"path": "x", "upload": upload}])
        found = aios.sto_verify().wait()
        assert (found["problems"], found["bytes"]) == ([], 1 << 20)
        assert aios.check() == []
