"""Agents that let a model decide what to do: step by step (ReAct) or by a plan."""

from .planner import Planner
from .react import LoopLimits, ReAct

__all__ = ["LoopLimits", "Planner", "ReAct"]
