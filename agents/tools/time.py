"""Dates and times."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from msgspec import Meta

from aios.agents.runtime.tool import tool
from aios.syscalls.errors import ToolFailed

Zone = Annotated[str, Meta(max_length=64, description='as in "Europe/Lisbon"')]
Moment = Annotated[str, Meta(max_length=64, description="ISO 8601; UTC unless it has an offset")]
Number = Annotated[float, Meta(ge=-1e9, le=1e9)]


class Now(msgspec.Struct):
    time: str
    weekday: str


class Difference(msgspec.Struct):
    seconds: float
    days: float
    text: str


@tool(name="time.now")
def now(zone: Zone = "UTC") -> Now:
    """Tell the time and day in a time zone."""
    try:
        moment = datetime.now(ZoneInfo(zone))
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise ToolFailed(f"there is no time zone {zone!r}", 'as in "Europe/Lisbon"') from error
    return _shown(moment)


@tool(name="time.difference")
def difference(start: Moment, end: Moment) -> Difference:
    """How long it is from one moment to another; negative if the second is earlier."""
    span = _moment(end) - _moment(start)
    return Difference(span.total_seconds(), span / timedelta(days=1), str(span))


@tool(name="time.add")
def add(
    start: Moment, weeks: Number = 0, days: Number = 0, hours: Number = 0, minutes: Number = 0,
    seconds: Number = 0,
) -> Now:  # fmt: skip
    """The moment that long after (or, with negative numbers, before) another."""
    try:
        span = timedelta(weeks=weeks, days=days, hours=hours, minutes=minutes, seconds=seconds)
        return _shown(_moment(start) + span)
    except OverflowError as error:
        raise ToolFailed("that is beyond the years 1 to 9999") from error


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        hint = "as in 2026-01-31 or 2026-01-31T12:00:00+01:00"
        raise ToolFailed(f"{text!r} is not a time", hint) from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _shown(moment: datetime) -> Now:
    return Now(moment.isoformat(timespec="seconds"), f"{moment:%A}")
