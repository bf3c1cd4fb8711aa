"""The kernel's side of an LLM core: started by init, started again when it dies."""

from __future__ import annotations

import os
from typing import Literal

from aios.syscalls.errors import AiosError, CoreFailed, from_wire
from aios.syscalls.kernel import ModelInfo

from ..config import Config
from ..core.protocol import (
    Command,
    CoreUnusable,
    Counters,
    Drop,
    Question,
    Ready,
    Report,
    ResetCore,
    Step,
    decode_report,
    decode_tokenized,
    encode,
)
from ..events import EventLog
from ..init.protocol import Gone, StartFailed, Takeover
from ..loop import Loop
from ..service import BACKOFF_S, MAX_BACKOFF_S, Service
from .generations import Generations

CORE_KEY = 0  # to init; that of an agent is its pid
MAX_LOAD_DEATHS = 3  # in a row while loading, until nobody waits for a core any more
MAX_FAILED_BACKOFF_S = 60.0  # between two tries from there on
REBUILD_HINT = (
    "llama.cpp was built for another processor; build one for any: `CMAKE_ARGS=-DGGML_NATIVE=OFF "
    "pip install --force-reinstall --no-deps --no-cache-dir llama-cpp-python`"
)


class CoreLink:
    """Keeps a core running, and passes its reports on."""

    generations: Generations  # set by the boot: they send by this link, and hear from it

    def __init__(self, config: Config, loop: Loop, events: EventLog) -> None:
        self.config, self.events = config, events
        self.service = Service(CORE_KEY, "core", config, loop, self, ring=config.encrypt)
        self.work = self.service.channel(
            "core", self._here, lambda data: self.report(decode_report(data))
        )
        self.text = self.service.channel(
            "text", self._ask_again,
            lambda data: self.generations.prompts.answered(decode_tokenized(data)),
        )  # fmt: skip
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.model: ModelInfo | None = None
        self.error: AiosError | None = None  # why there is no core
        self.is_final = False  # no other core is tried
        self.deaths = 0  # in a row, while loading
        self.counters = Counters()

    def start(self) -> None:
        config = self.config
        try:
            model = str(config.model_path)
        except AiosError as error:
            self.is_final = True
            self._fail(error)
            return
        self.service.launch({
            "home": config.home,
            "model": model,
            "fitted": config.fitted,
            "loaded": self.model.path if self.model else "",
            "slots": config.slots,
            "window": config.ctx,
            "threads": config.threads or os.cpu_count() or 1,
            "exact": config.exact,
            "snapshot_bytes": config.snapshot_bytes,
            "cache": config.cache,
            "disk": str(config.path / "kv"),
            "disk_bytes": config.disk_bytes,
            "disk_codec": config.disk_codec,
            "idle_ttl": config.idle_ttl,
            "encrypt": config.encrypt,
        })  # fmt: skip

    def recover(self, takeover: Takeover) -> None:
        """Take over the core of the kernel before, or start one."""
        if running := self.service.left_running(takeover):
            self.service.adopt(running)
        else:
            self.start()

    def _here(self) -> None:
        """Have a core that has just connected start afresh; it may be another kernel's."""
        if self.state == "ready":  # the connection was lost, not the core
            self.generations.core_gone(None)
        self._load()
        self.send(ResetCore(list(self.generations.contexts.contexts)))

    def send(self, command: Command) -> None:
        self.work.send(encode(command))

    def drop(self, ctx: int) -> None:
        """Have the core forget a context."""
        self.send(Drop(ctx))

    def ask(self, question: Question) -> None:
        """Send a question. A core that is not ready is asked when it is."""
        if self.state == "ready":
            self.text.send(encode(question))

    def _ask_again(self) -> None:
        for question in self.generations.prompts.asked():
            self.ask(question)

    def report(self, report: Report) -> None:
        match report:
            case Step() if self.state != "ready":
                pass  # about commands of another kernel
            case Step():
                self.service.backoff_s = BACKOFF_S
                self._notice(report.counters)
                self.generations.step(report)
            case Ready():
                self.counters = Counters()
                self.state, self.model, self.deaths = "ready", report.model, 0
                self.error = None
                self.generations.core_ready(report.model, self.config.slots)
                self._ask_again()
                self.events.publish("core", "ready")
            case CoreUnusable():
                self.is_final = True
                self._fail(from_wire(report.error))

    def _notice(self, counters: Counters) -> None:
        """Publish what the core could not keep or read; its log has the reasons."""
        for name in ("bad_snapshots", "disk_failures"):
            if (count := getattr(counters, name)) > getattr(self.counters, name):
                self.events.publish("core", name.replace("_", " "), count=count)
        self.counters = counters

    def died(self, how: str, frame: Gone) -> None:
        if self.is_final:
            return
        was_ready = self.state == "ready"
        self.deaths += not was_ready
        self.events.publish("core", "died", how=how)
        self._load()
        if was_ready:
            self.generations.core_gone(None)
        elif self.deaths >= MAX_LOAD_DEATHS:
            self._fail(
                CoreFailed(
                    f"the LLM core died {self.deaths} times while loading "
                    f"{self.config.model_path} ({how}); it is tried again in "
                    f"{self.service.backoff_s:.1f} s",
                    REBUILD_HINT if frame.signal == "ILL" else "",
                )
            )
        self._start_later()

    def _load(self) -> None:
        """Expect a core. Nobody waits for one after a failure, until it is ready."""
        self.state = "loading" if self.error is None else "failed"

    def not_started(self, frame: StartFailed) -> None:
        self.events.publish("core", "not started", error=frame.error)
        self._start_later()

    def _start_later(self) -> None:
        self.service.launch_later(
            MAX_BACKOFF_S if self.deaths < MAX_LOAD_DEATHS else MAX_FAILED_BACKOFF_S
        )

    def _fail(self, error: AiosError) -> None:
        self.state, self.error = "failed", error
        self.events.publish("core", "failed", error=error.to_wire())
        self.generations.core_gone(error)
