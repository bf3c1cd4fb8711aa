"""The process that renders a model's chat template, under limits that Linux enforces.

    python -m aios.kernel.core.renderer    (JSON lines: Template in template.py writes and reads)

A template is a program that came with the model's file: it may loop, or build a text without end.
What it may do is jinja's sandbox; how long and how much, the limits of this process.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from typing import Any

from jinja2 import Template, TemplateSyntaxError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

SECONDS, MEMORY = 2.0, 1 << 29  # of processor time for one question; of address space
MOST = 1 << 22  # characters of a rendered text

Message = dict[str, str]


class Refused(Exception):
    """There is no text, for this reason."""


class Generation(Extension):
    """The tag that marks what a model generates, for those who train one."""

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


Generation.tags = {"generation"}


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def refuse(message: str) -> None:
    raise Refused(f"refuses: {message}")


def compiled(source: str) -> tuple[Template, set[str]]:
    """The template, as transformers compile it, and the names that it takes from outside.

    Raises:
        Refused: it is none.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    try:
        names = find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), names
    except Exception as error:
        raise Refused(in_words(error)) from error


def joined(messages: list[Message]) -> list[Message]:
    """Consecutive messages of a role as one: some templates take no others."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1].get("role") == message.get("role") != "tool":
            content = f"{found[-1]['content']}\n\n{message['content']}"
            found[-1] = {**message, "content": content}
        else:
            found.append(message)
    return found


def without_system(message: Message) -> Message:
    """For templates that know no such role."""
    return (
        {**message, "role": "user"} if message.get("role") in ("system", "developer") else message
    )


def render(template: Template, messages: list[Message], **names: Any) -> str:
    """The text that a template makes of messages.

    Raises:
        Refused: it makes none.
    """
    try:
        text = template.render(
            messages=messages,
            raise_exception=refuse,
            strftime_now=lambda form: datetime.now().strftime(form),
            **names,
        )
        text.encode()
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"failed: {in_words(error)}") from error
    if len(text) > MOST:
        raise Refused("makes too long a text")
    return text


def answer(template: Template, messages: list[Message], **names: Any) -> dict[str, str]:
    """The text of messages, if need be as one message of a role at a time, or why there is none."""
    why = ""
    for talk in (messages, joined(messages), joined([without_system(each) for each in messages])):
        try:
            return {"text": render(template, talk, **names)}
        except Refused as error:
            why = why or str(error)
    return {"error": why}


def in_words(error: Exception) -> str:
    line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    return line + (" ".join(str(error).split()) or type(error).__name__)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # its signal ends the process
    source, ends = json.loads(sys.stdin.readline())
    try:
        template, names = compiled(source)
    except Refused as error:
        say({"error": str(error)})
        return
    say({"names": sorted(names)})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        tools, asked = json.loads(line)
        say([
            answer(template, messages, tools=tools, add_generation_prompt=reply, **ends)
            for messages, reply in asked
        ])  # fmt: skip
        signal.setitimer(signal.ITIMER_PROF, 0)


def say(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
