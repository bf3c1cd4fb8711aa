"""Rights and limits of an agent, and the identity that the kernel takes it for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import end, row, script
from places import SUPPORT
from raw import Raw

from aios.agents import Aios
from aios.kernel.config import Config
from aios.kernel.processes.inherited import limits_of
from aios.shell.launch import System
from aios.syscalls.errors import BadInput, BadToken, Denied, LimitReached, Malformed
from aios.syscalls.proc import Limits, NewLimits, Spawn
from aios.syscalls.wire import ABI_VERSION

Program = Callable[[str], str]
IDLE = "aios.recv()"

# --- limits ------------------------------------------------------------------------------------

TRY = "try:\n    {}\nexcept AiosError as error:\n    return error.code"


@pytest.mark.parametrize(
    ("limits", "act"),
    [
        ({"tokens": 40}, "aios.generate('Hi', max_tokens=200, ignore_eos=True).result()"),
        ({"tokens": 5}, "aios.open().append('a long text that is more than five tokens')"),
        ({"contexts": 2}, "[aios.open() for _ in range(3)]"),
        ({"contexts": 0}, "aios.generate('Hi', max_tokens=1).result()"),
        ({"children": 1}, "[aios.spawn(task) for _ in range(2)]"),
        ({"queue": 3}, "[aios.start('msg.recv') for _ in range(4)][-1].wait()"),
        ({"queue": 3}, "[aios.send(aios.pid, n) for n in range(4)]"),
    ],
)
def test_going_past_a_limit_is_a_typed_error_and_the_agent_goes_on(
    aios: Aios, program: Program, limits: dict[str, Any], act: str
) -> None:
    pid = aios.spawn(program(TRY.format(act)), program(IDLE), limits=limits)
    exited = aios.wait(pid, timeout=60)
    assert (exited.code, exited.result) == (0, "limit"), aios.log(pid).data


def test_no_agent_has_the_kernel_look_at_all_that_it_holds(aios: Aios, program: Program) -> None:
    """Nobody else is served meanwhile."""
    pid = aios.spawn(program(TRY.format("aios.check()")))
    assert aios.wait(pid, timeout=60).result == "access.denied"


def test_past_its_tokens_an_agent_reads_what_the_call_needs(aios: Aios, program: Program) -> None:
    words = (
        "try:\n    aios.open().append([7] * 37)\nexcept AiosError as error:\n    return str(error)"
    )
    pid = aios.spawn(program(words), limits={"tokens": 20})
    said = aios.wait(pid, timeout=60).result
    assert f"process {pid} has used 0 of 20 tokens, and needs 37 more" in said


CHILDREN = """
path, acts = task
found = []
for number, act in enumerate(acts):
    found.append(aios.wait(aios.spawn(path, act, name=f"n{number}")).result)
