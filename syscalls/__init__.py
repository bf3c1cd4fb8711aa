"""The ABI of AIOS: what a system call is, on both sides of the wire. No sockets here."""

VERSION = "0.1.0"
