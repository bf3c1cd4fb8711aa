"""Whole systems on models with other chat templates than the embedded one's."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import run, run_process
from conftest import Boot, run_system
from helpers import WINDOW, talk
from models import tiny_model, with_template
from places import SUPPORT

from aios.agents import Aios, connect

TEMPLATES = SUPPORT / "templates"
NAMES = ["alternating", "asking", "closing", "ending", "moving", "thinking"]


@pytest.fixture(scope="module", params=NAMES)
def aios(
    request: pytest.FixtureRequest, homes: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Aios]:
    name = request.param
    model = tmp_path_factory.mktemp("model") / f"{name}.gguf"
    with_template(
        tiny_model(model.with_name("tiny")), model, (TEMPLATES / f"{name}.jinja").read_text()
    )
    settings = {"model": str(model), "slots": 1, "ctx": WINDOW, "threads": 1, "grace": 0.5}
    for system in run_system(homes / f"at-{name}", settings):
        with connect(system.home, "test") as connected:
            yield connected
            assert connected.check() == []


def test_a_full_window_slides(aios: Aios) -> None:
    with aios.open("You are terse.", on_full="slide") as context:
        moved = [each for each in talk(context, 12) if each is not None]
    assert moved and all(message.role != "system" for each in moved for message in each.dropped)


def test_what_was_appended_is_in_front_of_what_is_asked(aios: Aios) -> None:
    asked = "Hi there, what about the fox?"
    with aios.open() as context:
        said = [{"role": "user", "content": "One."}, {"role": "assistant", "content": "Two."}]
        context.append(said)
        usage = context.generate(asked, max_tokens=1, ignore_eos=True).result().usage
        assert usage.prompt > len(aios.tokenize(asked))
    with aios.open() as context:
        context.append("A document.")
        usage = context.generate(asked, max_tokens=1, ignore_eos=True).result().usage
        assert usage.prompt > len(aios.tokenize(asked))


def test_a_template_that_is_none_is_said_at_the_start(homes: Path, tmp_path: Path) -> None:
    model = tmp_path / "broken.gguf"
    with_template(tiny_model(tmp_path / "tiny"), model, "{{ messages[0].content }")
    done = run_process(homes / "broken", "start", "--model", str(model))
    assert done.returncode != 0
    said = "the chat template of the model cannot be compiled: line 1: unexpected '}'"
    assert said in done.stderr and "Traceback" not in done.stderr


def test_a_model_without_one_goes_on_from_text(boot: Boot, tmp_path: Path) -> None:
    model = tmp_path / "base.gguf"
    with_template(tiny_model(tmp_path / "tiny"), model, None)
    home = boot(model=str(model)).home
    asked = run(home, "generate", "Hello")
    assert asked.returncode and not asked.stdout
    assert "carries no chat template" in asked.stderr and "`aios generate --raw`" in asked.stderr
    went_on = run(home, "generate", "Hello", "--raw", "--max-tokens", "4")
    assert went_on.returncode == 0 and went_on.stdout.strip()


def test_a_question_that_hangs_ends_the_core() -> None:
    """Another core follows; a question that three of them die of is given up."""
    code = """
import threading, zmq
from aios.kernel.core import __main__ as core
from aios.kernel.core.protocol import TokenizeRequest, encode

class Stuck:
    def tokenize_parts(self, parts, *, start):
        threading.Event().wait()

core.HANG_S = 0.2
text, asks = zmq.Context.instance().socket(zmq.PAIR), zmq.Context.instance().socket(zmq.PAIR)
text.bind("inproc://text")
asks.connect("inproc://text")
core.run_in_thread(core.serve_text, text, Stuck())
asks.send(encode(TokenizeRequest(1, text="x")))
threading.Event().wait()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 1
    assert b"Timeout" in done.stderr and b"tokenize_parts" in done.stderr
