"""The frames between the system's processes: their tags and fields outlive the names of classes.

A kernel may be started by an init of another version, and read a journal of another kernel.
"""

from __future__ import annotations

from types import UnionType
from typing import get_args

import pytest
from msgspec import Struct

from aios.kernel.core.protocol import CoreFrame
from aios.kernel.gateway import protocol as gateway
from aios.kernel.index.protocol import IndexFrame
from aios.kernel.init import protocol as init
from aios.kernel.ledger import context_rows

TAGS = {
    init.ToInit: {"StartAgent", "StartService", "SignalChild", "Heard"},
    init.ToKernel: {"Census", "Started", "StartFailed", "Gone", "Paused", "Refused", "WindUp"},
    gateway.ToGateway: {"Allow", "Say"},
    gateway.FromGateway: {"Bound", "Refused", "Came", "Left"},
}


CORE = {
    "Run", "Halt", "Drop", "Reset", "Prefetch", "Encode", "Decode", "Compile", "Ready", "Failed",
    "Encoded", "Out", "Halted", "Counters", "Step",
}  # fmt: skip
INDEX = {"Reset", "Put", "Remove", "Search", "Position", "Found", "Failed"}


@pytest.mark.parametrize("frames", TAGS)
def test_frames_keep_their_tags(frames: UnionType) -> None:
    assert {frame.__struct_config__.tag for frame in get_args(frames)} == TAGS[frames]


@pytest.mark.parametrize(("base", "tags"), [(CoreFrame, CORE), (IndexFrame, INDEX)])
def test_frames_of_core_and_index_keep_their_tags(base: type[Struct], tags: set[str]) -> None:
    assert {frame.__struct_config__.tag for frame in base.__subclasses__()} == tags


def test_frames_and_rows_keep_their_fields() -> None:
    agent = init.StartAgent.__struct_encode_fields__
    assert agent == ("key", "program", "args", "token", "cwd", "log", "walls")
    assert init.Takeover.__struct_encode_fields__[-1] == "walls"
    assert context_rows.Change.__struct_config__.tag == "Change"
