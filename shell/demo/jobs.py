"""The tasks of the agents of `aios demo`."""

from __future__ import annotations

from typing import Any, NamedTuple

LIGHTHOUSE = (
    "The lighthouse on Skerryvore was built between 1838 and 1844 by Alan Stevenson. The rock lies"
    " eleven miles from the island of Tiree, and the sea covers most of it. In the first season a"
    " storm carried away the wooden barrack in which the workmen were to live. They began again,"
    " and for three summers they cut granite on the rock from four in the morning until nine at"
    " night. The finished tower is 48 metres high, and its light can be seen for 26 miles."
)
MINUTES = (
    "Minutes of 3 March. Present: Anna Lindqvist, Tomas Beran, Priya Nair. Anna reported that the"
    " new pump arrived on Monday and will be fitted by Friday. Tomas asked for 400 euros to repair"
    " the roof of the shed; this was agreed. Priya will write to the council about the broken"
    " street lamp. Next meeting: 17 March at 19:00, in the library."
)
COMPLAINT = (
    "I ordered the blue kettle three weeks ago. You sent me a red one, and it has a crack in the"
    " lid. I have called twice and nobody has called me back. I want the right kettle by Saturday,"
    " or I want my money."
)


class DemoJob(NamedTuple):
    name: str
    prompt: str
    options: dict[str, Any]  # of llm.generate: some jobs are greedy, some sampled


JOBS = (
    DemoJob("summarize", f"Summarize this text in two sentences.\n\n{LIGHTHOUSE}", {}),
    DemoJob("names", f"List the people in this text, and what each will do.\n\n{MINUTES}", {}),
    DemoJob("polite", f"Rewrite this letter so that it is polite.\n\n{COMPLAINT}",
            {"temperature": 0.7, "top_p": 0.9, "seed": 1}),
    DemoJob("poem", "Write a short poem about a lighthouse in a storm.",
            {"temperature": 0.9, "top_k": 50, "seed": 2, "repeat_penalty": 1.1}),
    DemoJob("dates", f"List every date and time in this text.\n\n{MINUTES}", {}),
    DemoJob("questions", f"Ask three questions that this text answers.\n\n{LIGHTHOUSE}",
            {"temperature": 0.6, "min_p": 0.05, "seed": 3}),
    DemoJob("reply", f"Write the shop's reply to this letter.\n\n{COMPLAINT}",
            {"temperature": 0.8, "top_p": 0.95, "seed": 4}),
    DemoJob("title", f"Write a newspaper headline and a first sentence.\n\n{LIGHTHOUSE}",
            {"temperature": 0.5, "frequency_penalty": 0.3, "seed": 5}),
)  # fmt: skip


def pick(count: int, max_tokens: int) -> list[DemoJob]:
    """Return `count` jobs. If there are not enough they repeat, each with another seed."""
    jobs = []
    for number in range(count):
        turn, at = divmod(number, len(JOBS))
        job = JOBS[at]
        options: dict[str, Any] = job.options | {"max_tokens": max_tokens}
        if turn:
            options |= {"temperature": 0.8, "seed": 100 * turn + at}
        jobs.append(DemoJob(f"{job.name}{turn + 1}" if turn else job.name, job.prompt, options))
    return jobs
