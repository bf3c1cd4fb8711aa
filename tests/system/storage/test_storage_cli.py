"""`aios sto` as a person runs it; docs/storage.md is run as well."""

from __future__ import annotations

import fcntl
import gzip
import io
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import termios
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from click.testing import CliRunner
from commands import AIOS, LIMIT, answer, environment
from conftest import eventually, run_system
from places import DOCS

from aios.agents import connect
from aios.shell.archive import reading
from aios.shell.cli import cli
from aios.syscalls.errors import BadInput

GUIDE = DOCS / "storage.md"
COMMANDS = ["list", "get", "put", "history", "diff", "rollback", "delete", "purge", "share",
            "export", "import", "verify", "compact", "backup"]  # fmt: skip


@pytest.fixture(scope="module")
def home(homes: Path) -> Iterator[Path]:
    """The home of a system that only these tests use."""
    for system in run_system(homes / "sto", {"slots": 1, "ctx": 256}):
        yield system.home


def sto(
    home: Path, *args: str, stdin: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*AIOS, "sto", *args], env=environment(home), input=stdin, cwd=cwd, capture_output=True,
        timeout=LIMIT, check=False,
    )  # fmt: skip


def fine(home: Path, *args: str, **options: Any) -> str:
    done = sto(home, *args, **options)
    assert (done.returncode, done.stderr) == (0, b""), done
    return done.stdout.decode()


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str) -> None:
    shown = CliRunner().invoke(cli, ["sto", name, "--help"])
    assert shown.exit_code == 0
    assert f"aios sto {name}" in shown.output.partition("Example")[2]


def test_every_byte_comes_back(home: Path, tmp_path: Path) -> None:
    data = os.urandom(300_000) + b"\r\n\x00"
    (tmp_path / "file").write_bytes(data)
    assert "version 1, 300.0 kB" in fine(home, "put", "bytes", str(tmp_path / "file"))
    assert "version 2, 3 bytes" in fine(home, "put", "bytes", stdin=b"\xff\x00\n")
    assert sto(home, "get", "bytes").stdout == b"\xff\x00\n"
    assert sto(home, "get", "bytes", "--version", "1").stdout == data
    fine(home, "get", "bytes", str(tmp_path / "copy"), "--version", "1")
    assert (tmp_path / "copy").read_bytes() == data


def test_versions(home: Path) -> None:
    for text in (b"one\n", b"two\n"):
        fine(home, "put", "v", "--tag", "x", "--tag", "y", stdin=text)
    assert "-one\n+two" in fine(home, "diff", "v", "1")
    assert fine(home, "diff", "v", "1", "1") == ""
    assert fine(home, "rollback", "v", "1").startswith("restored v: version 3")
    assert fine(home, "delete", "v").startswith("deleted v: version 4")
    assert [row["what"] for row in answer(home, "sto", "history", "v")] == [
        "delete", "rollback", "put", "put"
    ]  # fmt: skip
    assert answer(home, "sto", "list", "v") == []
    (row,) = answer(home, "sto", "list", "v", "--deleted")
    assert (row["version"], row["what"]) == (4, "delete")
    refused = sto(home, "put", "v", "--if-version", "2", stdin=b"")
    assert refused.returncode == 1
    assert b"there is none" in refused.stderr
    assert sto(home, "purge", "v", stdin=b"n\n").returncode == 130
    assert fine(home, "purge", "v", "--yes").startswith("purged v")
    assert sto(home, "history", "v").returncode == 1


def test_what_is_shared(home: Path) -> None:
    fine(home, "put", "s/a", "--owner", "/giver", stdin=b"1")
    assert "write" in fine(home, "share", "s", "/taker", "--write", "--owner", "/giver")
    (grant,) = answer(home, "sto", "share", "--owner", "/taker")
    assert grant == {"owner": "/giver", "prefix": "s", "to": "/taker", "mode": "write"}
    fine(home, "share", "s", "/taker", "--revoke", "--owner", "/giver")
    assert answer(home, "sto", "share", "--owner", "/giver") == []
    assert sto(home, "share", "s").returncode == 2
    assert "/giver" in fine(home, "list", "--all")


