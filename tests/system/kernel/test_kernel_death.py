"""Kill the kernel under its agents: they wait, come back, and go on as if nothing had happened."""

from __future__ import annotations

import itertools
import os
import signal
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import psutil
import pytest
import zmq
from conftest import Boot, eventually, of_core, on_tiny, run_system
from helpers import first_piece, kill_kernel, running
from raw import Raw, made_again

from aios.agents import connect
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, ContextForeign, NotFound
from aios.syscalls.llm import Piece
from aios.syscalls.wire import ABI_VERSION

Program = Callable[[str], str]
OPTIONS: dict[str, Any] = {
    "max_tokens": 40, "temperature": 0.8, "seed": 3, "ignore_eos": True, "digest": True,
    "repeat_penalty": 1.2, "logprobs": 1,
}  # fmt: skip
PROMPTS = [f"Tell a story about {what}." for what in ("a fox", "the sea", "a lamp")]


def test_streams_go_on_where_they_stopped(boot: Boot) -> None:
    system = boot(slots=2, quantum=16)
    with connect(system.home) as aios:
        alone = [aios.generate(prompt, **OPTIONS).result() for prompt in PROMPTS]
        calls = [aios.generate(prompt, **OPTIONS) for prompt in PROMPTS]
        pieces: list[list[Piece]] = [[], [], []]
        for count in (3, 20, 39):
            pieces[0] += itertools.islice(calls[0].pieces(), count - len(pieces[0]))
            kill_kernel(aios)
        for call, seen in zip(calls, pieces, strict=True):
            seen.extend(call.pieces())
        for call, seen, wanted in zip(calls, pieces, alone, strict=True):
            result = call.result()
            assert (result.tokens, result.digest) == (wanted.tokens, wanted.digest)
            assert (result.text, result.logprobs) == (wanted.text, wanted.logprobs)
            assert [token for piece in seen for token in piece.tokens] == result.tokens
            assert "".join(piece.text for piece in seen) == result.text
        status = aios.status()
        assert (status.core_restarts, status.contexts) == (0, 0)
        assert aios.check() == []


def test_the_policy_that_a_person_chose_is_kept(boot: Boot) -> None:
    system = boot(slots=1)
    with connect(system.home) as aios:
        assert aios.policy("fifo", quantum=7).policy == "fifo"
        kill_kernel(aios)
        kept = aios.policy()
        assert (kept.policy, kept.quantum) == ("fifo", 7)


def test_kernel_and_core_killed_together(boot: Boot) -> None:
    system = boot(slots=2)
    with connect(system.home) as aios:
        alone = aios.generate(PROMPTS[0], **OPTIONS).result()
        call = aios.generate(PROMPTS[0], **OPTIONS)
        first_piece(call)
        core = of_core(system)
        os.kill(aios.status().os_pid, signal.SIGKILL)
        core.kill()
        assert (call.tokens, call.digest) == (alone.tokens, alone.digest)
        assert aios.check() == []


def test_a_generation_that_ended_meanwhile_is_heard_of(boot: Boot, program: Program) -> None:
    """The agent is stopped until its answer is there and the kernel that had it is gone."""
    system = boot(slots=2)
    path = program(
        "aios.send('test', 'up')\n"
        "answer = aios.generate(task, max_tokens=20, ignore_eos=True)\n"
        "aios.recv()\n"
        "return [t for piece in answer.pieces() for t in piece.tokens]"
    )
    with connect(system.home, "test") as aios:
        wanted = aios.generate(PROMPTS[1], max_tokens=20, ignore_eos=True).tokens
        pid = aios.spawn(path, PROMPTS[1])
        aios.recv(sender=pid)
        eventually(lambda: aios.whoami() and running(aios, pid).generations == 1)
        kill_kernel(aios)
        aios.send(pid, "go on")
        assert aios.wait(pid).result == wanted
        assert aios.check() == []


def test_messages_are_kept_and_handed_out_once(boot: Boot) -> None:
    system = boot()
    with connect(system.home, "ann") as ann, connect(system.home, "bob") as bob:
        for number in range(3):
            ann.send("bob", number)
        assert bob.recv().body == 0
        kill_kernel(ann)
        assert [bob.recv(timeout=60).body for _ in range(2)] == [1, 2]
        waiting = bob.start("msg.recv")
        kill_kernel(ann)
        ann.send("bob", "after")
        assert waiting.wait(10)["body"] == "after"
        assert bob.whoami().queue == 0
        assert ann.check() == []


