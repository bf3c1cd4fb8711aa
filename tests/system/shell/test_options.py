"""Options and arguments: their ranges, names of processes, and --home wherever it is given."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import pytest
from commands import LEAVES, run
from msgspec import inspect
from process_row import row

from aios.agents import Aios, connect
from aios.kernel.config import Config
from aios.shell.cli import HOMELESS, execute
from aios.shell.commands import keys
from aios.shell.commands import system as system_commands
from aios.shell.launch import System
from aios.shell.options import Number, When, Whole, field
from aios.shell.who import find
from aios.syscalls.errors import BadInput, NotFound

NUMBERS = [
    pytest.param(path, command, param, id=f"{' '.join(path)} {param.name}")
    for path, command in LEAVES
    for param in command.params
    if isinstance(param.type, Whole | Number)
]


def given(command: click.Command, param: click.Parameter, value: str) -> list[str]:
    """Arguments with this value in its place."""
    if isinstance(param, click.Option):
        return [param.opts[0], value]
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    before = ["1"] * [each.name for each in arguments].index(param.name)
    return [*before, value] if command.name == "nice" else ["--", *before, value]


@pytest.mark.parametrize(("path", "command", "param"), NUMBERS)
def test_a_number_out_of_range_is_told_with_its_option_and_range(
    path: tuple[str, ...], command: click.Command, param: click.Parameter,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    kind = param.type
    assert isinstance(kind, Whole | Number)
    bad = ["abc", *(["nan", "inf"] if isinstance(kind, Number) else ["0.5"])]
    bad += [] if kind.min is None else [str(kind.min if kind.min_open else kind.min - 1)]
    bad += [] if kind.max is None else [str(kind.max + 1)]
    named = param.opts[0] if isinstance(param, click.Option) else param.make_metavar(
        click.Context(command)
    ).strip("[].")  # fmt: skip
    for value in bad:
        assert execute([*path, *given(command, param, value)]) == 2
        said = capsys.readouterr().err
        assert "range" in said and value.removesuffix(".0") in said
        assert named in said.partition("Invalid value for ")[2]


def test_every_number_that_is_typed_has_a_range() -> None:
    bare = [
        (path, param.name)
        for path, command in LEAVES
        for param in command.params
        if isinstance(param.type, click.types.IntParamType | click.types.FloatParamType)
        and not isinstance(param.type, Whole | Number)
    ]
    assert bare == []


def test_every_text_argument_is_bounded_where_the_abi_bounds_it() -> None:
    bare = {
        (*path, param.name)
        for path, command in LEAVES
        for param in command.params
        if isinstance(param, click.Argument) and isinstance(param.type, click.types.StringParamType)
    }
    contents = {("send", "text"), ("generate", "prompt"), ("mem", "put", "text")}
    tasks = {("run", "task"), ("spawn", "task"), ("tool", "call", "arguments")}
    looked_up = {("tool", "call", "name"), ("tool", "show", "name"), ("model", "forget", "formats")}
    assert bare == contents | tasks | looked_up | {("sto", "list", "prefix"),
                                                   ("sto", "share", "prefix")}  # fmt: skip


@pytest.mark.parametrize(
    ("option", "setting"),
    [("SLOTS", "slots"), ("WINDOW", "ctx"), ("THREADS", "threads"), ("QUANTUM", "quantum")],
)
def test_settings_have_the_kernel_s_ranges(option: str, setting: str) -> None:  # fmt: skip
    ours, its = getattr(system_commands, option), field(Config, setting)
    assert (ours.min, ours.max) == (its.min, its.max)  # type: ignore[attr-defined]
    assert isinstance(inspect.type_info(Config), inspect.StructType)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["run", "x", "--name", "my agent"], "'--name': 'my agent' is not a name: letters"),
        (["spawn", "x", "--name", ""], "'--name': '' is not a name: letters"),
        (["spawn", "x", "--name", "n" * 65], "'--name': it has 65 characters: give 1 to 64"),
        (["run", "x", "--limit", "tokens=abc"], "'--limit': tokens: 'abc' is no whole number"),
        (["run", "x", "--limit", "wall=-1"], "'--limit': wall: -1.0 is not in the range"),
        (["run", "x", "--limit", "speed=1"], "'--limit': 'speed=1' is not NAME=NUMBER"),
        (["run", "x", "--limit", "tokens"], "'--limit': 'tokens' is not NAME=NUMBER"),
        (["group", "set", "a b"], "'a b' is not a name"),
        (["group", "set", "a", "--member", "x"], "'--member': 'x' is not /NAME"),
        (["grant", "x", "llm"], "'x' is not /NAME"),
        (["grant", "/x", "LLM"], "'LLM' is not a right, as sto.read"),
        (["key", "new", "../x"], "'../x' is not a name"),
        (["key", "allow", "ann", "short"], "it has 5 characters: give 40"),
        (["mem", "list", "1", "--space", "a b"], "'--space': 'a b' is not a name"),
        (["mem", "put", "1", "", "v"], "it has 0 characters: give 1 to 400"),
        (["sto", "put", "a", "-", "--tag", ""], "'--tag': it has 0 characters: give 1 to 64"),
        (["generate", "hi", "--stop", ""], "'--stop': it has 0 characters: give 1 to 256"),
        (["kill", ""], "it is empty: give a PID or a name"),
        (["sto", "get", ""], "'PATH': it has 0 characters: give 1 to"),
        (["sto", "search", ""], "'QUERY': it has 0 characters: give 1 to 4096"),
        (["sched", ""], "'[NAME]': '' is not a name: letters"),
        (["run", ""], "'PROGRAM': it has 0 characters: give 1 to 4096"),
        (["sto", "share", "a", ""], "it has 0 characters: give 1 to 256"),
        (["kill", "99999999999"], "99999999999 is no PID"),
    ],
)
def test_a_text_that_does_not_fit_is_told(
    args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(args) == 2
    assert says in capsys.readouterr().err


# --- names of processes --------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["-", "--", "-a=b", "--a=b", "-h"])
def test_a_public_key_may_look_like_an_option(begin: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of 85 does."""
    given: dict[str, Any] = {}
    monkeypatch.setattr(keys.allow, "callback", lambda **each: given.update(each))
    public = begin.ljust(40, "x")
    assert execute(["key", "allow", "ann", public, "--person"]) == 0
    assert given == {"name": "ann", "public": public, "person": True, "as_json": False}


