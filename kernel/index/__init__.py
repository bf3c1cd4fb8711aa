"""Retrieval: an index of texts that is searched by words and by meaning, in a process of its own.

It is derived data: whatever is wrong with its file, it is made again from the store.
"""
