"""The agent scheduler: which contexts hold the core's slots (paper, section 3.3).

Everything here is pure: events in, decisions out, the time passed in.
"""
