"""Turn a fork of init into a process of its own: session, streams, descriptors, program."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import NoReturn

from ..lib.linux import PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_SET_PDEATHSIG, prctl

TOKEN_FD = 3  # the first inherited descriptor: the kernel's link, an agent's token
CAUGHT_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def exec_argv(argv: list[str]) -> Callable[[], object]:
    def main() -> NoReturn:
        os.execvp(argv[0], argv)

    return main


def exec_service(argv: list[str], environment: int) -> Callable[[], object]:
    """Return a function that executes `argv` with the environment of the person's shell.

    `environment` is the number of a file that holds it.
    """

    def main() -> NoReturn:
        given = json.loads(os.pread(environment, os.fstat(environment).st_size, 0))
        os.close(environment)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        os.execvpe(argv[0], argv, given | os.environ)

    return main


def become_child(
    main: Callable[[], object], output: int, keep: Sequence[int], enter_sandbox: Callable[[], None]
) -> NoReturn:
    """Run `main` in the forked child, with a session, streams and signals of its own.

    Output goes to the descriptor `output`. The child has the descriptors `keep`, from TOKEN_FD on,
    and no others.
    """
    code = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # it adopts its orphans
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in CAUGHT_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT_SIGNALS)
        sys.stderr = sys.__stderr__
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        above = [fcntl.fcntl(fd, fcntl.F_DUPFD, TOKEN_FD + len(keep)) for fd in keep]
        for at, fd in enumerate(above, TOKEN_FD):
            os.dup2(fd, at)
        os.closerange(TOKEN_FD + len(keep), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump could hold the data keys
        os.environ["AIOS_FD"] = str(TOKEN_FD)
        enter_sandbox()
        random.seed()
        result = main()
        code = result if isinstance(result, int) else 0
    except BaseException:  # noqa: BLE001 (no code of init may go on in the child)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def signal_group(os_pid: int, number: int) -> None:
    """Signal a child and its group. A child has no group at first, and none after it is gone."""
    for send in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            send(os_pid, number)
            return
