"""An agent that runs each command it is sent by bash, in a folder of its own, and sends the output
back, until it is sent nothing."""

from __future__ import annotations

import subprocess
import tempfile
from typing import Any

from aios.agents import Agent


class Commands(Agent):
    def run(self, _task: Any) -> None:
        while (mail := self.aios.recv()).body:
            done = subprocess.run(
                ["bash", "-c", mail.body], cwd=tempfile.mkdtemp(), stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
            )  # fmt: skip
            self.aios.send(mail.sender, [done.returncode, done.stdout[-4000:]])
