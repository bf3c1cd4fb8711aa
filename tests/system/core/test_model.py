"""`aios model`: a model in another format: kept, chosen, served, distrusted."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pexpect
import psutil
import pytest
from commands import AIOS, LIMIT, answer, environment, run, started
from conftest import Boot, eventually, of_core
from helpers import run as generate
from models import tiny_model

from aios.agents import connect
from aios.kernel.config import embedded_model
from aios.kernel.core import compare, fit
from aios.kernel.core.gguf import requantize
from aios.kernel.core.llama import LlamaEngine
from aios.kernel.core.variants import choose, new_file
from aios.shell.commands.model import ask
from aios.syscalls.errors import AiosError, ModelError

PATIENCE = 300  # seconds: to measure takes 15 on an idle machine
SETTINGS = 'slots = 2\nctx = 512\nmodel = "{}"\n'


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("original") / "model.gguf"
    return tiny_model(path, vocabulary=30_000, matrices="F16")


@pytest.fixture(scope="module")
def home(homes: Path, original: Path) -> Iterator[Path]:
    """A home, and a cache of its own, where two that fit at once have measured Q8_0."""
    home = homes / "fitted"
    (home / "cache").mkdir(parents=True)
    (home / "config.toml").write_text(SETTINGS.format(original))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
        # what the rule picks depends on how quick the machine is just now
        command = "model", "fit", "--formats", "q8_0", "--choose", "q8_0"
        with started(home, *command) as first, started(home, *command) as second:
            ends = [process.communicate(timeout=PATIENCE) for process in (first, second)]
            assert [first.returncode, second.returncode] == [0, 0], ends
        assert sum("requantizing to q8_0" in said for _, said in ends) == 1
        for shown, _ in ends:
            assert shown.endswith(
                "nothing has changed; to choose: aios model fit --choose q8_0 --yes\n"
                "to remove the files: aios model forget\n"
            )
        yield home


@pytest.fixture
def cache(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that cache, Q8_0 chosen, to be spoilt; its folder of the original."""
    shutil.copytree(home / "cache", tmp_path / "cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert answer(home, "model", "fit", *Q8)["chosen"] == "q8_0"
    return next((tmp_path / "cache" / "aios" / "models").glob("*/fit.json")).parent


Q8 = "--formats", "q8_0", "--choose", "q8_0", "--yes"


@pytest.fixture
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less text and fewer rounds, for what is measured in this process."""
    monkeypatch.setattr(compare, "TEXT_TOKENS", 256)
    monkeypatch.setattr(compare, "ROUNDS", 1)


# --- kept --------------------------------------------------------------------------------------


def test_what_is_measured_is_neither_made_nor_measured_again(home: Path, original: Path) -> None:
    before = answer(home, "model", "show")
    file = Path(before["folder"]) / "q8_0.gguf"
    made = file.stat()
    again = run(home, "model", "fit", "--formats", "q8_0", limit=PATIENCE)
    assert (again.returncode, again.stderr) == (0, "")
    assert (file.stat().st_ino, file.stat().st_mtime_ns) == (made.st_ino, made.st_mtime_ns)
    assert answer(home, "model", "show") == before
    assert before["chosen"] == ""
    assert before["loaded"] == before["model"] == str(original)
    assert before["versions"][0]["apart"]["kl"] < fit.KL_LIMIT
    assert before["versions"][0]["gain"]["prefill"] > 0


def test_a_person_is_asked(home: Path, cache: Path) -> None:
    record = json.loads((cache / "fit.json").read_text()) | {"chosen": ""}
    for reply, chosen in (("n", ""), ("y", "q8_0")):
        (cache / "fit.json").write_text(json.dumps(record))
        command = [*AIOS[1:], "model", "fit", "--formats", "q8_0", "--choose", "q8_0"]
        fitting = pexpect.spawn(
            AIOS[0], command, env=environment(home), timeout=LIMIT, encoding="utf-8"
        )
        fitting.expect_exact("Choose q8_0")
        fitting.sendline(reply)
        fitting.expect(pexpect.EOF)
        fitting.close()
        assert fitting.exitstatus == 0
        assert json.loads((cache / "fit.json").read_text())["chosen"] == chosen


def test_figures_of_another_machine_are_shown_as_such(home: Path, cache: Path) -> None:
    text = (cache / "fit.json").read_text()
    (cache / "fit.json").write_text(text.replace('"cpu": "', '"cpu": "Z80, once '))
    shown = run(home, "model", "show").stdout
    assert "figures of another setting: cpu Z80, once " in shown
    assert answer(home, "model", "show")["picked"] == ""


def test_forget(home: Path, cache: Path) -> None:
    refused = run(home, "model", "forget", "q4_0")
    assert refused.returncode == 1
    assert refused.stderr.startswith("aios: there is no q4_0 of ")
    left = answer(home, "model", "forget", "q8_0")
    assert (left["versions"], left["chosen"]) == ([], "")
    assert [path.name for path in cache.iterdir()] == ["fit.json"]
    assert run(home, "model", "forget").returncode == 0
    assert not cache.exists()


# --- used --------------------------------------------------------------------------------------


def test_the_chosen_file_serves_and_status_says_so(home: Path, cache: Path, original: Path) -> None:
    ready = answer(home, "start", "--detach", "--fitted")
    try:
        model, fitted = ready["model"], ready["model"]["fitted"]
        assert model["path"] == str(cache / "q8_0.gguf")
        assert (fitted["original"], fitted["format"]) == (str(original), "q8_0")
        assert 0 < fitted["kl"] < fit.KL_LIMIT
        assert model["certified"] == ready["slots"] == 2
        shown = run(home, "status").stdout
        assert f"q8_0 of {original}" in shown
        assert f"mean KL {fitted['kl']:.4f} nats" in shown
        done = run(home, "generate", "Hi", "--max-tokens", "4")
        assert done.returncode == 0
        assert done.stdout
    finally:
        assert run(home, "stop").returncode == 0


def test_without_fitted_the_original_serves(home: Path, cache: Path, original: Path) -> None:
    model = answer(home, "start", "--detach")["model"]
    assert run(home, "stop").returncode == 0
    assert (model["path"], model["fitted"]) == (str(original), None)
    assert (model["refused"], model["measured"]) == ("", True)


def test_a_core_that_starts_again_never_loads_another_file(
    boot: Boot, cache: Path, original: Path
) -> None:
    system = boot(model=str(original), fitted=True)
    with connect(system.home) as aios:
        before = generate(aios, digest=True).digest
        of_core(system).kill()
        eventually(lambda: aios.status().core_restarts == 1)
        eventually(lambda: aios.status().core == "ready")
        assert generate(aios, digest=True).digest == before
        (cache / "q8_0.gguf").unlink()
        of_core(system).kill()
        eventually(lambda: aios.status().core == "failed")
        error = aios.status().core_error
    assert error is not None
    assert error["code"] == "model.invalid"
    assert error["message"].startswith(f"the model that this system began with, {cache}")


def started_in_terminal(home: Path) -> str:
    """Return all that `aios start --detach` prints in a terminal."""
    starting = pexpect.spawn(
        AIOS[0], [*AIOS[1:], "start", "--detach"], env=environment(home), timeout=LIMIT,
        encoding="utf-8", dimensions=(40, 200),
    )  # fmt: skip
    starting.expect(pexpect.EOF)
    starting.close()
    assert run(home, "stop").returncode == 0
    assert isinstance(starting.before, str)
    return starting.before


def test_a_hint_where_nothing_was_measured(
    home: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "aios model fit" not in started_in_terminal(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert started_in_terminal(home).count("hint: `aios model fit`") == 1


# --- distrusted --------------------------------------------------------------------------------


def truncate(folder: Path) -> None:
    os.truncate(folder / "q8_0.gguf", 1_000_000)


def flip(folder: Path) -> None:
    with (folder / "q8_0.gguf").open("r+b") as file:
        file.seek(2_000_000)
        byte = file.read(1)[0]
        file.seek(2_000_000)
        file.write(bytes([byte ^ 1]))


def replace(folder: Path) -> None:
    original = json.loads((folder / "fit.json").read_text())["path"]
    requantize(Path(original), folder / "q8_0.gguf", "q4_0", 2)


SPOILS: dict[str, tuple[Callable[[Path], None], str]] = {
    "truncated": (truncate, "has 1000000 bytes instead of "),
    "flipped": (flip, "is not the file that was measured: another hash"),
    "foreign": (replace, "bytes instead of "),
    "gone": (lambda folder: (folder / "q8_0.gguf").unlink(), "No such file"),
    "record": (lambda folder: os.truncate(folder / "fit.json", 100), "cannot read "),
}


@pytest.mark.parametrize("how", SPOILS)
def test_what_is_not_whole_is_refused(how: str, cache: Path, original: Path) -> None:
    spoil, why = SPOILS[how]
    assert choose(original, True).fitted is not None
    spoil(cache)
    choice = choose(original, True)
    assert (choice.path, choice.fitted) == (original, None)
    assert why in choice.refused
    assert "aios model f" in choice.refused  # what to do next


@pytest.mark.usefixtures("briefly")
def test_a_refusal_is_said_and_mended(home: Path, cache: Path, original: Path) -> None:
    flip(cache)
    done = run(home, "start", "--detach", "--fitted")
    assert run(home, "stop").returncode == 0
    assert done.returncode == 0
    assert done.stderr.startswith("aios: the original is loaded, no fitted model: ")
    for action in ("measure", "choose"):
        fit.serve(fit.FitRequest(action, str(home), {}, ("q8_0",)))
    assert choose(original, True).fitted is not None


# --- interrupted, refused ------------------------------------------------------------------------


def test_a_file_has_no_name_until_it_is_whole(tmp_path: Path) -> None:
    def die_writing() -> None:
        with new_file(tmp_path / "model.gguf") as target:
            target.write_bytes(b"half of it")
            os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        die_writing()
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert list(tmp_path.iterdir()) == []
    for text in ("first", "second"):
        with new_file(tmp_path / "model.gguf") as target:
            target.write_text(text)
        assert [path.read_text() for path in tmp_path.iterdir()] == [text]
    with pytest.raises(ModelError), new_file(tmp_path / "model.gguf"):
        raise ModelError("cannot")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["second"]


@pytest.mark.parametrize("moment", ["requantizing", "timing"])
def test_ctrl_c_leaves_nothing_half_written(moment: str, home: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path))
        command = "model", "fit", "--model", str(embedded_model()), "--formats", "q8_0"
        with started(home, *command) as fitting:
            assert fitting.stderr is not None
            while moment not in fitting.stderr.readline():
                assert fitting.poll() is None
            below = psutil.Process(fitting.pid).children()
            fitting.send_signal(signal.SIGINT)
            assert fitting.wait(LIMIT) == 130
    assert below
    assert psutil.wait_procs(below, timeout=LIMIT)[1] == []
    for path in tmp_path.rglob("*.*"):
        LlamaEngine(path, slots=2, window=512, threads=2).close()  # whole, or it would not load


def test_a_full_disk(home: Path, tmp_path: Path) -> None:
    limit = 1 << 20
    done = subprocess.run(
        [*AIOS, "model", "fit", "--json"], capture_output=True, text=True, check=False,
        env=environment(home) | {"XDG_CACHE_HOME": str(tmp_path)}, timeout=LIMIT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (78, "")
    error = json.loads(done.stderr)
    assert error["code"] == "model.invalid"
    assert "bf16.gguf" in error["message"]
    assert "MiB are free there" in error["message"]
    assert list(tmp_path.rglob("*.*")) == []


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["fit", "--formats", "q9"], "no format 'q9'"),
        (["fit", "--choose", "f16", "--formats", "q8_0", "--yes"], "f16 was not measured"),
        (["show", "--model", "/nowhere.gguf"], "cannot read /nowhere.gguf"),
        (["fit", "--model", __file__], "is not a GGUF file"),
    ],
)
def test_what_cannot_be(args: list[str], says: str, home: Path, cache: Path) -> None:
    done = run(home, "model", *args)
    assert done.returncode == 78
    assert says in done.stderr
    assert "hint: " in done.stderr


def test_a_process_that_measures_and_dies_is_an_error(home: Path) -> None:
    with pytest.raises(AiosError, match="ended unasked"):
        ask(home, None, "no such action")
