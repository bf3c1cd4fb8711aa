"""Contexts, the agent scheduler, and generations on the core."""
