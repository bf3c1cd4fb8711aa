"""A server that speaks S3, and buckets on it."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from urllib.request import Request, urlopen

import pytest

LIMIT = 30.0  # seconds


@contextlib.contextmanager
def serving() -> Iterator[str]:
    """Its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-p", str(port)]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "Running on" in line:
                break
        drain = threading.Thread(target=process.stderr.read)
        drain.start()
        yield f"http://127.0.0.1:{port}"
        process.terminate()
        drain.join()


def bucket_at(server: str, name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The options of a bucket that is made there."""
    put(server, name, b"")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    return {"endpoint": server, "region": "us-east-1"}


def put(server: str, name: str, data: bytes) -> None:
    """A bucket, or an object in one."""
    kind = {"Content-Type": "application/octet-stream"}  # or the server takes it for a form
    with urlopen(Request(f"{server}/{name}", data, kind, method="PUT"), timeout=LIMIT):
        pass
