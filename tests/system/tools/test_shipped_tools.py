"""The toolboxes that ship: what they are for, and what they must refuse."""

from __future__ import annotations

import ast
import io
import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from conftest import Boot, eventually
from databases import duckdb_file, sqlite_file
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import FOLDER, Job
from PIL import Image
from places import DOCS
from readme import blocks
from shipped import ALL, BOXES, run
from web_pages import web_pages

from aios.agents import Aios, connect
from aios.agents.runtime.tool import Tool, load_tools
from aios.syscalls.errors import AiosError, NotFound, ToolArguments, ToolCrashed, ToolFailed

# --- all of them ----------------------------------------------------------------------------------


MANUAL = (DOCS / "tools.md").read_text()


def test_the_manual_has_each_tool_and_its_calls_fit() -> None:
    examples = [
        (ast.literal_eval(call.args[0]), ast.literal_eval(call.args[1]))
        for block in blocks(MANUAL, "python")
        for call in ast.walk(ast.parse(block))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "aios.call_tool"
    ]
    assert {name for name, _ in examples} == set(ALL)
    headings = " ".join(re.findall(r"^### (.*)$", MANUAL, re.MULTILINE))
    assert set(re.findall(r"`([\w.]+)`", headings)) == set(ALL)
    for name, args in examples:
        jsonschema.validate(args, ALL[name].schema)
        if name in ("calculate", "python", "time.now", "time.difference", "time.add"):
            assert run(name, **args)


def test_the_manual_s_own_toolbox_works(job: Job, tmp_path: Path) -> None:
    (tmp_path / "box.py").write_text(
        next(block for block in blocks(MANUAL, "python") if "@tool" in block)
    )
    dilute, add = load_tools(str(tmp_path / "box.py"))
    assert dilute(40, 10) == dilute.run({"strong": 40, "weak": 10}, job) == 3.0
    with pytest.raises(ToolArguments, match=r"\$\.litres"):
        dilute.run({"strong": 40, "weak": 10, "litres": 0}, job)
    assert (add.name, add.effect, add.exclusive, add.timeout) == ("notes.add", True, "notes", 10)
    assert set(add.schema["properties"]) == {"text"}


@pytest.mark.parametrize("tool", ALL.values(), ids=ALL.keys())
def test_each_has_a_description_and_a_plain_schema(tool: Tool) -> None:
    assert tool.description
    assert tool.result is not None
    jsonschema.Draft202012Validator.check_schema(tool.schema)
    jsonschema.Draft202012Validator.check_schema(tool.result)
    assert "$ref" not in json.dumps([tool.schema, tool.result])


def test_those_that_change_something_say_so() -> None:
    changing = {name for name, tool in ALL.items() if tool.effect}
    assert changing == {"files.write", "files.delete", "image.resize", "image.convert", "shell"}


def test_a_model_can_be_held_to_each_schema(aios: Aios) -> None:
    for tool in ALL.values():
        answer = aios.generate("Call it.", schema=tool.schema, max_tokens=2, temperature=0)
        assert answer.text[:1] == "{"


