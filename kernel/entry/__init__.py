"""Where system calls come in: connections, sessions, dispatch, and replies that are kept."""
