"""The worst arguments that a call's schema allows: of each field the longest text, the most items,
the deepest nesting; and patterns and texts that are slow to match."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from itertools import islice
from typing import Annotated, Any

import msgspec
from msgspec import inspect

from aios.kernel.entry.envelope import MAX_DEPTH
from aios.syscalls.wire import MAX_CALL_BYTES

ROOM = MAX_CALL_BYTES - 2048  # bytes of one field
# Text that its patterns let through, some of it slow to match.
TEXTS = (
    "*a", "**/", "a*", "{self}", "a", "A", "/a", "é", "a.", "a/", "\u0430\u0301", "<|im_end|>",
    "()", "[", "-", "0", "a:",
)  # fmt: skip


def encoded(value: Any) -> int:
    return len(msgspec.msgpack.encode(value))


def fits(value: Any, type_: Any) -> bool:
    try:
        msgspec.convert(value, type_)
    except (msgspec.ValidationError, ValueError):
        return False
    return True


def nested(depth: int, inner: Any = None) -> Any:
    value = inner
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


@cache
def anything(room: int) -> tuple[Any, ...]:
    return (
        "x" * (room - 8), [0] * (room - 8), {f"{n:x}": 0 for n in range(room // 7)},
        nested(MAX_DEPTH - 1), [nested(MAX_DEPTH - 4)] * (room // (2 * MAX_DEPTH)),
        [[]] * (room - 8), [{}] * (room // 2), ["\ud7ff"] * (room // 5),
    )  # fmt: skip


@cache
def texts(most: int, least: int, pattern: str, *, many: bool) -> tuple[str, ...]:
    """A text of at most so many bytes."""
    found: dict[str, None] = {}
    kind = Annotated[str, msgspec.Meta(min_length=least, pattern=pattern)] if pattern else str
    for text in TEXTS if many else TEXTS[4:7]:
        whole = (text * most)[: most // len(text.encode()) * len(text)]
        for begin in ("", "/", "*") if many else ("", "/"):
            for each in ((begin + whole)[:most], (begin + whole)[: most - 1] + "b"):
                if fits(each, kind):
                    found[each] = None
    return tuple(found)


def worst(type_: Any, room: int, depth: int = 0) -> Iterator[Any]:
    """Values of a type of `inspect`, each the worst in some way, of no more than `room` bytes."""
    found = MAKERS[type(type_)](type_, room, depth)
    yield from found


def strings(type_: Any, room: int, depth: int) -> Iterator[str]:
    most = min(1 << (room.bit_length() - 1), type_.max_length or room)
    yield from texts(most, type_.min_length or 0, type_.pattern or "", many=depth < 2)


def numbers(type_: Any, _room: int, _depth: int) -> Iterator[float]:
    step = 1 if isinstance(type_, inspect.IntType) else 1e-9
    for bound, inwards in ((type_.ge, 0), (type_.le, 0), (type_.gt, step), (type_.lt, -step)):
        if bound is not None:
            yield type(bound)(bound + inwards)
    if type_.ge is None or type_.le is None:
        yield 2**53 - 1


def union(type_: Any, room: int, depth: int) -> Iterator[Any]:
    for each in type_.types:
        if not isinstance(each, inspect.NoneType):
            yield from worst(each, room, depth)


def tuples(type_: Any, room: int, depth: int) -> Iterator[list[Any]]:
    yield [next(worst(each, room, depth + 1)) for each in type_.item_types]


def lists(type_: Any, room: int, depth: int) -> Iterator[list[Any]]:
    most = room if type_.max_length is None else type_.max_length
    share = max(64, room // max(1, min(most, 64)))
    for size in dict.fromkeys((16, share, room - 64)):
        for value in islice(worst(type_.item_type, size, depth + 1), 3 if depth else 8):
            count = min(most, max(1, (room - 16) // max(1, encoded(value))))
            if encoded(value) <= room:
                yield [value] * count


def dicts(type_: Any, room: int, depth: int) -> Iterator[dict[Any, Any]]:
    most = room if type_.max_length is None else type_.max_length
    for size in (8, room - 512):
        for value in islice(worst(type_.value_type, size, depth + 1), 3 if depth else 8):
            count = min(most, max(1, (room - 512) // (encoded(value) + 6)))
            found = {f"{n:x}": value for n in range(count)}
            if encoded(found) <= room:
                yield found
    longest = (getattr(type_.key_type, "max_length", None) or 1024) - 8
    value = next(worst(type_.value_type, 16, depth + 1))
    count = min(most, max(1, room // (longest + encoded(value) + 12)))
    yield {f"{n:07}".ljust(longest, "k"): value for n in range(count)}


def structs(type_: Any, room: int, depth: int) -> Iterator[dict[str, Any]]:
    """Each field at its worst with the others at their least; then all, each with its share."""
    least = {
        field.encode_name: next(iter(minimal(field.type)))
        for field in type_.fields
        if field.required
    }
    yield least
    for field in type_.fields:
        for value in islice(
            worst(field.type, room - 256, depth + 1), (None, 5, 2, 1)[min(depth, 3)]
        ):
            yield least | {field.encode_name: value}
    share = max(64, (room - 256) // max(1, len(type_.fields)))
    every = {}
    for field in type_.fields:
        every[field.encode_name] = next(worst(field.type, share, depth + 1))
    yield every


def minimal(type_: Any) -> Iterator[Any]:
    match type_:
        case inspect.StrType():
            known = Annotated[str, msgspec.Meta(min_length=type_.min_length, pattern=type_.pattern)]
            plain = type_.pattern is None and not type_.min_length
            yield (
                ""
                if plain
                else next(each for each in ("a", "/a", "aa", "a" * 40) if fits(each, known))
            )
        case inspect.BytesType():
            yield b""
        case inspect.AnyType() | inspect.NoneType():
            yield None
        case inspect.BoolType():
            yield False
        case inspect.ListType():
            yield [next(minimal(type_.item_type))] * (type_.min_length or 0)
        case inspect.DictType():
            yield {"a": next(minimal(type_.value_type))} if type_.min_length else {}
        case inspect.StructType():
            yield next(structs(type_, 4096, 1))
        case inspect.UnionType():
            yield next(minimal(type_.types[0]))
        case _:
            yield next(worst(type_, 64, 1))


def worst_of(args: type) -> Iterator[dict[str, Any]]:
    """Arguments of a call that its decoder takes."""
    for found in structs(inspect.type_info(args), ROOM, 0):
        if encoded(found) <= MAX_CALL_BYTES and fits(found, args):
            yield found


MAKERS: dict[type, Callable[[Any, int, int], Iterator[Any]]] = {
    inspect.StrType: strings,
    inspect.BytesType: lambda type_, room, _: iter(
        [bytes(min(room, type_.max_length or room) - 8)]
    ),
    inspect.IntType: numbers,
    inspect.FloatType: numbers,
    inspect.BoolType: lambda *_: iter((True, False)),
    inspect.NoneType: lambda *_: iter((None,)),
    inspect.LiteralType: lambda type_, *_: iter(type_.values),
    inspect.AnyType: lambda _, room, __: iter(anything(room)),
    inspect.UnionType: union,
    inspect.TupleType: tuples,
    inspect.ListType: lists,
    inspect.DictType: dicts,
    inspect.StructType: structs,
}
