"""`aios audit` as a person runs it, and the proofs that it prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from commands import answer, line_of, run, started
from conftest import Boot
from places import DOCS

from aios.agents import connect
from aios.kernel.audit.checkpoint import Signer
from aios.kernel.audit.log import AuditLog
from aios.kernel.audit.prove import LogTree, check, prove, prove_growth
from aios.kernel.audit.read import Filter, entries
from aios.kernel.audit.segment import SEGMENT_RECORDS, path_of
from aios.kernel.audit.verify import known_keys
from aios.shell.commands import audit
from aios.shell.launch import System
from aios.syscalls.errors import AiosError, AuditDamaged, BadInput, NotFound


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    """A log without a system, of two full segments and some records."""
    home = homes / "audited"
    home.mkdir()
    yield write(home, 2 * SEGMENT_RECORDS + 100)


def write(home: Path, count: int) -> Path:
    log = AuditLog(
        home / "audit", Signer(home / "keys" / "audit"), lambda run: run(), boot=b"b" * 8
    )
    for n in range(count):
        agent, kind = ("/ann", "intent") if n % 2 else ("/bob/helper", "denied")
        log.append((n % 10, agent, kind, n, "sto.put", f"path=p{n}", b"", "the rule", "", 0))
    log.close()
    return home


def records(home: Path, *args: str) -> list[dict[str, Any]]:
    done = run(home, "audit", *args, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_log_of_a_session_is_read_and_verified(boot: Boot, tmp_path: Path) -> None:
    system = boot(slots=1)
    home = system.home
    with connect(home, "ann", receipts=True) as aios:
        aios.mem_put({"colour": "blue"})
        assert aios.receipt is not None
        sequence, head = aios.receipt
        pid = aios.pid
    table = run(home, "audit", "tail", "-n", "50", "--agent", str(pid)).stdout.splitlines()
    assert table[0].split() == ["NUMBER", "TIME", "PID", "AGENT", "KIND", "CALL", "ABOUT"]
    assert any("mem.put" in line and "items=colour" in line for line in table)
    assert any("outcome" in line and f"ok  of {sequence - 1}" in line for line in table)
    found = answer(home, "audit", "show", str(sequence - 1))
    assert (found["record"]["call"], found["other"]["result"]) == ("mem.put", "ok")
    shown = run(home, "audit", "show", str(sequence)).stdout
    assert f"{sequence} {head.hex()}" in shown
    receipts = tmp_path / "receipts.json"
    receipts.write_text(json.dumps([[sequence, head.hex()]]))
    assert "as it was written" in run(home, "audit", "verify", "--receipts", str(receipts)).stdout
    system.end()
    assert answer(home, "audit", "verify", "--receipts", str(receipts))["receipts"] == 1
    receipts.write_text(json.dumps([[sequence, head[::-1].hex()]]))
    wrong = run(home, "audit", "verify", "--receipts", str(receipts))
    assert wrong.returncode == 1
    assert f"PROBLEM   record {sequence}: the receipt says otherwise" in wrong.stdout


def test_new_records_are_followed(system: System) -> None:
    home = system.home
    with (
        connect(home) as aios,
        started(
            home, "audit", "tail", "-f", "--json", "--call", "mem.*", "--agent", str(aios.pid)
        ) as process,
    ):
        for number in range(3):
            aios.mem_put({f"k{number}": number})
            intent, outcome = (json.loads(line_of(process)) for _ in range(2))
            assert intent["object"] == f"space=main items=k{number}"
            assert (outcome["kind"], outcome["intent"]) == ("outcome", intent["sequence"])


def count(home: Path, **wanted: Any) -> int:
    wants = Filter(**wanted)
    return sum(wants.matches(record) for record, _, _ in entries(home / "audit"))


def test_search_finds_by_who_what_and_when(home: Path) -> None:
    assert count(home, agent="/ann") == SEGMENT_RECORDS + 50
    assert count(home, agent="/bob", decision="denied") == SEGMENT_RECORDS + 50
    assert count(home, agent="/bob", decision="allowed") == count(home, agent="/an") == 0
    assert count(home, agent="7", object="p17") == 112
    assert count(home, call="sto.*", object="path=p16385") == 1
    assert count(home, call="sto") == 0
    now = time.time()
    assert count(home, since=now) == count(home, until=now - 3600) == 0
    assert count(home, since=now - 3600, until=now) == 2 * SEGMENT_RECORDS + 100


def test_search_takes_times_as_people_say_them(home: Path) -> None:
    later = (datetime.now() + timedelta(hours=1)).isoformat(timespec="seconds")
    wanted = "--object", "p16385", "--agent", "/ann", "--decision", "allowed", "--call", "s*"
    for since in ("2000-01-01", "3d", "90m"):
        [one] = records(home, "search", "--since", since, "--until", later, *wanted)
        assert one["sequence"] == SEGMENT_RECORDS + 1
    nothing = run(home, "audit", "search", "--since", later)
    assert (nothing.returncode, nothing.stderr) == (0, "no records match\n")
    done = run(home, "audit", "search", "--since", "yesterday")
    assert done.returncode == 2
    assert "is no time: give" in done.stderr


def test_the_last_records_may_be_of_several_segments(home: Path) -> None:
    numbers = [record["sequence"] for record in records(home, "tail", "-n", "300")]
    assert numbers == list(range(2 * SEGMENT_RECORDS - 200, 2 * SEGMENT_RECORDS + 100))


def test_records_are_exported(home: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    assert run(home, "audit", "export", str(target), "--object", "p1638").returncode == 0
    found = [json.loads(line) for line in target.read_text().splitlines()]
    assert [record["object"] for record in found][:2] == ["path=p1638", "path=p16380"]
    assert run(home, "audit", "export", "-", "--object", "p1638").stdout == target.read_text()
    assert run(home, "audit", "export", str(target), "--object", "nothing").returncode == 0
    assert target.read_text() == ""
    target.unlink()
    assert run(home, "audit", "export", str(target), "--object", "nothing").returncode == 0
    assert target.read_text() == "", "a file that has no records is there as well"
    target.write_text("kept")
    assert run(home, "audit", "export", str(target), "--log", str(tmp_path)).returncode == 78
    assert target.read_text() == "kept"


def test_in_a_terminal_no_line_is_wider_than_it(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "at_terminal", lambda *, err=False: not err)
    lines = run(home, "audit", "tail", "-n", "2", COLUMNS="78").stdout.splitlines()
    assert max(map(len, lines)) <= 78
    assert [line.split()[-1] for line in lines] == [
        "CALL", "ABOUT", "sto.put", "path=p32866", "sto.put", "path=p32867"
    ]  # fmt: skip
    wide = run(home, "audit", "tail", "-n", "2", COLUMNS="120").stdout.splitlines()
    assert [line.split()[-1] for line in wide] == ["ABOUT", "path=p32866", "path=p32867"]


def test_what_is_not_there_is_said(home: Path, tmp_path: Path) -> None:
    done = run(home, "audit", "show", "99999999")
    assert (done.returncode, "no record 99999999" in done.stderr) == (1, True)
    for command in (["tail"], ["search"], ["verify"], ["show", "1"], ["prove", "1"]):
        done = run(home, "audit", *command, "--log", str(tmp_path / "none"))
        assert done.returncode == 78
        assert "no audit log in" in done.stderr
        assert "--log" in done.stderr.partition("\nhint: ")[2]


def test_verify_says_where_it_was_changed(home: Path, tmp_path: Path) -> None:
    shutil.copytree(home / "audit", tmp_path / "audit")
    path = path_of(tmp_path / "audit", SEGMENT_RECORDS)
    data = bytearray(path.read_bytes())
    data[5000] ^= 1
    path.write_bytes(data)
    done = run(home, "audit", "verify", "--log", str(tmp_path / "audit"), "--json")
    assert done.returncode == 1
    [problem] = json.loads(done.stdout)["problems"]
    assert SEGMENT_RECORDS < problem["sequence"] < SEGMENT_RECORDS + 100
    done = run(home, "audit", "verify", "--log", str(tmp_path / "audit"))
    assert f"PROBLEM   record {problem['sequence']}: the record was changed" in done.stdout


def test_receipts_may_be_many_and_are_to_be_text(home: Path, tmp_path: Path) -> None:
    """An argument of a process holds 128 KiB, which is 1,800 receipts."""
    path = tmp_path / "receipts.json"
    path.write_text(json.dumps([[1, "ab" * 32]] * 2000))
    done = run(home, "audit", "verify", "--receipts", str(path), "--json")
    assert (done.returncode, done.stderr) == (1, "")
    assert len(json.loads(done.stdout)["problems"]) == 2000
    path.write_bytes(b"\xff")
    for option in ("--receipts", "--checkpoint", "--proof"):
        done = run(home, "audit", "verify", option, str(path))
        assert (done.returncode, done.stdout) == (78, "")
        assert done.stderr == f"aios: cannot read '{path}': it is no text in UTF-8\n"


def test_a_checkpoint_that_is_none_is_answered_with_where_there_are_some(
    home: Path, tmp_path: Path
) -> None:
    junk = tmp_path / "junk"
    junk.write_text("junk")
    done = run(home, "audit", "verify", "--checkpoint", str(junk))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "aios: what was kept: a checkpoint cannot be read\n"
        "hint: give one checkpoint as audit/checkpoints has them, and --key if another log"
        " signed it\n"
    )


def test_the_commands_of_the_document_run(home: Path, tmp_path: Path) -> None:
    text = (DOCS / "audit.md").read_text()
    commands = re.findall(r"(?m)^\$ aios (.*)$", text)
    assert len(commands) == 5
    for command in commands:
        done = run(home, *shlex.split(command), cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)


# --- proofs --------------------------------------------------------------------------------------


def test_a_proof_is_verified_without_the_log(home: Path, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    proof.write_text(run(home, "audit", "prove", str(SEGMENT_RECORDS + 5)).stdout)
    key = (home / "audit" / "key").read_text().strip()
    elsewhere = ["--log", str(tmp_path / "none"), "--key", key]
    done = run(home, "audit", "verify", "--proof", str(proof), *elsewhere)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(
        f"record {SEGMENT_RECORDS + 5} is in the log of {2 * SEGMENT_RECORDS + 100}"
    )
    assert f"path=p{SEGMENT_RECORDS + 5}" in done.stdout
    proof.write_text(
        proof.read_text().replace(f"index {SEGMENT_RECORDS + 5}", f"index {SEGMENT_RECORDS + 6}")
    )
    done = run(home, "audit", "verify", "--proof", str(proof), *elsewhere)
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not lead to its checkpoint" in done.stderr


def test_growth_is_proved_from_an_earlier_checkpoint(home: Path, tmp_path: Path) -> None:
    notes = (home / "audit" / "checkpoints").read_text().split("\n\naios/")
    first = tmp_path / "checkpoint"
    first.write_text(notes[0] + "\n")
    assert int(notes[0].splitlines()[1]) == SEGMENT_RECORDS
    growth = tmp_path / "growth"
    growth.write_text(run(home, "audit", "prove", "--growth", str(SEGMENT_RECORDS)).stdout)
    key = (home / "audit" / "key").read_text().strip()
    given = ["--proof", str(growth), "--key", key, "--checkpoint", str(first)]
    done = run(home, "audit", "verify", *given)
    assert (
        f"the log of {2 * SEGMENT_RECORDS + 100} records begins with the one of {SEGMENT_RECORDS}"
        in done.stdout
    )
    assert answer(home, "audit", "verify", "--checkpoint", str(first))["problems"] == []
    assert run(home, "audit", "verify", *given[:-2]).returncode == 78


def test_every_proof_holds(home: Path) -> None:
    """Prove at all edges of segments and subtrees, and compare with the proofs of the whole
    tree.
    """
    folder = home / "audit"
    keys = known_keys(folder)
    size = 2 * SEGMENT_RECORDS + 100
    for sequence in (
        0,
        1,
        SEGMENT_RECORDS - 1,
        SEGMENT_RECORDS,
        2 * SEGMENT_RECORDS - 1,
        2 * SEGMENT_RECORDS,
        size - 1,
    ):
        assert check(prove(folder, sequence), keys, None)["record"]["sequence"] == sequence
    tree = LogTree(folder)
    by_headers = tree.root(0, SEGMENT_RECORDS), tree.root(0, 2 * SEGMENT_RECORDS)
    tree.known.clear()
    assert (tree.root(0, SEGMENT_RECORDS), tree.root(0, 2 * SEGMENT_RECORDS)) == by_headers
    with pytest.raises(NotFound):
        prove(folder, size)
    with pytest.raises(NotFound):
        prove_growth(folder, size + 1)


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        (lambda text: "no proof", BadInput),
        (lambda text: text.replace("index ", "index x"), BadInput),
        (lambda text: text.replace("\nextra ", "\nextra AAAA"), AuditDamaged),
        (lambda text: text[: text.index("\n\n")] + "\n\nnonsense", AuditDamaged),
        (lambda text: text.replace(f"\n{2 * SEGMENT_RECORDS + 100}\n", "\n77\n"), AuditDamaged),
    ],
)
def test_a_proof_that_was_changed_proves_nothing(
    home: Path, lie: Callable[[str], str], error: type[AiosError]
) -> None:
    text = prove(home / "audit", 77)
    with pytest.raises(error):
        check(lie(text), known_keys(home / "audit"), None)


def test_a_record_that_is_gone_is_proved_no_more(tmp_path: Path) -> None:
    write(tmp_path, 3 * SEGMENT_RECORDS + 5)
    folder = tmp_path / "audit"
    path_of(folder, 0).unlink()
    path_of(folder, SEGMENT_RECORDS).unlink()
    keys = known_keys(folder)
    for sequence in (
        2 * SEGMENT_RECORDS,
        3 * SEGMENT_RECORDS + 1,
    ):  # what is older is known from the headers
        assert check(prove(folder, sequence), keys, None)["signed"] == 3 * SEGMENT_RECORDS + 5
    with pytest.raises(NotFound):
        prove(folder, SEGMENT_RECORDS)
    with pytest.raises(NotFound, match="not kept any more"):
        prove_growth(folder, 100)
