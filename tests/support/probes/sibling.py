"""An agent like any other, for others to reach: it waits, and answers those who write to it."""

from __future__ import annotations

import ctypes
import signal
from pathlib import Path
from typing import Any

from aios.agents import Agent


class Sibling(Agent):
    def run(self, _task: Any) -> None:
        Path("note").write_text("a sibling's secret")
        word = ctypes.create_string_buffer(b"in memory")
        where = [ctypes.addressof(word), str(Path.cwd()), self.aios.welcome.secret.hex()]
        self.aios.send(self.aios.recv().sender, where)
        heard: list[int] = []
        signal.signal(signal.SIGURG, lambda number, _: heard.append(number))
        while True:
            mail = self.aios.recv()
            self.aios.send(mail.sender, heard if mail.body == "signalled?" else mail.body)
