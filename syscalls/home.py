"""The home of a system, and the address of its kernel."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs

from .errors import BadInput

INIT = "aios.kernel.init"  # the module that a system is started as
MAX_SOCKET_PATH_BYTES = 100  # Linux takes 108
CERTIFICATE_VARIABLES = (  # that name files or folders of trusted certificates
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "NODE_EXTRA_CA_CERTS",
)  # fmt: skip


def default_home() -> Path:
    """Return AIOS_HOME, or a folder in this user's XDG state directory."""
    given = os.environ.get("AIOS_HOME")
    return Path(given).absolute() if given else Path(platformdirs.user_state_dir("aios"))


def init_runs(home: Path) -> bool:
    """Return true if an init holds this home: it then replaces a kernel that has died."""
    try:
        os_pid = int((home / "init.lock").read_text())
        words = Path(f"/proc/{os_pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return False
    return INIT.encode() in words  # not the pid of one that ended, which another has now


def endpoint(home: Path) -> str:
    """Return the ZeroMQ address of the kernel of `home`.

    Raises:
        BadInput: the path is too long for a Unix socket.
    """
    path = str(home / "run" / "kernel.sock")
    if len(path.encode()) > MAX_SOCKET_PATH_BYTES:
        raise BadInput(f"{path} is too long for a socket", "set AIOS_HOME to a shorter path")
    return "ipc://" + path
