"""The programs that init starts, and the base classes of what they run: agents and tools."""