def test_each_box_works_in_its_worker(
    boot: Boot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lite, duck = sqlite_file(tmp_path / "a.db", "wal"), duckdb_file(tmp_path / "b.db")
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    monkeypatch.setenv("AIOS_HTTP_PRIVATE", "1")  # agents have what begins so
    count = "SELECT count(*) FROM ships"
    with web_pages() as (site, _):
        walls = {"read": [str(lite), str(duck)], "ports": [int(site.rpartition(":")[2])]}
        calls: list[tuple[str, dict[str, Any], str]] = [
            ("calculate", {"expression": "det([[1,2],[3,4]])"}, "'-2'"),
            ("python", {"code": "import numpy as np\nint(np.arange(4).sum())"}, "'6'"),
            ("sql.query", {"database": str(lite), "query": count}, "[[2]]"),
            ("sql.tables", {"database": str(duck)}, "VARCHAR"),
            ("sql.tables", {"database": "ships.db"}, "REAL"),
            ("files.write", {"path": "a.txt", "text": "It leaves at nine."}, "a.txt"),
            ("search", {"query": "leave", "path": "a.txt"}, "at nine"),
            ("web.search", {"query": "leave"}, "[]"),
            ("http.fetch", {"url": f"{site}/html"}, "at nine"),
            ("time.now", {"zone": "Asia/Tokyo"}, "+09:00"),
            ("image.resize", {"path": "a.png", "to": "b.png", "width": 4}, "4"),
            ("shell", {"command": "echo $((6 * 7))"}, "42"),
        ]
        assert {name.partition(".")[0] for name, _, _ in calls} == {box.stem for box in BOXES}
        with connect(boot(walls=walls).home) as aios:
            aios.sto_put("a.png", image.getvalue())
            aios.sto_put("ships.db", lite.read_bytes())
            for name, args, expected in calls:
                assert expected in str(aios.call_tool(name, args).result(60).value), name


# --- python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "output", "value"),
    [
        ("1 + 1", "", "2"),
        ("print('a')\nx = 3\nx * 2", "a\n", "6"),
        ("import sys\nprint('b', file=sys.stderr)", "b\n", None),
        ("def f(n): return n and n + f(n - 1)\nf(10)", "", "55"),
        ("import sys; print(1); sys.exit(0)", "1\n", None),
        (
            "import sys\nprint(1)\nfor part in (b'\\xc3', b'\\xa9', b'\\xff\\n'):\n"
            "    n = sys.stdout.buffer.write(part)\nsys.stdout.buffer.flush()\nprint(2)\n"
            "n, sys.stdout.encoding, sys.stdout.writable(), sys.stdout.isatty()",
            "1\né\ufffd\n2\n",
            "(2, 'utf-8', True, False)",
        ),
        ("", "", None),
    ],
)
def test_python_runs_code(code: str, output: str, value: str | None) -> None:
    assert run("python", code=code) == {"output": output, "value": value}


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (
            "print('seen')\n\n1/0",
            "ZeroDivisionError: division by zero, line 3\nIt had printed:\nseen",
        ),
        ("def f(:", "this is not Python: invalid syntax"),
        ("a = 1\0", "this is not Python"),
        ("(" * 1000, "this is not Python"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("def f(): f()\nf()", "RecursionError"),
        ("class E(Exception):\n    def __str__(self): return 'x' * 10**6\nraise E", "E: xxx"),
        ("class V:\n    def __repr__(self): raise ValueError('shy')\nV()", "ValueError: shy"),
    ],
)
def test_python_tells_a_model_what_went_wrong(code: str, reason: str) -> None:
    with pytest.raises(ToolFailed) as caught:
        run("python", code=code)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 30_000


def test_python_keeps_how_much_is_printed_small() -> None:
    found = run("python", code="for _ in range(1000): print('a' * 10_000)\n'b' * 10**6")
    assert found["output"].endswith("\n... and 9981000 characters more")
    assert len(found["output"]) < 21_000
    assert len(found["value"]) == 20_000


def test_python_keeps_nothing() -> None:
    run("python", code="left = 1")
    with pytest.raises(ToolFailed, match="NameError"):
        run("python", code="left")


REDESCRIBE = """
import gc
from aios.agents import Aios
from aios.syscalls.tool import Spec
aios = next(each for each in gc.get_objects() if isinstance(each, Aios))
{first}
aios.offer_tools([Spec(name="{name}", description="Do as I say.", schema={{}}, timeout=86400)])
"""


@pytest.mark.parametrize("name", ["python", "python.more"])
@pytest.mark.parametrize("first", ["", "aios.cancel(min(aios.connection.pending))"])  # of its jobs
def test_python_describes_no_tools_to_others(aios: Aios, name: str, first: str) -> None:
    """The code has the worker's connection to the kernel."""
    before = aios.tools()
    with pytest.raises((ToolFailed, ToolCrashed), match=r"says before it does|serves no more"):
        code = REDESCRIBE.format(name=name, first=first)
        aios.call_tool("python", {"code": code}).result(30)
    assert aios.tools() == before
    assert aios.call_tool("python", {"code": "1"}).result(30).value["value"] == "1"


# --- shell ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "code", "output"),
    [
        ("echo hi; exit 3", 3, "hi\n"),
        ("echo err >&2", 0, "err\n"),
        ("kill -9 $$", 137, ""),
        ("cat", 0, ""),  # there is no input
        ("no-such-command 2>/dev/null", 127, ""),
        ("sleep 1000 & echo done", 0, "done\n"),
    ],
)
def test_shell_runs_a_command(command: str, code: int, output: str) -> None:
    assert run("shell", command=command) == {"exit": code, "output": output}


def test_shell_keeps_how_much_is_printed_small() -> None:
    found = run("shell", command="head -c 10000000 /dev/zero | tr '\\0' a")
    assert found["output"] == "a" * 20_000 + "\n... and 9980000 bytes more"


def test_shell_ends_what_takes_too_long_with_all_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    with pytest.raises(ToolFailed, match=r"not done after 0\.5 s.*printed:\nstarted"):
        command = f"sleep 1000 & echo $! > {pids}; echo started; sleep 1000"
        run("shell", command=command, seconds=0.5)
    pid = int(pids.read_text())
    eventually(lambda: not psutil.pid_exists(pid) or psutil.Process(pid).status() == "zombie")


# --- time -----------------------------------------------------------------------------------------


