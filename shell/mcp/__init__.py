"""AIOS as an MCP server, for other programs."""
