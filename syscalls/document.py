"""Writes docs/abi.md out of the table, the errors and the frames.

python -m aios.syscalls.document > docs/abi.md
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from msgspec import NODEFAULT
from msgspec import inspect as mi

from . import errors, wire
from .table import SYSCALLS, Syscall

HEAD = """# The ABI of AIOS

Written by `python -m aios.syscalls.document` out of `syscalls/`: change it there.
A test compares the two. Times are in seconds, memory is in bytes, text is UTF-8.

## Frames
"""

VERSIONS = f"""
A call holds at most {wire.MAX_CALL_BYTES} bytes. DONE is {wire.DONE}, FAILED is {wire.FAILED},
PIECE is {wire.PIECE}. `args` is a map: a field that has a default may be left out, a field that
the table does not know is an error. The kernel knows its caller from the connection, so no
message says who sent it. By tcp the kernel may send an empty message, to see whether the caller is
there: drop it.

## Versions

This is version {wire.ABI_VERSION}. The first call of a connection is `hello`, with the version that
the caller speaks; a kernel of another version answers `hello.version` and names both. Readers of
replies ignore fields that they do not know.

## System calls
"""


def document() -> str:
    """Return the text of docs/abi.md."""
    frames = inspect.getdoc(wire) or ""
    return "\n".join([HEAD, frames, VERSIONS, *_calls(), *_records(), *_errors()]) + "\n"


def _calls() -> Iterator[str]:
    yield from _table("call", "right", "what it does")
    for row in SYSCALLS:
        yield f"| [`{row.name}`](#{row.name.replace('.', '')}) | `{row.right}` | {row.doc} |"
    for row in SYSCALLS:
        yield from _call(row)


def _call(row: Syscall) -> Iterator[str]:
    yield from ("", f"### `{row.name}`", "", row.doc, "")
    if row.args.__doc__ and row.args.__doc__ != row.args.__base__.__doc__:
        yield from (inspect.cleandoc(row.args.__doc__), "")
    args = mi.type_info(row.args)
    assert isinstance(args, mi.StructType)
    if args.fields:
        yield from _fields(args)
    else:
        yield "No fields."
    if row.piece is not None:
        yield f"\nPieces: {_type(mi.type_info(row.piece))}."
    if row.exactly_once:
        yield "\nDone exactly once, whatever happens to the kernel."
    yield f"\nReply: {_type(mi.type_info(row.reply))}."


def _records() -> Iterator[str]:
    """Yield every struct that a call's fields or replies name."""
    seen: dict[str, mi.StructType] = {}
    for row in SYSCALLS:
        args = mi.type_info(row.args)
        assert isinstance(args, mi.StructType)
        types = [field.type for field in args.fields] + [mi.type_info(row.reply)]
        for each in [*types, *([mi.type_info(row.piece)] if row.piece else [])]:
            for struct in _structs(each):
                assert seen.setdefault(struct.cls.__name__, struct).cls is struct.cls
    yield "\n## Records"
    for name, struct in sorted(seen.items()):
        yield from ("", f"### {name}", "")
        own = struct.cls.__doc__
        if own and own != struct.cls.__base__.__doc__:
            yield from (inspect.cleandoc(own), "")
        if struct.fields:
            yield from _fields(struct)
        else:
            yield "An empty map."


def _structs(type_: mi.Type) -> Iterator[mi.StructType]:
    if isinstance(type_, mi.StructType):
        yield type_
        for field in type_.fields:
            yield from _structs(field.type)
    for name in ("types", "item_types"):
        for inner in getattr(type_, name, ()):
            yield from _structs(inner)
    for name in ("item_type", "value_type"):
        if hasattr(type_, name):
            yield from _structs(getattr(type_, name))


def _errors() -> Iterator[str]:
    yield "\n## Errors\n\n`{code, message, hint}`; programs may match on the code.\n"
    yield from _table("code", "type", "meaning")
    for code, cls in sorted(errors.BY_CODE.items()):
        yield f"| `{code}` | {cls.__name__} | {' '.join((cls.__doc__ or '').split())} |"


def _table(*columns: str) -> tuple[str, str]:
    return "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"


def _fields(struct: mi.StructType) -> Iterator[str]:
    notes = _comments(struct.cls)
    yield from _table("field", "type", "default", "")
    for field in struct.fields:
        note = notes.get(field.name, "")
        yield f"| `{field.name}` | {_type(field.type)} | {_default(field)} | {note} |"


def _comments(cls: type) -> dict[str, str]:
    """Return the comment behind each field in the source of `cls`."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.startswith(__package__):
            found |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(base), re.M))
    return found


def _default(field: mi.Field) -> str:
    if field.required:
        return "required"
    if field.default_factory is not NODEFAULT:
        return f"`{field.default_factory()}`"
    if field.default is NODEFAULT:  # so msgspec describes UNSET
        return "absent"
    return "nil" if field.default is None else f"`{field.default}`"


def _type(type_: mi.Type) -> str:
    """Describe a msgpack type and its limits."""
    match type_:
        case mi.IntType() | mi.FloatType():
            words = " ".join([_plain(type_), *_bounds(type_)])
        case mi.StrType() | mi.BytesType():
            pattern = getattr(type_, "pattern", None)
            words = ", ".join([_plain(type_), *_sizes(type_), *([f"`{pattern}`"] * bool(pattern))])
        case mi.ListType():
            words = ", ".join([f"array of {_type(type_.item_type)}", *_sizes(type_)])
        case mi.TupleType():
            words = f"[{', '.join(map(_type, type_.item_types))}]"
        case mi.DictType():
            words = f"map of {_type(type_.key_type)} to {_type(type_.value_type)}"
        case mi.UnionType():
            words = " or ".join(_type(each) for each in type_.types)
        case mi.LiteralType():
            words = " or ".join(f"`{value}`" for value in type_.values)
        case mi.StructType():
            words = f"[{type_.cls.__name__}](#{type_.cls.__name__.lower()})"
        case _:
            words = _plain(type_)
    return words


def _plain(type_: mi.Type) -> str:
    return {
        mi.IntType: "int",
        mi.FloatType: "float",
        mi.StrType: "str",
        mi.BytesType: "bin",
        mi.BoolType: "bool",
        mi.NoneType: "nil",
        mi.AnyType: "any",
    }[type(type_)]


def _bounds(type_: mi.IntType | mi.FloatType) -> list[str]:
    if type_.ge is not None and type_.le is not None:
        return [f"{type_.ge:g} to {type_.le:.15g}"]
    given = ((">", type_.gt), (">=", type_.ge), ("<", type_.lt), ("<=", type_.le))
    return [f"{sign} {bound:.15g}" for sign, bound in given if bound is not None]


def _sizes(type_: mi.StrType | mi.BytesType | mi.ListType) -> list[str]:
    least, most = type_.min_length, type_.max_length
    if most is not None:
        return [f"{least or 0} to {most} long"]
    return [f"at least {least} long"] if least else []


if __name__ == "__main__":
    print(document(), end="")
