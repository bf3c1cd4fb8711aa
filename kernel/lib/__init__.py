"""What any part of AIOS may stand on: files, Linux, encryption, patterns. Knows no process."""
