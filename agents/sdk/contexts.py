"""Contexts, and the answers that are generated in them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

import msgspec

from aios.syscalls.errors import NotJson
from aios.syscalls.llm import Appended, Finish, Moved, Piece, Result, Timings, Usage, Used
from aios.syscalls.sto import Hit

from . import strict_json
from .connection import Pending

if TYPE_CHECKING:
    from .aios import Aios

Prompt = str | Sequence[dict[str, str]] | Sequence[int]


class Generation:
    """An answer that is being generated. Iterate it for pieces of text; all else waits for its end.
    One without a context is cancelled when nothing refers to it any more.

    Raises, from either: LimitReached, ContextFull, CoreFailed and other AiosErrors.
    """

    def __init__(self, aios: Aios, pending: Pending, *, alone: bool = False) -> None:
        self._aios = aios
        self._pending = pending
        self._alone = alone
        self._result: Result | None = None

    def __del__(self) -> None:
        if self._alone and not self._pending.ended:
            self._pending.connection.cancel_later(self._pending.id)

    def __iter__(self) -> Iterator[str]:
        for piece in self.pieces():
            if piece.text:
                yield piece.text

    def pieces(self) -> Iterator[Piece]:
        """Iterate over pieces with their token ids and log probabilities."""
        for body in self._pending:
            yield msgspec.convert(body, Piece)
        self.result()

    def result(self) -> Result:
        if self._result is None:
            self._result = msgspec.convert(self._pending.wait(), Result)
        return self._result

    @property
    def ended(self) -> bool:
        return self._pending.ended

    def cancel(self) -> None:
        """Stop at the next token; the result then holds the answer so far."""
        self._aios.cancel(self._pending.id)

    def abandon(self) -> None:
        """Cancel it unless it has ended, and wait for its end."""
        if not self.ended:
            self.cancel()
            for _ in self._pending:
                pass

    @property
    def text(self) -> str:
        return self.result().text

    @property
    def json(self) -> Any:
        """The value of an answer that was held to a schema.

        Raises:
            NotJson: it ended before it was complete; `finish` says why. Or its text fits the schema
                and its value does not: a key comes twice, a number is too large.
        """
        result = self.result()
        if result.finish != "stop":
            why = f"the answer was cut after {result.usage.completion} tokens ({result.finish})"
            raise NotJson(why)
        try:
            return strict_json.read(result.text)
        except (ValueError, RecursionError) as error:
            raise NotJson(f"the answer is not JSON: {error}") from error

    @property
    def tokens(self) -> list[int]:
        return self.result().tokens

    @property
    def finish(self) -> Finish:
        return self.result().finish

    @property
    def usage(self) -> Usage:
        return self.result().usage

    @property
    def timings(self) -> Timings:
        return self.result().timings

    @property
    def moved(self) -> Moved | None:
        """The turns that left a full window for this call, and those that came back."""
        return self.result().moved

    @property
    def digest(self) -> str | None:
        return self.result().digest


class Context:
    """An open context: it keeps all that is appended, until it is closed."""

    def __init__(self, aios: Aios, ctx: int) -> None:
        self._aios = aios
        self.id = ctx
        self._calls: list[Generation] = []

    def append(self, prompt: Prompt, *, raw: bool = False) -> Appended:
        return self._aios.append(self.id, prompt, raw=raw)

    def fork(self, name: str | None = None) -> Context:
        """Copy the context. Tokens that both have in common are computed once."""
        return self._aios.fork(self.id, name)

    def checkpoint(self, name: str) -> Used:
        """Remember its state as `name`."""
        return self._aios.checkpoint(self.id, name)

    def rollback(self, name: str) -> Used:
        """Go back to the checkpoint `name`. Raises NotFound where there is none."""
        return self._aios.rollback(self.id, name)

    def generate(
        self, prompt: Prompt | None = None, *, raw: bool = False, **options: Any
    ) -> Generation:
        """Append `prompt`, if any, and generate; `options` are the fields of llm.generate."""
        answer = self._aios.generate(prompt, ctx=self.id, raw=raw, **options)
        self._calls = [call for call in self._calls if not call.ended] + [answer]
        return answer

    def recall(self, query: str, **options: Any) -> list[Hit]:
        """Append the stored passages that fit `query` best, each with its source. `options` are
        those of Aios.sto_search.

        Raises ContextFull, and the errors of a search.
        """
        hits = self._aios.sto_search(query, **options).hits
        if hits:
            self.append([{"role": "user", "content": "\n\n".join(map(_quoted, hits))}])
        return hits

    def close(self, *, forget: bool = False) -> None:
        """Close the context, and cancel what it still generates. One with a name sleeps until it is
        opened again, unless `forget` is true."""
        for call in self._calls:
            call.abandon()
        self._aios.close_context(self.id, forget=forget)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _quoted(hit: Hit) -> str:
    source = f"{hit.owner}:{hit.path}, version {hit.version}"
    return f"From {source}:\n{hit.text}"
