"""How a model is told of tools and calls them: the prompt, the grammar, and what it said.

The model's own chat template tells it where it knows tools, and says how calls are written in one
of the forms below. Else a system message teaches the first form. Either way a grammar holds the
answer to it, to the names of the tools, and to their schemas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from msgspec import structs

from aios.agents.sdk import strict_json
from aios.agents.sdk.aios import Aios
from aios.agents.sdk.tools import absent
from aios.syscalls.errors import (
    BadInput,
    Denied,
    LimitReached,
    Malformed,
    NotFound,
    NotJson,
    TooBig,
    ToolArguments,
    ToolCrashed,
    ToolFailed,
    ToolTimeout,
    ToolUnknown,
)
from aios.syscalls.llm import MAX_GRAMMAR_CHARS
from aios.syscalls.tool import Spec

from .schemas import narrowed

Choice = Literal["auto", "call", "answer"]
Message = dict[str, str]
Example = tuple[str, str, Mapping[str, Any]]  # a task, a tool, arguments

MENDABLE = (  # errors of a call that its model reads, and goes on
    ToolArguments, ToolFailed, ToolCrashed, ToolTimeout, ToolUnknown, Denied, NotFound, BadInput,
    TooBig, Malformed, LimitReached,
)  # fmt: skip
MAX_DESCRIPTION_CHARS, MAX_ENUM_VALUES = 120, 6  # that a taught model reads
TEACH = """\
You can use tools. To use one, write:
<tool_call>
{"name": "NAME", "arguments": {"ARGUMENT": VALUE}}
</tool_call>
Its result is then given to you. When you know the answer, write it in plain words.
Tools:
"""
GO_ON = "Use another tool, or answer my question."
ANSWER = "Now answer in plain words: {}"


@dataclass(frozen=True)
class CallFormat:
    """A format of calls in an answer."""

    opens: str
    closes: str
    args: str  # the key of the arguments
    several: bool  # calls in one answer
    text: str  # GBNF of text without calls; in runs, since each token would take long
    told: str  # a regular expression: the format as a chat template tells it

    @property
    def beginnings(self) -> tuple[str, ...]:
        """Return the beginnings of a call. By the grammar only an answer that was cut ends so."""
        return tuple(self.opens[:end] for end in range(1, len(self.opens) + 1))


TAGS = CallFormat(
    opens="<tool_call>\n",
    closes="\n</tool_call>",
    args="arguments",
    several=True,
    text='([^<]++ | "<"+ ([^t<] | "t" [^o<]))+',
    told=r'<tool_call>\s*\{"name": [^{}]*"arguments": [^{}]*\}\s*</tool_call>',
)  # Hermes, Qwen, SmolLM3
BARE = CallFormat(
    opens="",
    closes="",
    args="parameters",
    several=False,
    text="[^{ \\n] (.++)?",
    told=r'\{"name": function name, "parameters": ',
)  # Llama 3


@dataclass(frozen=True)
class ToolCallRequest:
    id: str  # of its answer's calls: "1", "2", ...
    name: str
    args: dict[str, Any]

    @property
    def what(self) -> str:
        """A key that is the same for calls that do the same."""
        return json.dumps([self.name, self.args], sort_keys=True)


@dataclass(frozen=True)
class ModelAnswer:
    """An answer of the model: calls with a thought in front of them, or the final text."""

    text: str
    calls: list[ToolCallRequest]


class ToolDialogue:
    """The dialogue in which a model is offered tools. An answer has at most `parallel` calls.
    `examples` are tasks, each with a first call.

    Raises:
        BadGrammar: no grammar can keep a tool's schema; the message names tool and keyword.
    """

    def __init__(
        self, aios: Aios, specs: Sequence[Spec], *, parallel: int = 4,
        examples: Sequence[Example] = (),
    ) -> None:  # fmt: skip
        self.specs, self.examples = list(specs), examples
        self.parallel = parallel
        self.schemas = {spec.name: narrowed(spec.name, spec.schema) for spec in specs}
        own = form_of(aios)
        self.taught = own is None
        self.form = own or TAGS
        lines = "\n".join(map(signature, specs))
        self.about = lines if self.taught else json.dumps([described(spec) for spec in specs])

    # --- what the model reads -------------------------------------------------------------------

    def opening(self, task: str, system: str = "") -> list[Message]:
        """Return the messages that the dialogue begins with."""
        if self.taught:
            system = f"{system}\n\n{TEACH}{self.about}".strip()
        shown = [
            f"Example: {task}\n{self.written(name, args)}" for task, name, args in self.examples
        ]
        system = "\n".join([system, *shown]).strip()
        messages = [{"role": "system", "content": system}] if system else []
        if not self.taught:
            messages.append({"role": "tools", "content": self.about})
        return [*messages, {"role": "user", "content": task}]

    def written(self, name: str, args: Mapping[str, Any]) -> str:
        """Write a call as the model would, with the fixed arguments."""
        schema = next(spec.schema for spec in self.specs if spec.name == name)
        fields = schema.get("properties", {})
        fixed = {key: kind["const"] for key, kind in fields.items() if "const" in kind}
        given = {key: {**fixed, **args}[key] for key in fields if key in fixed or key in args}
        call = {"name": name, self.form.args: given}
        return f"{self.form.opens}{json.dumps(call, ensure_ascii=False)}{self.form.closes}"

    def results(
        self, calls: Sequence[ToolCallRequest], texts: Sequence[str], problem: str = "",
        last: str = "",
    ) -> list[Message]:  # fmt: skip
        """Return the messages with the results of calls, in order, and any other problem. With
        `last`, the task, they ask for the final answer."""
        rest = [problem] if problem else []
        rest += [ANSWER.format(last)] if last else [GO_ON] if self.taught or problem else []
        messages = [{"role": "tool", "content": text} for text in texts]
        if self.taught:
            messages = []
            rest[:0] = [
                f"{call.name}({json.dumps(call.args, ensure_ascii=False)[1:-1]}) returned: {text}"
                for call, text in zip(calls, texts, strict=True)
            ]
        return messages + ([{"role": "user", "content": "\n".join(rest)}] if rest else [])

    # --- what it may answer ---------------------------------------------------------------------

    def grammar(self, choice: Choice = "auto") -> str:
        """Return the grammar of an answer: a text, calls, or a text with calls behind it.

        Raises:
            TooBig: the schemas do not fit into one call.
        """
        form = self.form
        if choice == "answer" or not self.specs:
            return f"root ::= text\ntext ::= [^<{{ \\n] ({form.text})?"
        most = self.parallel if form.several else 1
        text = "root ::= calls | text" + (" calls?" if form.several else "")
        rules = ["root ::= calls" if choice == "call" else f"{text}\ntext ::= {form.text}"]
        rules.append("calls ::= call" + (f' ("\\n" call){{0,{most - 1}}}' if most > 1 else ""))
        names = " | ".join(f"call{number}" for number in range(len(self.specs)))
        rules.append(f"call ::= {_quoted(form.opens)} ({names}) {_quoted(form.closes)}")
        for number, spec in enumerate(self.specs):
            begin = f'{{"name": "{spec.name}", "{form.args}": '
            schema = json.dumps(self.schemas[spec.name])
            rules.append(f'call{number} ::= {_quoted(begin)} %json {schema} "}}"')
        grammar = "\n".join(rules)
        if len(grammar) > MAX_GRAMMAR_CHARS:
            tools = f"the schemas of {len(self.specs)} tools"
            raise TooBig(
                f"{tools} make a grammar of {len(grammar)} characters, {MAX_GRAMMAR_CHARS} fit",
                "offer the model fewer of them",
            )
        return grammar

    def parse(self, text: str) -> ModelAnswer:
        """Parse an answer that was held to the grammar.

        Raises:
            NotJson: it was cut within a call, or the value of its text does not fit.
        """
        form = self.form
        if form.opens:
            thought, *rest = text.split(form.opens)
            found = [part.partition(form.closes) for part in rest]
            bodies, whole = [body for body, _, _ in found], all(end for _, end, _ in found)
            whole = whole and not text.endswith(form.beginnings)
        else:
            thought, bodies, whole = ("", [text], True) if text[:1] == "{" else (text, [], True)
        try:
            calls = [strict_json.read(body) for body in bodies]
        except ValueError as error:
            why = "has no value" if whole else "was cut within a call"
            raise NotJson(f"the answer {why}: {error}") from error
        if not whole:
            raise NotJson("the answer was cut within a call: it has no end")
        return ModelAnswer(
            thought.strip(),
            [
                ToolCallRequest(str(number), call["name"], call[form.args])
                for number, call in enumerate(calls, 1)
            ],
        )


def chosen(aios: Aios, only: Sequence[str] | None) -> list[Spec]:
    """List the tools that may be called, or only those named.

    Raises:
        NotFound: there is none of that name. Denied: it is not granted. ToolFailed: its toolbox did
            not start.
    """
    found = aios.toolboxes()
    specs = {spec.name: spec for spec in found.tools}
    for name in only or ():
        if name not in specs:
            raise absent(name, found, f"there are: {', '.join(sorted(specs)) or 'none'}")
    return list(specs.values()) if only is None else [specs[name] for name in only]


def bound(spec: Spec, values: Mapping[str, Any]) -> Spec:
    """Fix arguments of a tool to values."""
    schema = dict(spec.schema)
    fixed = {name: {"const": value} for name, value in values.items()}
    schema["properties"] = {**schema.get("properties", {}), **fixed}
    schema["required"] = [*dict.fromkeys([*schema.get("required", []), *values])]
    return structs.replace(spec, schema=schema)


def form_of(aios: Aios) -> CallFormat | None:
    """Return the format of calls that the model's chat template tells, or None."""
    probe = Spec(name="probe", description="", schema={"type": "object", "properties": {}})
    tools = {"role": "tools", "content": json.dumps([described(probe)])}
    try:
        tokens = aios.tokenize([tools, {"role": "user", "content": "Hello"}])
    except BadInput:
        return None
    told = aios.detokenize(tokens)
    return next((form for form in (TAGS, BARE) if re.search(form.told, told)), None)


