"""A client of the kernel: every system call as a typed method."""
