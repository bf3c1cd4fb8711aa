"""The index by itself: what is found, who may find it, and a file that is not as it was."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_documents import CAR, FOX, ODD, SEA, ask, model, paths, put, remove, same, sound

from aios.kernel.index import passages
from aios.kernel.index.database import FILE_NAME, SET_ASIDE_NAME, IndexDamaged
from aios.kernel.index.index import Index
from aios.syscalls.sto import Mode

MODES: tuple[Mode, ...] = get_args(Mode)
DOCUMENTS = {"animals/fox": FOX, "cars/repair": CAR, "sea": SEA}


def opened(folder: Path) -> Index:
    return Index(folder, model())


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    """An index with three documents of ann's."""
    index = opened(tmp_path)
    index.apply([put(seq, path, text) for seq, (path, text) in enumerate(DOCUMENTS.items(), 1)])
    yield index
    sound(index)
    index.close()


# --- what is found -------------------------------------------------------------------------------


def test_words_are_found_in_any_form(index: Index) -> None:
    assert paths(index, "which foxes were jumping?") == ["animals/fox"]
    assert paths(index, "elephants") == []


def test_meaning_is_found_without_a_word_in_common(index: Index) -> None:
    assert paths(index, "vehicle mechanic", "words") == []
    assert paths(index, "vehicle mechanic", "meaning")[0] == "cars/repair"
    assert paths(index, "vehicle mechanic", "fused")[0] == "cars/repair"


def test_a_hit_says_where_it_is_and_how_it_ranks(index: Index) -> None:
    index.apply([put(7, "cars/repair", f"{CAR} And the fox?", version=3)])
    best, second, *_ = index.search(ask("the quick fox"))
    assert (best.owner, best.path, best.version, best.text) == ("ann", "animals/fox", 1, FOX)
    assert (second.path, second.version) == ("cars/repair", 3)
    assert best.score > second.score
    assert best.words and best.meaning and second.words
    assert (best.words.rank, best.meaning.rank, second.words.rank) == (1, 1, 2)
    assert best.score == pytest.approx(0.5 * 1 + 0.5 * best.meaning.score)
    alone = index.search(ask("the quick fox", "words"))[0]
    assert alone.meaning is None
    assert alone.words == best.words
    assert alone.score == best.words.score


def test_rare_words_count_more(index: Index) -> None:
    index.apply([put(9 + n, f"plain{n}", "an engine and an engine") for n in range(5)])
    assert paths(index, "engine fox", count=1) == ["animals/fox"]


def test_stop_words_count_when_there_is_nothing_else(index: Index) -> None:
    index.apply([put(9, "hamlet", "To be or not to be, that is the question.")])
    assert paths(index, "to be or not to be")[0] == "hamlet"
    assert paths(index, "the fox") == ["animals/fox"]


@pytest.mark.parametrize(
    "query",
    ['fox"', 'fox AND', "NEAR(fox", "text:fox", "fox*", "^fox", "-fox", "(fox", "fox\0", "{fox}:"],
)  # fmt: skip
def test_a_query_is_data(index: Index, query: str) -> None:
    assert paths(index, query) == ["animals/fox"]


@pytest.mark.parametrize("query", [*ODD, "word " * 50_000])
def test_any_query_is_answered(index: Index, query: str) -> None:
    for mode in MODES:
        same(index.search(ask(query, mode)), DOCUMENTS)


def test_at_most_so_many_and_equals_in_order(index: Index) -> None:
    index.apply([put(9 + n, f"copy{n}", "a zebra") for n in (3, 1, 2, 0)])
    assert paths(index, "zebra", count=3) == ["copy0", "copy1", "copy2"]
    assert paths(index, "zebra", count=9) == ["copy0", "copy1", "copy2", "copy3"]


# --- what changes --------------------------------------------------------------------------------


def test_a_new_version_replaces_the_old_one(index: Index) -> None:
    index.apply([put(4, "sea", "A desert has no water.", version=2)])
    assert paths(index, "fishermen") == []
    assert paths(index, "desert") == ["sea"]
    index.apply([remove(5, "sea"), remove(6, "never there")])
    assert paths(index, "desert") == []
    assert (index.position, index.documents, index.passages) == (6, 2, 2)


def test_the_last_change_of_a_batch_counts(index: Index) -> None:
    index.apply([put(4, "a", "ibis"), remove(5, "a"), put(6, "b", "heron"), put(7, "b", "crane")])
    assert paths(index, "ibis heron crane") == ["b"]
    assert (index.position, index.documents) == (7, 4)


