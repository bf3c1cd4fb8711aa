"""The base of all parts of the kernel: files, Linux, encryption, patterns. Knows no process."""
