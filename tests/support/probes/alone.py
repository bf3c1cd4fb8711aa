"""One wall alone: put up in this process, which then runs the probes. Prints what was refused.

python alone.py WALL FOLDER TARGETS
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
from probes.files import FILES
from probes.others import OTHERS
from probes.sockets import SOCKETS
from probes.system import LINUX

from aios.kernel.lib.linux import PR_SET_NO_NEW_PRIVS, drop_capabilities, prctl
from aios.kernel.sandbox import landlock, mount_namespace, sandbox, seccomp

WALLS = ("none", "Landlock", "view", "seccomp", "capabilities")
READ = [*sandbox.SYSTEM, *sandbox.python_paths(), "/proc"]
NEEDS_KERNEL = "signal everybody"


def filter_calls() -> None:
    rules = seccomp.rules(network=False, processes=False, modes=False, signals=False)
    rules += seccomp.signal_rules(os.getpid())
    seccomp.install(seccomp.assemble(rules, notify=False), listen=False)


def main() -> None:
    wall, own, targets = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    mechanisms: dict[str, Callable[[], None]] = {
        "Landlock": lambda: landlock.restrict(READ, [own], []),
        "view": lambda: mount_namespace.enter(
            mount_namespace.real(READ), mount_namespace.real([own])
        ),
        "seccomp": filter_calls,
        "capabilities": drop_capabilities,
        "none": lambda: None,
    }
    prctl(PR_SET_NO_NEW_PRIVS, 1)  # without it there are no others
    mechanisms[wall]()
    refused = []
    for name, probe in (FILES | OTHERS | SOCKETS | LINUX).items():
        os.chdir(own)
        try:
            if name != NEEDS_KERNEL:
                probe(targets)
        except OSError:
            refused.append(name)
    print(json.dumps(refused))


main()
