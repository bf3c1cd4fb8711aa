"""Every test that needs a system gets a real one: init, kernel, core, agents, and a tiny model.

`system` is shared by the whole run; `boot` starts another, with settings of its own. Where it
matters what is said, a test has the embedded model: `talker` is shared, boot(model=EMBEDDED) its
own. After each test the shared kernel must find nothing wrong with itself, and after each system
nothing may be left: no process, no socket.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import psutil
import pytest
from bucket import serving
from jobs import FOLDER, Job
from models import tiny_model
from places import SUPPORT

from aios.agents import Aios, connect
from aios.shell.launch import System
from aios.syscalls.errors import ProcessGone

Boot = Callable[..., System]
EMBEDDED = ""  # the setting `model`
LONG = {
    "test_docs", "test_librarian", "test_demo", "test_model", "test_kernel_death",
    "test_backup", "test_retrieval", "test_mcp_serve", "test_start", "test_react",
    "test_exactness", "test_certify", "test_recovery", "test_bench", "test_grammar",
    "test_mcp", "test_storage", "test_storage_limits", "test_mcp_serve_process", "test_fit",
    "test_sandbox", "test_help",
}  # fmt: skip

# A run in the background of a script has SIGINT ignored, and all that it starts would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


def eventually(check: Callable[[], Any], seconds: float = 60.0) -> Any:
    """The first true value of `check`; a failed assertion if there is none in time."""
    limit = time.monotonic() + seconds
    while not (value := check()):
        assert time.monotonic() < limit, f"not within {seconds} s"
        time.sleep(0.02)
    return value


hypothesis.settings.register_profile(
    "test", derandomize=True, deadline=None, max_examples=50, stateful_step_count=40
)
hypothesis.settings.register_profile("faults", deadline=None, max_examples=300)


def fewer(times: int) -> hypothesis.settings:
    """Settings for a property whose examples take long each: so many times fewer of them."""
    return hypothesis.settings(max_examples=hypothesis.settings().max_examples // times)


def pytest_configure(config: pytest.Config) -> None:
    hypothesis.settings.load_profile("faults" if config.getoption("--faults") else "test")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", action="store_true", help="fault campaigns at full length")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """A disk that is really full takes a mount: `make faults` has it, and whoever may mount. A
    machine without AIOS takes minutes to install it, and a suite of others is installed for it
    alone: `make faults` has these."""
    long = config.getoption("--faults")
    alone = ("test_wheel.py", "test_fresh_machine.py", "test_mcp_conformance.py")
    wanted = dict.fromkeys(alone, long)
    wanted["test_full_disk.py"] = long or os.geteuid() == 0
    return None if wanted.get(collection_path.name, True) else True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests take long begin, or one process would still be at them when all others
    have ended."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Tell whether a fault campaign runs at full length; `make test` runs a short share."""
    return bool(request.config.getoption("--faults"))


def left_of(home: Path) -> list[psutil.Process]:
    """The processes of systems in `home`, or started by their agents."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            named = any(
                str(home) in word for word in process.cmdline()
            )  # agents are not to be read
            if named or process.environ().get("AIOS_HOME", "").startswith(str(home)):
                found.append(process)
    return found


def of_core(system: System) -> psutil.Process:
    """The process of the LLM core, waiting for it if it is just being started."""
    init = psutil.Process(system.process.pid)
    found: list[psutil.Process] = eventually(lambda: list(filter(_is_core, init.children())))
    return found[0]


@contextlib.contextmanager
def core_stopped(system: System) -> Iterator[None]:
    """Stop the core: questions to it wait, and its work gets no further."""
    core = of_core(system)
    core.suspend()
    try:
        yield
    finally:
        core.resume()


def _is_core(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):  # or it is a zombie
        return "aios.kernel.core" in process.cmdline()
    return False


@pytest.fixture(scope="session")
def homes() -> Iterator[Path]:
    """A short path: a Unix socket's name holds 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="aios-"))
    yield folder
    assert left_of(folder) == []
    assert list(folder.rglob("*.sock")) == []
    shutil.rmtree(folder)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of its own for each run: of variants of models, and of what self-tests have found."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def tiny(folder: Path) -> str:
    """The path of the tiny model in a folder, where it is made the first time."""
    path = folder / "tiny.gguf"
    if not path.exists():
        tiny_model(path)
    return str(path)


