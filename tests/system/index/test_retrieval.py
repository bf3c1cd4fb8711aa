"""Retrieval through the real kernel: what agents store is found by those who may read it."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import commands
import msgpack
import psutil
import pytest
from conftest import Boot, eventually, on_tiny, run_system
from helpers import result_of
from models import write_bert
from places import DOCS

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import Denied, IndexFailed, Malformed, StoreDamaged
from aios.syscalls.sto import Hits

GUIDE = DOCS / "retrieval.md"
Program = Callable[[str], str]

WRITE = """
for path, text in task["texts"].items():
    aios.sto_put(path, text, tags=task.get("tags", []))
for to in task.get("share", []):
    aios.sto_share("", to)
return True
"""
SEARCH = """
try:
    found = aios.sto_search(task["query"], owner=task.get("owner"), fresh=True)
except AiosError as error:
    return error.code
return [(hit.owner, hit.path) for hit in found.hits]
"""
TEXTS = {
    "garden/roses": "Roses are pruned in early spring, above an outward bud.",
    "garden/tomatoes": "Tomatoes want sun and warmth; water them at the root.",
    "boat": "The mainsail is reefed when the wind passes twenty knots.",
}


def index_of(system: System) -> psutil.Process | None:
    init = psutil.Process(system.process.pid)
    found = [child for child in init.children() if "aios.kernel.index" in " ".join(child.cmdline())]
    return found[0] if found else None


def umbrella_found(system: System, aios: Aios) -> psutil.Process:
    """Store an object, find it, and return the process of the index."""
    aios.sto_put("one", "an umbrella against the rain")
    assert paths(aios.sto_search("umbrella", fresh=True)) == ["one"]
    index = index_of(system)
    assert index is not None
    return index


def paths(found: Hits) -> list[str]:
    return [hit.path for hit in found.hits]


@pytest.fixture
def own(boot: Boot) -> Iterator[tuple[System, Aios]]:
    """A system whose storage nobody else writes to."""
    system = boot()
    with connect(system.home, "test") as aios:
        yield system, aios


def test_no_index_runs_where_nothing_is_stored(own: tuple[System, Aios]) -> None:
    system, aios = own
    assert aios.sto_index().state == "asleep"
    assert index_of(system) is None
    assert aios.sto_search("anything", fresh=True).hits == []


def test_by_words_by_meaning_and_both(own: tuple[System, Aios]) -> None:
    _, aios = own
    for path, text in TEXTS.items():
        aios.sto_put(path, text, tags=[path.partition("/")[0]])
    assert paths(aios.sto_search("pruned bud", mode="words", fresh=True)) == ["garden/roses"]
    assert paths(aios.sto_search("sailing in a storm", mode="meaning"))[0] == "boat"
    hit = aios.sto_search("when to reef the mainsail").hits[0]
    assert (hit.owner, hit.path, hit.version) == ("", "boat", 1)
    assert hit.text == TEXTS["boat"][hit.start : hit.end]
    assert hit.words is not None
    assert hit.words.rank == 1
    assert all(path.startswith("garden/") for path in paths(aios.sto_search("wind", path="garden")))
    assert paths(aios.sto_search("water wind bud", tags=["boat"])) == ["boat"]
    assert paths(aios.sto_search("wind", until=1.0)) == []
    report = aios.sto_index()
    assert (report.state, report.documents, report.behind) == ("ready", 3, 0)


def test_what_is_found_is_the_newest_version(own: tuple[System, Aios]) -> None:
    _, aios = own
    aios.sto_put("a", "the first text speaks of llamas")
    aios.sto_put("a", "the second text speaks of camels")
    assert aios.sto_search("llamas", mode="words", fresh=True).hits == []
    assert [hit.version for hit in aios.sto_search("camels").hits] == [2]
    aios.sto_delete("a")
    assert aios.sto_search("camels", fresh=True).hits == []
    aios.sto_rollback("a", 1)
    assert [hit.version for hit in aios.sto_search("llamas", fresh=True).hits] == [4]
    aios.sto_put("a", b"\xff\xfe no text")
    assert aios.sto_search("llamas", fresh=True).hits == []


def test_nobody_finds_what_it_may_not_read(own: tuple[System, Aios], program: Program) -> None:
    """Each agent searches for what each other one has written, the index holding all of it."""
    _, aios = own
    names = ["ann", "ben", "cid"]
    write, search = program(WRITE), program(SEARCH)
    for name in names:
        texts = {f"of-{name}": f"the secret word of {name} is xylophone"}
        result_of(aios, write, {"texts": texts}, name=name)
    texts = {"of-dan": "a xylophone, which dan shares"}
    result_of(aios, write, {"texts": texts, "share": ["/ben"]}, name="dan")
    expected = {name: {f"/{name}"} for name in names}
    expected["ben"].add("/dan")
    for name in names:
        found = result_of(aios, search, {"query": "secret xylophone"}, name=name)
        assert {owner for owner, _ in found} == expected[name]
    task = {"query": "xylophone", "owner": "/dan"}
    assert result_of(aios, search, task, name="ann") == Denied.code
    assert result_of(aios, search, task, name="ben") == [["/dan", "of-dan"]]
    everything = aios.sto_search("xylophone")
    assert {hit.owner for hit in everything.hits} == {"/ann", "/ben", "/cid", "/dan"}


def test_an_agent_may_not_rebuild(own: tuple[System, Aios], program: Program) -> None:
    _, aios = own
    refused = """
