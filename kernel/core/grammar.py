"""Grammars: an answer constrained by a JSON Schema or by GBNF, as a choice of tokens at each draw.

llguidance does the work, and only this file and grammar_probe.py import it. Its work per step is
bounded, whatever the grammar. llama.cpp's own parser takes ten times longer for each token than for
the one before under some grammars of 60 bytes, and aborts the process on a token that does not fit.
And llguidance either enforces all that a schema says, or refuses the schema.
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

from ..lib import defects
from . import grammar_probe
from .grammar_probe import TokenPieces
from .protocol import Compile, Tokenized

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

CACHED_GRAMMARS = 64  # compiled ones, and as many that were probed
# One blank, as models are used to; given a choice of blanks, a small model can go on and on.
SPACING: JsonCompileOptions = {
    "whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "
}  # fmt: skip

CHAR = r'(?:\\x[\da-fA-F]{2}|\\u[\da-fA-F]{4}|\\U[\da-fA-F]{8}|\\[nrt"\\\[\]]|[^\\])'
GBNF_TOKEN = re.compile(
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
    """Translate a GBNF grammar to llguidance's syntax. `%json {...}` in it is a value of that
    schema; `[...]++` or `.++` is a run of characters as in regular expressions, the longest one.

    Every other character becomes a lexeme of its own, since the lexer takes the longest match and a
    GBNF grammar means any match. A run is one lexeme, whose choice of tokens is known from the
    token before; by single characters the choice takes 20 ms a token, of 152,000 tokens.

    Raises:
        BadGrammar: the text is not GBNF, a schema in it is not JSON, or a rule is missing or there
            twice.
    """
    rules = _Rules()
    out, at = "", 0
    while at < len(gbnf):
        token = GBNF_TOKEN.match(gbnf, at)
        if token is None:
            line = gbnf.count("\n", 0, at) + 1
            raise BadGrammar(f"line {line} of the grammar: cannot read {gbnf[at : at + 20]!r}")
        at = token.end()
        if token.lastgroup == "schema":
            schema, at = _schema(gbnf, at)
            out += f" %json {schema}"
        else:
            out += _translate(token, rules)
    rules.check()
    return out


class _Rules:
    """The rules of a grammar, with names that Lark takes."""

    def __init__(self) -> None:
        self.names = {"root": "start"}
        self.used, self.defined = {"root"}, set[str]()

    def define(self, name: str) -> str:
        if name in self.defined:
            raise BadGrammar(f"the grammar has the rule {name!r} twice")
        self.defined.add(name)
        return self._name(name)

    def use(self, name: str) -> str:
        self.used.add(name)
        return self._name(name)

    def _name(self, name: str) -> str:
        plain = re.sub("[^a-z0-9]", "_", name.lower())
        return self.names.setdefault(name, f"r{len(self.names)}_{plain}")

    def check(self) -> None:
        for name in sorted(self.used - self.defined):
            raise BadGrammar(f"the grammar has no rule {name!r}")


def _translate(token: re.Match[str], rules: _Rules) -> str:
    """Translate a token of GBNF, other than a schema."""
    kind = {"run": "chars", "all": "any"}.get(token.lastgroup or "", token.lastgroup)
    part = token[kind or 0]
    lark = ""  # of a blank
    match kind:
        case "text":
            lark = re.sub(CHAR, lambda c: f" /{_point(c[0])}/", part, flags=re.S) or ' ""'
        case "chars":
            lark = f" /[{token['negated']}{_ranges(part)}]{'+' * bool(token['run'])}/"
        case "any":
            lark = rf" /[\x{{0}}-\x{{10ffff}}]{'+' * bool(token['all'])}/"
        case "defined":
            lark = f"\n{rules.define(part)}:"
        case "name":
            lark = f" {rules.use(part)}"
        case "many":
            lark = part
        case "rest":
            lark = f" {part}"
    return lark


def _schema(gbnf: str, at: int) -> tuple[str, int]:
    """Return the schema that begins at `at`, with the usual spacing, and where it ends."""
    try:
        schema, end = json.JSONDecoder().raw_decode(gbnf, at)
        return json.dumps({**schema, "x-guidance": SPACING}), end
    except (ValueError, RecursionError) as error:
        raise BadGrammar(f"a schema in the grammar is not JSON: {error}") from error


def _point(char: str) -> str:
    """Translate a character of GBNF, or its escape, to a regular expression."""
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


def _source(request: Decoding | Compile) -> str:
    """Return llguidance's source for the schema or the grammar of a request.

    Raises:
        BadGrammar: the schema is not JSON, or the grammar is not GBNF.
    """
    if request.grammar is not None:
        return to_lark(request.grammar)
    try:
        return LLMatcher.grammar_from_json_schema(json.dumps(request.schema), overrides=SPACING)
    except (TypeError, ValueError) as error:
        raise BadGrammar(f"the schema is not JSON: {error}") from error


class Grammar:
    """The constraint on one answer. Its state is a function of the answer's tokens so far."""

    def __init__(
        self, matcher: LLMatcher, ends: NDArray[np.intp], ignore_end: bool, past: list[int]
    ) -> None:
        self._matcher = matcher
        self._ends = ends
        self._ignore_end = ignore_end
        self._matcher.consume_tokens(past)

    @property
    def complete(self) -> bool:
        """True once nothing can follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    def allowed(self) -> NDArray[np.intp]:
        """Return the ids of the tokens that may follow, rising. An end is among them only where the
        answer may end; with `ignore_end`, only where it cannot go on.

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
    """Compiles grammars for a vocabulary. `pieces` are the bytes of its tokens, `ends` the tokens
    that end an answer. Where a grammar leaves only one text, `tokenize` chooses its tokens."""

    def __init__(
        self, pieces: list[bytes], ends: list[int], tokenize: Callable[[bytes], list[int]]
    ) -> None:
        plain = LLTokenizer(TokenizerWrapper(TokenPieces(pieces, ends, list)), slices=[])

        def exact(text: bytes) -> list[int]:
            """Tokenize `text` as it is: some tokenizers add a blank, all parse control tokens."""
            tokens = tokenize(text)
            written = b"".join(pieces[token] for token in tokens)
            return tokens if written == text else plain.greedy_tokenize(text.decode())

        vocabulary = TokenizerWrapper(TokenPieces(pieces, ends, exact))
        self._tokenizer = LLTokenizer(vocabulary, eos_token=ends)
        self._limits = grammar_probe.limits(len(pieces))
        self._ends = np.array(ends, np.intp)
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)
        self._probed = lru_cache(CACHED_GRAMMARS)(self._probe)

    def start(self, decoding: Decoding, past: list[int]) -> Grammar:
        """Return the constraint on an answer whose tokens so far are `past`."""
        matcher = self._compiled(_source(decoding)).deep_copy()
        return Grammar(matcher, self._ends, decoding.ignore_eos, past)

    def answer(self, question: Compile) -> Tokenized:
        try:
            self._probed(_source(question))
        except AiosError as error:
            return Tokenized(question.req, error=error.to_wire())
        except Exception:  # noqa: BLE001 (a defect of the core: all that generates goes on)
            return Tokenized(question.req, error=defects.report().to_wire())
        return Tokenized(question.req)

    def _probe(self, source: str) -> None:
        """Raise BadGrammar if no answer can satisfy `source`."""
        grammar_probe.probe(source)
        matcher = self._compiled(source).deep_copy()
        if matcher.is_error():
            raise BadGrammar(f"it cannot be compiled: {_reason(matcher)}")
        matcher.compute_bitmask()
        if matcher.is_error():
            raise BadGrammar(f"no answer can begin: {_reason(matcher)}")

    def _compile(self, source: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, source, log_level=0, limits=self._limits)


def _reason(matcher: LLMatcher) -> str:
    """Return the error without the lines of source that llguidance adds."""
    return " ".join(re.split(r"\n +\d+ \| |\n<", matcher.get_error())[0].split())
