"""What an answer is held to, a JSON Schema or a GBNF grammar, as a choice of tokens at each draw.

The only file, with trial.py, that imports llguidance. It parses with bounded work a step whatever
the grammar; llama.cpp's own parser takes ten times longer a token under some of 60 bytes, and ends
the process on a token that does not fit. It holds, too, what the schema says or refuses it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from aios.syscalls.errors import AiosError, BadGrammar
from aios.syscalls.llm import Decoding

from . import trial
from .protocol import Compile, Encoded
from .trial import Vocabulary

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

KEPT = 64  # compiled grammars
# One blank, as models are used to it: where the answer may choose, a small model can go on and on.
SPACING: JsonCompileOptions = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "
}  # fmt: skip

CHAR = r'(?:\\x[\da-fA-F]{2}|\\u[\da-fA-F]{4}|\\U[\da-fA-F]{8}|\\[nrt"\\\[\]]|[^\\])'
TOKEN = re.compile(
    rf"""(?P<blank>\s+|\#[^\n]*)
    | %json\s*(?P<schema>(?=\{{))
    | "(?P<text>(?:(?!"){CHAR})*)"
    | \[(?P<negated>\^?)(?P<chars>(?:(?!\]){CHAR})*)\](?P<run>\+\+)?
    | (?P<defined>[\w-]+)\s*::=
    | (?P<name>[\w-]+)
    | (?P<many>[*+?]|\{{\s*\d+\s*(?:,\s*\d*\s*)?\}})
    | (?P<any>\.)(?P<all>\+\+)?
    | (?P<rest>[()|])""",
    re.VERBOSE,
)


def to_lark(gbnf: str) -> str:
    """A GBNF grammar in the syntax of llguidance. `%json {...}` in it is a value of that schema,
    `[...]++` or `.++` a run of characters as in regular expressions: the longest there is.

    Every other character becomes a lexeme of its own, since the lexer takes the longest it finds
    and a GBNF grammar means any. A run is one lexeme, and its choice of tokens is known from the
    token before; by single characters it takes 20 ms a token from a vocabulary of 152,000.

    Raises:
        BadGrammar: it is not GBNF, or a schema in it not JSON; or it names a rule that it lacks, or
            has twice.
    """
    names = {"root": "start"}
    used, defined = {"root"}, set()
    out, at = "", 0

    def rule(name: str) -> str:
        return names.setdefault(name, f"r{len(names)}_{re.sub('[^a-z0-9]', '_', name.lower())}")

    while at < len(gbnf):
        token = TOKEN.match(gbnf, at)
        if token is None:
            line = gbnf.count("\n", 0, at) + 1
            raise BadGrammar(f"line {line} of the grammar: cannot read {gbnf[at : at + 20]!r}")
        at = token.end()
        kind = {"run": "chars", "all": "any"}.get(token.lastgroup or "", token.lastgroup)
        part = token[kind or 0]
        match kind:
            case "text":
                out += re.sub(CHAR, lambda c: f" /{_point(c[0])}/", part, flags=re.S) or ' ""'
            case "chars":
                out += f" /[{token['negated']}{_ranges(part)}]{'+' * bool(token['run'])}/"
            case "defined" if part in defined:
                raise BadGrammar(f"the grammar has the rule {part!r} twice")
            case "defined":
                defined.add(part)
                out += f"\n{rule(part)}:"
            case "name":
                used.add(part)
                out += f" {rule(part)}"
            case "many":
                out += part
            case "any":
                out += rf" /[\x{{0}}-\x{{10ffff}}]{'+' * bool(token['all'])}/"
            case "rest":
                out += f" {part}"
            case "schema":
                schema, at = _schema(gbnf, at)
                out += f" %json {schema}"
    for name in sorted(used - defined):
        raise BadGrammar(f"the grammar has no rule {name!r}")
    return out


def _schema(gbnf: str, at: int) -> tuple[str, int]:
    """The schema that begins at `at`, for one answer's JSON as for any other's; where it ends."""
    try:
        schema, end = json.JSONDecoder().raw_decode(gbnf, at)
        return json.dumps({**schema, "x-guidance": SPACING}), end
    except (ValueError, RecursionError) as error:
        raise BadGrammar(f"a schema in the grammar is not JSON: {error}") from error


def _point(char: str) -> str:
    """A character of GBNF, or its escape, as a regular expression's."""
    if char[0] != "\\":
        code = ord(char)
    elif char[1] in "xuU":
        code = int(char[2:], 16)
    else:
        code = ord({"n": "\n", "r": "\r", "t": "\t"}.get(char[1], char[1]))
    return f"\\x{{{code:x}}}"


