"""A client of MCP servers, run as the worker of a toolbox."""
