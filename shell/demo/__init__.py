"""The demo: agents that share a model, beside each of them alone."""
