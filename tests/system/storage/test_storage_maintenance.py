"""Checks and compaction of storage: a person's, alone, and of use where contents are damaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Boot, run_system
from helpers import result_of
from raw import Raw

from aios.agents import Aios, connect
from aios.syscalls.errors import StoreDamaged
from aios.syscalls.wire import FAILED

Program = Callable[[str], str]


def test_maintenance_is_a_person_s(aios: Aios, program: Program) -> None:
    path = program(
        "found = []\n"
        "for call in (aios.sto_verify(), aios.sto_compact(1), aios.sto_backup('/tmp/x')):\n"
        "    try:\n        call.wait()\n"
        "    except AiosError as error:\n        found.append(error.code)\nreturn found"
    )
    assert result_of(aios, path) == ["access.denied"] * 3


def test_a_damaged_content_is_found_and_harms_no_other(homes: Path) -> None:
    home = homes / "damaged"
    settings = {"slots": 1, "ctx": 256}
    for _ in run_system(home, settings):
        with connect(home) as aios:
            aios.sto_put("bad", b"remarkable " * 400)
            aios.sto_put("good", b"fine " * 400)
    path = home / "store" / "data.mdb"
    data = path.read_bytes()
    path.write_bytes(data.replace(b"remarkable ", b"Remarkable "))
    for _ in run_system(home, settings):
        with connect(home) as aios:
            with pytest.raises(StoreDamaged):
                aios.sto_get("bad")
            assert aios.sto_get("good") == b"fine " * 400
            (problem,) = aios.sto_verify().wait()["problems"]
            assert "damaged" in problem
            aios.sto_purge("bad")
            assert aios.sto_verify().wait()["problems"] == []


def test_maintenance_that_runs_is_cancelled_and_alone(boot: Boot) -> None:
    system = boot()
    with connect(system.home) as aios, Raw(system.home) as raw:
        for at in range(0, 4000, 250):
            aios.sto_batch([{"path": f"{number}", "data": b""} for number in range(at, at + 250)])
        running = raw.start("sto.verify")
        assert raw.error("sto.compact")["code"] == "limit"
        assert raw.done("call.cancel", call=running)["found"]
        kind, body = raw.final(running)
        assert (kind, body["code"]) == (FAILED, "call.cancelled")
        assert aios.sto_verify().wait()["versions"] == 4000
        assert aios.check() == []