def test_a_call_that_is_sent_again_has_its_effect_once(boot: Boot, program: Program) -> None:
    """Send the same bytes to the next kernel, as if the reply had been lost."""
    system = boot()
    path = program("aios.recv()")
    calls: list[tuple[str, dict[str, Any]]] = [
        ("msg.send", {"to": "raw", "body": "once"}),
        ("proc.spawn", {"program": path}),
        ("llm.open", {"system": "Be brief."}),
        ("llm.generate", {"text": "One, two,", "max_tokens": 3, "ignore_eos": True}),
    ]
    with connect(system.home) as aios:
        with made_again(system.home, calls, lambda: kill_kernel(aios)) as again:
            again.ids = itertools.count(1000)
            assert again.done("msg.recv", timeout=0)["body"] == "once"
            assert again.error("msg.recv", timeout=0)["code"] == "call.timed_out"
            assert [row.name for row in aios.ps()] == ["agent0"]
            assert again.done("proc.whoami")["contexts"] == 1
        assert aios.check() == []
        for row in aios.ps():
            aios.kill(row.pid, "KILL")


def test_processes_live_on_and_their_ends_are_noticed(boot: Boot, program: Program) -> None:
    system = boot()
    quiet = program("aios.recv()\nreturn 'done'")
    parent = program("aios.wait(aios.spawn(task))\nreturn 'child gone'")
    with connect(system.home) as aios:
        pids = [aios.spawn(quiet, name=name) for name in ("stays", "dies", "stopped")]
        above = aios.spawn(parent, quiet, name="above", nice=3)
        child = eventually(lambda: [row for row in aios.ps() if row.parent == above])[0]
        rows = {row.pid: running(aios, row.pid) for row in aios.ps()}
        aios.kill(pids[2], "STOP")
        eventually(lambda: [r for r in aios.ps() if r.state == "stopped"])
        init = psutil.Process(system.process.pid)
        init.suspend()  # so that nobody sees the next two deaths but the kernel that follows
        os.kill(aios.status().os_pid, signal.SIGKILL)
        os.kill(rows[pids[1]].os_pid, signal.SIGKILL)
        os.kill(rows[child.pid].os_pid, signal.SIGKILL)
        init.resume()
        assert aios.wait(pids[1], timeout=60).code == 137
        assert aios.wait(above, timeout=60).result == "child gone"
        after = {row.pid: row for row in aios.ps()}
        assert sorted(after) == [pids[0], pids[2]]
        assert after[pids[2]].state == "stopped"
        assert after[pids[0]].os_pid == rows[pids[0]].os_pid
        aios.send(pids[0], "end")
        assert aios.wait(pids[0], timeout=60).result == "done"
        aios.kill(pids[2], "KILL")
        assert aios.wait(pids[2], timeout=60).code == 137
        assert aios.check() == []


def test_a_kernel_that_dies_between_spawn_and_fork_starts_the_agent_once(
    boot: Boot, program: Program
) -> None:
    system = boot()
    path = program("return aios.pid")
    with connect(system.home) as aios:
        init = psutil.Process(system.process.pid)
        init.suspend()  # it does not hear of the agent before the kernel is gone
        spawning = aios.start("proc.spawn", program=path)
        eventually(lambda: any(row.state == "starting" for row in aios.ps()))
        os.kill(aios.status().os_pid, signal.SIGKILL)
        init.resume()
        pid = spawning.wait(20)["pid"]
        assert aios.wait(pid, timeout=20).result == pid
        assert [row.pid for row in aios.ps(all=True) if row.kind == "agent"] == [pid]
        assert aios.check() == []


def test_limits_and_what_was_used_are_kept(boot: Boot) -> None:
    system = boot()
    with connect(system.home) as aios:
        aios.generate("Hi", max_tokens=5, ignore_eos=True).result()
        aios.limits(limits={"tokens": 500})
        aios.nice(4)
        before = aios.whoami()
        kill_kernel(aios)
        after = aios.whoami()
        assert (after.tokens, after.nice, after.pid) == (before.tokens, 4, before.pid)
        assert aios.limits().tokens == 500


def test_who_comes_back_must_know_the_secret(boot: Boot) -> None:
    system = boot()
    with connect(system.home) as aios, Raw(system.home) as raw:
        kill_kernel(aios)
        for back in ({"pid": raw.pid, "secret": b"wrong"}, {"pid": 10**6, "secret": b""}):
            with Raw(system.home, hello=False) as stranger:
                error = stranger.error("hello", version=ABI_VERSION, back=back)
                assert error["code"] == "hello.token"


