"""Narrowing of tools' schemas to those that a grammar can hold a model's arguments to.

A value that fits the narrower schema fits the tool's own, and is bounded: small models go on as
long as they may, so texts, lists, numbers and free maps get a bound, and objects take only the
fields that they name. Keywords of JSON Schema that a grammar cannot keep are refused.
"""

from __future__ import annotations

import re
from itertools import combinations
from typing import Any

from aios.syscalls.errors import BadGrammar

MAX_STRING_CHARS, MAX_ITEMS, MAX_FIELDS = 400, 16, 8  # in a list; in a map of free keys
MAX_NUMBER, NUMBER_STEP = 10**15, 1e-6  # numbers are multiples of it
KEY_PATTERN = r"^[\w. -]{1,40}$"  # of a map of free keys
ANY = "aios.any"  # the definition of any value
FORMATS = (  # that grammars know; others are not checked
    "date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri",
)  # fmt: skip
AROUND = re.compile(
    r"(?<!\\)(?:\\\\)*(?:\(\?<?[=!]|\\[bB1-9])"
)  # lookarounds, boundaries and back references
ONE = ("items", "additionalProperties")
LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
NAMED = ("properties", "patternProperties", "$defs", "definitions")
KEPT = (
    "$ref", "type", "enum", "const", "required", "minLength", "maxLength", "pattern", "format",
    "minimum", "maximum", "multipleOf", "exclusiveMinimum", "exclusiveMaximum", "minItems",
    "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
REFUSED = {
    "not", "if", "then", "else", "contains", "minContains", "maxContains", "dependencies",
    "dependentRequired", "dependentSchemas", "propertyNames", "unevaluatedItems",
    "unevaluatedProperties", "$dynamicRef", "$recursiveRef",
}  # fmt: skip
TYPES = {  # of the values that keywords are about, without `type`
    "object": ("properties", "required", "patternProperties", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
BESIDE = ("anyOf", "oneOf", "allOf", "$ref")
OBJECT = (*TYPES["object"], "minProperties", "maxProperties")

Schema = dict[str, Any]


def narrowed(tool: str, schema: Schema) -> Schema:
    """Narrow the schema of the arguments of `tool`.

    Raises:
        BadGrammar: it has a keyword, named in the message, that a grammar cannot keep; or it is
            none of JSON Schema as it is now.
    """
    try:
        return Narrowing(tool, schema).root
    except (AttributeError, TypeError) as error:  # older drafts have other values, or any
        raise BadGrammar(
            f"the schema of the tool {tool} is none of JSON Schema of 2020: {error}",
            "leave this tool out",
        ) from error


class Narrowing:
    def __init__(self, tool: str, schema: Schema) -> None:
        self.tool = tool
        self.unions: list[Schema] = []  # that have `oneOf`
        self.refs: list[str] = []
        self.any = False
        self.mixed = _mixed(schema)  # objects are put together of parts, so none is closed
        root = {"type": "object", **schema}
        if not any(name in root for name in (*OBJECT, *BESIDE)):
            root["properties"] = {}  # a tool that takes nothing
        self.root: Schema = self.of(root)
        if self.any:
            self.root.setdefault("$defs", {})[ANY] = _any(2)
        for ref in self.refs:
            self.at(ref)
        for union in self.unions:
            self.tell_apart(union)

    def refuse(self, keyword: str, why: str = "") -> BadGrammar:
        message = f"the schema of the tool {self.tool} has {keyword!r}{why}"
        return BadGrammar(f"{message}: no grammar can keep that", "leave this tool out")

    def of(self, schema: Any) -> Any:
        """Narrow a part of the schema."""
        if schema is False or (self.mixed and schema in (True, {})):
            return schema
        if not isinstance(schema, dict):
            return self.anything()
        for keyword in sorted(schema.keys() & REFUSED):
            raise self.refuse(keyword)
        out = self.parts(schema)
        if "oneOf" in out:
            self.unions.append(out)
        if "$ref" in out:
            self.refs.append(out["$ref"])
        if "enum" in out or "const" in out:
            return out
        if "type" not in out and not any(key in out for key in BESIDE):
            kinds = [kind for kind, keys in TYPES.items() if any(key in out for key in keys)]
            if not kinds:
                return {**out, **self.anything()}
            out["type"] = kinds[0]
        self.bound(out, unique=schema.get("uniqueItems") is True)
        return out

    def parts(self, schema: Schema) -> Schema:
        """Return the keywords that constrain a value, with the schemas in them narrowed."""
        if isinstance(schema.get("items"), list):  # as tuples were written before 2020
            rest = {"items": schema.get("additionalItems", True)}
            schema = {**schema, "prefixItems": schema["items"], **rest}
        out = {key: value for key, value in schema.items() if key in KEPT}
        out |= {key: self.of(schema[key]) for key in ONE if key in schema}
        out |= {key: [self.of(part) for part in schema[key]] for key in LISTS if key in schema}
        for key in NAMED:
            if key in schema:
                out[key] = {name: self.of(part) for name, part in schema[key].items()}
        return out

    def anything(self) -> Schema:
        self.any = True
        return {"$ref": f"#/$defs/{ANY}"}

    # --- bounds ---------------------------------------------------------------------------------

    def bound(self, out: Schema, *, unique: bool) -> None:
        """Bound the values of a schema by their types."""
        kinds = out.get("type", [])
        kinds = [kinds] if isinstance(kinds, str) else kinds
        if "string" in kinds:
            if out.get("format") not in FORMATS:
                out.pop("format", None)
            if AROUND.search(out.get("pattern", "")):
                raise self.refuse("pattern", f" {out['pattern']!r}")
            longest = min(out.get("maxLength", MAX_STRING_CHARS), MAX_STRING_CHARS)
            out["maxLength"] = max(longest, out.get("minLength", 0))
        if "number" in kinds or "integer" in kinds:
            _bound_number(out, whole="number" not in kinds)
        if "array" in kinds:
            self.bound_list(out, unique)
        if "object" in kinds and not self.mixed:
            self.bound_object(out)

    def bound_list(self, out: Schema, unique: bool) -> None:
        least, first = out.get("minItems", 0), len(out.get("prefixItems", []))
        most = min(out.get("maxItems", MAX_ITEMS), max(least, first, MAX_ITEMS))
        if unique:  # of one item or none that is sure
            most = min(most, 1)
            if least > 1:
                raise self.refuse("uniqueItems", " and takes several")
        out["maxItems"] = most
        if "items" not in out:
            out["items"] = False if 0 < first >= least else self.anything()

    def bound_object(self, out: Schema) -> None:
        """Restrict an object to the fields that it names; one without names takes a few of any."""
        fields, required = out.get("properties", {}), out.get("required", [])
        least = out.get("minProperties", 0)
        if "properties" in out and set(required) <= fields.keys() and least <= len(fields):
            if "patternProperties" not in out:
                out["additionalProperties"] = False
        elif out.get("additionalProperties") is not False and "patternProperties" not in out:
            free = out.pop("additionalProperties", None)
            out["patternProperties"] = {KEY_PATTERN: self.anything() if free is None else free}
        if "patternProperties" in out:
            out.setdefault("additionalProperties", False)
            out["maxProperties"] = min(out.get("maxProperties", MAX_FIELDS), max(least, MAX_FIELDS))

    # --- references and unions ------------------------------------------

    def at(self, ref: str) -> Any:
        """Return the target of a reference within the schema."""
        found: Any = self.root
        try:
            if not ref.startswith("#"):
                raise KeyError(ref)
            for name in ref.split("/")[1:]:
                name = name.replace("~1", "/").replace("~0", "~")  # noqa: PLW2901
                found = found[int(name)] if isinstance(found, list) else found[name]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise self.refuse("$ref", f" to {ref!r}, which is not in it") from error
        return found

    def tell_apart(self, union: Schema) -> None:
        """Turn `oneOf` into `anyOf`, if no value fits two parts."""
        parts = [self.behind(part) for part in union["oneOf"]]
        for one, other in combinations(parts, 2):
            if not _differ(one, other):
                raise self.refuse("oneOf", " whose parts may both fit")
        if "anyOf" in union:
            raise self.refuse("oneOf", " beside 'anyOf'")
        union["anyOf"] = union.pop("oneOf")

    def behind(self, part: Any) -> Any:
        for _ in self.refs:  # they may go round in a circle
            if not isinstance(part, dict) or "$ref" not in part:
                break
            part = self.at(part["$ref"])
        return part


def _mixed(schema: Any) -> bool:
    """Return true if an object is described in several places at once."""
    if isinstance(schema, list):
        return any(_mixed(part) for part in schema)
    if not isinstance(schema, dict):
        return False
    beside = [key for key in BESIDE if key in schema]
    if beside and (len(schema.get("allOf", [])) > 1 or any(key in schema for key in OBJECT)):
        return True
    return len(beside) > 1 or any(_mixed(part) for part in schema.values())


def _bound_number(out: Schema, *, whole: bool) -> None:
    """Bound the digits of a number before and behind the point."""
    bounds = [out[key] for key in TYPES["number"][:4] if key in out]
    if not any(key in out for key in ("minimum", "exclusiveMinimum")):
        out["minimum"] = min([-MAX_NUMBER, *(bound - MAX_NUMBER for bound in bounds)])
    if not any(key in out for key in ("maximum", "exclusiveMaximum")):
        out["maximum"] = max([MAX_NUMBER, *(bound + MAX_NUMBER for bound in bounds)])
    if not whole and "multipleOf" not in out and all(float(bound).is_integer() for bound in bounds):
        out["multipleOf"] = NUMBER_STEP


def _kinds(schema: Schema) -> set[str]:
    """Return the types that a schema names; an integer counts as a number."""
    kinds = schema.get("type", [])
    found = {kinds} if isinstance(kinds, str) else set(kinds)
    return {"number" if kind == "integer" else kind for kind in found}


def _values(schema: Any) -> list[Any] | None:
    """Return all values that fit a schema, if it lists them."""
    if not isinstance(schema, dict):
        return None
    found: list[Any] | None = [schema["const"]] if "const" in schema else schema.get("enum")
    return found


def _differ(one: Any, other: Any) -> bool:
    """Return true if no value fits both schemas, by their types, their values, or a field that
    tells them apart, which is made required."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    values = _values(one), _values(other)
    if values[0] is not None and values[1] is not None:
        return not any(value in values[1] for value in values[0])
    if _kinds(one) and _kinds(other) and not _kinds(one) & _kinds(other):
        return True
    fields = one.get("properties", {}), other.get("properties", {})
    for name in fields[0].keys() & fields[1].keys():
        listed = _values(fields[0][name]), _values(fields[1][name])
        if listed[0] and listed[1] and not any(value in listed[1] for value in listed[0]):
            for part in (one, other):
                part["required"] = sorted({*part.get("required", []), name})
            return True
    return False


def _any(depth: int) -> Schema:
    """Return a schema of any JSON value of at most this depth."""
    text = {"type": "string", "maxLength": MAX_STRING_CHARS}
    number: Schema = {"type": "number"}
    _bound_number(number, whole=False)
    kinds = [text, number, {"type": "boolean"}, {"type": "null"}]
    if depth:
        inner = _any(depth - 1)
        free = {"patternProperties": {KEY_PATTERN: inner}, "additionalProperties": False}
        kinds.append({"type": "array", "items": inner, "maxItems": MAX_ITEMS})
        kinds.append({"type": "object", **free, "maxProperties": MAX_FIELDS})
    return {"anyOf": kinds}
