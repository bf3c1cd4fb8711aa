"""The store: one LMDB environment for memory and storage."""
