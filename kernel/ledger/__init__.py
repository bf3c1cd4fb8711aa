"""The rows of the kernel's state in the journal, and their recovery."""
