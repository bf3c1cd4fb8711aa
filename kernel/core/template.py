"""The chat template that a model's file carries: the core's side of the process that renders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from aios.syscalls.errors import BadInput, CoreFailed, ModelError

Message = dict[str, str]
RenderRequest = tuple[list[Message], bool]  # messages, and whether to open an answer behind them
COMMAND = [sys.executable, "-P", "-m", "aios.kernel.core.renderer"]

TEMPLATE_NAME = "the model's chat template"
NO_TEMPLATE_HINT = "send text to go on from: raw=True, or `aios generate --raw`"


class TemplateRenderer(Protocol):
    def render(
        self, requests: Sequence[RenderRequest], tools: list[Any] | None
    ) -> list[str | BadInput]: ...


class Template:
    """A chat template, rendered in a process of its own.

    Raises:
        ModelError: the template cannot be compiled, or takes too long to render one message.
    """

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self._begin = [source, {"bos_token": bos, "eos_token": eos}]
        self._process: subprocess.Popen[str] | None = None
        self._start()
        greeting: RenderRequest = ([{"role": "user", "content": "Hello"}], True)
        if self._ask([None, [greeting]]) is None:
            raise _unusable_error("takes too much to render one message")

    def render(
        self, requests: Sequence[RenderRequest], tools: list[Any] | None = None
    ) -> list[str | BadInput]:
        """Return the text of each request, or the reason why the template refuses it.

        Raises:
            BadInput: the template knows no tools, and there are some; or it takes too much time.
            CoreFailed: the process that renders has ended, and no other can be started.
        """
        if tools is not None and "tools" not in self.names:
            raise BadInput("the chat template knows no tools", "tell of them in a system message")
        if self._process is None:
            try:
                self._start()
            except OSError as error:  # too many processes, or no memory
                raise CoreFailed(f"no process can render: {error.strerror}", "try again") from error
        answer = self._ask([tools, requests])
        if answer is None:
            raise BadInput(
                f"{TEMPLATE_NAME} takes too much to render these messages", "send fewer of them"
            )
        return [
            found["text"] if "text" in found else BadInput(f"{TEMPLATE_NAME} {found['error']}")
            for found in answer
        ]

    def close(self) -> None:
        if self._process is not None:
            self._process.communicate()  # it ends with its input
            self._process = None

    def _start(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(COMMAND, stdin=pipe, stdout=pipe, text=True)
        found = self._ask(self._begin)
        if found is None:
            raise _unusable_error("takes too much to compile")
        if "error" in found:
            self.close()
            raise _unusable_error(f"cannot be compiled: {found['error']}")
        self.names: list[str] = found["names"]

    def _ask(self, question: Any) -> Any:
        """Return the process's answer; None if it ended over the question."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        try:
            print(json.dumps(question), file=process.stdin, flush=True)
        except BrokenPipeError:
            line = ""
        else:
            line = process.stdout.readline()
        if not line.endswith("\n"):
            process.kill()
            process.communicate()
            self._process = None
            return None
        return json.loads(line)


def _unusable_error(why: str) -> ModelError:
    return ModelError(
        f"the chat template of the model {why}", "take a file of that model with another template"
    )
