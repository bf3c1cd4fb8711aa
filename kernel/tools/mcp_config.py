"""Read MCP servers from the block of JSON that people have for other programs.

`{"mcpServers": {NAME: {...}}}`, as Claude Desktop, Cursor and others have it, or `{"servers": ...}`
of VS Code. A server may have a field `aios`, with its sandbox grants and its limits.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, field, to_builtins

from aios.syscalls.errors import BadInput
from aios.syscalls.proc import SandboxGrants
from aios.syscalls.tool import McpServer

from .toolbox import MCP, SHIPPED, Box

SHAPES = (("mcpServers",), ("servers",), ("mcp", "servers"))  # where the block is in the file
WORD = re.compile(r"\$\{([^}]*)\}")
VARIABLE = re.compile(r"(?:env:)?(\w+)(?::-(.*))?$", re.DOTALL)
HTTP, STDIO = ("http", "streamablehttp"), ("stdio", "local")  # kinds, without case and marks
MAX_NAME_CHARS = 48
PORTS = {"http": 80, "https": 443}
DNS_PORT = 53


class Own(SandboxGrants, forbid_unknown_fields=True, kw_only=True):
    """Settings of a server that are for AIOS alone; other programs ignore them."""

    limit: Annotated[int, Meta(ge=1, le=1024)] = 8  # of each of its tools run at once
    timeout: Annotated[float, Meta(gt=0, le=86400)] = 60.0  # seconds, of each call


class Entry(Struct, kw_only=True):
    """A server in the block; its other fields are for other programs."""

    type: str | None = None
    command: str | None = None
    args: list[str] = field(default_factory=list)
    env: dict[str, str] = field(default_factory=dict)
    cwd: str | None = None
    url: str | None = None
    serverUrl: str | None = None  # as Windsurf has it
    httpUrl: str | None = None  # as Gemini has it, where `url` is of the old SSE transport
    headers: dict[str, str] = field(default_factory=dict)
    disabled: bool = False
    enabled: bool = True
    isActive: bool = True
    aios: Own = field(default_factory=Own)


class Found(Struct, frozen=True):
    """A server as its worker is told, and the sandbox grants of both."""

    server: McpServer
    grants: SandboxGrants


def open_block(path: str) -> int:
    """Return a descriptor of a copy of the file, for each kernel of a system: others may write the
    file meanwhile. No byte of it comes into this process, of which agents are forks.

    Raises:
        BadInput: the file cannot be read.
    """
    copy = os.memfd_create("aios-mcp")
    try:
        with Path(path or os.devnull).expanduser().open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            while size and (sent := os.sendfile(copy, file.fileno(), None, size)):
                size -= sent
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}", "correct `mcp` in the settings") from error
    return copy


def mcp_boxes(path: str, data: bytes) -> dict[str, Box]:
    """Return the toolboxes of the servers in a file with these `data`. Raises BadInput."""
    if not path:
        return {}
    if importlib.util.find_spec("mcp") is None:
        raise BadInput("MCP servers take the package mcp", "pip install 'aios-system[mcp]'")
    found = servers(Path(path).expanduser(), data, os.environ)
    return {
        name: Box(program=MCP, shared=True, task=to_builtins(each.server), reach=each.grants)
        for name, each in found.items()
    }


def servers(path: Path, data: bytes, variables: Mapping[str, str]) -> dict[str, Found]:
    """Return the servers in a file with these `data`, by the names of their toolboxes.

    `variables` stand for `${NAME}`. A server that is not well described is returned as well: its
    worker says what is wrong.

    Raises:
        BadInput: the file has no such block.
    """
    try:
        block = block_of(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is not JSON: {error}", "comments and the like do not go") from error
    if block is None:
        raise BadInput(f"{path} has no mcpServers", 'it is {"mcpServers": {"NAME": {...}}}')
    on = {name: given for name, given in block.items() if not is_off(given)}
    found: dict[str, Found] = {}
    for name, short in names_of(on).items():
        try:
            found[short] = server_of(short, entry_of(on[name], variables))
        except (msgspec.ValidationError, ValueError) as error:
            wrong = f"{path}, MCP server {name!r}: {error} (see docs/mcp.md)"
            found[short] = Found(McpServer(name=short, wrong=wrong), SandboxGrants())
    return found


def is_off(given: Any) -> bool:
    if not isinstance(given, dict):
        return False
    return given.get("disabled") is True or False in (given.get("enabled"), given.get("isActive"))


def names_of(names: Iterable[str]) -> dict[str, str]:
    """Return a toolbox's name for each server's, with - for characters that it cannot have. Servers
    that would have the same are told apart by a number that depends on their own name alone."""
    plain: dict[str, str] = {}
    for name in names:
        short = re.sub(r"\W+", "-", name, flags=re.ASCII).strip("-")
        if not short:
            short = number_of(name)
        if not short[0].isalpha() or short in SHIPPED:  # the rules of those are not a server's
            short = f"mcp-{short}"
        plain[name] = short[:MAX_NAME_CHARS]
    often = Counter(plain.values())
    return {
        name: short if short == name or often[short] == 1
        else f"{short[: MAX_NAME_CHARS - 9]}-{number_of(name)}"
        for name, short in plain.items()
    }  # fmt: skip


def number_of(name: str) -> str:
    return f"{zlib.crc32(name.encode(errors='replace')):08x}"


def entry_of(given: Any, variables: Mapping[str, str]) -> Entry:
    """Read an entry of the block, but for fields of other programs.

    Raises:
        ValidationError, ValueError: it is no such entry.
    """
    if isinstance(given, dict):
        given = {key: given[key] for key in Entry.__struct_fields__ if given.get(key) is not None}
    return msgspec.convert(filled(given, variables), Entry)


def block_of(data: Any) -> dict[str, Any] | None:
    for shape in SHAPES:
        block = data
        for key in shape:
            block = block.get(key) if isinstance(block, dict) else None
        if isinstance(block, dict):
            return block
    return None


def filled(data: Any, variables: Mapping[str, str]) -> Any:
    """Put variables in the place of their names. Raises ValueError."""
    if isinstance(data, dict):
        return {key: filled(value, variables) for key, value in data.items()}
    if isinstance(data, list):
        return [filled(value, variables) for value in data]
    if not isinstance(data, str):
        return data

    def value(word: re.Match[str]) -> str:
        name = VARIABLE.match(word[1])
        if name is None:
            raise ValueError(f"AIOS knows no {word[0]}, only ${{NAME}}, ${{NAME:-DEFAULT}}")
        if name[1] not in variables and name[2] is None:
            raise ValueError(f"there is no variable {name[1]}: set it where you start AIOS")
        return variables.get(name[1], name[2] or "")

    return WORD.sub(value, data)


def server_of(name: str, entry: Entry) -> Found:
    """Return the server that an entry describes. Raises ValueError."""
    url = entry.httpUrl or entry.url or entry.serverUrl
    if bool(entry.command) == bool(url):
        raise ValueError("it takes a `command` or a `url`, and not both")
    kind = re.sub(r"[\W_]", "", entry.type or "").lower()
    if kind == "sse" and not entry.httpUrl:
        raise ValueError("SSE is no transport any more: ask for its address of streamable HTTP")
    if entry.type and not entry.httpUrl and kind not in (HTTP if url else STDIO):
        raise ValueError(f"`type` is {entry.type!r}, and not {'http' if url else 'stdio'}")
    for header, value in entry.headers.items():
        if not (header + value).isascii() or not value.isprintable():
            raise ValueError(f"the header {header!r} has what no header can have")
    fields = {
        "name": name, "command": entry.command or "", "args": entry.args, "env": entry.env,
        "cwd": entry.cwd, "url": url or "", "headers": entry.headers,
        "limit": entry.aios.limit, "timeout": entry.aios.timeout,
    }  # fmt: skip
    server = msgspec.convert(fields, McpServer)
    return Found(server, grants_of(server, entry.aios))


def grants_of(server: McpServer, own: Own) -> SandboxGrants:
    """Return the sandbox grants that a server was given, and those it does not run without.

    Raises:
        ValueError: a grant is not understood.
    """
    ports = [*own.ports, *([port_of(server.url)] if server.url else [])]
    read = [*own.read, *(str(path) for path in named(server))]
    return SandboxGrants(
        read=list(dict.fromkeys(read)), write=own.write, ports=[*ports, DNS_PORT] if ports else [],
        processes=not server.url, all_walls=own.all_walls,
    )  # fmt: skip


def port_of(url: str) -> int:
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"`url` is {url!r}, and not http://... or https://...")
    return parts.port or PORTS[parts.scheme]


def named(server: McpServer) -> Iterator[Path]:
    """Iterate over the paths that a server's command, arguments and folder name, each with those
    that it needs."""
    program = shutil.which(server.command, path=server.env.get("PATH", os.environ.get("PATH")))
    words = [program or "", *(word.partition("=")[2] or word for word in server.args)]
    for word in [*words, server.cwd or ""]:
        path = Path(word)
        if path.is_absolute() and is_there(path):
            yield from (path,) if path.is_dir() else stands_on(path)


def is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # it is too long for one, or in a folder that this user may not look into
        return False


def stands_on(file: Path) -> Iterator[Path]:
    """Iterate over the paths that a program needs: its node_modules, its environment, or its
    folder."""
    for path in dict.fromkeys((file, file.resolve())):
        parts = path.parts
        config = path.parent.parent / "pyvenv.cfg"
        if "node_modules" in parts:
            yield Path(*parts[: parts.index("node_modules") + 1])
        elif config.exists():
            yield config.parent
            homes = re.findall(r"(?m)^home = (.+)$", config.read_text(errors="replace"))
            yield from (Path(home).parent for home in homes)
        elif path.name.startswith("python"):
            yield path.parent.parent
        else:
            yield path if Path.home().is_relative_to(path.parent) else path.parent
