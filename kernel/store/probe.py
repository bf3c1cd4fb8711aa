"""A process that reads all of a store, to find out whether that crashes. Some kinds of damage make
LMDB end the process, so after the crash of a kernel this one reads the store first.

    python -m aios.kernel.store.probe FOLDER
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmdb

from aios.syscalls.errors import StoreDamaged

from .store import RESTORE, TABLES


def try_store(folder: Path) -> None:
    """Raise StoreDamaged where reading the store in `folder` ends in a crash or an error."""
    if not (folder / "data.mdb").exists():
        return
    done = subprocess.run(
        [sys.executable, "-P", "-m", __name__, str(folder)], stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        why = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        raise StoreDamaged(f"the store in {folder} cannot be read: {why}", RESTORE)


def read(folder: Path) -> None:
    """Visit each row of each table."""
    env = lmdb.open(str(folder), max_dbs=len(TABLES), readonly=True)
    with env.begin() as txn, txn.cursor() as names:
        tables = [env.open_db(name, txn=txn, create=False) for name, _ in names]
        for table in tables:
            with txn.cursor(db=table) as cursor:
                for _ in cursor:
                    pass


if __name__ == "__main__":
    try:
        read(Path(sys.argv[1]))
    except lmdb.Error as error:
        sys.exit(str(error))
