"""How a text is cut into the passages that are found."""

from __future__ import annotations

import re

TEXT = 1_000_000  # characters of a text that are indexed; what is behind them is not
SIZE = 1600  # characters of a passage at most: about 250 words of English
OVERLAP = 200  # characters that a passage repeats of the one before, at most

PARAGRAPH = re.compile(r"\n\s*\n")
SENTENCE = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u061f\u06d4]['\")\]\u201d\u2019]*\s+|\n")
SPACE = re.compile(r"\s+")


def cut(text: str) -> list[tuple[int, int]]:
    """The spans (start, end) of the passages of a text, without space around them.

    A passage ends with a paragraph, else with a sentence, else with a word, else wherever it must.
    The next one repeats whole sentences, as far as they are short.
    """
    spans = []
    start, last = 0, min(len(text), TEXT)
    while last - start > SIZE:
        end = _end(text, start + SIZE // 2, start + SIZE)
        spans.append((start, end))
        again = SENTENCE.search(text, end - OVERLAP, end)
        start = again.end() if again else end
    spans.append((start, last))
    return [span for span in (_stripped(text, *span) for span in spans) if span[0] < span[1]]


def _end(text: str, low: int, high: int) -> int:
    for boundary in (PARAGRAPH, SENTENCE, SPACE):
        found = [match.end() for match in boundary.finditer(text, low, high)]
        if found:
            return found[-1]
    return high


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
