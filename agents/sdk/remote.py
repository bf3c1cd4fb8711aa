"""A kernel that is reached by tcp: its address, and the keys that both sides show."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

import zmq

from aios.syscalls.errors import BadInput


class RemoteKernel(NamedTuple):
    """The address of a kernel, its key, and the key pair to show to it; all keys in Z85."""

    address: str
    server: str  # the kernel's public key
    public: str
    secret: str


def address_from_environment() -> str | None:
    """Return AIOS_ADDRESS, or None in an agent: its kernel is the one whose init started it."""
    return None if "AIOS_FD" in os.environ else os.environ.get("AIOS_ADDRESS")


def remote_kernel(address: str, key: Path | None, server_key: str | None) -> RemoteKernel:
    """Read the keys that are given, or else those of AIOS_KEY and AIOS_SERVER_KEY.

    Raises:
        BadInput: one is missing, or none.
    """
    path = key or os.environ.get("AIOS_KEY")
    server = server_key or os.environ.get("AIOS_SERVER_KEY")
    if not path or not server:
        hint = "give both, or set AIOS_KEY and AIOS_SERVER_KEY"
        raise BadInput(f"{address} takes your key and the kernel's", hint)
    try:
        pair = json.loads(Path(path).read_text())
        return RemoteKernel(address, server, str(pair["public"]), str(pair["secret"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"no key in {path}: {error}", "make one with `aios key new`") from error


def new_key(path: Path) -> str:
    """Make a key pair in a new file that only this user may read, and return its public key.

    Raises:
        BadInput: the file cannot be made.
    """
    public, secret = (half.decode() for half in zmq.curve_keypair())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump({"public": public, "secret": secret}, file)
    except OSError as error:
        raise BadInput(
            f"cannot make {path}: {error.strerror}", "choose another name or folder"
        ) from error
    return public
