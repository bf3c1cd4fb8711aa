"""The toolboxes that ship, one a file. Each is plain functions marked @tool: docs/tools.md."""
