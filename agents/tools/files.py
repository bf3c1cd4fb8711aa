"""Texts in the caller's own storage."""

from __future__ import annotations

import codecs
from itertools import islice
from typing import Annotated

import msgspec
from msgspec import Meta

from aios.agents.runtime.tool import Running, tool
from aios.syscalls.errors import ToolFailed

MAX_LISTED = 200
PART_BYTES = 16_384  # that one call reads

Path = Annotated[str, Meta(min_length=1, max_length=200, description='as in "notes/today.md"')]


class Entry(msgspec.Struct):
    path: str
    size: int  # bytes
    version: int


class Part(msgspec.Struct):
    text: str
    size: int  # bytes of the whole
    next: int | None  # the offset to go on from; null: this was the end


@tool(name="files.list")
def list_files(job: Running, prefix: str = "") -> list[Entry]:
    """List the files in storage whose path begins with the prefix, at most 200."""
    found = islice(job.aios.sto_list(prefix), MAX_LISTED)
    return [Entry(info.path, info.size, info.version) for info in found]


@tool(name="files.read")
def read(path: Path, job: Running, offset: Annotated[int, Meta(ge=0)] = 0) -> Part:
    """Read a text in storage, 16 KiB at a time; offset is in bytes."""
    content = job.aios.sto_read(path, offset=offset, count=PART_BYTES)
    size, data = content.info.size, content.data
    if b"\0" in data:
        raise ToolFailed(f"{path} is not a text", "other tools read images and databases")
    end = offset + len(data)
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(data, final=end >= size)
    cut = len(decoder.getstate()[0])  # bytes of a character that comes with the next part
    return Part(text, size, next=None if end >= size else end - cut)


@tool(name="files.write", effect=True)
def write(path: Path, text: str, job: Running) -> Entry:
    """Write a text to storage, in place of what is there; earlier versions are kept."""
    done = job.aios.sto_put(path, text)
    return Entry(done.path, done.size, done.version)


@tool(name="files.delete", effect=True)
def delete(path: Path, job: Running) -> Entry:
    """Delete a file in storage; earlier versions are kept."""
    done = job.aios.sto_delete(path)
    return Entry(done.path, done.size, done.version)
