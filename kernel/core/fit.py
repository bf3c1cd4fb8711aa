"""Fitting a model to this machine: its quantized variants are measured beside the original.

    python -m aios.kernel.core.fit < REQUEST    (a FitRequest as JSON)

On stdout one JSON object a line: any number of {"progress": ...}, then {"report": ...}, or
{"error": ...}. Only `choose` changes the file that a system loads.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil
from msgspec import Struct

from aios.kernel.config import Config, load
from aios.syscalls.errors import AiosError, BadInput, ModelError, NoRoom

from ..lib.linux import processor
from .certify import certify
from .compare import SPAN_TOKENS, measure_divergence, race
from .gguf import BINDING, FORMATS, describe, file_bytes
from .llama import LlamaEngine
from .variants import Conditions, FitRecord, Variant, VariantStore, choose, lock, sha256

# From the embedded Q4_1, its own weights in F16 diverge by 0.003, since Q4_1's kernels round that
# much; Q8_0 by 0.006, Q6_K by 0.013, Q5_1 by 0.13, Q4_0 by 0.27.
KL_LIMIT = 0.01  # nats a token
GAIN_LIMIT = 1.1  # a smaller gain is not worth a second file


class FitRequest(Struct, frozen=True):
    action: Literal["show", "measure", "choose", "forget"]
    home: str
    settings: dict[str, Any]  # above those of its config.toml
    formats: tuple[str, ...] = ()


class Report(Struct, kw_only=True):
    """A model and its variants. `picked` and `chosen` are formats, or empty."""

    model: str
    format: str
    size: int  # bytes
    sha256: str
    folder: str  # of its variants
    loaded: str  # path of the file that `aios start` would load
    refused: str  # why the original is loaded although `fitted` is set
    picked: str  # by the rule, of the variants measured here
    chosen: str
    here: Conditions
    original: Variant | None
    variants: list[Variant] = msgspec.field(name="versions")


def main() -> int:
    request = msgspec.json.decode(sys.stdin.buffer.read(), type=FitRequest)
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


def serve(request: FitRequest) -> Report:
    unknown = [name for name in request.formats if name not in FORMATS]
    if unknown:
        raise BadInput(f"no format {unknown[0]!r}", "one of " + ", ".join(FORMATS))
    config = load(Path(request.home), request.settings)
    store = VariantStore(config.model_path)
    if request.action == "show":
        return report(config, store)
    with lock(lambda: tell("waiting for another fit", 0, 1)):
        if request.action == "forget":
            store.forget(request.formats)
        elif request.action == "measure":
            measure(store, request.formats, conditions(config))
        else:
            choose_variant(store, request.formats[0])
    return report(config, store)


def choose_variant(store: VariantStore, name: str) -> None:
    """Choose the variant that is loaded where `fitted` is set.

    Raises:
        BadInput: it was never measured.
        ModelError: its file is not the one that was measured.
    """
    record = store.load()
    variant = record.variant(name)
    if variant is None:
        names = ", ".join(variant.format for variant in record.variants)
        raise BadInput(f"{name} was not measured beside the original", f"choose one of: {names}")
    store.check(variant)
    record.chosen = name
    store.save(record)


def report(config: Config, store: VariantStore) -> Report:
    record, here = store.load(), conditions(config)
    choice = choose(store.original, config.fitted)
    return Report(
        model=str(store.original),
        format=describe(store.original)[0],
        size=file_bytes(store.original),
        sha256=store.sha256,
        folder=str(store.folder),
        loaded=str(choice.path),
        refused=choice.refused,
        picked=pick(record, here),
        chosen=record.chosen,
        here=here,
        original=record.original,
        variants=record.variants,
    )


def pick(record: FitRecord, here: Conditions) -> str:
    """Return the quickest format without a loss that a user could notice; empty: the original."""
    fit = {
        variant.format: variant.gain.turns
        for variant in record.variants
        if variant.measured == here
        and variant.gain.turns >= GAIN_LIMIT
        and variant.divergence.kl <= KL_LIMIT
        and record.original is not None
        and variant.certified >= record.original.certified
    }
    return max(fit, key=fit.__getitem__, default="")


def conditions(config: Config) -> Conditions:
    return Conditions(processor(), BINDING, config.slots, config.threads or os.cpu_count() or 1)


# --- measuring -----------------------------------------------------------------------------------


def measure(store: VariantStore, formats: Sequence[str], here: Conditions) -> None:
    """Make and measure the variants that were not measured under the conditions `here`.

    Raises:
        ModelError: the disk has no room for the files.
        NoRoom: there is no memory for any of them beside the original.
    """
    record = store.load()
    own, params = describe(store.original)
    own = own.lower()
    intact = {variant.format for variant in record.variants if is_intact(store, variant)}
    known = {variant.format for variant in record.variants if variant.measured == here} & intact
    missing = [name for name in formats if name not in known | {own}]
    if not missing:
        return
    missing = drop_too_large(missing, file_bytes(store.original), params)
    for name in missing:
        tell(f"requantizing to {name}", 0, 1)
        if name not in intact:
            store.make(name, here.threads)
        tell(f"requantizing to {name}", 1, 1)
    record.original, *variants = compare(store, [own, *missing], here)
    others = [variant for variant in record.variants if variant.format not in missing]
    record.variants = others + variants
    store.save(record)


def drop_too_large(names: list[str], original: int, params: int) -> list[str]:
    """Return the formats that memory has room for, all at once beside the `original`. To make a
    file only to see that it is too large would take minutes.

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


def is_intact(store: VariantStore, variant: Variant) -> bool:
    try:
        store.check(variant)
    except ModelError:
        return False
    return True


def compare(store: VariantStore, names: list[str], here: Conditions) -> list[Variant]:
    """Measure the original, whose format is the first of `names`, and its variants.

    Raises:
        ModelError: the model's window is too short to be measured.
    """
    paths = [store.original, *map(store.path, names[1:])]
    sizes = [file_bytes(path) for path in paths]
    engines = [
        LlamaEngine(path, slots=here.slots, window=SPAN_TOKENS, threads=here.threads)
        for path in paths
    ]
    if engines[0].window < SPAN_TOKENS:
        raise ModelError(
            f"{paths[0]} holds {engines[0].window} tokens, and is measured with {SPAN_TOKENS}",
            "use it as it is",
        )
    exact = []
    for number, engine in enumerate(engines):
        tell("testing that it is exact", number, len(engines))
        exact.append(certify(engine)[0])
    tell("testing that it is exact", 1, 1)
    speeds, gains = race(engines, exact, tell)
    divergences, perplexity = measure_divergence(engines, tell)
    for engine in engines:
        engine.close()
    hashes = map(sha256, paths)
    figures = zip(names, sizes, hashes, speeds, gains, exact, divergences, perplexity, strict=True)
    return [Variant(here, *each) for each in figures]


if __name__ == "__main__":
    sys.exit(main())
