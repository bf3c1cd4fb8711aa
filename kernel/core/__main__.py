"""The process of an LLM core: two sockets to the kernel, one for work and one for text.

    python -m aios.kernel.core CONFIG    (a CoreConfig as JSON)

Work: commands in, a report after each step. Text: questions to the tokenizer, which a thread of its
own answers. They wait for no step, since llama_decode releases the GIL. A third thread compiles
grammars.

A core outlives its kernel: the sockets connect to the next one and announce themselves to it
(ZMQ_PROBE_ROUTER); messages under way to the old one are dropped (ZMQ_IMMEDIATE).
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import zmq

from aios.kernel.lib.log_stream import become_log
from aios.syscalls.errors import AiosError, ModelError
from aios.syscalls.kernel import ModelInfo

from ..lib.encryption import inherited_codec
from .batcher import Batcher
from .certificates import certify_once
from .disk import CodecName, Disk
from .llama import Cache, LlamaEngine
from .protocol import (
    Compile,
    CoreUnusable,
    Drop,
    Halt,
    Prefetch,
    Ready,
    ResetCore,
    Run,
    decode_command,
    decode_question,
    encode,
)
from .text import answer
from .variants import Choice, choose

RING_FD = 3
HANG_S = 60.0  # over one question: then the core ends, and another is started


class CoreConfig(msgspec.Struct, frozen=True):
    """The settings of a core, which the kernel passes as its argument."""

    home: str
    model: str
    fitted: bool  # load the variant that `aios model fit` has chosen
    loaded: str  # the file that the core before this one had loaded; empty: there was none
    slots: int
    window: int
    threads: int
    exact: bool
    snapshot_bytes: int
    cache: Cache
    disk: str  # the folder for snapshots
    disk_bytes: int
    disk_codec: CodecName
    idle_ttl: float
    encrypt: bool  # then the data keys are at RING_FD


def main() -> int:
    become_log()
    config = msgspec.json.decode(sys.argv[1], type=CoreConfig)
    context: zmq.Context[Any] = zmq.Context()
    try:
        choice = choose_loaded(config)
        engine = LlamaEngine(
            choice.path, slots=config.slots, window=config.window, threads=config.threads,
            cache=config.cache,
        )  # fmt: skip
        engine.check_template()
        certified, cost = certify_once(engine)
        batcher = _batcher(config, engine, certified if config.exact else 0)
    except AiosError as error:
        _open_socket(context, config, "core").send(encode(CoreUnusable(error.to_wire())))
        context.term()  # lingers until the kernel has it
        return 1
    text = _open_socket(context, config, "text")
    run_in_thread(serve_text, text, engine)
    serve(
        _open_socket(context, config, "core"), batcher, _model_info(engine, choice, certified, cost)
    )
    return 0


def _open_socket(context: zmq.Context[Any], config: CoreConfig, name: str) -> zmq.Socket[bytes]:
    connected: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    connected.setsockopt(zmq.PROBE_ROUTER, 1)
    connected.setsockopt(zmq.IMMEDIATE, 1)
    connected.setsockopt(zmq.RECONNECT_IVL, 10)  # ms
    connected.connect(f"ipc://{config.home}/{name}.sock")
    return connected


def choose_loaded(config: CoreConfig) -> Choice:
    """Choose the file to load.

    Raises:
        ModelError: it cannot be read, or the contexts of this system began with another file.
    """
    choice = choose(Path(config.model), config.fitted)
    if config.loaded not in ("", str(choice.path)):
        why = choice.refused or f"{choice.path} was chosen since"
        raise ModelError(
            f"the model that this system began with, {config.loaded}, is gone: {why}",
            "start the system again",
        )
    return choice


def _batcher(config: CoreConfig, engine: LlamaEngine, certified: int) -> Batcher:
    disk = None
    if config.disk_bytes and engine.row_bytes:
        fingerprint = engine.fingerprint(certified)
        seal = inherited_codec(RING_FD) if config.encrypt else None
        disk = Disk(Path(config.disk), fingerprint, config.disk_bytes, config.disk_codec, seal)
    return Batcher(engine, certified, config.snapshot_bytes, disk, config.idle_ttl)


def _model_info(
    engine: LlamaEngine, choice: Choice, certified: int, cost: float | None
) -> ModelInfo:
    return ModelInfo(
        path=str(engine.path),
        id=engine.model_id,
        description=engine.description(),
        params=engine.params,
        size=engine.size,
        vocab=engine.n_vocab,
        window=engine.window,
        certified=certified,
        exact_cost=cost,
        cache_bytes=engine.cache_bytes,
        cache=engine.cache,
        paged=engine.row_bytes > 0,
        engine="llama.cpp",
        fitted=choice.fitted,
        refused=choice.refused,
        measured=choice.measured,
    )


def serve(work: zmq.Socket[bytes], batcher: Batcher, model: ModelInfo) -> None:
    """Serve the kernel: take all commands that are there, make a step, report it, and so on."""
    while True:
        while batcher.running == {} or work.poll(0):
            if batcher.running == {} and not work.poll(_milliseconds(batcher.idle_timeout())):
                work.send(encode(batcher.idle_step()))
                continue
            command = decode_command(work.recv())
            if isinstance(command, Run):
                batcher.run(command)
            elif isinstance(command, Halt):
                batcher.halt(command)
            elif isinstance(command, Drop):
                batcher.drop(command.ctx)
            elif isinstance(command, ResetCore):
                batcher.reset(command.contexts)
                work.send(encode(Ready(model)))
            elif isinstance(command, Prefetch):
                batcher.prefetch(command.ctx)
            if batcher.running == {}:
                break
        work.send(encode(batcher.step()))


def _milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds * 1000) + 1


def run_in_thread(serve: Callable[..., None], *args: Any) -> None:
    """Run `serve` in a thread. If it ends, so does the core: the next one can answer again."""

    def run() -> None:
        try:
            serve(*args)
        finally:
            traceback.print_exc()
            os._exit(1)

    threading.Thread(target=run, daemon=True).start()


def serve_text(text: zmq.Socket[bytes], engine: LlamaEngine) -> None:
    """Answer questions; grammars are compiled in another thread, since that may take long."""
    grammars = text.context.socket(zmq.PAIR)
    grammars.set_hwm(0)
    grammars.bind("inproc://grammars")
    run_in_thread(serve_grammars, text.context, engine)
    while True:
        ready, _, _ = zmq.select([text, grammars], [], [])
        if grammars in ready:
            text.send(grammars.recv())
        if text in ready:
            data = text.recv()
            question = decode_question(data)
            if isinstance(question, Compile):
                grammars.send(data)
            else:
                faulthandler.dump_traceback_later(HANG_S, exit=True, file=2)
                text.send(encode(answer(engine, question)))
                faulthandler.cancel_dump_traceback_later()


def serve_grammars(context: zmq.Context[Any], engine: LlamaEngine) -> None:
    """Compile the grammars of questions."""
    questions = context.socket(zmq.PAIR)
    questions.set_hwm(0)
    questions.connect("inproc://grammars")
    while True:
        question = decode_question(questions.recv())
        assert isinstance(question, Compile)
        questions.send(encode(engine.grammars.answer(question)))


if __name__ == "__main__":
    sys.exit(main())
