"""The calls that watch objects, each with an owner and a prefix of paths."""

from __future__ import annotations

from collections.abc import Callable

from aios.syscalls import sto
from aios.syscalls.errors import AiosError, LimitReached

from ..entry.call import Call
from ..entry.followers import Followers
from ..rules import Mode
from .shares import covers

MAX_PIECES = 1024  # about one commit, to all calls that watch


class Watches(Followers[tuple[str, str]]):
    """The calls that watch. `reach` returns the prefixes of an owner that a caller may reach."""

    def __init__(self, reach: Callable[[Call, str, Mode], list[str]]) -> None:
        super().__init__()
        self.reach = reach

    def tell(self, versions: list[sto.Version]) -> None:
        """Tell the calls that watch of one commit, which has versions of one owner."""
        told = 0
        for call, (owner, prefix) in self:
            if owner != versions[0].owner:
                continue
            found = [version for version in versions if version.path.startswith(prefix)]
            told += len(found)
            try:
                if found and told > MAX_PIECES:
                    raise LimitReached(
                        "too much has changed at once for all who follow it",
                        "follow again, then list what is there",
                    )
                reach = self.reach(call, owner, "read") if found else []
            except AiosError as error:
                call.fail(error)
                continue
            for version in found:
                if any(covers(each, version.path) for each in reach):
                    call.piece(version)
