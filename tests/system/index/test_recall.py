"""An agent recalls texts of others, as far as these share them."""

from __future__ import annotations

from collections.abc import Callable

from conftest import Boot
from helpers import result_of

from aios.agents import connect
from aios.shell.launch import System
from aios.syscalls.errors import Denied

Program = Callable[[str], str]

TOLD = [
    "The key to the boathouse hangs behind the green door.",
    "My sister Marta plays the cello in Lisbon.",
    "The meeting moved to Thursday at nine.",
]
LISTEN = """
with aios.open("Answer in one word.") as context:
    for number, fact in enumerate(task["told"]):
        context.generate(fact, max_tokens=8).result()
        aios.sto_put(f"facts/{number}", fact)
aios.sto_share("facts", "/reader")
return True
"""
ANSWER = """
before = aios.generate(task["question"], max_tokens=24).text
with aios.open() as context:
    hits = context.recall(task["question"], owner=task["owner"], count=1, fresh=True)
    after = context.generate(task["question"], max_tokens=24).text
return [hits[0].owner, hits[0].path, hits[0].text, before, after]
"""
TRY = """
try:
    with aios.open() as context:
        context.recall(task["question"], owner=task["owner"])
except AiosError as error:
    return error.code
"""


def test_told_by_one_recalled_by_another_denied_to_a_third(boot: Boot, program: Program) -> None:
    """An agent is told facts over three turns and ends; in another run of the system a second one,
    which may read them, answers from them; a third one may not."""
    first = boot()
    with connect(first.home) as aios:
        result_of(aios, program(LISTEN), {"told": TOLD}, name="listener")
        aios.stop()
    first.process.wait()
    second = System(first.home, {"slots": 2, "ctx": 1024, "grace": 0.5}, detach=True)
    try:
        second.ready()
        with connect(second.home) as aios:
            question = "What does Marta play?"
            task = {"question": question, "owner": "/listener"}
            *hit, before, after = result_of(aios, program(ANSWER), task, name="reader")
            assert hit == ["/listener", "facts/1", TOLD[1]]
            assert "cello" not in before
            assert "cello" in after
            assert result_of(aios, program(TRY), task, name="stranger") == Denied.code
    finally:
        second.end()
