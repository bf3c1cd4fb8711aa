"""Inheritance: the limits and the sandbox grants that an agent has from its spawner."""

from __future__ import annotations

import msgspec
from msgspec import UNSET

from aios.syscalls.errors import Denied, NoProgram
from aios.syscalls.proc import Limits, NewLimits, SandboxGrants, Spawn

from ..config import Config
from ..process import Process
from ..sandbox.sandbox import can_read, merge_grants, program_paths

MORE = "a person lets it through to more: docs/walls.md"


def limits_of(config: Config, parent: Process | None, args: Spawn) -> Limits:
    """Return the limits of a process spawned by an agent, or with None by a person."""
    if parent is None:
        return changed(config.limits, args.limits)
    return tightened(parent.limits, changed(parent.limits, args.limits))


def changed(limits: Limits, new: NewLimits | None) -> Limits:
    """Return `limits` with those that `new` sets."""
    if new is None:
        return limits
    fields = ((name, getattr(new, name)) for name in NewLimits.__struct_fields__)
    said = {name: value for name, value in fields if value is not UNSET}
    return msgspec.structs.replace(limits, **said) if said else limits


def tightened(above: Limits, wanted: Limits) -> Limits:
    """Return `wanted`, nowhere looser than `above`."""
    fields = {}
    for name in Limits.__struct_fields__:
        bounds = [b for b in (getattr(above, name), getattr(wanted, name)) if b is not None]
        fields[name] = min(bounds) if bounds else None
    return Limits(**fields)


def grants_of(config: Config, parent: Process | None, args: Spawn) -> SandboxGrants:
    """Return the sandbox grants of a process spawned by an agent, or with None by a person, whose
    process may also read its program and the files beside it.

    Raises:
        NoProgram: an agent cannot read the program that it names, be it there or not.
        Denied: an agent hands on a grant that it does not have itself, word for word.
    """
    if parent is None:
        given = args.reach or SandboxGrants()
        own = program_paths(args.program, config.path) if args.program.startswith("/") else []
        return merge_grants(given, SandboxGrants(read=own)) if own else given
    around = merge_grants(config.walls, parent.reach)
    for path in (args.program, args.cwd or ""):  # init finds every file of this user
        if "/" in path and not can_read(around, config.path, parent.pid, path):
            raise NoProgram(f"there is no {path} that the agent can_read", MORE)
    if args.reach is None:
        return parent.reach
    for name in SandboxGrants.__struct_fields__:
        had, wanted = getattr(parent.reach, name), getattr(args.reach, name)
        more = set(wanted) - set(had) if isinstance(wanted, list) else wanted and not had
        if more and name != "all_walls":
            raise Denied(f"{name}: an agent hands on what it was given itself, not {more}", MORE)
    return args.reach
