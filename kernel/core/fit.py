"""Fitting a model to this machine: measure other formats of it beside the original.

    python -m aios.kernel.core.fit < REQUEST    (a Request as JSON)

On stdout one JSON object a line: any number of {"progress": ...}, then {"report": ...}, or
{"error": ...}. Nothing but `choose` changes what a system loads.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil
from msgspec import Struct

from aios.kernel.config import Config, load
from aios.syscalls.errors import AiosError, BadInput, ModelError, NoRoom

from .certify import certify
from .compare import SPAN, distance, race
from .fitted import Conditions, Record, Shelf, Version, choose, lock, sha256
from .gguf import BINDING, FORMATS, describe
from .llama import LlamaEngine

# The same weights in F16, which rounds next to nothing off, are 0.003 from the embedded Q4_1: its
# own kernels round that much. Q8_0 is at 0.006, Q6_K at 0.013, Q5_1 at 0.13, Q4_0 at 0.27.
KL_LIMIT = 0.01  # nats a token
GAIN_LIMIT = 1.1  # what is quicker by less than this is not worth a second file


class Request(Struct, frozen=True):
    action: Literal["show", "measure", "choose", "forget"]
    home: str
    settings: dict[str, Any]  # above those of its config.toml
    formats: tuple[str, ...] = ()


class Report(Struct, kw_only=True):
    """What there is to say of a model. `picked` and `chosen` are formats, or empty."""

    model: str
    format: str
    size: int  # bytes
    sha256: str
    folder: str  # where its versions are
    loaded: str  # path of the file that `aios start` would load
    refused: str  # why that is the original although `fitted` is set
    picked: str  # by the rule, of what was measured here
    chosen: str
    here: Conditions
    original: Version | None
    versions: list[Version]


def main() -> int:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    try:
        say("report", serve(request))
    except AiosError as error:
        say("error", error.to_wire())
        return 1
    return 0


def say(kind: str, what: Any) -> None:
    print(msgspec.json.encode({kind: what}).decode(), flush=True)


def tell(what: str, done: int, total: int) -> None:
    say("progress", {"what": what, "done": done, "total": total})


def serve(request: Request) -> Report:
    unknown = [name for name in request.formats if name not in FORMATS]
    if unknown:
        raise BadInput(f"no format {unknown[0]!r}", "one of " + ", ".join(FORMATS))
    config = load(Path(request.home), request.settings)
    shelf = Shelf(config.model_path)
    if request.action == "show":
        return report(config, shelf)
    with lock(lambda: tell("waiting for another fit", 0, 1)):
        if request.action == "forget":
            shelf.forget(request.formats)
        elif request.action == "measure":
            measure(shelf, request.formats, conditions(config))
        else:
            put_first(shelf, request.formats[0])
    return report(config, shelf)


def put_first(shelf: Shelf, name: str) -> None:
    """Have `name` loaded where `fitted` is set.

    Raises:
        BadInput: it was never measured.
        ModelError: its file is not to be trusted.
    """
    record = shelf.load()
    version = record.version(name)
    if version is None:
        names = ", ".join(version.format for version in record.versions)
        raise BadInput(f"{name} was not measured beside the original", f"choose one of: {names}")
    shelf.check(version)
    record.chosen = name
    shelf.save(record)


def report(config: Config, shelf: Shelf) -> Report:
    record, here = shelf.load(), conditions(config)
    choice = choose(shelf.original, config.fitted)
    return Report(
        model=str(shelf.original),
        format=describe(shelf.original)[0],
        size=shelf.original.stat().st_size,
        sha256=shelf.sha256,
        folder=str(shelf.folder),
        loaded=str(choice.path),
        refused=choice.refused,
        picked=pick(record, here),
        chosen=record.chosen,
        here=here,
        original=record.original,
        versions=record.versions,
    )


def pick(record: Record, here: Conditions) -> str:
    """The quickest format that loses nothing a user could notice; empty: the original."""
    fit = {
        version.format: version.gain.turns
        for version in record.versions
        if version.measured == here
        and version.gain.turns >= GAIN_LIMIT
        and version.apart.kl <= KL_LIMIT
        and record.original is not None
        and version.certified >= record.original.certified
    }
    return max(fit, key=fit.__getitem__, default="")


def conditions(config: Config) -> Conditions:
    text = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
    fields = dict(re.findall(r"(.+?)\s*: (.*)", text))
    names = ("model name", "cpu family", "model", "stepping")
    cpu = ", ".join(fields[name] for name in names if name in fields)
    return Conditions(cpu, BINDING, config.slots, config.threads or os.cpu_count() or 1)


# --- measuring -----------------------------------------------------------------------------------


def measure(shelf: Shelf, formats: Sequence[str], here: Conditions) -> None:
    """Add to the record what was not measured under the present conditions.

    Raises:
        ModelError: there is no room for the files.
        NoRoom: there is no memory for any of them beside the original.
    """
    record = shelf.load()
    own, params = describe(shelf.original)
    own = own.lower()
    whole = {version.format for version in record.versions if is_whole(shelf, version)}
    known = {version.format for version in record.versions if version.measured == here} & whole
    missing = [name for name in formats if name not in known | {own}]
    if not missing:
        return
    missing = that_fit(missing, shelf.original.stat().st_size, params)
    for name in missing:
        tell(f"requantizing to {name}", 0, 1)
        if name not in whole:
            shelf.make(name, here.threads)
        tell(f"requantizing to {name}", 1, 1)
    record.original, *versions = compare(shelf, [own, *missing], here)
    others = [version for version in record.versions if version.format not in missing]
    record.versions = others + versions
    shelf.save(record)


def that_fit(names: list[str], original: int, params: int) -> list[str]:
    """Those of `names` that memory has room for, all at once beside the `original`; to make a file
    and then see that it is too large would take minutes.

    Raises:
        NoRoom: there is room for none.
    """
    free = psutil.virtual_memory().available - original
    sizes = {name: int(params * FORMATS[name][1]) >> 3 for name in names}
    while sum(sizes.values()) > free:
        name = max(sizes, key=sizes.__getitem__)
        size = sizes.pop(name)
        tell(f"leaving {name} out: it needs {size >> 20} MiB, {max(0, free) >> 20} are free", 1, 1)
        if not sizes:
            raise NoRoom(
                f"the model as {name} needs {size >> 20} MiB beside the original, "
                f"{max(0, free) >> 20} MiB are free",
                "stop what else is running",
            )
    return list(sizes)


def is_whole(shelf: Shelf, version: Version) -> bool:
    try:
        shelf.check(version)
    except ModelError:
        return False  # it is made again
    return True


def compare(shelf: Shelf, names: list[str], here: Conditions) -> list[Version]:
    """Of the original, whose format is the first of `names`, and its other versions.

    Raises:
        ModelError: its window is too short to be measured.
    """
    paths = [shelf.original, *map(shelf.path, names[1:])]
    sizes = [path.stat().st_size for path in paths]
    engines = [
        LlamaEngine(path, slots=here.slots, window=SPAN, threads=here.threads) for path in paths
    ]
    if engines[0].window < SPAN:
        raise ModelError(
            f"{paths[0]} holds {engines[0].window} tokens, and is measured with {SPAN}",
            "use it as it is",
        )
    exact = []
    for number, engine in enumerate(engines):
        tell("testing that it is exact", number, len(engines))
        exact.append(certify(engine)[0])
    tell("testing that it is exact", 1, 1)
    speeds, gains = race(engines, exact, tell)
    apart, perplexity = distance(engines, tell)
    for engine in engines:
        engine.close()
    hashes = map(sha256, paths)
    figures = zip(names, sizes, hashes, speeds, gains, exact, apart, perplexity, strict=True)
    return [Version(here, *each) for each in figures]


if __name__ == "__main__":
    sys.exit(main())
