"""The commands about a model alone: generate, without an agent around it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from aios.agents import Generation, connect
from aios.syscalls.errors import BadInput
from aios.syscalls.llm import Generate

from ..options import field, text_of
from ..output import json_option, show, write

OR_TEXT = "name a file, or give the text"


def _schema(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        schema = json.loads(value if value.lstrip().startswith("{") else text_of(value, OR_TEXT))
    except ValueError as error:
        raise BadInput(f"--schema is not JSON: {error}") from error
    if not isinstance(schema, dict):
        raise BadInput("--schema is not a JSON object", 'as in {"type": "integer"}')
    return schema


def _grammar(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    return value if value is None or "::=" in value else text_of(value, OR_TEXT)


def sampling(name: str, about: str) -> Callable[..., Any]:
    """Make an option of a number that llm.generate takes."""
    option = f"--{name.replace('_', '-')}"
    return click.option(option, type=field(Generate, name), metavar="N", help=about)


@click.command()
@click.argument("prompt")
@click.option("--system", help="What the model is told first about its part.")
@click.option("--raw", is_flag=True, help="PROMPT is text to go on from, not a user's message.")
@sampling("max_tokens", "[default: 256]")
@sampling("temperature", "0: the likeliest token each time. [default: 0]")
@sampling("top_k", "Draw from so many tokens alone; 0: from all.")
@sampling("top_p", "Draw from the likeliest that make up this share.")
@sampling("min_p", "Draw from those at least so likely, beside the likeliest.")
@sampling("repeat_penalty", "Above 1: what was said becomes less likely.")
@sampling("seed", "The same seed, the same answer. [default: 0]")
@click.option(
    "--stop", multiple=True, type=field(Generate, "stop"), metavar="TEXT",
    help="End before this text; may be repeated.",
)  # fmt: skip
@click.option("--schema", callback=_schema, help="A file or JSON: the JSON Schema it is held to.")
@click.option("--grammar", callback=_grammar, help="A file or text: the GBNF it is held to.")
@sampling("logprobs", "With --json: so many alternatives of each token.")
@click.option("--digest", is_flag=True, help="With --json: a chained hash of the logits.")
@json_option
@click.pass_obj
def generate(
    home: Path, /, prompt: str, system: str | None, raw: bool, stop: tuple[str, ...], as_json: bool,
    **given: Any,
) -> None:  # fmt: skip
    """Have the model answer a prompt.

    The words are printed as they come. PROMPT - is read from stdin. Ctrl-C cancels at the next
    token.

    \b
    Examples:
      aios generate "Why is the sky blue?" --max-tokens 40
      aios generate "Once upon" --raw --max-tokens 40 --temperature 0.8 --seed 7
      aios generate - --max-tokens 40 --json < question.txt
      aios generate "How many legs has a cat?" --schema '{"enum": [2, 4, 6]}'
      aios generate "Is the sky blue?" --grammar 'root ::= "yes" | "no"'
    """
    text = sys.stdin.read() if prompt == "-" else prompt
    options = {"stop": list(stop)} | {k: v for k, v in given.items() if v is not None}
    with connect(home, "aios-generate") as aios:
        if system is None:
            follow(aios.generate(text, raw=raw, **options), as_json)
            return
        with aios.open(system) as context:
            follow(context.generate(text, raw=raw, **options), as_json)


def follow(answer: Generation, as_json: bool) -> None:
    """Print an answer as it comes. Raises Abort, after all there is of it, when cancelled."""
    interrupted = False
    try:
        for piece in answer:
            if not as_json:
                write(piece)
    except KeyboardInterrupt:
        interrupted = True
        answer.cancel()
    show(answer.result(), as_json, "")
    if interrupted:
        raise click.Abort


COMMANDS = (generate,)
