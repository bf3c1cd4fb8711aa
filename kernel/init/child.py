"""What a fork of init does to be a process of its own: session, streams, descriptors, program."""

from __future__ import annotations

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

TOKEN_FD = 3  # where a child finds what is its own: a kernel its link, an agent its token
CAUGHT = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)  # by init


def exec_argv(argv: list[str]) -> Callable[[], object]:
    def main() -> NoReturn:
        os.execvp(argv[0], argv)

    return main


def exec_service(argv: list[str], environment: int) -> Callable[[], object]:
    """With the environment that the person's shell had, which is in a file of that number."""

    def main() -> NoReturn:
        given = json.loads(os.pread(environment, os.fstat(environment).st_size, 0))
        os.close(environment)
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        os.execvpe(argv[0], argv, given | os.environ)

    return main


def become_child(
    main: Callable[[], object], output: int, keep: Sequence[int], wall_in: Callable[[], None]
) -> NoReturn:
    """The forked child: a session, streams, descriptors and signals of its own; then `main`. What
    it prints goes to `output`. It has those of `keep` from TOKEN_FD on, and no others."""
    code = 1
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        prctl(PR_SET_CHILD_SUBREAPER, 1)  # its orphans are its own while it lives
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in CAUGHT:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, CAUGHT)
        sys.stderr = sys.__stderr__
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        above = [fcntl.fcntl(fd, fcntl.F_DUPFD, TOKEN_FD + len(keep)) for fd in keep]
        for at, fd in enumerate(above, TOKEN_FD):
            os.dup2(fd, at)
        os.closerange(TOKEN_FD + len(keep), resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # kernel and core may have the data keys
        os.environ["AIOS_FD"] = str(TOKEN_FD)
        wall_in()
        random.seed()
        result = main()
        code = result if isinstance(result, int) else 0
    except BaseException:  # noqa: BLE001 (nothing of init may run on in the child)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
