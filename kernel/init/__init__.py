"""init: the parent of all processes."""