def test_what_never_was_a_process_is_no_trouble_afterwards(boot: Boot, program: Program) -> None:
    """Mail to an agent that fails to start, and a spawn whose caller is gone."""
    system = boot()
    init = psutil.Process(system.process.pid)
    with connect(system.home) as aios:
        init.suspend()
        failing = aios.start("proc.spawn", program="/nowhere/agent.py", name="x")
        aios.send("x", "lost")
        waiting = aios.start("msg.recv", sender=aios.ps()[0].pid)
        with Raw(system.home) as raw:
            raw.start("proc.spawn", program=program("aios.recv()"), name="orphan")
            eventually(lambda: len(aios.ps()) == 2)
        eventually(lambda: not [r for r in aios.ps(all=True) if r.pid == raw.pid])
        os.kill(aios.status().os_pid, signal.SIGKILL)
        init.resume()
        for call in (failing, waiting):
            with pytest.raises(AiosError):
                call.wait(20)
        kill_kernel(aios)
        assert aios.check() == []
        assert "set its journal aside" not in (system.home / "init.log").read_text()
        for row in aios.ps():
            aios.kill(row.pid, "KILL")


def test_strangers_on_the_core_s_sockets_are_not_heard(boot: Boot) -> None:
    system = boot()
    with connect(system.home) as aios:
        before = aios.status()
        for name in ("core", "text"):
            stranger: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.REQ)
            stranger.setsockopt(zmq.LINGER, 1000)
            stranger.connect(f"ipc://{system.home}/{name}.sock")
            stranger.send(b"\xc1")
            stranger.close()
        assert aios.generate("Hi", max_tokens=2).tokens
        assert aios.status().boot == before.boot


# --- contexts with a name ----------------------------------------------------------------------


def end(system: System, how: signal.Signals) -> None:
    os.kill(system.process.pid, how)
    system.process.wait(timeout=20)
    for path in system.home.glob("*.sock"):
        path.unlink()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_context_with_a_name_outlives_the_system(homes: Path, how: signal.Signals) -> None:
    home = homes / f"again{how}"
    settings = {"slots": 2, "ctx": 512, "grace": 0.5}
    for first in run_system(home, settings):
        with connect(home, "me") as aios:
            other = aios.open("Be brief.")
            context = aios.open("Be brief.", name="chat")
            for each in (other, context):
                each.generate("The number is 42.", max_tokens=12).result()
            context.checkpoint("early")
            wanted = other.generate("Which number?", max_tokens=12, digest=True).result()
            end(first, how)
    for _ in run_system(home, settings):
        with connect(home, "me") as aios:
            (info,) = aios.contexts()
            assert (info.name, info.state, info.owner) == ("chat", "asleep", "me")
            context = aios.open(name="chat")
            found = context.generate("Which number?", max_tokens=12, digest=True).result()
            assert (found.tokens, found.digest) == (wanted.tokens, wanted.digest)
            assert context.rollback("early").used == info.used
            context.close(forget=True)
            assert aios.contexts() == []
            with pytest.raises(NotFound):
                context.append("gone")
            assert aios.check() == []


def test_a_history_of_another_model_is_refused_and_kept(homes: Path) -> None:
    home = homes / "foreign"
    settings = on_tiny(home, slots=1, ctx=256)
    for first in run_system(home, settings):
        with connect(home, "me") as aios:
            context = aios.open(name="chat")
            context.append("One, two,", raw=True)
            context.generate(max_tokens=3).result()
        end(first, signal.SIGTERM)
    other = homes / "other.gguf"
    other.write_bytes(Path(settings["model"]).read_bytes() + bytes(32))
    for model, foreign in ((str(other), True), (settings["model"], False)):
        for _ in run_system(home, settings | {"model": model}):
            with connect(home, "me") as aios:
                context = aios.open(name="chat")
                if foreign:
                    with pytest.raises(ContextForeign, match="another model"):
                        context.generate().result()
                    with pytest.raises(ContextForeign):
                        context.append("x")
                else:
                    assert context.generate(max_tokens=3, ignore_eos=True).tokens
                assert aios.check() == []


def test_a_journal_that_no_kernel_can_read_is_set_aside(homes: Path) -> None:
    home = homes / "broken"
    settings = {"slots": 1, "ctx": 256}
    for first in run_system(home, settings):
        end(first, signal.SIGTERM)
    journal = home / "journal"
    for path in journal.iterdir():
        path.unlink()
    # A whole frame, whose rows no kernel of this version wrote.
    body = msgpack.packb([[0, "context/1", b"\xc1"]])
    (journal / "base-1").write_bytes(struct.pack("<II", len(body), zlib.crc32(body)) + body)
    for _ in run_system(home, settings):
        assert "set its journal aside" in (home / "init.log").read_text()
        with connect(home) as aios:
            assert aios.generate("Hi", max_tokens=2).tokens
    assert len(list(home.glob("journal-*"))) == 1
