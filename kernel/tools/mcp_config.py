"""MCP servers, out of the block of JSON that people have for the programs that use such.

`{"mcpServers": {NAME: {...}}}`, as Claude Desktop, Cursor and others have it, or `{"servers": ...}`
of VS Code. A server may have an `aios` of its own: what it can_read, and its limits.
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
from aios.syscalls.proc import Reach
from aios.syscalls.tool import McpServer

from .toolbox import MCP, SHIPPED, Box

SHAPES = (("mcpServers",), ("servers",), ("mcp", "servers"))  # where the block is in the file
WORD = re.compile(r"\$\{([^}]*)\}")
VARIABLE = re.compile(r"(?:env:)?(\w+)(?::-(.*))?$", re.DOTALL)
HTTP, STDIO = ("http", "streamablehttp"), ("stdio", "local")  # kinds, without case and marks
LONGEST_NAME = 48
PORTS = {"http": 80, "https": 443}
DNS = 53


class Own(Reach, forbid_unknown_fields=True, kw_only=True):
    """Settings of a server that are for AIOS alone; other programs ignore them."""

    limit: Annotated[int, Meta(ge=1, le=1024)] = 8  # of each of its tools run at once
    timeout: Annotated[float, Meta(gt=0, le=86400)] = 60.0  # seconds, of each call


class Entry(Struct, kw_only=True):
    """A server in the block. Other programs keep more there, which is of no interest."""

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
    """A server: what its worker is told, and what the worker, and with it the server, can_read."""

    server: McpServer
    reach: Reach


def open_block(path: str) -> int:
    """A descriptor of a copy of the file, for each kernel of a system: others may write the file
    meanwhile. No byte of it comes into this process, of which agents are forks. Raises BadInput."""
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
    """The servers of the file, which has these `data`; without a file none. Raises BadInput."""
    if not path:
        return {}
    if importlib.util.find_spec("mcp") is None:
        raise BadInput("MCP servers take the package mcp", "pip install 'aios-system[mcp]'")
    found = servers(Path(path).expanduser(), data, os.environ)
    return {
        name: Box(program=MCP, shared=True, task=to_builtins(each.server), reach=each.reach)
        for name, each in found.items()
    }


def servers(path: Path, data: bytes, variables: Mapping[str, str]) -> dict[str, Found]:
    """Return the servers in a file with these `data`, by the names of their toolboxes.

    `variables` stand for `${NAME}`. A wrong one is there as well: its worker says why.

    Raises:
        BadInput: it is not such a file.
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
            found[short] = Found(McpServer(name=short, wrong=wrong), Reach())
    return found


def is_off(given: Any) -> bool:
    if not isinstance(given, dict):
        return False
    return given.get("disabled") is True or False in (given.get("enabled"), given.get("isActive"))


def names_of(names: Iterable[str]) -> dict[str, str]:
    """A toolbox's name for each server's: with - for what no such name has. Servers that would have
    the same are told apart by a number that depends on nothing but the server's own name."""
    plain: dict[str, str] = {}
    for name in names:
        short = re.sub(r"\W+", "-", name, flags=re.ASCII).strip("-")
        if not short:
            short = number_of(name)
        if not short[0].isalpha() or short in SHIPPED:  # whose rules are not a server's
            short = f"mcp-{short}"
        plain[name] = short[:LONGEST_NAME]
    often = Counter(plain.values())
    return {
        name: short if short == name or often[short] == 1
        else f"{short[: LONGEST_NAME - 9]}-{number_of(name)}"
        for name, short in plain.items()
    }  # fmt: skip


def number_of(name: str) -> str:
    return f"{zlib.crc32(name.encode(errors='replace')):08x}"


def entry_of(given: Any, variables: Mapping[str, str]) -> Entry:
    """Raises ValidationError, ValueError."""
    if isinstance(given, dict):  # what is for other programs is not looked at
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
    """`data` with variables in the place of their names. Raises ValueError."""
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
    """Raises ValueError."""
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
    return Found(server, reach_of(server, entry.aios))


def reach_of(server: McpServer, own: Own) -> Reach:
    """Return the sandbox grants that a server was given, and those it does not run without.

    Raises:
        ValueError: a grant is not understood.
    """
    ports = [*own.ports, *([port_of(server.url)] if server.url else [])]
    read = [*own.read, *(str(path) for path in named(server))]
    return Reach(
        read=list(dict.fromkeys(read)), write=own.write, ports=[*ports, DNS] if ports else [],
        processes=not server.url, all_walls=own.all_walls,
    )  # fmt: skip


def port_of(url: str) -> int:
    parts = urlsplit(url)
    if parts.scheme not in PORTS or not parts.hostname:
        raise ValueError(f"`url` is {url!r}, and not http://... or https://...")
    return parts.port or PORTS[parts.scheme]


def named(server: McpServer) -> Iterator[Path]:
    """The program, and the files and folders that its arguments name, with what they stand on."""
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
    """Where the rest of a program is: its node_modules, its environment, or beside it."""
    for path in dict.fromkeys((file, file.resolve())):
        parts = path.parts
        config = path.parent.parent / "pyvenv.cfg"
        if "node_modules" in parts:
            yield Path(*parts[: parts.index("node_modules") + 1])
        elif config.exists():
            yield config.parent
            yield from (
                Path(home).parent for home in re.findall(r"(?m)^home = (.+)$", text(config))
            )
        elif path.name.startswith("python"):
            yield path.parent.parent
        else:
            yield path if Path.home().is_relative_to(path.parent) else path.parent


def text(path: Path) -> str:
    return path.read_text(errors="replace")
