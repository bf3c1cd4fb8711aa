"""Certificates: the results of self-tests, kept in the user's cache.

    <XDG cache>/aios/certificates/<hash of the conditions>.json

A self-test of a large model takes minutes of prefill. Its result depends on the model's file, the
build, the processor and the settings of the engine; a core under the same conditions takes it over.
"""

from __future__ import annotations

import sys
from hashlib import blake2b
from pathlib import Path

import msgspec
import platformdirs
from msgspec import Struct

from aios.syscalls.errors import ModelError

from ..lib.linux import processor
from . import certify as self_test
from . import llama
from .certify import certify
from .engine import Engine
from .variants import new_file

MAX_KEPT = 256  # certificates; then the oldest goes
SOURCES = [Path(str(module.__file__)) for module in (self_test, llama)]


class Certificate(Struct, frozen=True):
    """The result of a self-test, and what it changed about its engine."""

    batch: int  # the largest that is exact
    cost: float | None  # as `certify` returns it
    pad_solo_from: int
    is_movable: bool  # sequences may change their slot


def certify_once(engine: Engine) -> tuple[int, float | None]:
    """Adapt an engine as `certify` does, and return the same; test it only if that is not known."""
    folder = Path(platformdirs.user_cache_dir("aios")) / "certificates"
    path = folder / f"{_conditions(engine)}.json"
    try:
        kept = msgspec.json.decode(path.read_bytes(), type=Certificate)
    except (OSError, msgspec.DecodeError):  # absent or damaged: it is made anew
        found = certify(engine)
        _keep(path, Certificate(*found, engine.pad_solo_from, engine.row_bytes > 0))
        return found
    engine.pad_solo_from = kept.pad_solo_from
    if not kept.is_movable:
        engine.row_bytes = 0
    return kept.batch, kept.cost


def _conditions(engine: Engine) -> str:
    """Return a hash of all that may change the result of a self-test."""
    edited = [path.stat().st_mtime_ns for path in SOURCES]
    inputs = engine.fingerprint(0), engine.slots, engine.window, processor(), edited
    return blake2b(repr(inputs).encode(), digest_size=16).hexdigest()


def _keep(path: Path, certificate: Certificate) -> None:
    try:
        with new_file(path) as target:
            target.write_bytes(msgspec.json.encode(certificate))
        by_age = sorted(path.parent.iterdir(), key=lambda each: each.stat().st_mtime_ns)
        for old in by_age[:-MAX_KEPT]:
            old.unlink(missing_ok=True)
    except (ModelError, OSError) as error:
        print(f"the self-test runs again at the next start: {error}", file=sys.stderr, flush=True)
