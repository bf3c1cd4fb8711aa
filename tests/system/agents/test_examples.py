"""The agents that ship, run as anybody runs them: real processes, the real model."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from commands import run as command
from conftest import eventually

from aios.agents import Aios, connect
from aios.agents.runtime.runner import load, registered, resolve
from aios.examples._texts import MAX_PART_BYTES, cut
from aios.examples.chat import TOO_LONG
from aios.examples.pipeline import paragraphs
from aios.examples.summarize import MAX_WORKERS
from aios.shell.launch import System
from aios.syscalls.kernel import Event
from aios.syscalls.proc import Exited

SHIPPED = [
    "chat",
    "extract",
    "librarian",
    "notes",
    "pipeline",
    "pipeline_stage",
    "summarize",
    "summarize_piece",
]
ADA = "Ada Lovelace was born in London on 10 December 1815. Her mother was Annabella Milbanke."
TALES = [
    "The farmer lost his best cow in the storm, and looked for her for three days.",
    "Mary found an old letter under the floor, and read it to her brother.",
    "The ship came home at last, but nobody on it remembered where it had been.",
]


@pytest.fixture
def system(talker: System) -> System:
    return talker


def run(aios: Aios, program: str, task: Any = None) -> Exited:
    return aios.wait(aios.spawn(program, task), timeout=120)


@pytest.fixture
def watched(system: System) -> Iterator[Any]:
    """Yield what happened so far, as a function that returns all events since the test's start."""
    with connect(system.home, "watcher") as watcher:
        call = watcher.start("kernel.events")
        watcher.status()  # from here on they are told

        def events() -> list[Event]:
            watcher.status()  # one connection keeps its order: all earlier events are here then
            return [Event(**body) for body in call.pieces]

        yield events


def end_codes(events: list[Event], pids: list[int]) -> list[int]:
    """Return the time of each pid's end; KeyError where one has not ended."""
    codes = {event.pid: event.detail["code"] for event in events if event.what == "ended"}
    return [codes[pid] for pid in pids]


def alice() -> list[str]:
    return Path(resolve("summarize")).with_name("alice.txt").read_text().split("\n\n")


@pytest.mark.parametrize("name", SHIPPED)
def test_each_is_registered_by_its_own_name(name: str) -> None:
    assert registered()[name].endswith(".")
    assert load(resolve(name)).name == name


# --- chat --------------------------------------------------------------------------------------


def test_chat_remembers_the_turn_before_and_repeats_itself_exactly(aios: Aios) -> None:
    task = {"turns": ["What is the capital of France?", "And of Italy?"], "max_tokens": 12}
    first, second = run(aios, "chat", task), run(aios, "chat", task)
    assert first.code == 0
    transcript = first.result["transcript"]
    assert [turn["user"] for turn in transcript] == task["turns"]
    assert "Paris" in transcript[0]["assistant"]
    assert "Rom" in transcript[1]["assistant"]  # Rome, or Roma
    assert first.result == second.result
    log = aios.log(first.pid).data.decode()
    for turn in transcript:
        assert f"> {turn['user']}\n{turn['assistant']}" in log


def test_chat_answers_whoever_sends_it_a_message(aios: Aios) -> None:
    pid = aios.spawn("chat")
    aios.send(pid, "What is the capital of France?")
    answer = aios.recv(pid, timeout=60).body
    assert "Paris" in answer
    aios.send(pid, "")
    end = aios.wait(pid, timeout=30)
    assert end.code == 0
    assert [turn["assistant"] for turn in end.result["transcript"]] == [answer]


