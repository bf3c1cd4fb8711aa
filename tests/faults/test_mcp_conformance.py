"""MCP's own conformance suite, against the client of MCP servers and against `aios mcp`.

It is known which scenarios fail, and why; others pass, and those in the tables fail."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import public_servers
import pytest
import uvicorn
from conftest import Boot, eventually
from places import SUPPORT

from aios.shell.mcp.tools import ServedTools

pytestmark = pytest.mark.faults

SUITE = Path(sys.prefix, "conformance/node_modules/@modelcontextprotocol/conformance/dist/index.js")
CLIENT = SUPPORT / "mcp_servers" / "conformance_client.py"

ASKS_NOBODY = "a server's questions to a person are refused"
NO_LOGIN = "there is no OAuth: a server's `headers` have its key"
CLIENT_FAILS = {r"elicitation-.*": ASKS_NOBODY, r"auth/(?!resource-mismatch).*": NO_LOGIN}
BY_THE_CLOCK = {"client-sse-retry-timing"}  # checks that a busy machine fails

NOT_THERE = "it asks for a tool, resource or prompt that only the suite's own server has"
NOT_OFFERED = "`aios mcp` offers none of this"
SERVER_FAILS = {
    "logging-set-level": NOT_OFFERED,
    "completion-complete": NOT_OFFERED,
    "resources-subscribe": NOT_OFFERED,
    "resources-unsubscribe": NOT_OFFERED,
    "tools-call-image": NOT_THERE,
    "tools-call-audio": NOT_THERE,
    "tools-call-embedded-resource": NOT_THERE,
    "tools-call-mixed-content": NOT_THERE,
    "tools-call-with-logging": NOT_THERE,
    "tools-call-with-progress": NOT_THERE,
    "tools-call-sampling": NOT_THERE,
    "tools-call-elicitation": NOT_THERE,
    "elicitation-sep1034-defaults": NOT_THERE,
    "elicitation-sep1330-enums": NOT_THERE,
    "resources-read-text": NOT_THERE,
    "resources-read-binary": NOT_THERE,
    "resources-templates-read": NOT_THERE,
    "prompts-get-simple": NOT_THERE,
    "prompts-get-with-args": NOT_THERE,
    "prompts-get-embedded-resource": NOT_THERE,
    "prompts-get-with-image": NOT_THERE,
}


def suite(*args: str) -> subprocess.CompletedProcess[str]:
    words = [public_servers.NODE, str(SUITE), *args]
    return subprocess.run(words, check=False, capture_output=True, text=True, timeout=600)


def scenarios(whose: str) -> list[str]:
    _, _, after = suite("list").stdout.partition(f"{whose} scenarios")
    return re.findall(r"^  - (\S+)", after.partition("\n\n")[0], re.MULTILINE)


def test_the_client(tmp_path: Path) -> None:
    command = f"{sys.executable} {CLIENT}"
    found = {}
    for name in scenarios("Client"):
        done = suite("client", "--command", command, "--scenario", name, "-o", str(tmp_path))
        (checks,) = tmp_path.glob(f"{name}-*/checks.json")
        states = [
            check["status"] for check in json.loads(checks.read_text())
            if check["id"] not in BY_THE_CLOCK
        ]  # fmt: skip
        assert "SUCCESS" in states or "FAILURE" in states, (name, done.stdout)
        found[name] = "FAILURE" in states
        if name.startswith("auth/"):  # and says so in a line
            says = checks.with_name("stderr.txt").read_text().splitlines()[-1]
            assert re.search(r"suite cannot be reached at http://\S+: 401 Unauthorized$", says)
    known = "|".join(CLIENT_FAILS)
    assert found == {name: bool(re.fullmatch(known, name)) for name in found}
    assert len(found) > 20


@pytest.fixture
def address(boot: Boot) -> Iterator[str]:
    """The address of `aios mcp --http`, but for its token, which the suite cannot be given."""
    app = ServedTools(boot(slots=1, ctx=256).home, {}, {}).server().streamable_http_app()
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        eventually(lambda: server.started)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/mcp"
    finally:
        server.should_exit = True
        thread.join()


def test_the_server(address: str, tmp_path: Path) -> None:
    known = tmp_path / "known.yml"
    known.write_text("server:\n" + "".join(f"  - {name}\n" for name in SERVER_FAILS))
    done = suite("server", "--url", address, "--expected-failures", str(known), "-o", str(tmp_path))
    assert done.returncode == 0, done.stdout
    assert (
        not {"initialize", "ping", "tools-list", "dns-rebinding-protection"} & SERVER_FAILS.keys()
    )
