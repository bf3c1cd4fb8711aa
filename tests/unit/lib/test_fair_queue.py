"""Questions to the core: an agent with many questions delays only itself."""

from __future__ import annotations

from collections.abc import Awaitable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aios.kernel.core.protocol import Question, Tokenized
from aios.kernel.index import protocol
from aios.kernel.index.client import MAX_SEARCHES, IndexClient
from aios.kernel.lib.coroutine import Driver
from aios.kernel.lib.fair_queue import FairQueue
from aios.kernel.llm.prompt import MAX_DEATHS, MAX_TEXTS, Prompts
from aios.syscalls.errors import AiosError, CoreFailed
from aios.syscalls.llm import Detokenize, Generate
from aios.syscalls.sto import Search


class Asker:
    """Agents that ask, and the core, which was asked what `core` holds."""

    def __init__(self) -> None:
        self.core: list[Question] = []
        self.prompts = Prompts(Mock(window=1), self.core.append)
        self.said: list[str] = []

    def run(self, principal: str, work: Awaitable[object]) -> Driver:
        def failed(error: AiosError) -> None:
            self.said.append(f"{principal} {error.code}")

        driver = Driver(work, lambda _: self.said.append(principal), failed)
        driver.go_on()
        return driver

    def grammar(self, principal: str) -> Driver:
        wanted = Generate(text="", schema={"title": principal})
        return self.run(principal, self.prompts.compile(process(principal), wanted))

    def text(self, principal: str) -> None:
        call: Any = SimpleNamespace(process=process(principal))
        self.run(principal, self.prompts.detokenize(call, Detokenize([1])))

    def answer(self) -> None:
        self.prompts.answered(Tokenized(self.core.pop(0).req))


def process(principal: str) -> Any:
    return SimpleNamespace(principal=principal)


def test_a_grammar_waits_for_one_of_each_other_tree() -> None:
    asker = Asker()
    for number in range(64):
        asker.grammar(f"/evil/n{number}")
    asker.grammar("/good")
    for _ in range(3):
        assert len(asker.core) == 1
        asker.answer()
    assert asker.said == ["/evil/n0", "/evil/n1", "/good"]


def test_texts_wait_for_no_grammar_and_for_few_texts_of_others() -> None:
    asker = Asker()
    asker.grammar("/evil")
    for _ in range(64):
        asker.text("/evil")
    asker.text("/good")
    assert len(asker.core) == 1 + MAX_TEXTS
    asker.core.pop(0)
    while "/good" not in asker.said:
        asker.answer()
    assert len(asker.said) <= MAX_TEXTS + 2


def test_what_nobody_waits_for_is_not_asked() -> None:
    asker = Asker()
    _, second, _ = (asker.grammar(name) for name in ("/a", "/b", "/c"))
    second.stop()
    asker.answer()
    asker.answer()
    assert asker.said == ["/a", "/c"]
    assert asker.core == []


def test_a_death_of_the_core_counts_against_what_it_was_asked() -> None:
    asker = Asker()
    for name in ("/evil", "/good"):
        asker.grammar(name)
    for _ in range(MAX_DEATHS):
        asker.core[:] = asker.prompts.asked()  # another core
        asker.prompts.core_gone()
    assert asker.said == [f"/evil {CoreFailed.code}"]
    asker.core[:] = asker.prompts.asked()
    asker.answer()
    assert asker.said[1:] == ["/good"]


def test_a_core_that_is_given_up_answers_all() -> None:
    asker = Asker()
    for name in ("/a", "/a", "/b"):
        asker.grammar(name)
    asker.prompts.give_up(CoreFailed("no"))
    assert sorted(asker.said) == [f"/{name} {CoreFailed.code}" for name in "aab"]
    assert asker.prompts.asked() == []


def test_searches_take_turns_and_who_cancels_them_waits_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    line = Mock()
    monkeypatch.setattr("aios.kernel.service.Channel", line)
    config, changes = Mock(path=Path()), Mock(id=b"", newest=lambda: 0)
    link = IndexClient(config, Mock(), changes, Mock())
    *_, on_data = line.call_args.args
    link.state = "ready"
    asker, drivers = Asker(), []
    for name in [*["/evil"] * 64, "/good"]:
        call: Any = SimpleNamespace(process=process(name))
        drivers.append(asker.run(name, link.search(call, Search(query=name), [])))
    for driver in drivers[:10]:
        driver.stop()
    assert len(link.queue.trees) == len(link.pending) == 55

    def sent() -> list[protocol.Command]:
        sent = line.return_value.send.call_args_list
        return [protocol.decode_command(each.args[0]) for each in sent]

    before = sent()
    assert len(before) == MAX_SEARCHES
    for search in before:
        assert isinstance(search, protocol.Search)
        on_data(protocol.encode(protocol.SearchResults(search.req, [])))
    assert [getattr(each, "query", "") for each in sent()[MAX_SEARCHES:]] == ["/evil", "/good"]


def test_what_was_cancelled_before_its_turn_is_not_kept() -> None:
    asker = Asker()
    asker.grammar("/good")
    for number in range(100):
        asker.grammar(f"/evil/n{number}").stop()
    asker.grammar("/good")
    assert len(asker.prompts.questions) == 2
    assert len(asker.prompts.grammars.trees) == 1
    for _ in range(2):
        asker.answer()
    assert asker.said == ["/good", "/good"]
    assert asker.core == []


@given(st.lists(st.sampled_from("abc"), max_size=40), st.integers(1, 3))
def test_each_has_its_turn_and_nothing_is_lost(trees: list[str], at_once: int) -> None:
    queue = FairQueue(at_once)
    for number, tree in enumerate(trees):
        queue.add(tree, number)
    came: list[int] = []
    while (begun := queue.begin()) is not None:
        came.append(begun)
        if len(queue.begun) == at_once:
            queue.end(min(queue.begun))
    assert sorted(came) == list(range(len(trees)))
    for tree in "abc":
        own = [number for number in came if trees[number] == tree]
        assert own == sorted(own)
        for before, after in pairwise(own):
            between = [trees[number] for number in came[came.index(before) + 1 : came.index(after)]]
            assert len(between) == len(set(between))
