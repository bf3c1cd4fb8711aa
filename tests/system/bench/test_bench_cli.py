"""`aios bench` as a person runs it."""

from __future__ import annotations

import json
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aios.bench.common import Target
from aios.shell.cli import execute


def test_bench_prints_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    measured: dict[str, Any] = {
        "ratio": 0.004, "ours": {"seconds": 0.01}, "peer": {"seconds": 2.5},
    }  # fmt: skip

    def fake(progress: Callable[[str], None]) -> dict[str, Any]:
        progress("measuring")
        return measured

    module = types.ModuleType("aios.bench.switch")
    module.__dict__.update(run=fake, TARGET=Target(0.01))
    monkeypatch.setitem(sys.modules, "aios.bench.switch", module)
    assert execute(["bench", "switch", "--json"]) == 0
    shown = capsys.readouterr()
    more = {"bench": "switch", "target": 0.01, "at_least": False, "missed": []}
    assert json.loads(shown.out) == more | measured
    assert shown.err == ""
    assert execute(["bench", "switch"]) == 0
    shown = capsys.readouterr()
    table = r"^SWITCH +OURS +PEER +TARGET\n.*^ratio +0.004 +<= 0.01$"
    assert re.search(table, shown.out, re.M | re.S)
    assert shown.err == "measuring\n"
    module.__dict__.update(TARGET=Target(0.01, at_least=True))
    assert execute(["bench", "switch"]) == 1
    assert re.search(r"^ratio +0.004 +>= 0.01 missed$", capsys.readouterr().out, re.M)
    measured |= {"ratio": 0.01, "targets": {"seconds": 0.001}, "missed": ["seconds"]}
    assert execute(["bench", "switch"]) == 1
    shown = capsys.readouterr()
    assert re.search(r"^seconds +0.01 +2.5 +0.001 missed$", shown.out, re.M)
    assert re.search(r"^ratio +0.01 +>= 0.01$", shown.out, re.M)


def test_bench_without_its_packages(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "aios.bench.throughput", None)
    assert execute(["bench", "throughput"]) == 1
    assert "pip install 'aios-system[bench]'" in capsys.readouterr().err


def test_only_retrieval_takes_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["bench", "retrieval", "--data", str(tmp_path)]) == 78
    assert "docs.jsonl" in capsys.readouterr().err
    assert execute(["bench", "swap", "--data", str(tmp_path)]) == 2
    assert "takes no --data" in capsys.readouterr().err