def test_what_is_removed_makes_room(index: Index) -> None:
    text = "One sentence about something. " * 1000
    index.apply([put(10, "long", text)])
    end = index.arrays.end
    for seq in range(11, 15):
        index.apply([remove(seq, "long")])
        index.apply([put(seq, "long", text)])
    assert index.arrays.end == end


def test_texts_of_any_content(index: Index) -> None:
    index.apply([put(10 + n, f"odd{n}", text) for n, text in enumerate(ODD)])
    assert set(paths(index, "inside שלום")) == {"odd3", "odd6"}
    texts = DOCUMENTS | {f"odd{n}": text for n, text in enumerate(ODD)}
    same(index.search(ask("日本語", "meaning", count=100)), texts)
    index.apply([put(30 + n, f"odd{n}", text + " ") for n, text in enumerate(ODD)])
    sound(index)
    index.apply([remove(50 + n, f"odd{n}") for n in range(len(ODD))])
    assert index.passages == 3


@given(st.text(max_size=60), st.integers(1, 200), st.sampled_from(["", " ", ". ", "\n\n"]))
def test_passages_cover_a_text(piece: str, times: int, between: str) -> None:
    text = (piece + between) * times
    spans = passages.cut(text)
    seen = set()
    for start, end in spans:
        assert 0 < end - start <= passages.PASSAGE_CHARS
        assert text[start:end].strip() == text[start:end]
        seen |= {*range(start, end)}
    assert all(char.isspace() for at, char in enumerate(text) if at not in seen)
    assert spans == sorted(spans)


def test_passages_end_with_sentences_and_repeat_short_ones() -> None:
    text = " ".join(f"This is sentence number {n} of them all." for n in range(200))
    spans = passages.cut(text)
    for (_, end), (start, _) in pairwise(spans):
        assert text[end - 1] == "."
        assert text[start:].startswith("This is")
        assert 0 < end - start <= passages.OVERLAP_CHARS
    assert passages.cut("x" * (passages.MAX_TEXT_CHARS + 9))[-1][1] == passages.MAX_TEXT_CHARS


# --- who may find it -----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
def test_what_others_have_leaves_no_trace(index: Index, mode: Mode) -> None:
    """Neither in hits nor in the last bit of a score, rank or tie."""
    queries = ("the fox and the engine", "boats at sea", "secret")
    index.apply([put(4, "twin", FOX)])
    before = [index.search(ask(query, mode)) for query in queries]
    for n in range(40):
        index.apply([put(10 + n, f"p{n}", f"{SEA} fox secret {'engine ' * n}", owner="bob")])
        index.apply([put(60 + n, "twin", FOX), put(60 + n, "sea", SEA)])  # ids change
    assert [index.search(ask(query, mode)) for query in queries] == before
    assert index.search(ask("fox", mode, scopes=[("eve", "")])) == []
    assert index.search(ask("fox", mode, scopes=[])) == []


@pytest.mark.parametrize(
    ("scope", "expected"),
    [
        ("notes", {"notes", "notes/a", "notes/a/b"}),
        ("notes/", {"notes", "notes/a", "notes/a/b"}),
        ("notes/a", {"notes/a", "notes/a/b"}),
        ("note", set()),
        ("Notes", set()),
        ("%", set()),
        ("", {"notes", "notes/a", "notes/a/b", "notes2", "notes-a", "notes0", "\0", "\U0010ffff"}),
    ],
)
def test_a_scope_is_a_path_and_all_below_it(tmp_path: Path, scope: str, expected: set[str]) -> None:
    index = opened(tmp_path)
    all_paths = ["notes", "notes/a", "notes/a/b", "notes2", "notes-a", "notes0", "\0", "\U0010ffff"]
    index.apply([put(n, path, "tern") for n, path in enumerate(all_paths, 1)])
    index.apply([put(99, path, "tern", owner="bob") for path in ("notes", "x")])
    assert {*paths(index, "tern", scopes=[("ann", scope)])} == expected
    both = index.search(ask("tern", "words", scopes=[("ann", scope), ("bob", "x"), ("bob", "x")]))
    assert len(both) == len(expected) + 1
    index.close()