def described(spec: Spec) -> dict[str, Any]:
    """Describe a tool as chat templates expect it."""
    about = {"name": spec.name, "description": spec.description, "parameters": spec.schema}
    return {"type": "function", "function": about}


def signature(spec: Spec) -> str:
    """Describe a tool in one line: `sql(query: string, limit?: integer) - Ask a database.`"""
    schema = spec.schema
    required = schema.get("required", [])
    fields = ", ".join(
        f"{name}{'' if name in required else '?'}: {_kind(kind)}"
        for name, kind in schema.get("properties", {}).items()
    )
    about = " ".join(spec.description.partition("\n\n")[0].split())
    if len(about) > MAX_DESCRIPTION_CHARS:
        about = about[: MAX_DESCRIPTION_CHARS - 3].rpartition(" ")[0] + "..."
    return f"{spec.name}({fields})" + (f" - {about}" if about else "")


def _kind(schema: Any) -> str:
    """Name the type that a schema describes, in a few words."""
    if not isinstance(schema, dict):
        return "any"
    values = [schema["const"]] if "const" in schema else schema.get("enum", [])
    if 0 < len(values) <= MAX_ENUM_VALUES:
        return "|".join(json.dumps(value, ensure_ascii=False) for value in values)
    parts = schema.get("anyOf") or schema.get("oneOf")
    if parts:
        return "|".join(dict.fromkeys(map(_kind, parts)))
    kind = schema.get("type", "any")
    if kind == "array":
        return f"[{_kind(schema.get('items'))}]"
    return "|".join(kind) if isinstance(kind, list) else str(kind)


def _quoted(text: str) -> str:
    return json.dumps(text)
