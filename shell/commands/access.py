"""The commands about who may do what: groups, grants, the rule that decides, and the questions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from aios.agents import connect
from aios.syscalls.acc import Answer, Check, Grant, Revoke
from aios.syscalls.errors import NotFound
from aios.syscalls.rules import Bounds, Group

from .. import render
from ..completion import grant_numbers, group_names, live_processes
from ..escape import as_json_text, shown
from ..options import MEMBER, NAME, RIGHT, TOML_FILE, WHO, Whole, field, read_toml
from ..output import done, json_option, say, show
from ..questions import ANSWERS, ask_person
from ..who import pid_of

EFFECTS = ("allow", "ask", "deny")
NOT_IN = "`aios group list` lists what is; a rule of a file goes by `aios group set NAME --file`"


# --- groups -----------------------------------------------------------------------------------


@click.group()
def group() -> None:
    """Privilege groups: who is in them, and what they may do.

    Every agent without a manifest of its own is in the group "agents".

    \b
    Examples:
      aios group list
      aios group set readers --member '/team/*' --allow 'sto.read /library:**'
      aios group set agents --file agents.toml
    """


@group.command("list")
@json_option
@click.pass_obj
def list_(home: Path, as_json: bool) -> None:
    """List all groups, with their members and rules.

    \b
    Examples:
      aios group list
      aios group list --json
    """
    with connect(home, "aios-group") as aios:
        groups = aios.groups()
    rows = [
        [name, effect, rule if isinstance(rule, str) else as_json_text(rule, indent=-1)]
        for name, each in groups.items()
        for effect, rules in [("member", each.members), *((e, getattr(each, e)) for e in EFFECTS)]
        for rule in rules
    ]
    show(groups, as_json, render.columns(["group", "what", "rule"], rows))


@group.command("set")
@click.argument("name", type=NAME, shell_complete=group_names)
@click.option(
    "--file", "path", type=TOML_FILE, help="TOML: members, allow, ask, deny. Replaces the group."
)
@click.option(
    "--member", multiple=True, type=MEMBER, metavar="/NAME",
    help="Add an agent; /TEAM/* is all below.",
)  # fmt: skip
@click.option("--allow", multiple=True, metavar="'RIGHT [OBJECT]'", help="Add a rule.")
@click.option("--ask", multiple=True, metavar="'RIGHT [OBJECT]'", help="Add a rule.")
@click.option("--deny", multiple=True, metavar="'RIGHT [OBJECT]'", help="Add a rule.")
@json_option
@click.pass_obj
def set_(
    home: Path, /, name: str, path: Path | None, member: tuple[str, ...], as_json: bool,
    **rules: tuple[str, ...],
) -> None:  # fmt: skip
    """Make a group, or add to it.

    \b
    Examples:
      aios group set readers --member /scout --allow 'sto.read /library:papers/**'
      aios group set agents --ask proc.spawn
      aios group set careful --file careful.toml
    """
    with connect(home, "aios-group") as aios:
        made = read_toml(path, Group) if path else aios.groups().get(name, Group())
        made.members = [*made.members, *(m for m in member if m not in made.members)]
        for effect, added in rules.items():
            held = getattr(made, effect)
            setattr(made, effect, [*held, *(rule for rule in added if rule not in held)])
        aios.set_group(name, made)
    done({name: made}, as_json)


@group.command()
@click.argument("name", type=NAME, shell_complete=group_names)
@click.option("--member", multiple=True, metavar="/NAME", help="Only these, not the group.")
@click.option("--rule", multiple=True, metavar="'RIGHT [OBJECT]'", help="Only these rules.")
@json_option
@click.pass_obj
def remove(
    home: Path, name: str, member: tuple[str, ...], rule: tuple[str, ...], as_json: bool
) -> None:  # fmt: skip
    """Remove a group, or members and rules of it.

    \b
    Examples:
      aios group remove readers --member /scout
      aios group remove agents --rule proc.spawn
      aios group remove readers
    """
    with connect(home, "aios-group") as aios:
        made = aios.groups().get(name)
        if not member and not rule:
            aios.set_group(name, None)
            done({name: None}, as_json)
            return
        if made is None:
            raise NotFound(f"no group {name!r}", "`aios group list` lists them")
        held = [*made.members, *made.allow, *made.ask, *made.deny]
        for each in (*member, *rule):
            if each not in held:
                raise NotFound(f"{each!r} is not in {name!r}", NOT_IN)
        made.members = [each for each in made.members if each not in member]
        for effect in EFFECTS:
            setattr(made, effect, [each for each in getattr(made, effect) if each not in rule])
        aios.set_group(name, made)
    done({name: made}, as_json)


# --- grants -----------------------------------------------------------------------------------


def parse_args(_: click.Context, __: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
    """Parse conditions on arguments: `to=*@example.org`, or `amount=0..100` for a number in
    bounds."""
    found: dict[str, Any] = {}
    for item in given:
        name, equals, value = item.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{item!r}: NAME=PATTERN, or NAME=MIN..MAX")
        low, dots, high = value.partition("..")
        try:
            bounds = {"min": float(low) if low else None, "max": float(high) if high else None}
        except ValueError:
            dots = ""
        found[name] = msgspec.to_builtins(Bounds(**bounds)) if dots else value
    return found


args_option = click.option(
    "--arg", "args", multiple=True, callback=parse_args, metavar="NAME=PATTERN",
    help="Of a tool: what an argument has to be like; NAME=MIN..MAX of a number.",
)  # fmt: skip


@click.command()
@click.argument("to", metavar="/NAME", type=MEMBER)
@click.argument("right", type=RIGHT)
@click.argument("on", nargs=-1, metavar="[OBJECT]...", type=field(Grant, "on"))
@args_option
@click.option(
    "--for", "seconds", type=field(Grant, "seconds"), metavar="SECONDS", help="Until it expires."
)
@json_option
@click.pass_obj
def grant(
    home: Path, to: str, right: str, on: tuple[str, ...], args: dict[str, Any],
    seconds: float | None, as_json: bool,
) -> None:  # fmt: skip
    """Let an agent do something; prints the number of the grant.

    It makes up for a rule that is missing, and answers a rule that asks; one that denies stands.

    \b
    Examples:
      aios grant /planner proc.control /worker
      aios grant /buyer tool.call pay --arg amount=0..100 --for 3600
    """
    with connect(home, "aios-grant") as aios:
        number = aios.grant(to, right, on or "**", args=args, seconds=seconds)
    show({"id": number}, as_json, str(number))


@click.command()
@click.argument("number", type=field(Revoke, "id"), shell_complete=grant_numbers)
@json_option
@click.pass_obj
def revoke(home: Path, number: int, as_json: bool) -> None:
    """Take a grant back, with all that hangs on it.

    \b
    Example:
      aios revoke 3
    """
    with connect(home, "aios-grant") as aios:
        aios.revoke(number)
    done({"revoked": number}, as_json)


@click.command()
@json_option
@click.pass_obj
def grants(home: Path, as_json: bool) -> None:
    """List all grants that stand.

    \b
    Examples:
      aios grants
      aios grants --json
    """
    with connect(home, "aios-grant") as aios:
        found = aios.grants()
    show(found, as_json, render.grants(found))


# --- the rule that decides --------------------------------------------------------------------


@click.group()
def policy() -> None:
    """Ask what the rules say of a call, and answer questions.

    \b
    Examples:
      aios policy check /scout sto.read /library:papers/one --explain
      aios policy ask
    """


@policy.command()
@click.argument("who", metavar="PID|NAME|/NAME", type=WHO, shell_complete=live_processes)
@click.argument("right", type=RIGHT)
@click.argument("object", default="", type=field(Check, "object"))
@args_option
@click.option("--explain", is_flag=True, help="Also all other rules that fit.")
@json_option
@click.pass_obj
def check(
    home: Path, who: int | str, right: str, object: str, args: dict[str, Any], explain: bool,
    as_json: bool,
) -> int:  # fmt: skip
    """Check if an agent may do something, and by which rule. Exits with 0 for allow, 1 else.

    Only the rules count: as if the object were its own, or shared with it. An agent that is not
    alive is named as /NAME.

    \b
    Examples:
      aios policy check writer proc.spawn --explain
      aios policy check /buyer tool.call pay --arg amount=20 --json
    """
    given = {name: as_number(value) for name, value in args.items()}
    with connect(home, "aios-policy") as aios:
        by_name = isinstance(who, str) and who.startswith("/")
        whom = {"principal": who} if by_name else {"pid": pid_of(aios, who)}
        verdict = aios.check_access(right, object, args=given, **whom)
    lines = [f"{verdict.effect}: {verdict.rule}"]
    lines += [f"tainted by {label}" for label in verdict.tainted]
    lines += [f"fits: {rule}" for rule in verdict.fits if explain]
    show(verdict, as_json, "\n".join(map(shown, lines)))
    return 0 if verdict.effect == "allow" else 1


def as_number(value: Any) -> Any:
    """Return the number that an argument stands for, or the text itself."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return value