return found
"""
DO = "try:\n    eval(task)\n    return 'done'\nexcept AiosError as error:\n    return error.code"
FILL = "[aios.mem_put({'a': 'x' * 400}), aios.mem_keep()]"


@pytest.mark.parametrize(
    ("limits", "act", "said"),
    [
        ({"tokens": 45}, "aios.generate([5], max_tokens=9, ignore_eos=True).result()",
         ["done", "done", "done", "done", "limit", "limit"]),
        ({"mem_bytes": 1000}, FILL, ["done", "done", "limit"]),
    ],
)  # fmt: skip
def test_a_budget_is_shared_by_all_below(
    aios: Aios, program: Program, limits: dict[str, Any], act: str, said: list[str]
) -> None:
    """Under whatever names, also what they keep when they have ended; and for it, too."""
    path, task = program(DO), [act] * len(said)
    pid = aios.spawn(program(CHILDREN), [path, task], name="tree", limits=limits)
    assert aios.wait(pid, timeout=60).result == said
    if "mem_bytes" in limits:
        again = aios.spawn(path, FILL, name="tree", limits=limits)
        assert aios.wait(again, timeout=60).result == "limit"
        for number in range(2):
            aios.mem_keep(False, principal=f"/tree/n{number}")
    assert aios.check() == []


@pytest.mark.parametrize("name", ["a\n", "\x1b[2J", "\u202eb", "a b", ".", ".."])
def test_a_name_that_does_not_show_what_it_is_is_refused(
    aios: Aios, name: str, tmp_path: Path
) -> None:
    """Also one that comes from the file of the program."""
    for call in (lambda: aios.spawn("chat", name=name), lambda: aios.open(name=name)):
        with pytest.raises(Malformed):
            call()
    if not name.isprintable():
        path = tmp_path / f"{name}.py"
        path.write_text("")
        with pytest.raises(BadInput, match="do not show"):
            aios.spawn(str(path))


def test_a_tree_has_as_many_agents_as_its_root_may_have(aios: Aios, program: Program) -> None:
    path = program(
        "try:\n    return aios.wait(aios.spawn(__file__, task - 1)).result if task else 'done'\n"
        "except AiosError as error:\n    return error.code"
    )
    for depth, said in ((3, "done"), (4, "limit")):
        pid = aios.spawn(path, depth, limits={"children": 3})
        assert aios.wait(pid, timeout=60).result == said
    assert aios.check() == []


@pytest.mark.parametrize(
    ("limits", "act"),
    [
        ({"wall": 0.5}, "pass"),
        ({"memory": 150 << 20}, "hoard = [b'x' * (1 << 20) for _ in range(160)]"),
    ],
)
def test_past_its_wall_time_or_memory_an_agent_is_told_and_ended(
    aios: Aios, program: Program, limits: dict[str, Any], act: str
) -> None:
    body = (
        "signal.signal(signal.SIGTERM, lambda *_: print('TERM'))\n"
        f"call = aios.start('msg.recv')\n{act}\n"
        "try:\n    call.wait()\nexcept AiosError as error:\n    print(error.code)\ntime.sleep(60)"
    )
    pid = aios.spawn(program(body), limits=limits)
    exited = aios.wait(pid, timeout=30)
    assert (exited.code, exited.reason) == (137, f"limit {next(iter(limits))}")
    assert sorted(aios.log(pid).data.split()) == [b"TERM", b"limit"]


def test_a_full_mailbox_refuses_and_loses_nothing(aios: Aios, program: Program) -> None:
    pid = aios.spawn(program("time.sleep(1e6)"), limits={"queue": 2})
    aios.send(pid, 1)
    aios.send(pid, 2)
    with pytest.raises(LimitReached):
        aios.send(pid, 3)
    assert row(aios, pid).queue == 2
    end(aios, pid)


# --- rights and identity -----------------------------------------------------------------------

STRANGE = ["kill(task, 'KILL')", "log(task)", "nice(5, task)", "limits(task)", "wait(task)"]


@pytest.mark.parametrize("act", [*STRANGE, "stop()", "policy('fifo')", "nice(-1)", "policy()"])
def test_an_agent_is_denied_what_is_not_its_own(aios: Aios, program: Program, act: str) -> None:
    stranger = aios.spawn(program(IDLE))
    pid = aios.spawn(program(TRY.format(f"aios.{act}")), stranger, nice=2)
    assert aios.wait(pid, timeout=30).result == "access.denied", aios.log(pid).data
    assert row(aios, stranger).state in ("starting", "running")
    end(aios, stranger)


def test_a_limit_that_is_left_out_stays_as_the_settings_say() -> None:
    config = Config(home="/", limits=Limits(tokens=90, contexts=8))
    for new, limits in (
        (None, config.limits),
        (NewLimits(tokens=5), Limits(tokens=5, contexts=8)),
        (NewLimits(tokens=None, queue=9), Limits(contexts=8, queue=9)),
    ):
        assert limits_of(config, None, Spawn(program="x", limits=new)) == limits


def test_an_agent_loosens_no_limit_of_its_own_or_its_children(aios: Aios, program: Program) -> None:
    path = program(
        "aios.limits(limits={'tokens': 50, 'contexts': None})\n"
        "child = aios.spawn(task, limits={'tokens': 90, 'wall': 5.0})\n"
        "limits = [aios.limits(), aios.limits(child, {}), aios.limits(child, {'wall': None})]\n"
        "return [[each.tokens, each.wall, each.contexts] for each in limits]"
    )
    pid = aios.spawn(path, program(IDLE), limits={"tokens": 60, "wall": 100.0, "contexts": 3})
    assert aios.wait(pid, timeout=30).result == [[50, 100.0, 3], [50, 5.0, 3], [50, 100.0, 3]]


def test_an_agent_controls_what_it_started(aios: Aios, program: Program) -> None:
    path = program(
        "child = aios.spawn(task)\ndata = aios.log(child, wait=20).data\naios.nice(7, child)\n"
        "aios.kill(child, 'KILL')\nreturn [data.decode(), aios.wait(child).reason]"
    )
    pid = aios.spawn(path, program("print('up')\naios.recv()"))
    assert aios.wait(pid, timeout=30).result == ["up\n", "signal KILL"]


def test_a_token_is_nowhere_to_be_read_after_hello(aios: Aios, program: Program) -> None:
    path = program(
        "printed = [os.readlink(f'/proc/self/fd/{fd}') for fd in (1, 2)]\n"
        "files = [os.readlink(f'/proc/self/fd/{fd}') for fd in os.listdir('/proc/self/fd')[:-1]]\n"
        "pipes = [name for name in files if name.startswith('pipe:') and name not in printed]\n"
        "return [pipes, 'AIOS_FD' in os.environ]"
    )
    assert aios.wait(aios.spawn(path), timeout=30).result == [[], False]


def test_a_token_serves_its_process_alone_and_once(
    aios: Aios, system: System, tmp_path: Path
) -> None:
    """The agent hands its token to a child, which is refused; then uses it; then again."""
    code = f"""#!{sys.executable}
import subprocess, sys
sys.path.insert(0, {str(SUPPORT)!r})
from pathlib import Path
from raw import Raw
token = bytes.fromhex(sys.argv[2]) if sys.argv[2:] else open(3, "rb").read()
def hello(**args):
    with Raw(Path({str(system.home)!r}), hello=False) as raw:
        kind, body = raw.final(raw.start("hello", version={ABI_VERSION}, **args))
        print(kind, body.get("code", "served"), flush=True)
        if kind == 0:  # its first call uses the token up
            raw.done("proc.whoami")
if sys.argv[2:]:
    hello(token=token)
    hello()
else:
    hello(token=b"wrong" * 6)
    subprocess.run([sys.argv[0], "child", token.hex()])
    hello(token=token)
    hello(token=token)
"""
    pid = aios.spawn(script(tmp_path, code))
    assert aios.wait(pid, timeout=60).code == 0, aios.log(pid).data
    heard = aios.log(pid).data.decode().splitlines()
    refused = f"1 {BadToken.code}"
    assert heard == [refused, refused, f"1 {Denied.code}", "0 served", refused]


def test_an_agents_child_that_connects_is_no_client(
    aios: Aios, system: System, program: Program
) -> None:
    path = program(
        "import subprocess\n"
        "code = 'from aios.agents import connect; connect()'\n"
        "ran = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)\n"
        "return ran.stderr.splitlines()[-1]"
    )
    exited = aios.wait(aios.spawn(path), timeout=60)
    assert "Denied" in exited.result
    with Raw(system.home) as raw:
        assert raw.done("proc.whoami")["kind"] == "client"
