"""The toolboxes that ship: what they are for, and what they must refuse."""

from __future__ import annotations

import io
import json
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
from conftest import eventually
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs import FOLDER, Job
from PIL import Image, PngImagePlugin
from shipped import ALL, run

from aios.agents import Aios
from aios.agents.tool import Tool
from aios.agents.tools import image as image_box
from aios.syscalls.errors import AiosError, NotFound, ToolArguments, ToolFailed

# --- all of them ----------------------------------------------------------------------------------


def test_they_are_what_the_manual_lists() -> None:
    manual = (Path(__file__).parent.parent / "docs" / "tools.md").read_text()
    assert len(ALL) == 18
    for name in ALL:
        assert f"`{name}`" in manual


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


# --- python ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "output", "value"),
    [
        ("1 + 1", "", "2"),
        ("print('a')\nx = 3\nx * 2", "a\n", "6"),
        ("import sys\nprint('b', file=sys.stderr)", "b\n", None),
        ("def f(n): return n and n + f(n - 1)\nf(10)", "", "55"),
        ("import sys; print(1); sys.exit(0)", "1\n", None),
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


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20)
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


# --- image ----------------------------------------------------------------------------------------


def store(job: Job, name: str, image: Image.Image, format: str, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, format, **options)
    job.aios.sto_put(f"{FOLDER}/{name}", out.getvalue())
    return f"{FOLDER}/{name}"


def stored(job: Job, name: str) -> Image.Image:
    return Image.open(io.BytesIO(job.aios.sto_get(f"{FOLDER}/{name}")))


def test_image_tells_what_an_image_is(job: Job) -> None:
    path = store(job, "a.png", Image.new("RGBA", (40, 20), "red"), "PNG")
    found = run("image.inspect", job, path=path)
    size = len(job.aios.sto_get(path))
    assert found == {
        "path": path, "format": "PNG", "mode": "RGBA", "width": 40, "height": 20, "frames": 1,
        "bytes": size,
    }  # fmt: skip
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    path = store(job, "a.gif", frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert run("image.inspect", job, path=path)["frames"] == 3


@pytest.mark.parametrize(
    ("asked", "size"),
    [
        ({"width": 20}, (20, 10)), ({"height": 5}, (10, 5)), ({"width": 7, "height": 9}, (7, 9)),
        ({"width": 1}, (1, 1)),
    ],
)  # fmt: skip
def test_image_resizes(job: Job, asked: dict[str, int], size: tuple[int, int]) -> None:
    path = store(job, "a.png", Image.new("RGB", (40, 20), "red"), "PNG")
    found = run("image.resize", job, path=path, to=f"{FOLDER}/b.png", **asked)
    assert (found["width"], found["height"], found["format"]) == (*size, "PNG")
    assert stored(job, "b.png").size == size
    assert stored(job, "b.png").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_image_converts_whatever_there_is(job: Job, mode: str) -> None:
    path = store(
        job, "a.any", Image.new(mode, (4, 4)), "PNG" if mode in "1L LA P RGBA I;16" else "TIFF"
    )
    for format in image_box.FORMATS:
        found = run("image.convert", job, path=path, to=f"{FOLDER}/b", format=format)
        assert (found["format"], found["width"]) == (format, 4)
        assert stored(job, "b").format == format


def test_image_puts_white_behind_what_is_transparent(job: Job) -> None:
    path = store(job, "a.png", Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "PNG")
    run("image.convert", job, path=path, to=f"{FOLDER}/b.jpg", format="JPEG")
    assert stored(job, "b.jpg").getpixel((4, 4)) == (255, 255, 255)


def png_of(width: int, height: int) -> bytes:
    """A PNG that says it is so large, and is a few bytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1000)
    end = chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + end


def test_image_refuses_bombs(job: Job) -> None:
    for width, height in ((6000, 6000), (60_000, 60_000)):  # Pillow warns of one, refuses the other
        job.aios.sto_put(f"{FOLDER}/bomb.png", png_of(width, height))
        with pytest.raises(ToolFailed, match="more than 32000000 pixels"):
            run("image.inspect", job, path=f"{FOLDER}/bomb.png")
    text = PngImagePlugin.PngInfo()
    text.add_text("note", "x" * (80 << 20), zip=True)
    path = store(job, "text.png", Image.new("L", (1, 1)), "PNG", pnginfo=text)
    with pytest.raises(ToolFailed, match="cannot be read as an image"):
        run("image.inspect", job, path=path)


def test_image_makes_no_giants(job: Job) -> None:
    path = store(job, "a.png", Image.new("L", (8, 8)), "PNG")
    with pytest.raises(ToolFailed, match="more than 32000000 pixels"):
        run("image.resize", job, path=path, to=f"{FOLDER}/b", width=8192)
    with pytest.raises(ToolArguments):
        run("image.resize", job, path=path, to=f"{FOLDER}/b", width=8193)
    with pytest.raises(ToolFailed, match="give a width"):
        run("image.resize", job, path=path, to=f"{FOLDER}/b")


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x89PNG\r\n\x1a\n", png_of(9, 9)[:45], b"%!PS-Adobe-3.0 EPSF-3.0\n"]
)
def test_image_reads_nothing_else(job: Job, content: bytes) -> None:
    job.aios.sto_put(f"{FOLDER}/x.png", content)
    with pytest.raises(ToolFailed, match="cannot be read as an image"):
        run("image.inspect", job, path=f"{FOLDER}/x.png")


def test_image_reads_no_file_that_is_too_long(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_box, "MAX_BYTES", 10)
    path = store(job, "a.png", Image.new("L", (8, 8)), "PNG")
    with pytest.raises(ToolFailed, match="at most 10 are read"):
        image_box.inspect.run({"path": path}, job)