@policy.command()
@click.option("--count", "-n", type=Whole(min=1), help="End after so many.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the questions, one a line; ask nothing."
)
@click.pass_obj
def ask(home: Path, count: int | None, as_json: bool) -> None:
    """Answer what agents ask for, as it comes, until Ctrl-C. No answer in time means deny.

    once: this call; agent: this process from now on; always: agents of this name, which makes a
    grant that `aios revoke` takes back.

    \b
    Examples:
      aios policy ask
      aios policy ask --json -n 1
    """
    with connect(home, "aios-ask") as follower, connect(home, "aios-ask") as aios:
        for number, question in enumerate(follower.questions(), 1):
            if as_json:
                say(as_json_text(question, indent=-1))
            else:
                ask_person(aios, question)
            if number == count:
                return


@policy.command()
@click.argument("number", type=field(Answer, "id"))
@click.argument("answer", type=click.Choice(ANSWERS))
@json_option
@click.pass_obj
def answer(home: Path, number: int, answer: Any, as_json: bool) -> None:
    """Answer one question.

    \b
    Example:
      aios policy answer 3 once
    """
    with connect(home, "aios-ask") as aios:
        aios.answer(number, answer)
    done({"id": number, "answer": answer}, as_json)


COMMANDS: tuple[click.Command, ...] = (group, grant, revoke, grants, policy)
