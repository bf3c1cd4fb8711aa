"""A stdout for code that runs within a tool."""

from __future__ import annotations

import codecs
import io
from typing import Any


class Printed(io.TextIOBase):
    """A text stream that passes text and bytes to `write` of a subclass."""

    def __init__(self) -> None:
        self.buffer = Bytes(self)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True


class Bytes(io.RawIOBase):
    """The `buffer` of a stream, for code that writes bytes: they are UTF-8 to it."""

    def __init__(self, text: io.TextIOBase) -> None:
        self.text = text
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        part = bytes(data)
        self.text.write(self.decoder.decode(part))
        return len(part)