def test_time_and_tags(index: Index) -> None:
    tags: list[list[str]] = [[], ["a"], ["b"], ["a", "b"], ["a", "a"]]
    index.apply([put(10 + n, f"t{n}", "tern", time=n, tags=tags[n]) for n in range(5)])
    assert {*paths(index, "tern", since=1, until=3)} == {"t1", "t2"}
    assert {*paths(index, "tern", since=4)} == {"t4"}
    assert {*paths(index, "tern", tags=["a"])} == {"t1", "t3", "t4"}
    assert {*paths(index, "tern", tags=["b", "a", "b"])} == {"t3"}
    assert paths(index, "tern", tags=["c"]) == []
    index.apply([put(20, "t3", "tern", tags=["c"])])  # what was remembered of a scope is stale
    assert paths(index, "tern", tags=["c"]) == ["t3"]
    assert {*paths(index, "tern", tags=["a"])} == {"t1", "t4"}


# --- the file ------------------------------------------------------------------------------------


def test_it_is_the_same_after_reopening(index: Index, tmp_path: Path) -> None:
    index.apply([remove(4, "animals/fox"), put(5, "whales", "A whale in the ocean.")])
    before = [index.search(ask("whales and cars", mode)) for mode in MODES]
    index.close()
    again = opened(tmp_path)
    assert [again.search(ask("whales and cars", mode)) for mode in MODES] == before
    assert (again.position, again.documents, again.began_again) == (5, 3, "")
    sound(again)
    again.close()
    index._open()  # for the fixture's last look


def test_another_store_starts_afresh(tmp_path: Path) -> None:
    index = opened(tmp_path)
    for store, drop, position in [("one", False, 0), ("one", False, 1), ("one", True, 0),
                                  ("two", False, 0), ("two", False, 1)]:  # fmt: skip
        index.reset(store, drop)
        assert (index.position, index.passages) == (position, position)
        index.apply([put(1, "a", FOX)])
    index.close()


def garbage(path: Path) -> None:
    path.write_bytes(b"not a database" * 1000)


def torn(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def scribbled(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


def sql(statement: str) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        with sqlite3.connect(path) as db:
            db.execute(statement)
        db.close()

    return change


def foreign(path: Path) -> None:
    path.unlink()
    sql("CREATE TABLE recipes (name)")(path)


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        (garbage, "not a database"),
        (torn, "malformed"),
        (scribbled, "Page"),
        (foreign, "another program"),
        (sql("PRAGMA user_version = 99"), "another version"),
        (sql("UPDATE state SET embedder = 'other'"), "another model, other"),
        (sql("UPDATE words_data SET block = zeroblob(length(block)) WHERE id > 10"), "malformed"),
        (sql("UPDATE passages SET vector = x'00'"), "not as it was"),
        (sql("UPDATE documents SET owner = 'eve'"), "not as it was"),
        (sql("UPDATE passages SET end = end - 1"), "not as it was"),
    ],
)
def test_a_file_of_no_use_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], harm: Callable[[Path], None], why: str
) -> None:
    index = opened(tmp_path)
    index.apply([put(1, "a", FOX), put(2, "b", CAR * 500)])
    index.close()
    harm(tmp_path / FILE_NAME)
    index = opened(tmp_path)
    assert why in index.began_again
    assert why in capsys.readouterr().err
    assert (index.position, index.documents, index.passages) == (0, 0, 0)
    assert (tmp_path / SET_ASIDE_NAME).exists()
    index.apply([put(1, "a", FOX)])
    assert paths(index, "fox") == ["a"]
    index.close()


def test_damage_that_is_found_late(tmp_path: Path) -> None:
    index = opened(tmp_path)
    index.apply([put(1, "a", FOX)])
    index.db.execute("UPDATE words_data SET block = x'00ff00ff' WHERE id > 10")
    with pytest.raises(IndexDamaged):
        index.search(ask("fox"))
    index.begin_again("test")
    assert (index.position, index.search(ask("fox"))) == (0, [])
    sound(index)
    index.close()


@pytest.mark.parametrize("mode", MODES)
def test_a_full_disk_changes_nothing(index: Index, mode: Mode) -> None:
    before = index.search(ask("fox", mode))
    (pages,) = index.db.execute("PRAGMA page_count").fetchone()
    index.db.execute(f"PRAGMA max_page_count = {pages + 2}")
    changes: list[Any] = [remove(8, "animals/fox"), put(9, "b", "the fox again. " * 5000)]
    with pytest.raises(sqlite3.OperationalError, match="full"):
        index.apply(changes)
    assert (index.position, index.search(ask("fox", mode))) == (3, before)
    sound(index)
    index.db.execute("PRAGMA max_page_count = 1000000")
    index.apply(changes)
    assert {*paths(index, "fox")} == {"b"}
