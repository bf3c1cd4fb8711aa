"""Visible and invisible characters. Pure."""

from __future__ import annotations

import re

# str.isprintable() takes these for visible, and no terminal shows them: Unicode's code points that
# are ignorable by default (fillers, joiners, variation selectors), and the empty Braille pattern.
INVISIBLE = (
    "\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0"
    "\U000e0100-\U000e01ef"
)
HIDDEN = re.compile(f"[{INVISIBLE}]")


def is_visible(text: str) -> bool:
    """Return whether each character of `text` shows, and none turns the direction of the rest."""
    return text.isprintable() and not HIDDEN.search(text)
