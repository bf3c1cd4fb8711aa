"""Storage against a plain model, with reopening and crashes among the steps."""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bare_storage import LIMIT, OWNERS, PERSON, QUOTA, System
from conftest import fewer
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aios.kernel.entry.call import Call
from aios.kernel.storage.catalog import Catalog
from aios.kernel.storage.fsck import Verification
from aios.kernel.storage.shares import covers
from aios.syscalls import sto, wire
from aios.syscalls.base import Done
from aios.syscalls.errors import AiosError, Denied

PATHS = ["x", "x/y", "x2", "é"]
CONTENTS = [b"", b"1", b"2" * 5000, bytes(sto.CHUNK_BYTES) + b"3", bytes(2 * sto.CHUNK_BYTES)]

owners = st.sampled_from(OWNERS)
paths = st.sampled_from(PATHS)
contents = st.sampled_from(CONTENTS)


@dataclass
class Object:
    last: int = 0
    versions: dict[int, bytes | None] = field(default_factory=dict)  # None: a deletion

    @property
    def live(self) -> bytes | None:
        return self.versions.get(self.last)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.system = System(self.base / "0")
        self.copies = 0
        self.model = {(owner, path): Object() for owner in OWNERS for path in PATHS}
        self.grants: dict[tuple[str, str, str], str] = {}

    # --- the model --------------------------------------------------------------------------------

    def may(self, who: str, owner: str, path: str, mode: str) -> bool:
        if who in (PERSON, owner):
            return True
        names = {who} | ({"/a/*", "team"} if who == "/a/b" else set())
        return any(
            covers(prefix, path) and mode in ("read", granted)
            for (giver, prefix, to), granted in self.grants.items()
            if giver == owner and to in names
        )

    def new(self, owner: str, path: str, content: bytes | None) -> None:
        held = self.model[owner, path]
        held.last += 1
        held.versions[held.last] = content

    def outcome(self, owner: str, path: str, if_version: int | None) -> str:
        held = self.model[owner, path]
        now = held.last if held.versions else 0
        fits = if_version is None or if_version == now or (if_version == 0 and held.live is None)
        return "" if fits else "store.conflict"

    def agree(self, answer: Any, expected: str) -> bool:
        """Tell whether a change was made, and check that it failed as expected otherwise."""
        code = answer.code if isinstance(answer, AiosError) else ""
        if code == "limit" and not expected:  # the quota, which `it_holds_the_model` checks
            return False
        assert code == expected, answer
        return not code

    # --- steps ------------------------------------------------------------------------------------

    @rule(who=owners, owner=owners, path=paths, content=contents,
          if_version=st.none() | st.integers(0, 4))  # fmt: skip
    def put(self, who: str, owner: str, path: str, content: bytes, if_version: int | None) -> None:
        if len(content) > wire.MAX_CALL_BYTES:
            return self.put_upload(who, owner, path, content)
        put = sto.Put(path, content, if_version=if_version, owner=owner)
        answer = self.system.ask(who, lambda call: self.system.storage.put(call, put))
        denied = not self.may(who, owner, path, "write")
        expected = "access.denied" if denied else self.outcome(owner, path, if_version)
        if self.agree(answer, expected):
            self.new(owner, path, content)
            assert answer.version == self.model[owner, path].last
        return None

    def stage(self, who: str, owner: str, content: bytes) -> Any:
        """The number of an upload, or an error."""
        upload = None
        for at in range(0, len(content) or 1, 60_000):
            piece = sto.Upload(
                data=content[at : at + 60_000], offset=at, upload=upload, owner=owner
            )
            answer = self.system.ask(who, partial(self.append, piece))
            if isinstance(answer, AiosError):
                return answer
            upload = answer.upload
        return upload

    def append(self, piece: sto.Upload, call: Call) -> Awaitable[sto.Uploaded]:
        return self.system.storage.uploads.append(call, piece)

    def get(self, get: sto.Get, call: Call) -> Awaitable[sto.Content]:
        return self.system.storage.get(call, get)

    def put_upload(self, who: str, owner: str, path: str, content: bytes) -> None:
        upload = self.stage(who, owner, content)
        if isinstance(upload, AiosError):
            assert upload.code in ("limit", "access.denied")
            assert upload.code == "limit" or not self.may(who, owner, path, "write")
            return
        put = sto.Put(path, upload=upload, owner=owner)
        answer = self.system.ask(who, lambda call: self.system.storage.put(call, put))
        denied = not self.may(who, owner, path, "write")
        if self.agree(answer, "access.denied" if denied else ""):
            self.new(owner, path, content)
        self.system.storage.uploads.ended(self.system.processes[who])

    @rule(who=owners, content=contents)
    def leave_an_upload(self, who: str, content: bytes) -> None:
        self.stage(who, who, content)
        self.system.storage.uploads.ended(self.system.processes[who])

    @rule(
        who=owners,
        owner=owners,
        changes=st.lists(
            st.tuples(paths, st.sampled_from([*CONTENTS[:3], None])), min_size=1, max_size=3
        ),
    )
    def batch(self, who: str, owner: str, changes: list[tuple[str, bytes | None]]) -> None:
        asked = [
            sto.Change(path=path, data=content, delete=content is None) for path, content in changes
        ]
        args = sto.Batch(asked, owner)
        answer = self.system.ask(who, lambda call: self.system.storage.batch(call, args))
        live = {path: self.model[owner, path].live for path, _ in changes}
        expected = ""
        for path, content in changes:
            if content is None and live[path] is None:
                expected = "not_found"
                break
            live[path] = content
        if not all(self.may(who, owner, path, "write") for path, _ in changes):
            expected = "access.denied"
        if self.agree(answer, expected):
            for path, content in changes:
                self.new(owner, path, content)

    @rule(who=owners, owner=owners, path=paths, version=st.integers(1, 5))
    def rollback(self, who: str, owner: str, path: str, version: int) -> None:
        answer = self.system.ask(
            who,
            lambda call: self.system.storage.rollback(
                call, sto.Restore(path=path, version=version, owner=owner)
            ),
        )
        content = self.model[owner, path].versions.get(version)
        expected = "" if content is not None else "not_found"
        if not self.may(who, owner, path, "write"):
            expected = "access.denied"
        if self.agree(answer, expected):
            assert content is not None
            self.new(owner, path, content)

    @rule(who=owners, owner=owners, path=paths)
    def purge(self, who: str, owner: str, path: str) -> None:
        answer = self.system.ask(
            who, lambda call: self.system.storage.purge(call, sto.Purge(path=path, owner=owner))
        )
        held = self.model[owner, path]
        expected = "" if held.versions else "not_found"
        if who not in (PERSON, owner):
            expected = "access.denied"
        if self.agree(answer, expected):
            held.versions.clear()
            held.last += 1

    @rule(owner=owners, prefix=st.sampled_from(["", *PATHS]),
          to=st.sampled_from(["/a", "/a/*", "/c", "team"]),
          mode=st.sampled_from(["read", "write", "none"]))  # fmt: skip
    def share(self, owner: str, prefix: str, to: str, mode: Any) -> None:
        answer = self.system.ask(
            owner,
            lambda call: self.system.storage.share(
                call, sto.Share(prefix=prefix, to=to, mode=mode)
            ),
        )
        known = (owner, prefix, to) in self.grants
        if self.agree(answer, "not_found" if mode == "none" and not known else ""):
            self.grants.pop((owner, prefix, to), None)
            if mode != "none":
                self.grants[owner, prefix, to] = mode

    @rule(keep=st.integers(1, 3))
    def compact(self, keep: int) -> None:
        args = sto.Compact(keep)
        answer = self.system.ask(PERSON, lambda call: self.system.maintenance.compact(call, args))
        dropped = 0
        for held in self.model.values():
            for version in sorted(held.versions)[:-keep]:
                del held.versions[version]
                dropped += 1
        assert (answer.versions, answer.chunks) == (dropped, 0)

    @rule()
    def reopen(self) -> None:
        self.system.close()
        self.system = System(self.system.folder, self.system.boot + 1)

    @rule(owner=owners, path=paths, content=st.sampled_from(CONTENTS[:3]), staged=contents)
    def crash(self, owner: str, path: str, content: bytes, staged: bytes) -> None:
        """The file is copied while a put may be on its way, and an upload is open."""
        self.stage(owner, owner, staged)
        put = sto.Put(path, content, owner=owner)
        call = self.system.start(owner, lambda call: self.system.storage.put(call, put))
        self.copies += 1
        copy = self.base / str(self.copies)
        copy.mkdir()
        shutil.copy(self.system.store.path, copy)
        while not call.ended:
            self.system.posted.get(timeout=LIMIT)()
        self.system.close()
        shutil.rmtree(self.system.folder)
        self.system = System(copy, self.system.boot + 1)
        held = self.model[owner, path]
        versions = self.versions(owner, path)
        if not versions and held.versions:
            raise AssertionError("what was acknowledged is gone")
        if versions and versions[0].version > held.last:
            self.new(owner, path, content)

    # --- what holds after each --------------------------------------------------------------------

    def versions(self, owner: str, path: str) -> list[sto.Version]:
        answer = self.system.ask(
            PERSON,
            lambda call: self.system.storage.history(call, sto.History(path=path, owner=owner)),
        )
        if isinstance(answer, AiosError):
            assert answer.code == "not_found"
            return []
        assert isinstance(answer, list)
        return answer

    def content(self, who: str, owner: str, path: str, version: int) -> Any:
        data = b""
        while True:
            get = sto.Get(path=path, version=version, offset=len(data), owner=owner)
            answer = self.system.ask(who, partial(self.get, get))
            if isinstance(answer, AiosError):
                return answer.code
            data += answer.data
            if len(data) >= answer.info.size:
                return data

    @invariant()
    def it_holds_the_model(self) -> None:
        for (owner, path), held in self.model.items():
            found = self.versions(owner, path)
            assert [info.version for info in found] == sorted(held.versions, reverse=True)
            for version, content in held.versions.items():
                told = self.content(PERSON, owner, path, version)
                assert told == ("not_found" if content is None else content)

    @invariant()
    def lists_have_what_is_live(self) -> None:
        for owner in OWNERS:
            answer = self.system.ask(
                owner, lambda call: self.system.storage.objects(call, sto.List())
            )
            live = [path for path in PATHS if self.model[owner, path].live is not None]
            assert [info.path for info in answer.objects] == sorted(live, key=str.encode)

    @invariant()
    def nobody_reads_what_is_not_shared(self) -> None:
        for (owner, path), held in self.model.items():
            for who in OWNERS:
                told = self.content(who, owner, path, max(held.last, 1))
                assert (told == "access.denied") != self.may(who, owner, path, "read")

    @invariant()
    def nothing_is_wrong_with_it(self) -> None:
        while not self.system.posted.empty():
            self.system.posted.get()()
        self.system.ask(PERSON, lambda _: self.system.storage.write({}, lambda _: None))
        held = self.system.store.read(lambda txn: list(Catalog(txn).held()))
        assert held == []  # every upload was put, or has ended
        report = Verification(self.system.storage, lambda _: None).run()
        assert report.problems == []
        holdings = self.system.ask(
            PERSON, lambda call: self.system.storage.owners(call, sto.Owners())
        )
        for row in holdings.owners:
            assert row.bytes <= QUOTA + 50_000 or not row.owner

    @invariant()
    def each_object_has_one_change(self) -> None:
        found = self.system.store.read(lambda txn: Catalog(txn).changes(0, 1000))
        assert [number for number, _, _ in found] == sorted(number for number, _, _ in found)
        changed = {(owner, path) for _, owner, path in found}
        assert changed == {place for place, held in self.model.items() if held.last}
        assert len(changed) == len(found)

    def teardown(self) -> None:
        self.system.maintenance.close()
        self.system.close()
        shutil.rmtree(self.base)


def test_a_right_that_is_taken_back_first_is_gone(tmp_path: Path) -> None:
    """The writer looks again: what the put saw in the loop was not the last word."""
    system = System(tmp_path)

    def share(mode: Any) -> Callable[[Call], Awaitable[Done]]:
        given = sto.Share(prefix="x", to="/c", mode=mode)
        return lambda call: system.storage.share(call, given)

    args = sto.Put("x", b"1", owner="/a")
    assert not isinstance(system.ask("/a", share("write")), AiosError)
    block = threading.Event()
    system.store.write(lambda _: block.wait(LIMIT))
    taken = system.start("/a", share("none"))
    put = system.start("/c", lambda call: system.storage.put(call, args))
    block.set()
    while not put.ended:
        system.posted.get(timeout=LIMIT)()
    assert not isinstance(taken.answer, AiosError)
    assert isinstance(put.answer, Denied)
    system.close()


Machine.TestCase.settings = fewer(5)
TestMachine = Machine.TestCase
