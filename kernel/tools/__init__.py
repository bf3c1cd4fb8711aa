"""The tool manager: toolboxes, and jobs for their workers."""
