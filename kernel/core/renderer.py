"""The process that renders a model's chat template, under limits that Linux enforces.

    python -m aios.kernel.core.renderer    (JSON lines: Template in template.py writes and reads)

A template is a program that came with the model's file: it may loop, or build an endless text.
jinja's sandbox bounds what it may do; the limits of this process bound its time and memory.
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

CPU_S, MEMORY_BYTES = 2.0, 1 << 29  # processor time for one question; address space
MAX_TEXT_CHARS = 1 << 22  # of a rendered text

Message = dict[str, str]


class RenderError(Exception):
    """The template makes no text, for this reason."""


class GenerationTag(Extension):
    """The tag that marks what a model generates, for those who train one."""

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        parser.stream.skip(1)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


GenerationTag.tags = {"generation"}


def to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def refuse(message: str) -> None:
    raise RenderError(f"refuses: {message}")


def compile_template(source: str) -> tuple[Template, set[str]]:
    """Compile a template as transformers does, and return it with the names that it uses.

    Raises:
        RenderError: the source is not a template.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    try:
        names = find_undeclared_variables(environment.parse(source))
        return environment.from_string(source), names
    except Exception as error:
        raise RenderError(describe(error)) from error


def join_messages(messages: list[Message]) -> list[Message]:
    """Join consecutive messages of a role, since some templates refuse them."""
    found: list[Message] = []
    for message in messages:
        if found and found[-1].get("role") == message.get("role") != "tool":
            content = f"{found[-1]['content']}\n\n{message['content']}"
            found[-1] = {**message, "content": content}
        else:
            found.append(message)
    return found


def without_system(message: Message) -> Message:
    """Make a user's message of a system's, for templates that know no such role."""
    return (
        {**message, "role": "user"} if message.get("role") in ("system", "developer") else message
    )


def render(template: Template, messages: list[Message], **names: Any) -> str:
    """Render messages.

    Raises:
        RenderError: the template refuses them, fails, or makes too long a text.
    """
    try:
        text = template.render(
            messages=messages,
            raise_exception=refuse,
            strftime_now=lambda form: datetime.now().strftime(form),
            **names,
        )
        text.encode()
    except RenderError:
        raise
    except Exception as error:
        raise RenderError(f"failed: {describe(error)}") from error
    if len(text) > MAX_TEXT_CHARS:
        raise RenderError("makes too long a text")
    return text


def answer(template: Template, messages: list[Message], **names: Any) -> dict[str, str]:
    """Render messages as they are, else joined by role, else without a system's role as well. If
    all of that fails, return the first error."""
    why = ""
    for talk in (
        messages,
        join_messages(messages),
        join_messages([without_system(each) for each in messages]),
    ):
        try:
            return {"text": render(template, talk, **names)}
        except RenderError as error:
            why = why or str(error)
    return {"error": why}


def describe(error: Exception) -> str:
    line = f"line {error.lineno}: " if isinstance(error, TemplateSyntaxError) else ""
    return line + (" ".join(str(error).split()) or type(error).__name__)


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.setitimer(signal.ITIMER_PROF, CPU_S)  # its signal ends the process
    source, ends = json.loads(sys.stdin.readline())
    try:
        template, names = compile_template(source)
    except RenderError as error:
        send({"error": str(error)})
        return
    send({"names": sorted(names)})
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        tools, requests = json.loads(line)
        send([
            answer(template, messages, tools=tools, add_generation_prompt=reply, **ends)
            for messages, reply in requests
        ])  # fmt: skip
        signal.setitimer(signal.ITIMER_PROF, 0)


def send(value: Any) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
