"""`aios key`: keys of callers elsewhere, and what an encrypted home is opened with; the latter is
the work of aios.kernel.init.keyring, which the shell knows only as a program to run."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from rich.console import Group, RenderableType

from aios.agents import connect
from aios.agents.sdk.remote import new_key
from aios.syscalls.acc import KeyAllow, Keys
from aios.syscalls.errors import AiosError, KeyMissing, from_wire

from .. import render
from ..options import NAME, field
from ..output import json_option, secret, show


@click.group()
def key() -> None:
    """Keys of callers elsewhere, and of an encrypted home.

    docs/security.md says what they are for.

    \b
    Examples:
      aios key new ann
      aios key allow ann 'PUBLIC KEY' --person
      aios key list
      aios key rotate
    """


@key.command()
@click.argument("name", type=NAME)
@click.option(
    "--file", type=click.Path(path_type=Path), help="Where to; default: keys/NAME.key of the home."
)
@json_option
@click.pass_obj
def new(home: Path, name: str, file: Path | None, as_json: bool) -> None:
    """Make a key pair in a file, and print its public key.

    \b
    Examples:
      aios key new ann
      aios key new scout --file scout.key --json
    """
    path = file or home / "keys" / f"{name}.key"
    public = new_key(path)
    text = f"{public}\nthe secret is in {path}; there: aios key allow {name} '{public}'"
    show({"name": name, "public": public, "file": str(path)}, as_json, text)


@key.command(context_settings={"ignore_unknown_options": True})  # a key may begin with "-"
@click.argument("name", type=NAME)
@click.argument("public", type=field(KeyAllow, "public"))
@click.option("--person", is_flag=True, help="Whoever has it may do everything, as you may.")
@json_option
@click.pass_obj
def allow(home: Path, name: str, public: str, person: bool, as_json: bool) -> None:
    """Let whoever has the secret key to PUBLIC connect.

    The kernel has to listen for callers elsewhere. They come as the agent /NAME, which may do what
    the groups allow that it is put into; or as a person.

    \b
    Examples:
      aios key allow ann 'PUBLIC KEY' --person
      aios key allow scout 'PUBLIC KEY'
      aios group set far --member /scout --allow llm
    """
    with connect(home, "aios-key") as aios:
        aios.allow_key(name, public, person=person)
    show({"allowed": name}, as_json, f"{name} may connect")


@key.command()
@click.argument("name", type=NAME)
@json_option
@click.pass_obj
def remove(home: Path, name: str, as_json: bool) -> None:
    """Take a key out of the list.

    Its connections end at once.

    \b
    Example:
      aios key remove scout
    """
    with connect(home, "aios-key") as aios:
        aios.remove_key(name)
    show({"removed": name}, as_json, f"{name} is not heard any more")


@key.command("list")
@json_option
@click.pass_obj
def list_(home: Path, as_json: bool) -> None:
    """List the keys that are allowed, and the kernel's own.

    \b
    Examples:
      aios key list
      aios key list --json
    """
    with connect(home, "aios-key") as aios:
        keys = aios.keys()
    show(keys, as_json, Group(*overview(keys)))


def overview(keys: Keys) -> Iterator[RenderableType]:
    if keys.address:
        yield f"listens at {keys.address}, with the key {keys.server}"
    else:
        yield keys.error["message"] if keys.error else "listens nowhere: `listen` in config.toml"
    rows = [
        (each.name, "person" if each.person else "agent", len(each.pids), each.public)
        for each in keys.keys
    ]
    yield render.columns(["name", "is", "connected", "public key"], rows)


@key.command()
@click.option(
    "--new-key-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="From now on this file is the home's key.",
)  # fmt: skip
@click.option("--new-passphrase", is_flag=True, help="From now on a passphrase is; asks for it.")
@json_option
@click.pass_obj
def rotate(home: Path, new_key_file: Path | None, new_passphrase: bool, as_json: bool) -> None:
    """Encrypt what is written from now on with another key.

    The system must not run. It is a data key that changes. Older data stay readable.
    The data keys are wrapped anew by the key file or passphrase that the home has, or by a new one.

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
            request["new_passphrase"] = secret("New passphrase", twice=True)
        keyring("rotate", home, request)
    except KeyMissing:
        if not sys.stdin.isatty():
            raise
        keyring("rotate", home, {**request, "passphrase": secret("Passphrase", twice=False)})
    text = "what is written from now on has another data key"
    if new_key_file is not None:
        text += f"; set key_file or AIOS_KEY_FILE to {new_key_file}"
    elif new_passphrase:
        text += "; remove key_file from config.toml, where it is set"
    show({"rotated": True}, as_json, text)


def keyring(command: str, home: Path, request: dict[str, Any]) -> None:
    """Run a command of the keyring in a process of its own. Raises the error that it reports."""
    done = subprocess.run(
        [sys.executable, "-P", "-m", "aios.kernel.init.keyring", command, str(home)],
        input=json.dumps(request).encode(), capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        try:
            raise from_wire(json.loads(last))
        except ValueError:
            raise AiosError(f"the keyring ended with code {done.returncode}: {last}") from None


def passphrase(home: Path) -> str:
    """Ask for a passphrase, twice if it is new."""
    return secret("Passphrase", twice=not (home / "keys" / "data.json").exists())


COMMANDS = (key,)
