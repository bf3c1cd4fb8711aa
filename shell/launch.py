"""Starting and ending a system: init is a program like any other to the shell."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aios.agents import Aios, connect
from aios.syscalls.errors import AiosError, KernelGone, TimedOut, from_wire
from aios.syscalls.table import Status

LOOK = 0.05  # seconds between two looks at a system that is starting
PATIENCE = 300.0  # seconds for a model to load


class System:
    """An init that this process started; `process` is its handle.

    `settings` are those of config.toml (docs/settings.md).
    """

    def __init__(self, home: Path, settings: dict[str, Any], *, detach: bool) -> None:
        self.home = home
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.log = home / "init.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "aios.kernel.init", str(home), json.dumps(settings)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/",
                start_new_session=detach, env=os.environ | {"AIOS_HOME": str(home)},
            )  # fmt: skip

    def ready(self, progress: Callable[[str], None] = lambda _: None) -> Status:
        """Wait until the model is loaded; `progress` is told what is waited for.

        Raises:
            AiosError: what kept the system from starting; it has ended then.
        """
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            progress("starting the kernel")
            if self.process.poll() is not None:
                raise self._why()
            try:
                with connect(self.home, "aios-start") as aios:
                    return self._core_ready(aios, limit, progress)
            except KernelGone:
                time.sleep(LOOK)
        self.end()
        raise TimedOut(f"the system was not ready after {PATIENCE:g} s", f"see {self.log}")

    def _core_ready(self, aios: Aios, limit: float, progress: Callable[[str], None]) -> Status:
        while time.monotonic() < limit:
            status = aios.status()
            if status.core == "ready":
                return status
            if status.core_error is not None:
                aios.stop()
                self.process.wait()
                raise from_wire(status.core_error)
            progress("loading the model, and testing that it is exact")
            time.sleep(LOOK)
        raise TimedOut("the model is still loading")

    def _why(self) -> AiosError:
        text = self.log.read_text(errors="replace").strip()
        try:
            return from_wire(json.loads(text.splitlines()[-1]))
        except (ValueError, IndexError):
            kernel = self.home / "log" / "kernel.log"
            tail = kernel.read_text(errors="replace").strip() if kernel.exists() else text
            return AiosError(f"init ended with code {self.process.returncode}: {tail[-500:]}")

    def end(self) -> int:
        """TERM, and wait for the end of all its processes; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait()
