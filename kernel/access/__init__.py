"""The access manager: the gate, what it goes by, and what persons are asked."""
