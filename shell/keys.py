"""`aios key`: what an encrypted home is opened with. The work is done by aios.kernel.keyring, which
the shell knows only as a program to run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click

from aios.syscalls.errors import AiosError, KeyMissing, from_wire

from .output import json_option, show


@click.group()
def key() -> None:
    """Keys: what an encrypted home is opened with (docs/security.md).

    \b
    Example:
      aios key rotate
    """


@key.command()
@click.option(
    "--new-key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="From now on this file is the home's key.",
)  # fmt: skip
@click.option("--new-passphrase", is_flag=True, help="From now on a passphrase is; asks for it.")
@json_option
@click.pass_obj
def rotate(home: Path, new_key_file: Path | None, new_passphrase: bool, as_json: bool) -> None:
    """Encrypt what is written from now on with another data key, while the system does not run.

    What was written before stays readable. The data keys are wrapped anew by the key file or
    passphrase that the home has, or by a new one.

    \b
    Examples:
      aios stop && aios key rotate && aios start --detach
      aios key rotate --new-key-file /media/stick/aios.key
      aios key rotate --new-passphrase
    """
    request: dict[str, Any] = {}
    if new_key_file is not None:
        request["new_key_file"] = str(new_key_file.absolute())
    try:
        if new_passphrase:
            request["new_passphrase"] = ask("New passphrase", twice=True)
        keyring("rotate", home, request)
    except KeyMissing:
        if not sys.stdin.isatty():
            raise
        keyring("rotate", home, {**request, "passphrase": ask("Passphrase", twice=False)})
    text = "what is written from now on has another data key"
    if new_key_file is not None:
        text += f"; set key_file or AIOS_KEY_FILE to {new_key_file}"
    elif new_passphrase:
        text += "; remove key_file from config.toml, where it is set"
    show({"rotated": True}, as_json, text)


def keyring(command: str, home: Path, request: dict[str, Any]) -> None:
    """Have it done in a process of its own. Raises what that says."""
    done = subprocess.run(
        [sys.executable, "-m", "aios.kernel.keyring", command, str(home)],
        input=json.dumps(request).encode(), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        try:
            raise from_wire(json.loads(last))
        except ValueError:
            raise AiosError(f"the keyring ended with code {done.returncode}: {last}") from None


def passphrase(home: Path) -> str:
    """Asked of a person; twice where it is new."""
    return ask("Passphrase", twice=not (home / "keys" / "data.json").exists())


def ask(text: str, *, twice: bool) -> str:
    answer: str = click.prompt(text, hide_input=True, confirmation_prompt=twice, err=True)
    return answer


COMMANDS = (key,)
