"""A strict reader of JSON that a model wrote.

A grammar holds the text to a schema, not the value. A key that comes twice, or is written with
escapes, can put another value in a field's place; a number can be none that a float holds.
"""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from typing import Any

STRING = re.compile(r'("(?:[^"\\]|\\.)*")(\s*:)?')  # with a colon, it is a key
FLOAT_DIGITS = 15  # a float holds all numbers of so many, and bounds of schemas have no more


def read(text: str) -> Any:
    """Read the value of a JSON text.

    Raises:
        ValueError: it is not JSON; an object has a key twice, or one that is written with escapes
            without need; a number is not what a float makes of it.
    """
    value = json.loads(
        text, object_pairs_hook=_object, parse_float=_number, parse_constant=_constant
    )
    for string, colon in STRING.findall(text):
        if colon and "\\" in string:
            plain = json.dumps(json.loads(string), ensure_ascii=False)
            if plain != string:
                raise ValueError(f"the key {plain[:80]} is written as {string[:80]}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for at, key in enumerate(keys) if key in keys[:at])
        raise ValueError(f"an object has the key {twice[:80]!r} twice")
    return found


def _number(text: str) -> float:
    """Convert a number. Raises ValueError if rounding could have moved it past a bound."""
    value = float(text)
    if math.isinf(value) or value == 0:
        kept = value == 0 and not re.search("[1-9]", re.split("[eE]", text)[0])
    else:
        nearest = Decimal(repr(value))
        kept = nearest == Decimal(text) or len(nearest.as_tuple().digits) > FLOAT_DIGITS
    if not kept:
        raise ValueError(f"the number {text[:80]} is not what a float makes of it")
    return value


def _constant(text: str) -> Any:
    raise ValueError(f"{text} is no value of JSON")
