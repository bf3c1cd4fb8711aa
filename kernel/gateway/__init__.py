"""Callers from elsewhere."""
