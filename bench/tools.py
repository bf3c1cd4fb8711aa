"""Tools: what a call costs above the function itself, and calls that a small model writes.

`ratio` is what a call adds to the function, over a system call's round trip in the same run: it
goes from caller to kernel to worker, and back. The model is held by a grammar to the tools and
their schemas; each call that it writes is judged by the `jsonschema` package.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from jsonschema import Draft202012Validator

from aios.agents import Aios, connect
from aios.agents.reasoning.tool_dialogue import ToolDialogue
from aios.agents.tools.time import now
from aios.syscalls.tool import Spec

from .common import Progress, Target, system, timed

TARGET = Target(4.0)
ROUNDS, CALLS, IN_FLIGHT = 5, 400, 8
WRITTEN, ANSWER_TOKENS = 200, 200  # calls of the model; at most, of an answer
TASKS = (
    "What is 17 times 23?", "Which ships are longer than 200 metres? The database is ships.db.",
    "Save the sentence 'buy milk' as notes/shopping.txt.", "What time is it in Tokyo?",
    "Find what our notes say about the harbour.", "How many days are there until Christmas?",
    "List my files below reports/.", "Make the picture photos/cat.png 64 pixels wide.",
)  # fmt: skip
TOOLS = (
    "calculate", "sql.query", "files.write", "files.list", "time.now", "time.difference", "search",
    "image.resize", "python",
)  # fmt: skip


def run(
    progress: Progress, calls: int = CALLS, written: int = WRITTEN, tasks: Sequence[str] = TASKS
) -> dict[str, Any]:
    with system(progress, slots=4, ctx=2048) as home, connect(home, "bench") as aios:
        ours, peer = round_trips(progress, aios, calls)
        calls_of_model = write_calls(progress, aios, written, tasks)
    ratio = (ours["call"] - peer["function"]) / peer["system_call"]
    ours |= {"added": ours["call"] - peer["function"], **calls_of_model}
    return {"ratio": ratio, "ours": ours, "peer": peer}


# --- a call's cost --------------------------------------------------------------------------------


def round_trips(
    progress: Progress, aios: Aios, calls: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the median seconds of a call, of the function and of a system call, measured in turns;
    and the calls a second."""
    aios.call_tool(now.name).result()  # its worker is there, and warm
    kinds: dict[str, Callable[[], object]] = {
        "call": lambda: aios.call_tool(now.name).result(),
        "function": now.function,
        "system_call": aios.policy,
    }
    taken: dict[str, list[float]] = {kind: [] for kind in kinds}
    rates = []
    for number in range(ROUNDS):
        progress(f"round {number + 1} of {ROUNDS}")
        for kind, act in kinds.items():
            taken[kind].append(median(timed(act, calls)))
        rates.append(rate(aios, calls))
    found = {kind: median(each) for kind, each in taken.items()}
    ours = {"call": found.pop("call"), "calls_per_second": median(rates)}
    return ours, found


def rate(aios: Aios, count: int) -> float:
    begin = time.perf_counter()
    running = [aios.call_tool(now.name) for _ in range(IN_FLIGHT)]
    for _ in range(count - IN_FLIGHT):
        running.pop(0).result()
        running.append(aios.call_tool(now.name))
    for call in running:
        call.result()
    return count / (time.perf_counter() - begin)


# --- what a model writes --------------------------------------------------------------------------


def write_calls(
    progress: Progress, aios: Aios, wanted: int, tasks: Sequence[str]
) -> dict[str, int]:
    """Have the model write calls. Return how many fit their schemas, of how many, and how many
    answers were cut, which have none."""
    specs = {spec.name: spec for spec in aios.tools() if spec.name in TOOLS}
    talk = ToolDialogue(aios, [specs[name] for name in TOOLS], parallel=2)
    grammar = talk.grammar("call")
    asked = [aios.open() for _ in tasks]
    for context, task in zip(asked, tasks, strict=True):
        context.append(talk.opening(task))
    counts = {"written": 0, "valid": 0, "cut": 0}
    while counts["written"] < wanted:
        copies = [context.fork() for context in asked]
        options: dict[str, Any] = {"seed": counts["written"], "max_tokens": ANSWER_TOKENS}
        answers = [copy.generate(grammar=grammar, temperature=1.0, **options) for copy in copies]
        for copy, answer in zip(copies, answers, strict=True):
            result = answer.result()
            copy.close()
            if result.finish == "length":
                counts["cut"] += 1
                continue
            for call in talk.parse(result.text).calls:
                counts["written"] += 1
                counts["valid"] += fits(specs[call.name], call.args)
        progress(f"{counts['written']} of {wanted} calls written")
    return counts


def fits(spec: Spec, args: dict[str, Any]) -> bool:
    return bool(Draft202012Validator(spec.schema).is_valid(args))
