"""The block of MCP servers that people have: what AIOS makes of it, what it says of mistakes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import public_servers
import pytest
from conftest import Boot
from helpers import kill_kernel

from aios.agents import connect
from aios.kernel.tools.mcp_config import Found, servers
from aios.shell.launch import System
from aios.syscalls.errors import BadInput
from aios.syscalls.proc import SandboxGrants

VARIABLES = {"KEY": "secret", "PATH": "/usr/bin"}


def read(tmp_path: Path, data: Any) -> dict[str, Found]:
    path = tmp_path / "mcp.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    return servers(path, path.read_bytes(), VARIABLES)


def one(tmp_path: Path, **entry: Any) -> Found:
    return read(tmp_path, {"mcpServers": {"one": entry}})["one"]


TIME = {"command": "mcp-server-time", "args": ["--local-timezone", "UTC"]}


@pytest.mark.parametrize(
    "data",
    [
        {"mcpServers": {"clock": TIME}, "theme": "dark"},
        {"servers": {"clock": {"type": "stdio", **TIME}}, "inputs": []},
        {"mcp": {"servers": {"clock": TIME}}},
        {"mcpServers": {"clock": {**TIME, "autoApprove": ["x"], "disabled": False, "timeout": 60}}},
    ],
)
def test_shapes_that_people_have(data: Any, tmp_path: Path) -> None:
    server = read(tmp_path, data)["clock"].server
    assert (server.command, server.args) == ("mcp-server-time", ["--local-timezone", "UTC"])
    assert server.name == "clock"


def test_a_file_with_a_mark_of_its_encoding(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        data = json.dumps({"mcpServers": {"clock": TIME}}).encode(encoding)
        assert list(servers(tmp_path, data, {})) == ["clock"]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("Brave Search", "Brave-Search"),
        ("github.com/a/git", "github-com-a-git"),
        ("@org/magic", "org-magic"),
        ("9", "mcp-9"),
        ("_x", "mcp-_x"),
        ("中文", "mcp-5a09ed37"),
        ("", "mcp-00000000"),
        ("files", "mcp-files"),  # which rules allow to all agents
        ("x" * 60, "x" * 48),
    ],
)
def test_a_name_is_made_to_fit(name: str, short: str, tmp_path: Path) -> None:
    (found,) = read(tmp_path, {"mcpServers": {name: TIME}}).values()
    assert (found.server.name, found.server.wrong) == (short, "")


@pytest.mark.parametrize("names", [["a b", "a-b", "a/b"], ["a/b", "a b", "a-b"]])
def test_names_that_would_be_the_same_are_told_apart(names: list[str], tmp_path: Path) -> None:
    block = {name: {"command": name} for name in names}
    found = read(tmp_path, {"mcpServers": block})
    assert {found[short].server.command: short for short in found} == {
        "a-b": "a-b", "a b": "a-b-806c5cd3", "a/b": "a-b-07f4401c",
    }  # fmt: skip


@pytest.mark.parametrize("off", [{"disabled": True}, {"enabled": False}, {"isActive": False}])
def test_servers_that_are_off(off: dict[str, bool], tmp_path: Path) -> None:
    block = {"off": {"command": "${NOT}", **off}, "on": {**TIME, "enabled": True}}
    assert list(read(tmp_path, {"mcpServers": block})) == ["on"]


def test_what_other_programs_keep_there_is_ignored(tmp_path: Path) -> None:
    theirs = {
        "envFile": "${workspaceFolder}/.env", "description": "${input:x}", "args": None,
        "env": None, "dev": {"watch": "${NOT}"}, "type": None,
    }  # fmt: skip
    found = one(tmp_path, command="x", **theirs).server
    assert (found.wrong, found.args, found.env) == ("", [], {})


def test_variables(tmp_path: Path) -> None:
    found = one(
        tmp_path, command="x", args=["${KEY}", "${env:KEY}", "a ${NOT:-b c}", "${NOT:-}"],
        env={"TOKEN": "Bearer ${KEY}"},
    ).server  # fmt: skip
    assert found.args == ["secret", "secret", "a b c", ""]
    assert found.env == {"TOKEN": "Bearer secret"}


def test_streamable_http(tmp_path: Path) -> None:
    found = one(
        tmp_path, type="http", url="https://mcp.example/v1", headers={"Authorization": "${KEY}"}
    )
    assert (found.server.url, found.server.command) == ("https://mcp.example/v1", "")
    assert found.server.headers == {"Authorization": "secret"}
    assert (found.grants.ports, found.grants.processes) == ([443, 53], False)
    for kind in ("streamable_http", "streamable-http", "streamableHttp", "HTTP"):
        assert one(tmp_path, type=kind, url="https://a").server.url == "https://a"
    both = one(tmp_path, type="sse", url="https://a/sse", httpUrl="https://a/mcp").server
    assert (both.url, both.wrong) == ("https://a/mcp", "")
    assert one(tmp_path, command="", url="https://a").server.url == "https://a"
    assert one(tmp_path, serverUrl="http://127.0.0.1:8080/mcp").grants.ports == [8080, 53]


def test_what_it_reaches_is_what_is_said_and_what_it_stands_on(tmp_path: Path) -> None:
    script = tmp_path / "app" / "node_modules" / "pkg" / "dist" / "index.js"
    venv = tmp_path / "venv"
    for path in (script, venv / "bin" / "serve", tmp_path / "docs" / "a.txt"):
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
    (venv / "pyvenv.cfg").write_text("home = /opt/python/bin\nversion = 3.11\n")
    docs = str(tmp_path / "docs")

    found = one(tmp_path, command="sh", args=[str(script), f"--root={docs}", "/not/there", "-v"])
    assert str(tmp_path / "app" / "node_modules") in found.grants.read
    assert docs in found.grants.read
    assert found.grants.processes
    assert (found.grants.write, found.grants.ports) == ([], [])
    assert not any(path.startswith("/not") for path in found.grants.read)

    found = one(
        tmp_path, command=str(venv / "bin" / "serve"),
        aios={"write": [docs], "ports": [5432], "limit": 2, "timeout": 5},
    )  # fmt: skip
    assert found.grants.read == [str(venv), "/opt/python"]
    assert (found.grants.write, found.grants.ports) == ([docs], [5432, 53])
    assert (found.server.limit, found.server.timeout) == (2, 5.0)

    prefix = str(Path(sys.executable).resolve().parent.parent)
    assert prefix in one(tmp_path, command=sys.executable).grants.read


def test_a_file_in_the_home_does_not_open_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").touch()
    assert one(tmp_path, command="x", args=[f"{tmp_path}/notes.txt"]).grants.read == [
        f"{tmp_path}/notes.txt"
    ]


def test_words_that_no_path_can_be_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["/" + "x" * 300, f"--rule=/{'x' * 5000}", f"{tmp_path}/file/below", "/a\0b"]
    assert one(tmp_path, command="x", args=words, cwd=words[0]).grants.read == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "mcp.json is not JSON"),
        ("// a comment\n{}", "mcp.json is not JSON"),
        ("[" * 100_000, "mcp.json is not JSON"),
        ([], "has no mcpServers"),
        ({"mcpServers": []}, "has no mcpServers"),
    ],
)
def test_a_file_that_is_none_is_refused(data: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        read(tmp_path, data)


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("y", "server 'x': Expected `object`, got `str`"),
        ({}, "server 'x': it takes a `command` or a `url`"),
        ({"command": "a", "url": "b"}, "server 'x': it takes a `command`"),
        ({"command": ["a"]}, r"server 'x': .* - at `\$.command`"),
        ({"command": "a", "args": "b"}, r"server 'x': .* - at `\$.args`"),
        ({"command": "a", "env": {"A": 1}}, r"- at `\$.env\[...\]`"),
        ({"command": "a", "type": "http"}, "`type` is 'http', and not stdio"),
        ({"url": "http://a", "type": "sse"}, "SSE is no transport"),
        ({"url": "ftp://a"}, "`url` is 'ftp://a'"),
        ({"url": "http://[a"}, "Invalid IPv6 URL"),
        ({"url": "http://a", "headers": {"A": "ä"}}, "header 'A' has"),
        ({"url": "http://a", "headers": {"A": "b\n"}}, "header 'A' has"),
        ({"command": "a", "disabled": 1}, r"`\$.disabled`"),
        ({"command": "a", "enabled": "false"}, r"`\$.enabled`"),
        ({"command": "${NOT}"}, "there is no variable NOT"),
        ({"command": "${input:key}"}, r"knows no \$\{input:key\}"),
        ({"command": "a", "aios": {"wirte": []}}, "unknown field `wirte`"),
        ({"command": "a", "aios": {"read": ["b"]}}, r"`\$.aios.read\[0\]`"),
        ({"command": "a", "aios": {"timeout": 0}}, r"`\$.aios.timeout`"),
    ],
)
def test_a_server_that_is_wrong_costs_itself_and_says_where(
    entry: Any, says: str, tmp_path: Path
) -> None:
    found = read(tmp_path, {"mcpServers": {"clock": TIME, "x": entry}})
    assert (found["clock"].server.command, found["clock"].server.wrong) == (TIME["command"], "")
    assert re.search(says, found["x"].server.wrong)
    assert found["x"].grants == SandboxGrants()


def test_a_file_that_is_not_there(homes: Path, tmp_path: Path) -> None:
    system = System(homes / "nowhere", {"mcp": str(tmp_path / "nowhere.json")}, detach=True)
    with pytest.raises(BadInput, match=r"nowhere\.json: No such file"):
        system.ready()


@pytest.mark.parametrize("text", ["{", None])
def test_the_next_kernel_has_the_same_servers(text: str | None, boot: Boot, tmp_path: Path) -> None:
    """Whatever became of the file meanwhile: other programs write it too."""
    file = tmp_path / "mcp.json"
    file.write_text(json.dumps({"mcpServers": {"clock": public_servers.time()}}))
    with connect(boot(slots=1, ctx=256, mcp=str(file)).home) as aios:
        file.unlink() if text is None else file.write_text(text)
        kill_kernel(aios)
        now = aios.call_tool("clock.get_current_time", {"timezone": "Asia/Tokyo"}).result(60)
        assert now.value["timezone"] == "Asia/Tokyo"
