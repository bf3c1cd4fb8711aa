"""The index against a plain model: whatever is put, removed, searched, reopened or killed."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from conftest import fewer
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from index_documents import ask, model, put, remove, sound

from aios.kernel.index.index import Index
from aios.kernel.index.protocol import Change, PutDocument
from aios.syscalls.sto import Mode

WORDS = ("ibis", "heron", "crane", "stork", "tern")
owners = st.sampled_from(["ann", "bob"])
paths = st.sampled_from(["a", "a/x", "a/x/y", "ab", "b", "\0"])
texts = st.lists(st.sampled_from([*WORDS, "the", "\0", "\n\n", "."]), max_size=8).map(" ".join)
tags = st.lists(st.sampled_from(["red", "blue"]), max_size=2)
scopes = st.lists(st.tuples(owners, st.sampled_from(["", "a", "a/x", "b"])), max_size=3)
changes = st.lists(
    st.tuples(owners, paths, st.one_of(st.none(), texts), st.integers(0, 5), tags),
    min_size=1, max_size=6,
)  # fmt: skip


def covers(scope: tuple[str, str], document: PutDocument) -> bool:
    owner, path = scope
    below = path in ("", document.path) or document.path.startswith(path + "/")
    return owner == document.owner and below


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="aios-"))
        self.index = Index(self.folder, model())
        self.documents: dict[tuple[str, str], PutDocument] = {}
        self.seq = 0

    def teardown(self) -> None:
        sound(self.index)
        self.index.close()
        shutil.rmtree(self.folder)

    @rule(drawn=changes)
    def apply(self, drawn: list[tuple[str, str, str | None, int, list[str]]]) -> None:
        batch: list[Change] = []
        for owner, path, text, time, some in drawn:
            self.seq += 1
            if text is None:
                batch.append(remove(self.seq, path, owner))
                self.documents.pop((owner, path), None)
            else:
                new = put(
                    self.seq, path, text, owner, version=self.seq, time=float(time), tags=some
                )
                batch.append(new)
                self.documents[owner, path] = new
        self.index.apply(batch)

    @rule(
        query=texts, chosen=scopes, since=st.one_of(st.none(), st.integers(0, 5)),
        until=st.one_of(st.none(), st.integers(0, 5)), some=tags,
    )  # fmt: skip
    def search(
        self, query: str, chosen: list[tuple[str, str]], since: int | None, until: int | None,
        some: list[str],
    ) -> None:  # fmt: skip
        asked = {word for word in query.split() if word in WORDS}
        expected = {
            (document.owner, document.path, document.version)
            for document in self.documents.values()
            if any(covers(scope, document) for scope in chosen)
            and (since is None or document.time >= since)
            and (until is None or document.time < until)
            and {*some} <= {*document.tags}
        }
        fields: dict[str, Any] = {
            "scopes": chosen,
            "since": since,
            "until": until,
            "tags": some,
            "count": 99,
        }
        mode: Mode
        for mode in ("words", "meaning", "fused"):
            hits = self.index.search(ask(query, mode, **fields))
            found = {(hit.owner, hit.path, hit.version) for hit in hits}
            assert found <= expected
            for hit in hits:
                document = self.documents[hit.owner, hit.path]
                assert hit.text == document.text[hit.start : hit.end]
            if mode != "meaning" and asked:
                words = {
                    place for place in expected
                    if asked & {*self.documents[place[0], place[1]].text.split()}
                }  # fmt: skip
                assert words <= found if mode == "fused" else words == found

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = Index(self.folder, model())

    @rule()
    def die(self) -> None:
        """End like a killed process: the files stay as they are, nothing is closed."""
        copy = Path(tempfile.mkdtemp(prefix="aios-"))
        shutil.copytree(self.folder, copy, dirs_exist_ok=True)
        self.index.close()
        shutil.rmtree(self.folder)
        self.folder, self.index = copy, Index(copy, model())

    @rule()
    def drop(self) -> None:
        self.index.reset("store", drop=True)
        self.documents, self.seq = {}, 0

    @invariant()
    def books(self) -> None:
        assert self.index.began_again == ""
        assert self.index.position == self.seq
        assert self.index.documents == len(self.documents)


TestIndex = Machine.TestCase
TestIndex.settings = fewer(2)