try:
    aios.sto_reindex()
except AiosError as error:
    return error.code
"""
    assert result_of(aios, program(refused), {}, name="agent") == Denied.code


@pytest.mark.parametrize("query", ["", "x" * 5000])
def test_queries_that_cannot_be(query: str, own: tuple[System, Aios]) -> None:
    _, aios = own
    with pytest.raises(Malformed, match="query"):
        aios.sto_search(query)


def test_the_guide_is_run(own: tuple[System, Aios]) -> None:
    _, aios = own
    block = GUIDE.read_text().partition("```python\n")[2].partition("```")[0]
    names: dict[str, Any] = {"aios": aios}
    exec(block, names)
    assert [hit.path for hit in names["found"].hits] == ["trips/lisbon"]


def test_the_guide_s_commands_run(own: tuple[System, Aios], tmp_path: Path) -> None:
    system, _ = own
    block = GUIDE.read_text().partition("```console\n")[2].partition("```")[0]
    program = tmp_path / "aios"
    program.write_text(f'#!/bin/sh\nexec {" ".join(commands.AIOS)} "$@"\n')
    program.chmod(0o700)
    path = f"{tmp_path}:{os.environ['PATH']}"
    shown = {}
    for line in block.splitlines():
        command = line.removeprefix("$ ")
        ran = subprocess.run(
            command, shell=True, env=commands.environment(system.home) | {"PATH": path},
            capture_output=True, text=True, timeout=commands.LIMIT, check=False,
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, ""), line
        shown[command] = ran.stdout
    assert len(shown) == 5
    assert sum("leaves at nine" in text for text in shown.values()) == 2


def test_from_the_shell(own: tuple[System, Aios]) -> None:
    system, aios = own
    assert commands.run(system.home, "sto", "search", "x").stdout == "nothing was found\n"
    for path, text in TEXTS.items():
        aios.sto_put(path, text)
    found = commands.answer(
        system.home, "sto", "search", "reefed mainsail", "--fresh", "--count", "1"
    )
    assert [hit["path"] for hit in found["hits"]] == ["boat"]
    shown = commands.run(system.home, "sto", "search", "reefed mainsail", "--mode", "words").stdout
    assert shown.startswith("a person:boat, version 1 (")
    assert TEXTS["boat"] in shown
    assert commands.answer(system.home, "sto", "index", "--rebuild")["restarts"] == 0
    eventually(lambda: commands.answer(system.home, "sto", "index")["behind"] == 0)


def test_a_model_of_one_s_own(boot: Boot, tmp_path: Path) -> None:
    path = tmp_path / "own.gguf"
    write_bert(path, list(TEXTS.values()))
    prefixes = {"query": "the mainsail is reefed ", "passage": "knots "}
    system = boot(embedder=str(path), embedder_prefixes=prefixes)
    with connect(system.home, "test") as aios:
        for name, text in TEXTS.items():
            aios.sto_put(name, text)
        assert paths(aios.sto_search("water", mode="words", fresh=True)) == ["garden/tomatoes"]
        assert paths(aios.sto_search("water", mode="meaning"))[0] == "boat"
        aios.stop()
    system.process.wait()
    with closing(sqlite3.connect(system.home / "index" / "index.db")) as db:
        (made_with,) = db.execute("SELECT embedder FROM state").fetchone()
    assert re.fullmatch(r"own\.gguf [0-9a-f]{32} knots ", made_with)


@pytest.mark.parametrize("content", [b"no model", None])
def test_a_file_that_is_no_model_is_refused(
    content: bytes | None, homes: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.gguf"
    if content:
        path.write_bytes(content)
    done = commands.run(homes / "refused", "start", "--embedder", path.name, cwd=tmp_path)
    assert done.returncode == 78
    assert str(path) in done.stderr
    assert ("is not a GGUF file" if content else "No such file") in done.stderr
    assert "name a GGUF file with --embedder" in done.stderr


# --- death ----------------------------------------------------------------------------------------


def test_an_index_that_dies_is_started_again_and_searches_go_on(own: tuple[System, Aios]) -> None:
    system, aios = own
    for path, text in TEXTS.items():
        aios.sto_put(path, text)
    assert paths(aios.sto_search("mainsail", fresh=True))[0] == "boat"
    before = index_of(system)
    assert before is not None
    before.kill()
    aios.sto_put("late", "an umbrella against the rain")
    assert paths(aios.sto_search("umbrella", fresh=True))[0] == "late"
    assert paths(aios.sto_search("mainsail"))[0] == "boat"
    assert aios.sto_index().restarts == 1


def test_the_kernels_death_leaves_the_index_and_nothing_out(own: tuple[System, Aios]) -> None:
    system, aios = own
    index = umbrella_found(system, aios)
    psutil.Process(aios.status().os_pid).kill()
    aios.sto_put("two", "a lighthouse on the rocks")
    assert paths(aios.sto_search("lighthouse", fresh=True))[0] == "two"
    assert paths(aios.sto_search("umbrella"))[0] == "one"
    assert index_of(system) == index


def test_a_damaged_index_is_made_anew_and_said_so(own: tuple[System, Aios]) -> None:
    system, aios = own
    index = umbrella_found(system, aios)
    file = next((system.home / "index").glob("*.db"))
    index.suspend()
    file.write_bytes(b"no index " * 1000)
    for log in file.parent.glob("*-wal"):
        log.unlink()
    index.kill()
    assert paths(aios.sto_search("umbrella", fresh=True)) == ["one"]
    assert "not a database" in aios.sto_index().trouble


def test_rebuilt_on_request(own: tuple[System, Aios]) -> None:
    _, aios = own
    for path, text in TEXTS.items():
        aios.sto_put(path, text)
    before = aios.sto_search("mainsail", fresh=True)
    aios.sto_reindex()
    assert paths(aios.sto_search("mainsail", fresh=True)) == paths(before)
    assert eventually(lambda: aios.sto_index().documents == 3)


def test_a_damaged_text_is_left_out_and_the_rest_is_found(own: tuple[System, Aios]) -> None:
    system, aios = own
    blocks = {"one": b"umbrella " * 100, "two": b"lighthouse " * 100, "three": b"harbour " * 100}
    for path, text in blocks.items():
        aios.sto_put(path, text)
    assert len(aios.sto_search("umbrella lighthouse harbour", fresh=True).hits) == 3
    aios.stop()
    system.process.wait()
    file = system.home / "store" / "data.mdb"
    data = file.read_bytes()
    at = data.index(blocks["two"])
    file.write_bytes(data[:at] + b"L" + data[at + 1 :])
    shutil.rmtree(system.home / "index")
    again = System(system.home, on_tiny(system.home, slots=2, ctx=1024), detach=True)
    try:
        again.ready()
        with connect(system.home) as aios:
            found = aios.sto_search("umbrella lighthouse harbour", fresh=True)
            assert sorted(paths(found)) == ["one", "three"]
            aios.sto_put("two", blocks["two"])
            assert "two" in paths(aios.sto_search("lighthouse", fresh=True))
    finally:
        again.end()


def test_a_damaged_row_of_the_catalogue_holds_up_no_other(own: tuple[System, Aios]) -> None:
    """Neither the version's nor that of the change."""
    system, aios = own
    for path in ("one", "two-of-four", "three", "four"):
        aios.sto_put(path, f"a lighthouse, {path}", media=f"text/{path}")
    aios.sto_search("lighthouse", fresh=True)
    aios.stop()
    system.process.wait()
    file = system.home / "store" / "data.mdb"
    data = file.read_bytes()
    for row in (b"text/three", msgpack.packb(["", "two-of-four"])):
        assert row in data
        data = data.replace(row, row[:-1] + b"X")
    file.write_bytes(data)
    shutil.rmtree(system.home / "index")
    for again in run_system(system.home, {"slots": 1, "ctx": 256}):
        with connect(again.home) as aios:
            found = aios.sto_search("lighthouse", fresh=True)
            assert sorted(paths(found)) == ["four", "one"]
            aios.sto_put("late", "a lighthouse")
            assert "late" in paths(aios.sto_search("lighthouse", fresh=True))
            assert len(aios.sto_verify().wait()["problems"]) >= 2


