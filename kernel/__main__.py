"""The kernel process: `python -m aios.kernel CONFIG`, started by init with its link at fd 3."""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys

import msgspec

from aios.syscalls.errors import AiosError

from .boot import Kernel
from .config import Config
from .init.child import TOKEN_FD
from .init.protocol import FATAL
from .lib.encryption import inherited_codec
from .lib.linux import give_back_blocks
from .lib.log_stream import become_log

BLOCK_BYTES = 32 << 10  # of messages; most calls need less


def main() -> int:
    become_log()
    # Ctrl-C and TERM are init's: it tells the kernel to wind up.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # One descriptor an agent, and libzmq aborts the process when accept() finds none.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    config = msgspec.json.decode(sys.argv[1], type=Config)
    try:
        mcp = os.pread(TOKEN_FD + 1, os.fstat(TOKEN_FD + 1).st_size, 0)
        seal = inherited_codec(TOKEN_FD + 2) if config.encrypt else None
        kernel = Kernel(config, TOKEN_FD, seal, mcp)
    except AiosError as error:
        print(json.dumps(error.to_wire()), file=sys.stderr)  # as init does: the starter reads it
        return FATAL
    give_back_blocks(BLOCK_BYTES)
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)  # objects of a thousand calls on their way are no garbage
    kernel.run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
