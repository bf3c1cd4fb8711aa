"""The access manager: the gate, the rules and grants that it applies, and approvals by a person."""
