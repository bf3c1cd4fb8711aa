"""Rules, of which manifests and groups are made.

A *right* is what the table says that a call needs, "sto.read"; an *object* is what the call is
about, as text: OWNER:PATH of storage ("/writer:notes/a", ":a" of a person's, "/writer:notes" of
a call about all below notes), a principal for memory, messages and processes, the
program of a spawn, the name of a tool; else empty.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

Effect = Literal["allow", "ask", "deny"]
Right = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^(\*|[a-z]+(\.[a-z]+)*)\Z")]
MAX_PATTERNS, MAX_PATTERN_CHARS = 64, 512  # for the objects of a rule; in one pattern
Pattern = Annotated[str, Meta(min_length=1, max_length=MAX_PATTERN_CHARS)]
Member = Annotated[str, Meta(min_length=2, max_length=256, pattern="^/")]


class Bounds(Struct, forbid_unknown_fields=True):
    """A number from `min` to `max`."""

    min: float | None = None
    max: float | None = None


# The condition on one argument: a pattern that fits it, or bounds of a number. To allow, each item
# of a list has to fit, and a map never does; to ask or deny one item or value that fits is enough.
Argument = Pattern | Annotated[list[Pattern], Meta(min_length=1, max_length=64)] | Bounds


class Rule(Struct, forbid_unknown_fields=True):
    """Fits a request whose right, object and arguments all fit, of a caller that is so tainted,
    except where all that `unless` says fits as well; there each item of a list has to, for a rule
    that asks or denies, and some item for one that allows: when in doubt the rule is the stricter.

    In patterns `*` is any text without "/" and ":", `**` any text, `{self}` the caller's
    principal. As a string, a rule is "RIGHT" or "RIGHT OBJECT".
    """

    right: Right  # "sto" covers "sto.read" and "sto.write"; "*" covers all
    on: Annotated[list[Pattern], Meta(min_length=1, max_length=MAX_PATTERNS)] = field(
        default_factory=lambda: ["**"]
    )
    args: Annotated[dict[str, Argument], Meta(max_length=64)] = field(default_factory=dict)
    tainted: Annotated[list[Pattern], Meta(max_length=64)] = []  # by one of these; none: or not
    unless: Annotated[dict[str, Argument], Meta(max_length=64)] = field(default_factory=dict)


Rules = Annotated[list[Rule | Annotated[str, Meta(max_length=600)]], Meta(max_length=256)]


class Manifest(Struct, forbid_unknown_fields=True):
    """The rules of an agent. A call that no rule allows is denied; deny wins over ask, and ask over
    allow."""

    allow: Rules = []
    ask: Rules = []
    deny: Rules = []


class Group(Manifest):
    members: Annotated[list[Member], Meta(max_length=1024)] = []  # "/ann", or "/team/*": all below
