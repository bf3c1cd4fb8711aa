"""The audit log: who called what, what was decided, and the outcome. docs/audit.md has the format.

Records are chained in segments, below a signed Merkle tree.
"""