def test_an_index_that_is_ahead_of_its_store_is_made_anew_and_said_so(
    own: tuple[System, Aios], tmp_path: Path
) -> None:
    """A backup replaces the store, which is past that again before the index can be started."""
    system, aios = own
    aios.sto_put("one", "an umbrella against the rain")
    aios.sto_backup(str(tmp_path / "copy")).wait()
    aios.sto_put("two", "a lighthouse on the rocks")
    aios.sto_search("lighthouse", fresh=True)
    aios.stop()
    system.process.wait()
    (tmp_path / "copy" / "data.mdb").rename(system.home / "store" / "data.mdb")
    index = system.home / "index"
    index.rename(tmp_path / "index")
    index.write_text("where the folder should be")
    for again in run_system(system.home, {"slots": 1, "ctx": 256}):
        with connect(again.home) as aios:
            eventually(lambda: aios.sto_index().state == "failed")
            for number in range(5):
                aios.sto_put(f"{number}", "a harbour")
            with pytest.raises(IndexFailed, match="cannot be opened"):
                aios.sto_search("harbour")
            index.unlink()
            (tmp_path / "index").rename(index)
            assert aios.sto_search("lighthouse", mode="words", fresh=True).hits == []
            assert len(aios.sto_search("harbour", mode="words", fresh=True, count=9).hits) == 5
            assert paths(aios.sto_search("umbrella", mode="words")) == ["one"]
            assert "earlier" in aios.sto_index().trouble


def test_without_a_store_the_rest_goes_on_though_the_index_lives(own: tuple[System, Aios]) -> None:
    system, aios = own
    umbrella_found(system, aios)
    kernel = psutil.Process(aios.status().os_pid)
    kernel.suspend()
    os.truncate(system.home / "store" / "data.mdb", 5000)
    kernel.kill()
    with pytest.raises(StoreDamaged, match="cut short"):
        aios.sto_search("umbrella")
    assert aios.generate("Hi", max_tokens=2).result().tokens
    os_pid = aios.status().os_pid
    aios.sto_index()
    assert aios.status().os_pid == os_pid != kernel.pid
