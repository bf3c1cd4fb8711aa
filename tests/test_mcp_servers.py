"""The block of MCP servers that people have: what AIOS makes of it, what it says of mistakes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import public_servers
import pytest
from conftest import Boot
from helpers import kill_kernel

from aios.agents import connect
from aios.kernel.mcp_servers import Found, servers
from aios.shell.launch import System
from aios.syscalls.errors import BadInput

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
        {"mcpServers": {"time": TIME}, "theme": "dark"},
        {"servers": {"time": {"type": "stdio", **TIME}}, "inputs": []},
        {"mcp": {"servers": {"time": TIME}}},
        {"mcpServers": {"time": {**TIME, "autoApprove": ["x"], "disabled": False, "timeout": 60}}},
    ],
)
def test_shapes_that_people_have(data: Any, tmp_path: Path) -> None:
    server = read(tmp_path, data)["time"].server
    assert (server.command, server.args) == ("mcp-server-time", ["--local-timezone", "UTC"])
    assert server.name == "time"


def test_names_are_made_to_fit(tmp_path: Path) -> None:
    off = {"command": "${NOT}", "disabled": True}
    block = {"Brave Search": TIME, "github.com/a/git": TIME, "off": off}
    assert list(read(tmp_path, {"mcpServers": block})) == ["Brave-Search", "github-com-a-git"]


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
    assert (found.reach.ports, found.reach.processes) == ([443, 53], False)
    assert one(tmp_path, serverUrl="http://127.0.0.1:8080/mcp").reach.ports == [8080, 53]


def test_what_it_reaches_is_what_is_said_and_what_it_stands_on(tmp_path: Path) -> None:
    script = tmp_path / "app" / "node_modules" / "pkg" / "dist" / "index.js"
    venv = tmp_path / "venv"
    for path in (script, venv / "bin" / "serve", tmp_path / "docs" / "a.txt"):
        path.parent.mkdir(parents=True)
        path.touch(mode=0o755)
    (venv / "pyvenv.cfg").write_text("home = /opt/python/bin\nversion = 3.11\n")
    docs = str(tmp_path / "docs")

    found = one(tmp_path, command="sh", args=[str(script), f"--root={docs}", "/not/there", "-v"])
    assert str(tmp_path / "app" / "node_modules") in found.reach.read
    assert docs in found.reach.read
    assert found.reach.processes
    assert (found.reach.write, found.reach.ports) == ([], [])
    assert not any(path.startswith("/not") for path in found.reach.read)

    found = one(
        tmp_path, command=str(venv / "bin" / "serve"),
        aios={"write": [docs], "ports": [5432], "limit": 2, "timeout": 5},
    )  # fmt: skip
    assert found.reach.read == [str(venv), "/opt/python"]
    assert (found.reach.write, found.reach.ports) == ([docs], [5432, 53])
    assert (found.server.limit, found.server.timeout) == (2, 5.0)

    prefix = str(Path(sys.executable).resolve().parent.parent)
    assert prefix in one(tmp_path, command=sys.executable).reach.read


def test_a_file_in_the_home_does_not_open_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").touch()
    assert one(tmp_path, command="x", args=[f"{tmp_path}/notes.txt"]).reach.read == [
        f"{tmp_path}/notes.txt"
    ]


def test_words_that_no_path_can_be_are_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["/" + "x" * 300, f"--rule=/{'x' * 5000}", f"{tmp_path}/file/below", "/a\0b"]
    assert one(tmp_path, command="x", args=words, cwd=words[0]).reach.read == []


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("{", "mcp.json is not JSON"),
        ("// a comment\n{}", "mcp.json is not JSON"),
        ([], "has no mcpServers"),
        ({"mcpServers": []}, "has no mcpServers"),
        ({"mcpServers": {"a b": TIME, "a-b": TIME}}, "two servers named 'a-b'"),
        ({"mcpServers": {"9": TIME}}, r"server '9': .* - at `\$.name`"),
        ({"mcpServers": {"x": "y"}}, "server 'x': Expected `object`, got `str`"),
        ({"mcpServers": {"x": {}}}, "server 'x': it takes a `command` or a `url`"),
        ({"mcpServers": {"x": {"command": "a", "url": "b"}}}, "server 'x': it takes a `command`"),
        ({"mcpServers": {"x": {"command": ["a"]}}}, r"server 'x': .* - at `\$.command`"),
        ({"mcpServers": {"x": {"command": "a", "args": "b"}}}, r"server 'x': .* - at `\$.args`"),
        ({"mcpServers": {"x": {"command": "a", "env": {"A": 1}}}}, r"- at `\$.env\[...\]`"),
        ({"mcpServers": {"x": {"command": "a", "type": "http"}}}, "`type` is 'http'"),
        ({"mcpServers": {"x": {"url": "http://a", "type": "sse"}}}, "SSE is no transport"),
        ({"mcpServers": {"x": {"url": "ftp://a"}}}, "`url` is 'ftp://a'"),
        ({"mcpServers": {"x": {"url": "http://a", "headers": {"A": "ä"}}}}, "header 'A' has"),
        ({"mcpServers": {"x": {"url": "http://a", "headers": {"A": "b\n"}}}}, "header 'A' has"),
        ({"mcpServers": {"x": {"command": "a", "disabled": 1}}}, r"`\$.disabled`"),
        ({"mcpServers": {"x": {"command": "${NOT}"}}}, "there is no variable NOT"),
        ({"mcpServers": {"x": {"command": "${input:key}"}}}, r"knows no \$\{input:key\}"),
        ({"mcpServers": {"x": {"command": "a", "aios": {"wirte": []}}}}, "unknown field `wirte`"),
        ({"mcpServers": {"x": {"command": "a", "aios": {"read": ["b"]}}}}, r"`\$.aios.read\[0\]`"),
        ({"mcpServers": {"x": {"command": "a", "aios": {"timeout": 0}}}}, r"`\$.aios.timeout`"),
    ],
)
def test_mistakes_name_the_server_and_the_field(data: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=says):
        read(tmp_path, data)


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
