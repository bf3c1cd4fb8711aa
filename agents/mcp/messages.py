"""The messages of MCP servers, mended: many servers are not strict about the protocol.

Pure: bytes and JSON in, messages out.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import mcp_types as types
from jsonschema import Draft202012Validator, SchemaError
from jsonschema.protocols import Validator
from jsonschema.validators import validator_for
from mcp_types import JSONRPCError, JSONRPCMessage, jsonrpc_message_adapter
from pydantic import ValidationError
from referencing import Registry

ENVELOPE = {"jsonrpc", "id", "method", "params", "result", "error"}
CUT_OFF = re.compile(r'\{.*"jsonrpc"', re.DOTALL)
HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair
SHOWN_CHARS = 200  # of a server's text in an error
MAX_TOOLS = 512  # of one server
MAX_AMOUNT = 1e18  # of progress, that the kernel takes


class BadMessage(Exception):
    """A message is cut off, which may be an answer that somebody waits for."""


def messages_of(line: bytes) -> list[JSONRPCMessage]:
    """Parse the messages in a line: several are allowed by the protocol of March 2025, and a line
    of a log, as many servers print, has none.

    Raises:
        BadMessage: the line begins as a message, and is not JSON.
    """
    line = line.removeprefix(codecs.BOM_UTF8)  # some write it before the first
    try:
        return [jsonrpc_message_adapter.validate_json(line, by_name=False)]
    except ValidationError:
        text = line.decode(errors="replace").strip()
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        if CUT_OFF.match(text):
            raise BadMessage(text[:SHOWN_CHARS]) from error
        return []
    each = found if isinstance(found, list) else [found]
    return [_mended(one) for one in each if _is_message(one)]


def _is_message(found: Any) -> bool:
    """Tell a message from a line of a log, which may be JSON as well."""
    if not isinstance(found, dict) or not found.keys() & {"method", "result", "error"}:
        return False
    method = found.get("method", "")
    says_so = "id" in found or (isinstance(method, str) and method.startswith("notifications/"))
    return "jsonrpc" in found or (says_so and found.keys() <= ENVELOPE)


def _mended(found: dict[str, Any]) -> JSONRPCMessage:
    number = found.get("id")
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    if isinstance(number, str):
        number = HALF.sub("\ufffd", number)
    message: dict[str, Any] = {"jsonrpc": "2.0", **({"id": number} if "id" in found else {})}
    if "method" in found:
        message["method"] = found["method"]
        if isinstance(found.get("params"), dict):
            message["params"] = found["params"]
    elif found.get("error") is None and isinstance(found.get("result"), dict):
        message["result"] = found["result"]
    else:
        message |= {"id": number, "error": _error(found.get("error"))}
    try:
        text = HALF.sub("\ufffd", json.dumps(message, ensure_ascii=False))
        return jsonrpc_message_adapter.validate_json(text, by_name=False)
    except ValidationError:
        what = types.ErrorData(code=types.PARSE_ERROR, message="its answer is not of the protocol")
        is_known = type(number) in (str, int) and "method" not in found
        return JSONRPCError(jsonrpc="2.0", id=number if is_known else None, error=what)


def _error(given: Any) -> dict[str, Any]:
    if not isinstance(given, dict):
        given = {"message": "its answer has no result" if given is None else str(given)}
    code, words = given.get("code"), given.get("message")
    error: dict[str, Any] = {"code": code if type(code) is int else types.INTERNAL_ERROR}
    if not isinstance(words, str):
        words = f"error {code}" if words is None else str(words)
    return error | {"message": words, "data": given.get("data")}


def mended_body(body: bytes) -> bytes:
    """Mend the body of an HTTP response; one that holds a valid message, or none, is unchanged."""
    try:
        jsonrpc_message_adapter.validate_json(body, by_name=False)
    except ValidationError:
        with suppress(BadMessage):
            for message in messages_of(body):
                return message.model_dump_json(by_alias=True, exclude_unset=True).encode()
    return body


def mended_event(line: bytes) -> bytes:
    """Mend the message in a line of an event stream."""
    field, colon, value = line.partition(b":")
    return b"data: " + mended_body(value.strip()) if colon and field == b"data" else line


def answers(request: bytes, body: bytes) -> tuple[bool, str]:
    """Return true if the body of an HTTP error answers the request, and the text of its error."""
    try:
        message, *_ = messages_of(body)
        asked = json.loads(request)
    except (BadMessage, ValueError):
        return False, ""
    if not isinstance(message, JSONRPCError):
        return False, ""
    return message.id is not None and message.id == asked.get("id"), message.error.message


# --- results ------------------------------------------------------------------------------------


def mend_result(result: dict[str, Any], modern: bool, left_out: Callable[[str], None]) -> None:
    """Reduce a list of tools, or a server's description of itself, to the parts that are used.
    `left_out` is called for tools that cannot be used."""
    if "content" in result or "structuredContent" in result:  # of a call
        result.setdefault("content", [])  # some say a thing once
        return
    if not isinstance(result.get("_meta", {}), dict):
        del result["_meta"]
    if isinstance(result.get("tools"), list):
        if len(result["tools"]) > MAX_TOOLS + 1:  # of 50,000 to look at each takes half a minute
            left_out(
                f"of {len(result['tools'])} tools on a page those behind {MAX_TOOLS} are left out"
            )
        result["tools"] = list(_tools(result["tools"][: MAX_TOOLS + 1], modern, left_out))
        if not isinstance(result.get("nextCursor"), str):
            result.pop("nextCursor", None)
    elif "protocolVersion" in result:
        about = _object(result.get("serverInfo"))
        result["serverInfo"] = {key: str(about.get(key, "?")) for key in ("name", "version")}
        tools = _object(_object(result.get("capabilities")).get("tools"))
        result["capabilities"] = {"tools": {"listChanged": tools.get("listChanged") is True}}
        result.pop("instructions", None)


def _tools(tools: list[Any], modern: bool, left_out: Callable[[str], None]) -> Iterator[Any]:
    for given in tools:
        name = given.get("name") if isinstance(given, dict) else None
        if not isinstance(name, str):
            left_out(f"a tool without a name is left out: {json.dumps(given)[:SHOWN_CHARS]}")
            continue
        try:
            yield _tool(name, given, modern)
        except (SchemaError, TypeError, ValueError, RecursionError) as error:
            left_out(f"the tool {name[:SHOWN_CHARS]!r} is left out: {tool_error(error)}")


def tool_error(error: Exception) -> str:
    """Say in one line why something is no tool. The full text of a SchemaError is slow to make."""
    words = error.message if isinstance(error, SchemaError) else str(error).strip()
    return (words or type(error).__name__).splitlines()[0][:SHOWN_CHARS]


def mend_progress(params: dict[str, Any]) -> None:
    """Clamp the numbers of a progress notification to those that the kernel takes."""
    for name in ("progress", "total"):
        if isinstance(params.get(name), int | float):
            params[name] = float(min(MAX_AMOUNT, max(-MAX_AMOUNT, params[name])))


def _tool(name: str, given: dict[str, Any], modern: bool) -> dict[str, Any]:
    """Mend a tool. It keeps an output schema that the protocol allows. Raises SchemaError,
    ValueError."""
    about = (given.get("description"), given.get("title"))
    words = [text for text in about if isinstance(text, str) and text]
    tool: dict[str, Any] = {"name": name, "inputSchema": _arguments(given.get("inputSchema"))}
    if words:
        tool["description"] = words[0]
    if _object(given.get("annotations")).get("readOnlyHint") is True:
        tool["annotations"] = {"readOnlyHint": True}
    result = given.get("outputSchema")
    if isinstance(result, dict) and (modern or result.get("type") == "object"):
        validator_of(result)
        tool["outputSchema"] = result
    return tool


def _arguments(schema: Any) -> dict[str, Any]:
    """Mend the schema of arguments, which are an object even if it does not say so."""
    if not isinstance(schema, dict | None):
        raise ValueError(f"inputSchema is no schema: {json.dumps(schema)[:SHOWN_CHARS]}")
    schema = {key: value for key, value in (schema or {}).items() if value is not None}
    kind = schema.get("type", "object")
    if kind != "object" and not (isinstance(kind, list) and "object" in kind):
        raise ValueError(f"inputSchema.type: {kind!r} is not 'object'")
    found: dict[str, Any] = schema | {"type": "object"}
    validator_of(found)
    return found


def validator_of(schema: dict[str, Any]) -> Validator:
    """Make a validator of a schema. Raises SchemaError."""
    kind = validator_for(schema, default=Draft202012Validator)
    kind.check_schema(schema)
    return kind(schema, registry=Registry())  # nothing is fetched


def _object(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = value if isinstance(value, dict) else {}
    return found