def on_tiny(home: Path, **settings: Any) -> dict[str, Any]:
    """Settings for a system in `home`, on the tiny model unless they name another."""
    return {"model": tiny(home.parent), "threads": 1, **settings}


def run_system(home: Path, settings: dict[str, Any]) -> Iterator[System]:
    """Run a system in `home`, on the tiny model unless `settings` name another."""
    system = System(home, on_tiny(home, **settings), detach=True)
    try:
        system.ready()
        yield system
    finally:
        below = (
            psutil.Process(system.process.pid).children(recursive=True)
            if system.process.poll() is None
            else []
        )
        system.end()
        _, alive = psutil.wait_procs(below, timeout=60)
        for process in alive:
            process.kill()
    assert not alive, f"left behind: {alive}"


@pytest.fixture(scope="session")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of the shared systems."""
    read = [str(SUPPORT), str(tmp_path_factory.getbasetemp())]
    walls = {"processes": True, "read": read}
    return {"slots": 4, "ctx": 1024, "grace": 0.5, "walls": walls}


@pytest.fixture(scope="session")
def shared(homes: Path, settings: dict[str, Any]) -> Iterator[System]:
    yield from run_system(homes / "shared", settings)


@pytest.fixture(scope="session")
def shared_talker(homes: Path, settings: dict[str, Any]) -> Iterator[System]:
    yield from run_system(homes / "talker", {"model": EMBEDDED, **settings})


@pytest.fixture
def system(shared: System) -> Iterator[System]:
    """The shared system; whatever a test does to it must leave it whole."""
    yield from left_whole(shared)


@pytest.fixture
def talker(shared_talker: System) -> Iterator[System]:
    """The shared system on the embedded model."""
    yield from left_whole(shared_talker)


def left_whole(shared: System) -> Iterator[System]:
    yield shared
    with connect(shared.home) as aios:
        try:
            eventually(lambda: not aios.ps())
            eventually(lambda: aios.status().contexts == 0)
            assert aios.check() == []
        finally:
            kill_agents(aios)  # or the next test would be blamed as well


def kill_agents(aios: Aios) -> None:
    for row in aios.ps():
        with contextlib.suppress(ProcessGone):  # it has ended by itself meanwhile
            aios.kill(row.pid, "KILL")


@pytest.fixture
def aios(system: System) -> Iterator[Aios]:
    with connect(system.home, "test") as aios:
        yield aios


@pytest.fixture
def talking(talker: System) -> Iterator[Aios]:
    """A connection to the system on the embedded model, which takes its time to answer."""
    with connect(talker.home, "test") as aios:
        yield aios


@pytest.fixture
def job(aios: Aios) -> Iterator[Job]:
    """A job for a tool to run in; objects that it puts into FOLDER go afterwards."""
    yield Job(aios)
    for info in [*aios.sto_list(FOLDER, deleted=True)]:
        aios.sto_purge(info.path)


@pytest.fixture
def boot(homes: Path, request: pytest.FixtureRequest) -> Iterator[Boot]:
    """Start a system of its own for this test: boot(slots=2, policy="fifo", ...); on the embedded
    model with boot(model=EMBEDDED)."""
    running: list[Iterator[System]] = []

    def start(**settings: Any) -> System:
        home = homes / f"{os.getpid()}-{abs(hash(request.node.nodeid)) % 10**8}-{len(running)}"
        steps = run_system(home, {"slots": 2, "ctx": 1024, "grace": 0.5, **settings})
        system = next(steps)
        running.append(steps)
        return system

    yield start
    for steps in running:
        assert next(steps, None) is None


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of a server that speaks S3."""
    with serving() as address:
        yield address


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str], str]:
    """The path of an agent's program with this body of `run(self, task)`."""

    def write(body: str) -> str:
        path = tmp_path / f"agent{len(list(tmp_path.iterdir()))}.py"
        lines = "\n".join("        " + line for line in body.strip().splitlines())
        path.write_text(
            "import os, sys, time, signal\nfrom aios.agents import Agent, AiosError\n\n\n"
            f"class Test(Agent):\n    def run(self, task):\n        aios = self.aios\n{lines}\n"
        )
        return str(path)

    return write