def test_a_time_is_a_date_or_so_long_ago() -> None:
    now = time.time()
    assert 0 <= When().convert("90m", None, None) - (now - 5400) < 60
    at = When().convert("2026-01-31T12:00+00:00", None, None)
    assert at == datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
    for text in ("", "yesterday", "2h30m", "-1d", "0001-01-01T00:00", f"{'9' * 400}d", "9" * 5000):
        with pytest.raises(click.BadParameter, match="is no time: give 2026-01-31T12:00, or 10m"):
            When().convert(text, None, None)


def test_a_name_means_the_agent_that_is_alive() -> None:
    rows = [
        row(1, "writer", "zombie"), row(2, "writer"), row(3, "reader"), row(4, "old", "zombie"),
        row(5, "old", "zombie"), row(6, "aios-ps", kind="client"),
        row(7, "search", tool="search"), row(8, "git", tool="git"), row(9, "search"),
    ]  # fmt: skip
    assert find(rows, "writer") == find(rows, "/writer") == 2
    assert find(rows, "old", ended=True) == 5
    assert (find(rows, "search"), find(rows, "git")) == (9, 8)
    for nobody in ("old", "aios-ps", "none"):
        with pytest.raises(NotFound, match=f"no agent is named '{nobody}'"):
            find(rows, nobody)


def test_a_name_of_several_is_refused_with_their_pids() -> None:
    with pytest.raises(BadInput, match="2 processes are named 'a': 3, 12") as error:
        find([row(12, "a"), row(3, "a")], "a")
    assert error.value.hint == "give one by its PID"


def test_names_work_where_pids_do(system: System, aios: Aios) -> None:
    home = ["--home", str(system.home)]
    pid = aios.spawn("chat", name="talker")
    for line in (
        "nice 3 talker",
        "logs talker",
        "mem list talker",
        "policy check talker llm",
        "send talker hello",
        "kill -s STOP talker",
        "kill -s CONT /talker",
        "wait talker --timeout 0",
        "kill talker",
        "wait talker",
        "logs -n 1 talker",
    ):
        code = {"wait talker --timeout 0": 1, "wait talker": 143}.get(line, 0)  # fmt: skip
        assert execute([*home, *line.split()]) == code, line
    assert aios.wait(pid).reason == "signal TERM"


# --- --home --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _ in LEAVES if path[0] not in HOMELESS])
def test_home_is_taken_behind_the_command_too(
    path: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert execute([*path, "--home", str(tmp_path / "file")]) == 2
    assert "'--home'" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--home", "", "status"], ["start", "--home", ""]])
def test_no_home_is_not_the_folder_where_one_is(
    args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in `aios start --home "$UNSET"`, which made a home of it."""
    monkeypatch.chdir(tmp_path)
    assert execute(args) == 2
    assert [*tmp_path.iterdir()] == []


def test_a_home_behind_the_command_is_the_one_that_counts(system: System, tmp_path: Path) -> None:
    with connect(system.home) as aios:
        boot = aios.status().boot
    for args in (["status", "--home", str(system.home)], ["--home", str(system.home), "status"],
                 ["--home", "/nowhere", "status", "--home", str(system.home)]):  # fmt: skip
        assert boot in run(tmp_path, *args).stdout
    assert run(tmp_path, "mem", "--home", str(system.home), "list").returncode == 0
    assert run(tmp_path, "status").returncode == 3
