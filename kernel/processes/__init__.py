"""The life of processes: spawned, waited for, written to, read from, ended."""