def test_chat_goes_on_when_its_context_is_full(aios: Aios) -> None:
    window = aios.status().model.window  # type: ignore[union-attr]
    long = "so " * (window * 6 // 10)
    end = run(aios, "chat", {"turns": [long, long], "max_tokens": 4})
    assert (end.code, len(end.result["transcript"])) == (0, 2)
    assert aios.log(end.pid, -4096).data.decode().count("(the context is full") == 1


def test_chat_lives_on_when_a_line_is_longer_than_its_context(aios: Aios) -> None:
    window = aios.status().model.window  # type: ignore[union-attr]
    pid = aios.spawn("chat")
    aios.send(pid, "so " * window)
    assert aios.recv(pid, timeout=60).body == TOO_LONG
    aios.send(pid, {"no": "line"})
    assert aios.recv(pid, timeout=60).body
    aios.send(pid, "")
    assert aios.wait(pid, timeout=30).code == 0


# --- summarize ---------------------------------------------------------------------------------


def test_summarize_gives_each_piece_a_worker_and_merges(
    aios: Aios, tmp_path: Path, watched: Any
) -> None:
    path = tmp_path / "tales.txt"
    path.write_text("\n\n".join(TALES))
    end = run(aios, "summarize", {"path": str(path), "pieces": 3})
    assert end.code == 0
    assert end.result["summary"]
    pieces = end.result["pieces"]
    names = ["farmer", "Mary", "ship"]
    for piece, word in zip(pieces, names, strict=True):
        assert word in piece["summary"]
    assert end_codes(watched(), [piece["pid"] for piece in pieces]) == [0, 0, 0]
    assert (
        run(aios, "summarize", {"path": str(path), "pieces": 3}).result["summary"]
        == (end.result["summary"])
    )


def test_summarize_bounds_the_workers_alive_at_once(aios: Aios, watched: Any) -> None:
    count = MAX_WORKERS + 2
    end = run(aios, "summarize", {"text": "Tom fed the cat. " * count, "pieces": count})
    workers = {piece["pid"] for piece in end.result["pieces"]}
    assert len(workers) == count
    most = alive = 0
    for event in watched():
        if event.pid in workers:
            alive += {"started": 1, "ended": -1}.get(event.what, 0)
            most = max(most, alive)
    assert 1 < most <= MAX_WORKERS and alive == 0


@pytest.mark.parametrize(
    ("task", "error"),
    [
        ({"path": "/nowhere/book.txt"}, "cannot read /nowhere/book.txt: No such file or directory"),
        ("/nowhere/book.txt", "cannot read /nowhere/book.txt: No such file or directory"),
        ({"text": " \n"}, "the text is empty"),
        ({"text": "Tom fed the cat.", "pieces": 0}, "0 pieces: give 1 or more"),
    ],
)
def test_summarize_says_what_is_wrong_with_its_task(aios: Aios, task: Any, error: str) -> None:
    end = run(aios, "summarize", task)
    assert (end.code, end.result) == (1, {"error": error})
    assert aios.log(end.pid).data.decode() == f"{error}\n"


@pytest.mark.parametrize("program", ["summarize", "extract", "pipeline"])
@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "PATH is empty"), (b"caf\xe9", "cannot read PATH: it is no text in UTF-8"),
     (None, "cannot read PATH: Is a directory")],
)  # fmt: skip
def test_a_file_that_is_no_text_is_named(
    aios: Aios, tmp_path: Path, program: str, content: bytes | None, says: str
) -> None:
    path = tmp_path / "text"
    path.mkdir() if content is None else path.write_bytes(content)
    end = run(aios, program, str(path))
    assert (end.code, end.result) == (1, {"error": says.replace("PATH", str(path))})


@pytest.mark.parametrize(
    ("program", "task", "says"),
    [
        ("librarian", None, "Object missing required field `database`"),
        ("librarian", "Who wrote Emma?", "Expected `object`, got `str`"),
        ("notes", None, "nothing to learn, and nothing to answer"),
        ("summarize", {"text": 5}, "Expected `str | null`, got `int` - at `$.text`"),
        ("summarize", [1], "Expected `object`, got `array`"),
        ("summarize", {"pathh": "a.txt"}, "Object contains unknown field `pathh`"),
        ("chat", 5, "Expected `object`, got `int`"),
        ("chat", {"turns": "hello"}, "Expected `array | null`, got `str` - at `$.turns`"),
        ("extract", {"fields": "name"}, "Expected `array`, got `str` - at `$.fields`"),
        ("pipeline", {"items": "name"}, "Expected `array`, got `str` - at `$.items`"),
        ("pipeline_stage", None, "Object missing required field `reads`"),
        ("summarize_piece", None, "Expected `str`, got `object`"),
        ("demo_worker", [1], "Expected `object`, got `array`"),
    ],
)
def test_a_task_that_none_can_do_is_answered_with_what_it_takes(
    aios: Aios, program: str, task: Any, says: str
) -> None:
    end = run(aios, program, task)
    first, _, takes = end.result["error"].partition("\n")
    assert end.code == 1
    assert says in first
    assert takes.startswith("Its task is ")
    assert aios.log(end.pid).data.decode() == end.result["error"] + "\n"


@pytest.mark.parametrize("text", ["word " * 1_000, "\u65e5\u672c" * 800, "So it was. " * 400])
def test_a_long_text_is_cut_where_it_has_no_paragraphs(text: str) -> None:
    pieces = cut(text)
    assert all(0 < len(piece.encode()) <= 2 * MAX_PART_BYTES for piece in pieces)
    assert "".join("".join(pieces).split()) == "".join(text.split())
    assert len(cut(text, 3)) == 3


def test_what_is_too_long_for_extract_is_said_in_one_line(aios: Aios) -> None:
    for text in ("word " * 3_000, "word " * 12_000):
        end = run(aios, "extract", {"text": text})
        assert end.code == 1
        assert end.result["error"].startswith("the text is too long: ")


def test_pipeline_takes_the_first_pieces_of_a_text_without_paragraphs() -> None:
    items = paragraphs("Tom fed the cat. " * 6_000)
    assert len(items) == 6
    assert all(len(item) <= MAX_PART_BYTES for item in items)


# --- files that the command line names ---------------------------------------------------------


