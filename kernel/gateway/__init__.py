"""Remote callers: the gateway's process, and the kernel's side of it."""
