"""The access manager as methods of the SDK: grants for agents, the rest for persons."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import msgspec

from aios.syscalls import acc
from aios.syscalls.base import Done
from aios.syscalls.rules import Group

from .calls import Calls


class AccessCalls(Calls):
    def grant(
        self, to: str, right: str, on: str | Sequence[str] = "**", *,
        args: Mapping[str, Any] | None = None, seconds: float | None = None,
    ) -> int:  # fmt: skip
        """Grant a right, for as long as the caller has it, and return the grant's number.

        Raises:
            LimitReached: too many of the caller's grants stand.
        """
        patterns = [on] if isinstance(on, str) else list(on)
        reply = self._call(
            acc.Granted, "acc.grant", to=to, right=right, on=patterns, args=dict(args or {}),
            seconds=seconds,
        )  # fmt: skip
        return reply.id

    def revoke(self, number: int) -> None:
        """Take back a grant. Raises NotFound if the caller may not."""
        self._call(Done, "acc.revoke", id=number)

    def grants(self) -> list[acc.GrantRow]:
        return self._call(list[acc.GrantRow], "acc.grants")

    def check_access(
        self, right: str, object: str = "", *, args: Mapping[str, Any] | None = None,
        pid: int | None = None, principal: str | None = None,
    ) -> acc.Verdict:  # fmt: skip
        """Ask the access manager for its verdict on a call, and the rule that decides."""
        return self._call(
            acc.Verdict, "acc.check", right=right, object=object, args=dict(args or {}), pid=pid,
            principal=principal,
        )  # fmt: skip

    def allow_key(self, name: str, public: str, *, person: bool = False) -> None:
        """Let the owner of this CURVE key connect by tcp, as the agent "/NAME" or as a person."""
        self._call(Done, "key.allow", name=name, public=public, person=person)

    def remove_key(self, name: str) -> None:
        """Remove a key, and end its connections. Raises NotFound."""
        self._call(Done, "key.remove", name=name)

    def keys(self) -> acc.Keys:
        return self._call(acc.Keys, "key.list")

    def groups(self) -> dict[str, Group]:
        return self._call(acc.Groups, "acc.groups").groups

    def set_group(self, name: str, group: Group | Mapping[str, Any] | None) -> None:
        """Replace a group, or remove it with None."""
        self._call(Done, "acc.set", name=name, group=msgspec.to_builtins(group))

    def questions(self) -> Iterator[acc.Question]:
        """Follow the questions to a person, beginning with those that wait."""
        return self._follow(acc.Question, "acc.ask")

    def answer(self, number: int, answer: Literal["once", "agent", "always", "deny"]) -> None:
        """Answer a question. Raises NotFound if nobody waits for the answer any more."""
        self._call(Done, "acc.answer", id=number, answer=answer)