def test_export_and_import(home: Path, homes: Path, tmp_path: Path) -> None:
    with connect(home) as aios:
        big = os.urandom(1 << 20)
        aios.sto_put("e/big", big, tags=["x y", "ü"], media="a/b", owner="/exp/one")
        aios.sto_put("e/empty", b"", owner="/exp/one")
        aios.sto_put("e/text", b"text")
    done = sto(home, "export", str(tmp_path / "all.tar"), "--all", "--prefix", "e/")
    assert done.stdout.startswith(b"3 objects")
    with tarfile.open(tmp_path / "all.tar") as tar:
        assert sorted(tar.getnames()) == ["exp/one/e/big", "exp/one/e/empty", "person/e/text"]
    for system in run_system(homes / "sto2", {"slots": 1, "ctx": 256}):
        assert answer(system.home, "sto", "import", str(tmp_path / "all.tar")) == {"objects": 3}
        with connect(system.home) as aios:
            info = aios.sto_read("e/big", count=0, owner="/exp/one").info
            assert (info.tags, info.media, info.version) == (["x y", "ü"], "a/b", 1)
            assert aios.sto_get("e/big", owner="/exp/one") == big
            assert aios.sto_get("e/text") == b"text"
    (tmp_path / "no.tar").write_bytes(b"no tar" * 1000)
    refused = sto(home, "import", str(tmp_path / "no.tar"))
    assert refused.returncode == 78
    assert refused.stderr.startswith(b"aios: cannot read ")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(tmp_path / "no.tar", "no.tar")
    assert b"not written by" in sto(home, "import", str(tmp_path / "other.tar")).stderr
    assert sto(home, "export", "/proc/no.tar").returncode == 78
    assert list(tmp_path.glob("*.part")) == []


