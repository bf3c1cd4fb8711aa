"""The chat template that a model's file carries: the core's side of the process that renders it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from aios.syscalls.errors import BadInput, CoreFailed, ModelError

Message = dict[str, str]
Asked = tuple[list[Message], bool]  # messages, and whether an answer is opened behind them
COMMAND = [sys.executable, "-P", "-m", "aios.kernel.core.renderer"]

OURS = "the model's chat template"
AS_TEXT = "send text to go on from: raw=True, or `aios generate --raw`"  # where there is none


class Renders(Protocol):
    def render(self, asked: Sequence[Asked], tools: list[Any] | None) -> list[str | BadInput]: ...


class Template:
    """Raises ModelError where the template cannot be compiled, or does not come to an end."""

    def __init__(self, source: str, bos: str, eos: str) -> None:
        self._begin = [source, {"bos_token": bos, "eos_token": eos}]
        self._process: subprocess.Popen[str] | None = None
        self._start()
        greeting: Asked = ([{"role": "user", "content": "Hello"}], True)
        if self._ask([None, [greeting]]) is None:
            raise _unusable("takes too much to render one message")

    def render(
        self, asked: Sequence[Asked], tools: list[Any] | None = None
    ) -> list[str | BadInput]:
        """The text of each, or why the template makes none of it.

        Raises:
            BadInput: it knows no tools, and there are some; or it takes too much.
            CoreFailed: the process that renders has ended, and none can be started.
        """
        if tools is not None and "tools" not in self.names:
            raise BadInput("the chat template knows no tools", "tell of them in a system message")
        if self._process is None:
            try:
                self._start()
            except OSError as error:  # too many processes, or no memory
                raise CoreFailed(f"no process can render: {error.strerror}", "try again") from error
        answer = self._ask([tools, asked])
        if answer is None:
            raise BadInput(f"{OURS} takes too much to render these messages", "send fewer of them")
        return [
            found["text"] if "text" in found else BadInput(f"{OURS} {found['error']}")
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
            raise _unusable("takes too much to compile")
        if "error" in found:
            self.close()
            raise _unusable(f"cannot be compiled: {found['error']}")
        self.names: list[str] = found["names"]

    def _ask(self, question: Any) -> Any:
        """The process's answer; None where it ended at that."""
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


def _unusable(why: str) -> ModelError:
    return ModelError(
        f"the chat template of the model {why}", "take a file of that model with another template"
    )
