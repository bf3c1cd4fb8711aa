"""Callers from elsewhere: a process of its own, and the kernel's side of it."""
