"""Remove what ended agents leave on the disk, in a thread of its own.

A folder may be deeper than a path can be long, and hold whatever its agent liked. Subfolders are
moved up to the top and emptied there, so this takes two descriptors at any depth. The next kernel
removes what is left when one ends.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Sweeper:
    """A thread that removes paths in the background."""

    def __init__(self) -> None:
        self.paths: queue.SimpleQueue[Path | None] = queue.SimpleQueue()
        self.running = True
        self.thread = threading.Thread(target=self._work, name="sweeper", daemon=True)
        self.thread.start()

    def remove(self, path: Path) -> None:
        """Queue a file, or a folder with all that is in it, to be removed."""
        self.paths.put(path)

    def close(self) -> None:
        """Stop the thread; paths in the queue stay."""
        self.running = False
        self.paths.put(None)
        self.thread.join()

    def _work(self) -> None:
        while (path := self.paths.get()) is not None and self.running:
            with contextlib.suppress(OSError):  # it stays, and the next kernel tries again
                remove(path, lambda: self.running)


def remove(path: Path, may_go_on: Callable[[], bool] = lambda: True) -> None:
    """Remove a file, or a folder with all that is in it, if it exists.

    Blocks. Stops early when `may_go_on` returns False.

    Raises:
        OSError: something cannot be removed.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found.st_mode):
        path.unlink()
        return
    path.chmod(0o700)
    top = os.open(path, FOLDER)
    try:
        while may_go_on() and (names := list(_emptied(top, top, may_go_on))):
            for name in names:
                _flatten(top, name, may_go_on)
    finally:
        os.close(top)
    if may_go_on():
        path.rmdir()


def _emptied(folder: int, top: int, may_go_on: Callable[[], bool]) -> Iterator[str]:
    """Unlink the files of `folder`, and yield the names of its subfolders, moved into `top`."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not may_go_on():
                return
            if not entry.is_dir(follow_symlinks=False):
                os.unlink(entry.name, dir_fd=folder)
                continue
            os.chmod(
                entry.name, 0o700, dir_fd=folder
            )  # otherwise it could be neither read nor moved
            name = entry.name
            if folder != top:
                name = f".removed-{secrets.token_hex(8)}"
                os.rename(entry.name, name, src_dir_fd=folder, dst_dir_fd=top)
            yield name


def _flatten(top: int, name: str, may_go_on: Callable[[], bool]) -> None:
    """Remove a folder of `top`, after moving its subfolders into `top`."""
    folder = os.open(name, FOLDER, dir_fd=top)
    try:
        for _ in _emptied(folder, top, may_go_on):
            pass
    finally:
        os.close(folder)
    if may_go_on():
        os.rmdir(name, dir_fd=top)