def test_tar_files_in_pipes_and_cut_short(home: Path, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    with connect(home) as aios:
        aios.sto_put("t/long", data, owner="/tar")
        aios.sto_put("t/short", b"1", owner="/tar")
    done = sto(home, "export", "-", "--owner", "/tar")
    assert done.returncode == 0
    assert json.loads(sto(home, "import", "-", "--json", stdin=done.stdout).stdout)["objects"] == 2
    for size in (0, 100, 5000, 150_000):
        (tmp_path / "torn.tar").write_bytes(done.stdout[:size])
        piped = sto(home, "import", "-", stdin=done.stdout[:size])
        for torn in (piped, sto(home, "import", str(tmp_path / "torn.tar"))):
            assert (torn.returncode, torn.stdout) == (78, b"")
            *_, said, hint = torn.stderr.splitlines()
            assert said.startswith(b"aios: cannot read ") and b"`aios sto export`" in hint
    with connect(home) as aios:
        assert aios.sto_get("t/long", owner="/tar") == data
        assert aios.sto_read("t/long", count=0, owner="/tar").info.version == 2


@pytest.mark.parametrize("how", ["damaged.gz", "damaged.xz", "tags.tar"])
def test_an_archive_that_cannot_be_read_is_refused(how: str, tmp_path: Path) -> None:
    """Each library that is below tarfile has an error of its own."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("person/a")
        member.size = 1 << 18
        tags = "5" if how == "tags.tar" else "[]"
        member.pax_headers = {"AIOS.path": "a", "AIOS.tags": tags}
        text = bytes(random.Random(1).choices(b"abcdefgh", k=member.size))
        tar.addfile(member, io.BytesIO(text))
    pack: Any = {"damaged.gz": gzip.compress, "damaged.xz": lzma.compress, "tags.tar": bytes}[how]
    data = bytearray(pack(out.getvalue()))
    if how != "tags.tar":
        data[len(data) // 2 : len(data) // 2 + 64] = b"x" * 64
    path = tmp_path / how
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(BadInput) as caught, reading(file) as objects:
        for _, content in objects:
            while content.read(1 << 16):
                pass
    assert caught.value.message.startswith(f"cannot read {path}: ")


def test_a_file_is_whole_or_as_it_was(home: Path, tmp_path: Path) -> None:
    with connect(home) as aios:
        aios.sto_put("whole", bytes(2 << 20))
    file = tmp_path / "file"
    file.write_bytes(b"precious")
    for args in (["get", "whole", str(file)], ["export", str(file)]):
        limited = subprocess.run(
            ["prlimit", f"--fsize={1 << 20}", *AIOS, "sto", *args], env=environment(home),
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert limited.returncode == 78
        assert limited.stderr.splitlines()[-2:] == [
            f"aios: {file}: File too large", "hint: choose another name or folder",
        ]  # fmt: skip
        assert (file.read_bytes(), [*tmp_path.iterdir()]) == (b"precious", [file])
    for args in (["get", "none", str(file)], ["get", "whole", str(file), "--version", "9"]):
        assert sto(home, *args).returncode == 1
        assert (file.read_bytes(), [*tmp_path.iterdir()]) == (b"precious", [file])
    link = tmp_path / "link"
    link.symlink_to(file)
    fine(home, "get", "whole", str(link))
    assert link.is_symlink()
    assert file.read_bytes() == bytes(2 << 20)
    full = sto(home, "get", "whole", "/dev/full")
    assert (full.returncode, full.stderr.splitlines()[0]) == (
        1, b"aios: /dev/full: No space left on device"
    )  # fmt: skip
    assert Path("/dev/full").is_char_device()
    with Path("/dev/full").open("wb") as stream:
        listed = subprocess.run(
            [*AIOS, "sto", "list"], env=environment(home), stdout=stream, stderr=subprocess.PIPE,
            timeout=LIMIT, check=False,
        )  # fmt: skip
    assert (listed.returncode, listed.stderr.count(b"\n")) == (1, 2)


def _waits_for_more(os_pid: int, pipe: IO[bytes]) -> bool:
    """Tell whether all is read: Python hears of no signal between two reads of a pipe."""
    left = fcntl.ioctl(pipe, termios.FIONREAD, bytes(4))
    return not any(left) and psutil.Process(os_pid).status() == psutil.STATUS_SLEEPING


def test_ctrl_c_ends_a_transfer(home: Path, tmp_path: Path) -> None:
    """Without a word, and with nothing left of it."""
    with connect(home) as aios:
        aios.sto_put("transfer", bytes(2 << 20))
        before = aios.sto_verify().wait()["chunks"]
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        for args in (["get", "transfer", str(pipe)], ["put", "half", str(pipe)]):
            with subprocess.Popen(
                [*AIOS, "sto", *args], env=environment(home), stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            ) as process:  # fmt: skip
                if args[0] == "get":
                    with pipe.open("rb") as end:
                        assert end.read(10) == bytes(10)
                        process.send_signal(signal.SIGINT)
                        out = process.communicate(timeout=LIMIT)
                else:
                    with pipe.open("wb") as end:
                        end.write(os.urandom(1 << 20))
                        end.flush()
                        eventually(partial(_waits_for_more, process.pid, end))
                        process.send_signal(signal.SIGINT)
                        out = process.communicate(timeout=LIMIT)
                assert (process.returncode, out) == (130, (b"", b"\n"))
        eventually(lambda: aios.sto_verify().wait()["chunks"] == before)
        assert list(aios.sto_list("half")) == []


def test_maintenance(home: Path, tmp_path: Path) -> None:
    for text in (b"1", b"2", b"3"):
        fine(home, "put", "u", stdin=text)
    assert answer(home, "sto", "compact", "--keep", "1")["versions"] >= 2
    report = answer(home, "sto", "verify")
    assert report["problems"] == []
    assert "no problems" in fine(home, "verify")
    assert fine(home, "backup", str(tmp_path / "copy")).rstrip().endswith(str(tmp_path / "copy"))
    again = sto(home, "backup", str(tmp_path / "copy"))
    assert again.returncode == 78
    assert b"hint: name a new folder" in again.stderr


def test_something_wrong_is_an_exit_code(homes: Path) -> None:
    settings = {"slots": 1, "ctx": 256}
    for system in run_system(homes / "sto3", settings):
        fine(system.home, "put", "a", stdin=b"remarkable " * 400)
    path = homes / "sto3" / "store" / "data.mdb"
    path.write_bytes(path.read_bytes().replace(b"remarkable ", b"Remarkable "))
    for system in run_system(homes / "sto3", settings):
        done = sto(system.home, "verify")
        assert done.returncode == 1
        assert b"damaged" in done.stdout


def test_errors_say_what_to_do(home: Path, tmp_path: Path) -> None:
    for args, code, said in (
        (["get", "nothing"], 1, b"aios: no object 'nothing' of a person\nhint: `aios sto list`"),
        (["get", "a/../b"], 1, b"aios: no object"),
        (["put", "a//b", "/dev/null"], 78, b"hint: names with"),
        (["put", "a", str(tmp_path / "none")], 2, b"No such file"),
        (["diff", "nothing", "1"], 1, b"aios: no object"),
        (["share", "x", "nobody"], 1, b"hint: a principal begins with"),
        (["list", "--owner", "writer"], 78, b"hint: it is like /writer/helper"),
        (["search", "x", "--owner", "writer"], 78, b"hint: it is like /writer/helper"),
        (["search", "x", "--count", "51"], 2, b"51 is not in the range"),
        (["search", "x", "--since", "yesterday"], 2, b"is no time: give"),
        (["compact", "--keep", "0"], 2, b"0 is not in the range"),
        (["rollback", "nothing", "1"], 1, b"aios: no version 1"),
        (["delete", "nothing"], 1, b"aios: no object"),
        (["purge", "nothing", "--yes"], 1, b"aios: no object"),
        (["import", str(tmp_path / "none")], 2, b"No such file"),
        (["get", "a", "/nonexistent/file"], 78, b"aios: /nonexistent/file: No such"),
    ):
        done = sto(home, *args)
        assert done.returncode == code, done
        assert said in done.stderr, done
        assert done.stdout == b""
    assert json.loads(sto(home, "history", "nothing", "--json").stderr)["code"] == "not_found"


def test_a_reader_that_leaves_is_no_trouble(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(os.urandom(2 << 20))
    fine(home, "put", "long", str(tmp_path / "file"))
    with subprocess.Popen(
        [*AIOS, "sto", "get", "long"], env=environment(home), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(10)
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()


# --- the guide ------------------------------------------------------------------------------------


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(), re.M | re.DOTALL)


def test_every_command_of_the_guide_runs(home: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "aios"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {" ".join(AIOS)} "$@"\n')
    program.chmod(0o700)
    env = environment(home) | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    assert blocks("console")
    for block in blocks("console"):
        for line in block.replace("\\\n", "").splitlines():
            if line.startswith("$ "):
                done = subprocess.run(
                    line[2:], shell=True, env=env, cwd=tmp_path, capture_output=True, text=True,
                    timeout=LIMIT, check=False,
                )  # fmt: skip
                assert done.returncode == 0, (line, done.stderr)


def test_every_script_of_the_guide_runs(home: Path, tmp_path: Path) -> None:
    assert blocks("python")
    for block in blocks("python"):
        done = subprocess.run(
            [sys.executable, "-c", block], env=environment(home), cwd=tmp_path,
            capture_output=True, text=True, timeout=LIMIT, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (block, done.stderr)


def test_an_export_that_cannot_be_written_names_its_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "out.tar"
    done = sto(home, "export", str(target))
    assert (done.returncode, done.stdout) == (78, b"")
    said = f"aios: {target}: Not a directory\nhint: choose another name or folder\n"
    assert done.stderr.decode() == said
