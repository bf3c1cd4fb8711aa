"""The audit log: what every system call asked for, who, what was decided, and what came of it, in
segments of chained records below a signed Merkle tree. docs/audit.md has the format."""
