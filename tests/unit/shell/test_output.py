"""Texts that agents wrote are printed as text; and that nothing is printed in any other way."""

from __future__ import annotations

import ast
import io
import json
import sys
import threading
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from places import PROJECT
from rich.cells import cell_len
from rich.live import Live
from rich.text import Text

from aios.shell.escape import as_json_text, brief, folded, hung, shown
from aios.shell.output import Screen, open_streams, whole
from aios.shell.questions import in_words
from aios.shell.render import columns, pairs
from aios.syscalls.acc import Question
from aios.syscalls.visible import is_visible

SHELL = PROJECT / "shell"
NASTY = (
    "\x1b[38;5;199m\x1b]8;;http://a\x07\x9b2J\x7f\b\r\x00"  # control characters: C0, C1, DEL
    "\u202e\u2066\u200f\u061c"  # directions
    "\u200b\u200d\ufeff\xad\u2060\ufe0f\u3164\u115f\u2800\U000e0041\U000e0100"  # no width
    "\ue000\U000f0000\ufdd0\u2028\u2029\u3000\xa0"  # private, unassigned, separators
)
anything = st.text(st.characters(codec="utf-8") | st.sampled_from(NASTY))


@pytest.mark.parametrize("char", NASTY, ids=lambda char: f"U+{ord(char):04X}")
def test_what_is_not_plainly_visible_is_escaped(char: str) -> None:
    assert shown(char) == shown(char, lines=True) == char.encode("unicode_escape").decode()


@given(anything)
@example(NASTY)
def test_a_shown_text_is_visible_and_shown_again_the_same(text: str) -> None:
    for line in (shown(text), *shown(text, lines=True).replace("\t", " ").split("\n")):
        assert line.isprintable()
        assert not {unicodedata.category(char) for char in line} & {"Cc", "Cf", "Zl", "Zp", "Co"}
        assert shown(line) == line


@pytest.mark.parametrize("text", ["Müller, 漢字, עברית, 😀", "C:\\temp", "a  b", "~!{}"])
def test_what_people_write_stays(text: str) -> None:
    assert shown(text) == text


def test_newlines_and_tabs_stay_in_lines_alone() -> None:
    assert (shown("a\n\tb"), shown("a\n\tb", lines=True)) == ("a\\n\\tb", "a\n\tb")
    assert hung("a\nhint: b") == "a\n  hint: b"


@given(st.dictionaries(anything, anything))
@example({NASTY: NASTY})
def test_json_loses_nothing_and_shows_nothing_else(data: dict[str, str]) -> None:
    text = as_json_text(data)
    assert json.loads(text) == data
    assert shown(text, lines=True) == text


def test_a_text_is_cut_at_a_word() -> None:
    text = "The quick brown fox jumps over the lazy dog."
    assert brief(text, 44) == text
    assert brief(text, 30) == "The quick brown fox jumps..."
    assert brief("x" * 99, 10) == "xxxxxxx..."
    assert brief("one\n two", 60) == "one two"
    assert all(len(brief(text, width)) <= width for width in range(4, 50))


@given(anything, st.integers(6, 40))
def test_folding_loses_nothing_and_keeps_the_width(text: str, width: int) -> None:
    lines = folded(text, width, "| ")
    assert all(line.startswith("| ") and cell_len(line) <= width for line in lines)
    whole = "".join(line.removeprefix("| ") for line in lines)
    assert whole == shown(text, lines=True).expandtabs(4).replace("\n", "")


# --- whatever is drawn ---------------------------------------------------------------------------


def drawn(what: Any, **options: Any) -> str:
    out = io.StringIO()
    Screen(file=out, force_terminal=True, width=400, **options).print(what)
    return out.getvalue()


@pytest.mark.parametrize(
    "what",
    [NASTY, f"[link=http://a]{NASTY}[/link]", Text(NASTY), columns([NASTY], [[NASTY]]),
     pairs([(NASTY, NASTY)])],
)  # fmt: skip
def test_a_screen_escapes_whatever_it_draws(what: object) -> None:
    text = drawn(what, color_system=None)
    assert shown(text, lines=True) == text
    assert "\\u202e" in text


