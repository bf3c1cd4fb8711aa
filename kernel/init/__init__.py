"""The parent of all processes of a system."""
