"""Imports point one way, and each foreign library has one place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from places import PROJECT
from source_files import imports, sources

ALLOWED = {
    "syscalls": {"syscalls"},
    "kernel": {"kernel", "syscalls"},
    "agents": {"agents", "syscalls"},
    "shell": {"shell", "agents", "syscalls"},
    "examples": {"examples", "agents", "syscalls"},
}
# The kernel's packages and lone files: each imports only those before it.
LEVELS = (
    "lib", "process", "manifests", "rules", "store", "sandbox", "journal", "audit", "entry",
    "events", "storage", "access", "tools", "config", "init", "core", "memory", "loop", "service",
    "index", "llm", "gateway", "processes", "status", "handlers", "hello", "ledger", "boot",
    "__main__", "__init__",
)  # fmt: skip
SDK_LEVELS = ("sdk", "runtime", "tools", "mcp", "reasoning", "__init__")  # as are those of agents/
SHELL_LEVELS = (
    "escape", "render", "output", "launch", "completion", "options", "who", "archive", "helper",
    "jobs", "questions", "refused", "mcp", "demo", "commands", "repl", "cli", "__main__",
    "__init__",
)  # fmt: skip
HOMES = {
    "llama_cpp": {
        f"kernel/core/{name}.py" for name in ("llama", "vocabulary", "gguf", "sampler", "encoder")
    },
    "llguidance": {
        "kernel/core/grammar.py",
        "kernel/core/grammar_probe.py",
        "kernel/index/embedder.py",
    },
    "lmdb": {f"kernel/store/{name}.py" for name in ("store", "probe", "file_space", "transaction")}
    | {"bench/memory.py"},
    "mcp": {
        "agents/mcp/connection.py",
        "agents/mcp/transport.py",
        "shell/mcp/server.py",
        "shell/mcp/tools.py",
    },
    "sympy": {"agents/tools/calculate.py"},
    "duckdb": {"agents/tools/sql.py"},
    "PIL": {"agents/tools/image.py"},
    "safetensors": {"kernel/index/embedder.py"},
    "sqlite3": {
        "kernel/index/__main__.py",
        "kernel/index/database.py",
        "kernel/index/index.py",
        "agents/tools/sql.py",
    },
    "cryptography": {
        "kernel/lib/encryption.py",
        "kernel/init/keyring.py",
        "kernel/audit/checkpoint.py",
    },
    "zmq": {
        "kernel/core/__main__.py",
        "kernel/index/__main__.py",
        "kernel/gateway/__main__.py",
        "agents/sdk/connection.py",
        "agents/sdk/remote.py",  # it makes keys
        "bench/syscall.py",  # the raw echo that system calls are compared with
    },
}
PURE = (
    *(path.relative_to(PROJECT).as_posix() for path in sources("kernel/llm/scheduler")),
    "kernel/process.py",
    "kernel/entry/zmtp.py",
    "kernel/llm/contexts.py",
    "kernel/audit/merkle.py",
    "kernel/index/passages.py",
    "kernel/index/ranking.py",
)
IMPURE = {"zmq", "time", "threading", "socket", "asyncio", "random", "os", "subprocess"}


def importers(library: str) -> set[str]:
    return {
        path.relative_to(PROJECT).as_posix()
        for package in (*ALLOWED, "bench")
        for path in sources(package)
        if library in {name.partition(".")[0] for name in imports(path)}
    }


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    assert sources(package)
    for path in sources(package):
        names = [name.split(".") for name in imports(path) if name.startswith("aios.")]
        used = {name[1] for name in names}
        assert used <= ALLOWED[package], f"{path} imports {used - ALLOWED[package]}"


@pytest.mark.parametrize(
    ("top", "levels"), [("kernel", LEVELS), ("agents", SDK_LEVELS), ("shell", SHELL_LEVELS)]
)
def test_each_package_imports_those_below_it_alone(top: str, levels: tuple[str, ...]) -> None:
    for path in sources(top):
        own = path.relative_to(PROJECT / top).parts[0].removesuffix(".py")
        names = [name.split(".") for name in imports(path) if name.startswith(f"aios.{top}.")]
        above = {name[2] for name in names if levels.index(name[2]) > levels.index(own)}
        assert not above, f"{path} imports {above}"


def test_the_map_has_the_packages_in_their_order_each_with_what_it_never_does() -> None:
    text = (PROJECT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| (`.*?) \| (.+?) \| (.+?) \|$", text, re.MULTILINE)
    packages = [name for names, _, _ in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", names)]
    assert packages == list(LEVELS[:-2])


@pytest.mark.parametrize("library", HOMES)
def test_a_foreign_library_has_one_place(library: str) -> None:
    assert importers(library) <= HOMES[library]


@pytest.mark.parametrize("file", PURE)
def test_the_pure_parts_touch_no_clock_and_no_socket(file: str) -> None:
    used = {name.partition(".")[0] for name in imports(PROJECT / file)}
    assert not used & IMPURE


def test_the_reader_of_imports_reads_all_kinds(tmp_path: Path) -> None:
    """The tests above rest on this."""
    assert set(imports(PROJECT / "kernel/core/certify.py")) >= {"time", "aios.kernel.core.engine"}
    assert "aios.kernel.process" in set(imports(PROJECT / "kernel/processes/mailbox.py"))
    assert importers("llama_cpp") == HOMES["llama_cpp"]