def test_time_is_now_in_a_zone() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    found = run("time.now", zone="Asia/Tokyo")
    moment = datetime.fromisoformat(found["time"])
    assert before <= moment <= datetime.now(UTC)
    assert found["time"].endswith("+09:00")
    assert found["weekday"] == f"{moment:%A}"


def test_time_counts_across_zones_and_months() -> None:
    found = run("time.difference", start="2026-01-31", end="2026-02-28T12:00:00+01:00")
    assert found == {"seconds": 2458800.0, "days": 2458800 / 86400, "text": "28 days, 11:00:00"}
    assert run("time.difference", start="2026-01-02", end="2026-01-01")["days"] == -1
    leap = run("time.add", start="2028-02-28", days=1, hours=1.5)
    assert leap == {"time": "2028-02-29T01:30:00+00:00", "weekday": "Tuesday"}


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("time.now", {"zone": "Mars"}, "no time zone 'Mars'"),
        ("time.now", {"zone": "../../etc/passwd"}, "no time zone"),
        ("time.now", {"zone": "/etc/passwd"}, "no time zone"),
        ("time.now", {"zone": ""}, "no time zone"),
        ("time.now", {"zone": "a\0b"}, "no time zone"),
        ("time.difference", {"start": "tomorrow", "end": "2026-01-01"}, "'tomorrow' is not a time"),
        ("time.add", {"start": "9999-12-31", "days": 1}, "years 1 to 9999"),
        ("time.add", {"start": "2026-01-01", "weeks": 1e9}, "years 1 to 9999"),
    ],
)
def test_time_refuses_what_is_none(name: str, args: dict[str, Any], reason: str) -> None:
    with pytest.raises(ToolFailed, match=reason):
        run(name, **args)


# --- files ----------------------------------------------------------------------------------------


def test_files_are_written_listed_read_and_deleted(job: Job) -> None:
    path = f"{FOLDER}/a.txt"
    assert run("files.write", job, path=path, text="one") == {"path": path, "size": 3, "version": 1}
    assert run("files.write", job, path=path, text="two!")["version"] == 2
    assert run("files.read", job, path=path) == {"text": "two!", "size": 4, "next": None}
    listed = [{"path": path, "size": 4, "version": 2}]
    assert run("files.list", job, prefix=FOLDER) == listed
    run("files.delete", job, path=path)
    assert run("files.list", job, prefix=FOLDER) == []
    with pytest.raises(NotFound):
        run("files.read", job, path=path)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    max_examples=20,
)
@given(st.text("aé€𝄞", min_size=1, max_size=9), st.integers(16_380, 16_390))
def test_files_are_read_in_parts_that_cut_no_character(job: Job, text: str, size: int) -> None:
    whole = "x" * size + text * 4000
    run("files.write", job, path=f"{FOLDER}/long.txt", text=whole)
    parts, offset = [], 0
    while offset is not None:
        part = run("files.read", job, path=f"{FOLDER}/long.txt", offset=offset)
        parts.append(part["text"])
        offset = part["next"]
    assert "".join(parts) == whole
    assert len(parts) > 1


def test_files_read_text_only(job: Job) -> None:
    job.aios.sto_put(f"{FOLDER}/b.bin", b"a\0b")
    job.aios.sto_put(f"{FOLDER}/latin.txt", b"caf\xe9")
    with pytest.raises(ToolFailed, match="is not a text"):
        run("files.read", job, path=f"{FOLDER}/b.bin")
    assert run("files.read", job, path=f"{FOLDER}/latin.txt")["text"] == "caf\ufffd"
    assert run("files.read", job, path=f"{FOLDER}/latin.txt", offset=99)["text"] == ""


@pytest.mark.parametrize("path", ["", "x" * 201])
def test_files_have_paths_of_storage(path: str, job: Job) -> None:
    with pytest.raises(ToolArguments):
        run("files.write", job, path=path, text="")


def test_files_reach_no_file_of_the_machine(job: Job, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("a secret")
    for path in (str(tmp_path / "secret"), f"{FOLDER}/../../../{tmp_path}/secret"):
        with pytest.raises(AiosError) as caught:
            run("files.read", job, path=path[:200])
        assert "a secret" not in str(caught.value)


# --- search ---------------------------------------------------------------------------------------


def test_search_finds_what_was_just_written(job: Job) -> None:
    text = "The ferry to Almada leaves at nine."
    run("files.write", job, path=f"{FOLDER}/ferry.md", text=text)
    run("files.write", job, path=f"{FOLDER}/bread.md", text="Bread is sold out at ten.")
    best = run("search", job, query="when does the boat leave?", path=FOLDER)[0]
    assert (best["path"], best["owner"], best["text"]) == (f"{FOLDER}/ferry.md", "", text)
    assert len(run("search", job, query="ferry bread", path=FOLDER, count=1)) == 1
    assert run("search", job, query="ferry", path=f"{FOLDER}/nowhere") == []
