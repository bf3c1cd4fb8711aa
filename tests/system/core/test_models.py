"""The tiny model that tests run on: it writes text that can be read, and can be held to schemas."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Boot
from helpers import run
from models import tiny_model

from aios.agents import connect

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def test_a_system_runs_on_the_tiny_model(boot: Boot, tmp_path: Path) -> None:
    system = boot(model=str(tiny_model(tmp_path / "tiny.gguf")), slots=4)
    with connect(system.home) as aios:
        model = aios.status().model
        assert model is not None
        assert (model.certified, model.paged) == (4, True)
        answers = [
            run(aios, max_tokens=40, ignore_eos=True, temperature=temperature, seed=seed).text
            for temperature, seed in ((0.0, 0), (0.9, 1), (0.9, 2))
        ]
        assert len(set(answers)) == 3
        for text in answers:
            assert len(text.split()) > 5
            assert "\ufffd" not in text
        held = aios.generate("Who is it?", schema=SCHEMA, temperature=0.9, max_tokens=100)
        assert set(held.json) == {"name", "age"}


@pytest.mark.parametrize("prompt", ["Hello.", "What is the number 7?"])
def test_its_answers_end_by_themselves(boot: Boot, tmp_path: Path, prompt: str) -> None:
    system = boot(model=str(tiny_model(tmp_path / "tiny.gguf")))
    with connect(system.home) as aios:
        answer = aios.generate(prompt, max_tokens=400).result()
        assert answer.finish == "stop"
        assert answer.usage.completion > 1
