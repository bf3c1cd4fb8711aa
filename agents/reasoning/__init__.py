"""Agents that let a model decide what to do: step by step (ReAct) or by a plan."""

from .planner import Planner
from .react import Limits, ReAct

__all__ = ["Limits", "Planner", "ReAct"]
