"""GGUF files: load, describe, and quantize them."""

from __future__ import annotations

import ctypes
import errno
import os
import re
import stat
from hashlib import blake2b
from io import BufferedReader
from pathlib import Path
from typing import Any

import llama_cpp as ll

from aios.syscalls.errors import Internal, ModelError

BINDING = f"llama-cpp-python {ll.__version__}"
FORMATS = {  # llama.cpp's file type; bits per weight
    "q8_0": (ll.LLAMA_FTYPE_MOSTLY_Q8_0, 8.5),
    "q4_0": (ll.LLAMA_FTYPE_MOSTLY_Q4_0, 4.5),
    "q4_1": (ll.LLAMA_FTYPE_MOSTLY_Q4_1, 5.0),
    "q5_0": (ll.LLAMA_FTYPE_MOSTLY_Q5_0, 5.5),
    "q5_1": (ll.LLAMA_FTYPE_MOSTLY_Q5_1, 6.0),
    "q4_k_m": (ll.LLAMA_FTYPE_MOSTLY_Q4_K_M, 4.9),
    "q5_k_m": (ll.LLAMA_FTYPE_MOSTLY_Q5_K_M, 5.7),
    "q6_k": (ll.LLAMA_FTYPE_MOSTLY_Q6_K, 6.6),
    "f16": (ll.LLAMA_FTYPE_MOSTLY_F16, 16.0),
    "bf16": (ll.LLAMA_FTYPE_MOSTLY_BF16, 16.0),
}
FIRST_PART = re.compile(r"(.+-)00001(-of-(\d{5})\.gguf)")


class ErrorLog:
    """The last errors that llama.cpp logged, as text for the exception that follows."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.callback = ll.llama_log_callback(self._take)  # ctypes: must outlive the library's use

    def _take(self, level: int, text: bytes, _user: Any) -> None:
        if level >= 3 and level != 5:
            self.errors = [*self.errors[-4:], text.decode(errors="replace").strip()]

    def __str__(self) -> str:
        return "; ".join(self.errors) or "no reason given"


# ggml prints a backtrace when it aborts, and that hangs if two threads do: aborting must end us.
os.environ.setdefault("GGML_NO_BACKTRACE", "1")
log = ErrorLog()
ll.llama_log_set(log.callback, ctypes.c_void_p(0))


def load(path: Path, option: str = "--model") -> Any:
    """Load the model in a file; errors name the `option` by which the user chose it.

    Raises:
        ModelError: the file is missing, truncated or not a GGUF.
    """
    try:
        with open_part(path) as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(
            f"cannot read the model {path}: {error.strerror}", f"name a GGUF file with {option}"
        ) from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file", f"name a GGUF file with {option}")
    params = ll.llama_model_default_params()
    params.n_gpu_layers = 0
    model = ll.llama_model_load_from_file(os.fsencode(path), params)
    if not model:
        raise ModelError(
            f"llama.cpp cannot load {path}: {log}",
            f"name a language model with {option}, whole and of a kind that llama.cpp knows: no "
            "adapter or projector, and of one in several files the first",
        )
    return model


def open_part(path: Path) -> BufferedReader:
    """Open a file of a model. Raises OSError, also for a pipe or a device: each may have no end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    return path.open("rb")


def tokenize(vocab: Any, text: str, *, start: bool, special: bool) -> list[int]:
    """Return the token ids of `text`. With `start` they include those that the model wants around a
    text; with `special`, text that reads like a control token becomes one."""
    data = text.encode()
    room = len(data) + 8
    buffer = (ll.llama_token * room)()
    count = ll.llama_tokenize(vocab, data, len(data), buffer, room, start, special)
    if count < 0:
        raise Internal(f"llama_tokenize needs {-count} places for {len(data)} bytes")
    return list(buffer[:count])


def parts(path: Path) -> list[Path]:
    """Return the files that llama.cpp loads a model from: `path`, and those behind it where that is
    named as the first of several."""
    first = FIRST_PART.fullmatch(path.name)
    if first is None:
        return [path]
    start, end, count = first.groups()
    named = (path.with_name(f"{start}{at:05}{end}") for at in range(2, int(count) + 1))
    return [path, *(part for part in named if part.exists())]


def file_bytes(path: Path) -> int:
    """Return the size of a model's files. Raises OSError if one cannot be read."""
    return sum(part.stat().st_size for part in parts(path))


def identity(path: Path) -> str:
    """Return a hash of the first and last MiB and the size of each of a model's files, as its name:
    hashing all of a large file would take seconds at each start.

    Raises:
        OSError: a file cannot be read.
    """
    name = blake2b(digest_size=16)
    for part in parts(path):
        size = part.stat().st_size
        with part.open("rb") as file:
            name.update(file.read(1 << 20))
            file.seek(max(0, size - (1 << 20)))
            name.update(file.read() + str(size).encode())
    return name.hexdigest()


def requantize(source: Path, target: Path, name: str, threads: int) -> None:
    """Write the model `source` to `target`, its weights in the format `name`, one of FORMATS.

    Raises:
        ModelError: `source` is not a model, or `target` cannot be written.
    """
    params = ll.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = FORMATS[name][0], True, threads
    code = ll.llama_model_quantize(os.fsencode(source), os.fsencode(target), ctypes.byref(params))
    if code != 0:
        raise ModelError(f"llama.cpp cannot write {source} as {name}: {log}")


def describe(path: Path) -> tuple[str, int]:
    """Return the format of a model's weights, as llama.cpp names it, and their number.

    Raises:
        ModelError: the file is missing, truncated or not a GGUF.
    """
    model = load(path)
    name: bytes = ll.llama_ftype_name(ll.llama_model_ftype(model))
    params = int(ll.llama_model_n_params(model))
    ll.llama_model_free(model)
    return name.decode(), params
