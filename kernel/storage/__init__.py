"""The storage manager: versioned objects."""
