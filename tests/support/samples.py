"""Valid arguments of every system call, and what is wrong in their place."""

from __future__ import annotations

from typing import Any

import msgpack

from aios.syscalls.wire import ABI_VERSION

NOWHERE = 2**31  # a pid and a context that no process has

SAMPLES: dict[str, list[dict[str, Any]]] = {
    "hello": [
        {"version": ABI_VERSION},
        {"version": ABI_VERSION, "token": b"x", "name": "me"},
        {"version": ABI_VERSION, "back": {"pid": NOWHERE, "secret": b"x"}},
    ],
    "call.cancel": [{"call": 1}],
    "proc.spawn": [
        {
            "program": "/nowhere/agent.py",
            "args": ["a"],
            "task": {"a": [1]},
            "name": "child",
            "contexts": [NOWHERE],
        },
        {"program": "nobody", "limits": {"tokens": 5, "wall": 1.5}, "nice": 3, "cwd": "/"},
    ],
    "proc.exit": [{"code": 3, "result": [None]}],
    "proc.wait": [{"pid": NOWHERE, "timeout": 0.0}, {}],
    "proc.kill": [{"pid": NOWHERE, "signal": "STOP"}],
    "proc.nice": [{"nice": 5}, {"nice": 5, "pid": NOWHERE}],
    "proc.limits": [{}, {"pid": NOWHERE, "limits": {"queue": 5}}],
    "proc.ps": [{}, {"all": True}],
    "proc.whoami": [{}],
    "proc.log": [{"pid": NOWHERE, "offset": -5, "wait": 0.01}],
    "llm.open": [{}, {"system": "You are terse."}, {"name": "kept"}],
    "llm.append": [
        {"ctx": NOWHERE, "text": "a"},
        {"ctx": NOWHERE, "messages": [{"role": "user", "content": "Hi"}]},
        {"ctx": NOWHERE, "tokens": [5, 6]},
    ],
    "llm.generate": [
        {"text": "One, two,", "max_tokens": 2, "temperature": 0.7, "top_k": 5, "seed": 7},
        {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "stop": ["a"]},
        {"tokens": [5, 6, 7], "max_tokens": 2, "logprobs": 2, "digest": True, "stream": False},
        {"text": "One, two,", "max_tokens": 2, "schema": {"type": "array", "items": {"const": 3}}},
        {"text": "One, two,", "max_tokens": 2, "grammar": 'root ::= " three" | [0-9]+'},
    ],
    "llm.tokenize": [{"text": "a b"}, {"messages": [{"role": "user", "content": "Hi"}]}],
    "llm.detokenize": [{"tokens": [5, 6]}],
    "llm.fork": [{"ctx": NOWHERE}, {"ctx": NOWHERE, "name": "other"}],
    "llm.checkpoint": [{"ctx": NOWHERE, "name": "here"}],
    "llm.rollback": [{"ctx": NOWHERE, "name": "here"}],
    "llm.contexts": [{}],
    "llm.close": [{"ctx": NOWHERE}, {"ctx": NOWHERE, "forget": True}],
    "msg.send": [{"to": NOWHERE, "body": {"a": [1, 2.5, None, b"x"]}}, {"to": "no", "body": 1}],
    "msg.recv": [{"sender": NOWHERE, "timeout": 0.01}, {"timeout": 0.0}],
    "mem.put": [{"items": {"a": 1, "b": [2, "c"]}}, {"items": {"a": 1}, "ack": "accepted"}],
    "mem.get": [{"keys": ["a", "none"]}, {"keys": ["a"], "space": "other", "pid": 1}],
    "mem.delete": [{"keys": ["a"]}],
    "mem.scan": [{}, {"prefix": "a", "after": "a", "limit": 1, "back": True}],
    "mem.clear": [{}, {"space": "main"}],
    "mem.spaces": [{}, {"principal": "/nobody"}],
    "mem.keep": [{"keep": True}, {"keep": False}],
    "mem.log": [{}, {"back": True, "limit": 3}],
    "sto.search": [{"query": "one"}, {"query": "a", "mode": "words", "count": 1, "path": "notes"}],
    "sto.index": [{}],
    "sto.reindex": [{}],
    "sto.put": [
        {"path": "notes/a", "data": b"one", "tags": ["x"], "media": "text/plain"},
        {"path": "notes/b", "upload": NOWHERE},
        {"path": "notes/a", "data": b"", "if_version": 0, "owner": "/nobody"},
    ],
    "sto.batch": [
        {"changes": [{"path": "a", "data": b"1"}, {"path": "b", "delete": True}]},
        {"changes": [{"path": "a", "data": b"1"}, {"path": "c", "data": b"2"}], "owner": "/x"},
    ],
    "sto.upload": [{"data": b"piece", "offset": 0}, {"data": b"", "offset": 5, "upload": NOWHERE}],
    "sto.get": [{"path": "notes/a"}, {"path": "a", "version": 1, "offset": 1, "count": 2}],
    "sto.list": [{}, {"prefix": "notes/", "after": "notes/a", "limit": 1, "deleted": True}],
    "sto.history": [{"path": "notes/a"}, {"path": "notes/a", "before": 2, "limit": 1}],
    "sto.delete": [{"path": "notes/a"}, {"path": "a", "if_version": 2}],
    "sto.rollback": [{"path": "notes/a", "version": 1}],
    "sto.purge": [{"path": "notes/a"}],
    "sto.share": [
        {"prefix": "notes", "to": "/reader"},
        {"prefix": "", "to": "/team/*", "mode": "write"},
        {"prefix": "notes", "to": "nobody", "mode": "none"},
    ],
    "sto.shares": [{}, {"owner": "/nobody"}],
    "sto.owners": [{}, {"after": "", "limit": 1}],
    "sto.watch": [{}, {"prefix": "notes"}],
    "sto.verify": [{}],
    "sto.compact": [{}, {"keep": 3}],
    "sto.backup": [{"target": "/proc/no/backup"}],
    "acc.groups": [{}],
    "tool.list": [{}],
    "tool.call": [{"name": "calculate", "args": {"expression": "1+1"}}, {"name": "no.such"}],
    "tool.offer": [{"tools": [{"name": "a", "description": "", "schema": {}}], "anew": True}],
    "tool.serve": [{}, {"at_once": 2}],
    "tool.progress": [{"id": 1, "done": 0.5, "total": 1.0, "message": "half"}],
    "tool.done": [{"id": 1, "value": 1}, {"id": 1, "error": "no", "code": "tool.failed"}],
    "acc.set": [{"name": "team", "group": {"members": ["/x"], "allow": ["llm"]}}, {"name": "t"}],
    "acc.grant": [{"to": "/x", "right": "tool", "on": ["web*"], "seconds": 60.0}],
    "acc.revoke": [{"id": 1}],
    "acc.grants": [{}],
    "acc.check": [{"right": "proc.spawn", "principal": "/x"}, {"right": "tool", "object": "web"}],
    "acc.ask": [{}],
    "acc.answer": [{"id": 1, "answer": "deny"}],
    "key.allow": [{"name": "sample", "public": "x" * 40}],
    "key.remove": [{"name": "sample"}],
    "key.list": [{}],
    "kernel.status": [{}],
    "kernel.stats": [{}],
    "kernel.events": [{"kinds": ["core"]}],
    "kernel.policy": [{}, {"policy": "rr", "quantum": 32}],
    "kernel.check": [{}],
    "kernel.stop": [{}],
}

DEEP: Any = 1
for _ in range(200):
    DEEP = [DEEP]

# Values that no field takes, or hardly one.
JUNK: list[Any] = [
    None, True, -1, 0, 1, 2**31, 2**63, -(2**63), 0.5, -0.0, 1e308, float("nan"), float("inf"),
    "", "a", "\0", "\N{REPLACEMENT CHARACTER}" * 99, "/" + "n" * 300, "x" * 5000, b"", b"\xff" * 40,
    [], [0], [[]], ["a"] * 300, list(range(3000)), {}, {"a": 1}, {1: 2}, DEEP,
    msgpack.ExtType(5, b"ext"), msgpack.Timestamp(0),
]  # fmt: skip


def pack(call_id: Any, name: Any, args: Any) -> bytes:
    data: bytes = msgpack.packb([call_id, name, args])
    return data