def test_a_file_that_is_written_anew_stays_as_private_as_it_was(tmp_path: Path) -> None:
    path, beside = tmp_path / "key", tmp_path / "key.part"
    for each in (path, beside):
        each.write_bytes(b"old")
    path.chmod(0o600)
    with whole(path) as file:
        assert {each.stat().st_mode & 0o77 for each in tmp_path.glob("key.*.part")} == {0}
        file.write(b"new")
    assert (path.read_bytes(), path.stat().st_mode & 0o777) == (b"new", 0o600)
    assert beside.read_bytes() == b"old", "somebody's own file"


def test_a_traceback_of_a_thread_is_escaped(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    open_streams()

    def fail() -> None:
        raise ValueError(NASTY)

    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    said = capsys.readouterr().err
    assert "ValueError: \\x1b" in said
    assert is_visible(said.replace("\n", ""))


def test_a_screen_reads_no_markup() -> None:
    assert drawn("[bold]a[/bold] :smile:", color_system=None) == "[bold]a[/bold] :smile:\n"


def test_what_is_drawn_anew_is_escaped() -> None:
    out = io.StringIO()
    with Live(console=Screen(file=out, force_terminal=True), auto_refresh=False) as live:
        live.update(Text(NASTY), refresh=True)
    assert "\\x1b[38;5;199m" in out.getvalue()
    hidden = {char for char in NASTY if shown(char) != char} - {"\x1b", "\r"}  # rich's own
    assert not hidden & set(out.getvalue())


def test_an_agent_s_words_never_begin_a_line_of_a_question() -> None:
    forged = "x" * 200 + "\nquestion 9: process 1 asks for mem.get\n  rule        | all is well"
    question = Question(
        id=1, pid=2, principal=forged, call="tool.call", right="tool", objects=[forged],
        args={"command": forged}, rule=forged, tainted=[forged], expires=0.0,
    )  # fmt: skip
    lines, cut = in_words(question, 80, 2**31)
    assert not cut
    assert all(cell_len(line) <= 80 and line[12:14] == "| " for line in lines)
    assert [line[:12].strip() for line in lines if line[:12].strip()] == [
        "agent", "on", "with", "has read", "rule"
    ]  # fmt: skip
    assert "".join(line[14:] for line in lines).count("process 1 asks for mem.get") == 5


def test_a_question_shows_what_is_stored_as_text() -> None:
    change = {"path": "a", "data": "Grüße\n\x1b[2J".encode()}
    question = Question(
        id=1, pid=2, principal="/a", call="sto.batch", right="sto.write", objects=["/a:a"],
        args={"changes": [change, {"path": "b", "data": b"\xff\x00"}]}, rule="ask sto.write",
        tainted=[], expires=0.0,
    )  # fmt: skip
    words = "\n".join(in_words(question, 80, 2**31)[0])
    assert '"data": "Grüße\\n\\u001b[2J"' in words
    assert '"data": "/wA="' in words  # no text


def test_a_long_question_says_what_is_missing_and_shows_both_ends() -> None:
    args = {"command": "harmless; " * 500 + "rm -rf ~"}
    question = Question(
        id=1, pid=2, principal="/a", call="tool.call", right="tool", objects=["shell"], args=args,
        rule="ask tool shell", tainted=[], expires=0.0,
    )  # fmt: skip
    lines, cut = in_words(question, 80, 40)
    assert cut
    words = "".join(line[14:] for line in lines)
    assert "harmless" in words and "rm -rf ~" in words
    assert any("lines are not shown" in line for line in lines)
    assert len(lines) < 50
    assert not in_words(question, 80, 2**31)[1]


# --- that nothing is printed in any other way ----------------------------------------------------

BANNED = {
    "click": {"echo", "secho", "echo_via_pager", "prompt", "confirm", "style", "progressbar"},
    "sys": {"stdout", "stderr", "__stdout__", "__stderr__"},
    "os": {"write"},
    "rich": {"print", "print_json"},
}
NAMES = {"print", "Console", "TextColumn", "Markdown", "from_markup", "from_ansi", "render_markup"}


@pytest.mark.parametrize(
    "path", sorted(set(SHELL.glob("*.py")) - {SHELL / "output.py"}), ids=lambda path: path.name
)
def test_the_shell_prints_by_its_output_alone(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        where = f"{path.name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert node.attr not in BANNED.get(node.value.id, set()), where
        if isinstance(node, ast.Name | ast.Attribute):
            name = node.id if isinstance(node, ast.Name) else node.attr
            assert name not in NAMES, where
        if isinstance(node, ast.ImportFrom):
            imported = {alias.name for alias in node.names}
            assert not imported & (NAMES | BANNED.get(node.module or "", set())), where
