"""The memory manager: what agents keep, and their interaction logs."""