def _ranges(chars: str) -> str:
    def one(found: re.Match[str]) -> str:
        first, last = found.groups()
        return _point(first) + (f"-{_point(last)}" if last else "")

    return re.sub(rf"({CHAR})(?:-({CHAR}))?", one, chars, flags=re.S)


def _source(asked: Decoding | Compile) -> str:
    """What llguidance compiles for the schema or the grammar that is `asked` for.

    Raises:
        BadGrammar: it is not JSON, or not GBNF.
    """
    if asked.grammar is not None:
        return to_lark(asked.grammar)
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(asked.schema), overrides=SPACING)
    except (TypeError, ValueError) as error:
        raise BadGrammar(f"the schema is not JSON: {error}") from error


class Grammar:
    """What one answer may go on with. Its state is rebuilt from the tokens of the answer."""

    def __init__(
        self, matcher: LLMatcher, ends: NDArray[np.intp], ignore_end: bool, past: list[int]
    ) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ignore_end = ignore_end
        self._matcher.consume_tokens(past)

    @property
    def complete(self) -> bool:
        """Whether nothing can follow any more."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def allowed(self) -> NDArray[np.intp]:
        """The ids of the tokens that may follow, rising; an end only where the answer is whole,
        and with `ignore_end` only where it cannot go on.

        Raises:
            BadGrammar: the state has outgrown the limits of a step.
        """
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise BadGrammar(f"the answer cannot go on: {_reason(self._matcher)}")
        ids = np.flatnonzero(np.unpackbits(bits, bitorder="little"))
        others = ids[~np.isin(ids, self._ends)] if self._ignore_end else ids
        return others if others.size else ids


class Grammars:
    """Compiles grammars for a vocabulary: `pieces` are the bytes of its tokens, `ends` the tokens
    that end an answer. Where a grammar leaves no choice of text, `tokenize` chooses its tokens."""

    def __init__(
        self, pieces: list[bytes], ends: list[int], tokenize: Callable[[bytes], list[int]]
    ) -> None:
        plain = LLTokenizer(TokenizerWrapper(Vocabulary(pieces, ends, list)), slices=[])

        def exact(text: bytes) -> list[int]:
            """Some tokenizers add a blank in front, and all read control tokens out of text."""
            tokens = tokenize(text)
            written = b"".join(pieces[token] for token in tokens)
            return tokens if written == text else plain.greedy_tokenize(text.decode())

        vocabulary = TokenizerWrapper(Vocabulary(pieces, ends, exact))
        self._tokenizer = LLTokenizer(vocabulary, eos_token=ends)
        self._limits = trial.limits(len(pieces))
        self._ends = np.array(ends, np.intp)
        self._compiled = lru_cache(KEPT)(self._compile)
        self._tried = lru_cache(KEPT)(self._try)

    def start(self, decoding: Decoding, past: list[int]) -> Grammar:
        """The grammar of an answer that so far is `past`."""
        matcher = self._compiled(_source(decoding)).deep_copy()
        return Grammar(matcher, self._ends, decoding.ignore_eos, past)

    def answer(self, question: Compile) -> Encoded:
        try:
            self._tried(_source(question))
        except AiosError as error:
            return Encoded(question.req, error=error.to_wire())
        return Encoded(question.req)

    def _try(self, source: str) -> None:
        """Raises BadGrammar where no answer can be held to `source`."""
        trial.run(source)
        probe = self._compiled(source).deep_copy()
        if probe.is_error():
            raise BadGrammar(f"it cannot be compiled: {_reason(probe)}")
        probe.compute_bitmask()
        if probe.is_error():
            raise BadGrammar(f"no answer can begin: {_reason(probe)}")

    def _compile(self, source: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)


def _reason(matcher: LLMatcher) -> str:
    """The error, without the lines of source that llguidance adds."""
    return " ".join(re.split(r"\n +\d+ \| |\n<", matcher.get_error())[0].split())
