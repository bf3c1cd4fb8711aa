"""The storage manager: versioned objects, and the chunks of their contents."""
