"""Confine an agent's process by means of Linux."""
