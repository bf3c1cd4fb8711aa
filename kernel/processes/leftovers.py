"""Remove the files that processes leave, when nobody asks for them any more."""

from __future__ import annotations

from pathlib import Path

from ..lib.sweeper import Sweeper
from ..process import Process, ProcessTable
from ..sandbox.sandbox import AgentDirectory
from .agent_logs import Logs


class Leftovers:
    """Removes agents' folders and logs in the home `home`, beside the loop."""

    def __init__(self, home: Path, table: ProcessTable, logs: Logs) -> None:
        self.home, self.table, self.logs = home, table, logs
        self.sweeper = Sweeper()
        table.on_forget = self._forgotten

    def remove(self, process: Process) -> None:
        """Remove the folder of a process."""
        self.sweeper.remove(AgentDirectory(self.home, process.pid).own)

    def _forgotten(self, process: Process) -> None:
        """Remove folder and log of a process that is no longer in the table."""
        if process.kind == "agent":
            self.remove(process)
            self.sweeper.remove(self.logs.path(process.pid))

    def remove_unknown(self) -> None:
        """Remove folders and logs of agents that are not in the table. No process gets such a pid,
        should a journal have been lost, since the sweeper may still be at its folder."""
        left = [(path.name, path) for path in (self.home / "agents").iterdir()]
        logs = self.logs.folder.glob("agent-*.log")
        left += [(path.stem.removeprefix("agent-"), path) for path in logs]
        for number, path in left:
            if number.isdigit() and int(number) not in self.table.rows:
                self.table.last = max(self.table.last, int(number))
                self.sweeper.remove(path)
