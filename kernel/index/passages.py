"""The cutting of a text into passages, which searches find."""

from __future__ import annotations

import re

MAX_TEXT_CHARS = 1_000_000  # of a text that are indexed; the rest is not
PASSAGE_CHARS = 1600  # of a passage at most: about 250 words of English
OVERLAP_CHARS = 200  # that a passage repeats of the one before, at most

PARAGRAPH = re.compile(r"\n\s*\n")
SENTENCE = re.compile(r"[.!?\u2026\u3002\uff01\uff1f\u061f\u06d4]['\")\]\u201d\u2019]*\s+|\n")
SPACE = re.compile(r"\s+")


def cut(text: str) -> list[tuple[int, int]]:
    """Return the spans (start, end) of a text's passages in characters, without space around them.

    A passage ends with a paragraph, else with a sentence, else with a word, else wherever it must.
    The next one repeats whole sentences, as far as they are short.
    """
    spans = []
    start, last = 0, min(len(text), MAX_TEXT_CHARS)
    while last - start > PASSAGE_CHARS:
        end = _end(text, start + PASSAGE_CHARS // 2, start + PASSAGE_CHARS)
        spans.append((start, end))
        again = SENTENCE.search(text, end - OVERLAP_CHARS, end)
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
