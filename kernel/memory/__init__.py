"""The memory manager: the short-term memory of agents, and their interaction logs."""