def test_run_summarizes_the_file_that_is_named(system: System, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text(TALES[0])
    done = command(system.home, "run", "summarize", "notes.txt", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "farmer" in json.loads(done.stdout)["result"]["summary"]


@pytest.mark.parametrize("program", ["summarize", "extract", "pipeline"])
def test_a_file_that_is_missing_is_an_error_in_one_line(
    program: str, system: System, tmp_path: Path
) -> None:
    done = command(system.home, "run", program, "missing.txt", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stdout == "cannot read missing.txt: No such file or directory\n"
    assert re.fullmatch(rf"aios: process \d+ \({program}\) ended with code 1: exit\n", done.stderr)


def test_extract_and_pipeline_take_a_file_as_well(system: System, tmp_path: Path) -> None:
    (tmp_path / "ada.txt").write_text(ADA)
    path = str(tmp_path / "ada.txt")
    extracted = command(system.home, "run", "extract", path, "--json")
    assert json.loads(extracted.stdout)["result"]["fields"]["name"] == "Ada Lovelace"
    cards = command(system.home, "run", "pipeline", path, "--json")
    assert [card["text"] for card in json.loads(cards.stdout)["result"]["cards"]] == [ADA]


def test_summarize_fails_when_a_worker_does(aios: Aios) -> None:
    window = aios.status().model.window  # type: ignore[union-attr]
    end = run(aios, "summarize", {"text": "Tom fed the cat. " * window, "pieces": 2})
    assert end.code == 1
    assert "piece-" in end.result["error"]
    assert "do not fit" in end.result["error"]


# --- extract -----------------------------------------------------------------------------------


def test_extract_finds_what_the_text_says_and_leaves_the_rest_empty(aios: Aios) -> None:
    task = {"text": ADA, "fields": ["name", "place", "mother", "email"]}
    end = run(aios, "extract", task)
    assert end.code == 0
    assert end.result == {
        "fields": {
            "name": "Ada Lovelace",
            "place": "London",
            "mother": "Annabella Milbanke",
            "email": "",
        }
    }
    assert run(aios, "extract", task).result == end.result


def test_extract_reads_alice_by_default(aios: Aios) -> None:
    fields = run(aios, "extract").result["fields"]
    assert list(fields) == ["name", "animal", "color of its eyes", "date"]
    assert fields["name"] == "Alice"
    assert fields["date"] == ""  # the model makes one up, which the text does not have
    text = " ".join(" ".join(alice()).split())
    assert all(value.casefold() in text.casefold() for value in fields.values())


# --- pipeline ----------------------------------------------------------------------------------


def test_pipeline_keeps_the_order_while_its_stages_work_at_once(aios: Aios, watched: Any) -> None:
    end = run(aios, "pipeline", {"items": TALES})
    assert end.code == 0
    cards, stages = end.result["cards"], end.result["stages"]
    assert [(card["number"], card["text"]) for card in cards] == list(enumerate(TALES))
    assert all(card[field] for card in cards for field in ("gist", "title", "mood"))
    assert end_codes(watched(), stages) == [0, 0, 0]
    queued = [event.pid for event in watched() if event.what == "queued"]
    assert queued.index(stages[1]) < len(queued) - 1 - queued[::-1].index(stages[0])
    assert run(aios, "pipeline", {"items": TALES}).result["cards"] == cards


def test_pipeline_takes_more_items_than_are_on_their_way_at_once(aios: Aios) -> None:
    shout = {"reads": "text", "writes": "echo", "prompt": "{}", "max_tokens": 1}
    items = [f"Item number {number} is" for number in range(20)]
    end = run(aios, "pipeline", {"items": items, "stages": [shout]})
    assert [card["text"] for card in end.result["cards"]] == items


def test_pipeline_ends_when_a_stage_dies(aios: Aios) -> None:
    pid = aios.spawn("pipeline", {"items": TALES * 2})
    eventually(lambda: any(process.name == "gist" for process in aios.ps()))
    aios.kill(next(process.pid for process in aios.ps() if process.name == "title"), "KILL")
    end = aios.wait(pid, timeout=60)
    assert end.code == 1
    assert end.result == {"error": "RuntimeError: stage title ended (signal KILL): None"}


# --- notes -------------------------------------------------------------------------------------


def test_notes_link_to_their_like_and_lead_to_each_other(aios: Aios) -> None:
    learn = [
        "The old apple tree in the garden bears fruit every second year.",
        "Fruit trees in the garden are pruned in winter.",
        "The train to the coast leaves at seven from the second platform.",
    ]
    learned = run(aios, "notes", {"learn": learn})
    assert learned.code == 0
    notes = learned.result["notes"]
    assert [notes[name]["links"] for name in ("0000", "0001", "0002")] == [[], ["0000"], []]
    assert all(note["tags"] == sorted(set(note["tags"])) != [] for note in notes.values())
    assert aios.sto_get("links/0000", owner="/notes") == b'["0001"]'
    asked = run(aios, "notes", {"ask": "When are trees pruned?"})
    assert asked.result["found"] == [learn[1], learn[0]]
    again = run(aios, "notes", {"learn": learn[:1]})
    assert again.result["notes"]["0003"]["links"] == ["0000", "0001"]
    for object_ in aios.sto_list(owner="/notes"):
        aios.sto_purge(object_.path, owner="/notes")
