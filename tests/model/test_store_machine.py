"""A store beside the simplest thing that does the same, through restarts and crashes.

The model is a dictionary of names and a bytearray for each file; `committed` is a copy of it as
of the last commit.  After a crash the store must be what was committed, or any later state that
a commit may have held (none here: commits happen only when the machine asks for them).
"""

from __future__ import annotations

import copy
import shutil
import stat
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from cafs.errors import FsError
from cafs.newstore import create
from cafs.operate.check import Check
from cafs.operate.compact import Compactor
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, Ino
from cafs.view import View
from tests.model.audit import audit
from tests.model.storethread import StoreThread
from tests.model.test_draft import PATTERNS, SIZE_MAX, SMALL

T = TypeVar("T")

NAMES = [b"a", b"b", b"c", b"d", b"e"]
names = st.sampled_from(NAMES)
offsets = st.one_of(st.just(0), st.integers(0, 40_000), st.sampled_from([4096, 16384]))
lengths = st.one_of(st.integers(1, 400), st.integers(1, 40_000))
patterns = st.integers(0, len(PATTERNS) - 1)


@dataclass
class Model:
    """What a store should hold."""

    names: dict[bytes, int] = field(default_factory=dict)
    """Name to a number of the model's own."""
    content: dict[int, bytearray] = field(default_factory=dict)

    def links(self, number: int) -> int:
        return list(self.names.values()).count(number)


async def lookup(store: Store, name: bytes) -> Ino | None:
    return store.tree.lookup(ROOT, name)


class StoreMachine(RuleBasedStateMachine):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self._base = Path(tempfile.mkdtemp(prefix="cafs-machine-"))
        self._path = self._base / "store"
        create(self._path, SMALL)
        self._thread = StoreThread(self._path)
        self.now = Model()
        self.committed = Model()
        self._count = 0

    def teardown(self) -> None:
        self._thread.close()
        shutil.rmtree(self._base)

    def _run(self, work: Callable[[Store], Awaitable[T]]) -> T:
        return self._thread.run(work)

    # -- changing

    @initialize()
    def begin(self) -> None:
        self.create(b"a")
        self.write(b"a", 0, 30_000, 0)

    @rule(name=names)
    def create(self, name: bytes) -> None:
        async def make(store: Store) -> bool:
            try:
                store.tree.create(ROOT, name, 0o100644, 0, 0)
            except FsError:
                return False
            return True

        assert self._run(make) == (name not in self.now.names)
        if name not in self.now.names:
            self._count += 1
            self.now.names[name] = self._count
            self.now.content[self._count] = bytearray()

    @rule(name=names, offset=offsets, length=lengths, pattern=patterns)
    def write(self, name: bytes, offset: int, length: int, pattern: int) -> None:
        if name not in self.now.names:
            return
        content = self.now.content[self.now.names[name]]
        data = PATTERNS[pattern][offset % 977 :][:length][: max(0, SIZE_MAX - offset)]

        async def write(store: Store) -> None:
            ino = store.tree.lookup(ROOT, name)
            assert ino is not None
            store.contents.opened(ino, writable=True)
            await store.contents.write(ino, offset, data, privileged=True)
            store.contents.closed(ino, writable=True)

        self._run(write)
        content += bytes(max(0, offset - len(content)))
        content[offset : offset + len(data)] = data

    @rule(name=names, length=lengths, pattern=patterns)
    def append(self, name: bytes, length: int, pattern: int) -> None:
        if name in self.now.names:
            size = len(self.now.content[self.now.names[name]])
            if size < SIZE_MAX:
                self.write(name, size, length, pattern)

    @rule(name=names, size=offsets)
    def truncate(self, name: bytes, size: int) -> None:
        if name not in self.now.names:
            return

        async def truncate(store: Store) -> None:
            ino = store.tree.lookup(ROOT, name)
            assert ino is not None
            await store.contents.truncate(ino, size, privileged=True)

        self._run(truncate)
        content = self.now.content[self.now.names[name]]
        content[:] = content[:size] + bytes(max(0, size - len(content)))

    @rule(name=names, new=names)
    def rename(self, name: bytes, new: bytes) -> None:
        if name not in self.now.names:
            return

        async def rename(store: Store) -> None:
            gone = store.tree.rename(ROOT, name, ROOT, new, 0)
            if gone is not None:
                store.forget(gone)

        self._run(rename)
        number = self.now.names[name]
        if self.now.names.get(new) != number:
            del self.now.names[name]
            self.now.names[new] = number

    @rule(name=names, new=names)
    def link(self, name: bytes, new: bytes) -> None:
        if name not in self.now.names or new in self.now.names:
            return

        async def link(store: Store) -> None:
            ino = store.tree.lookup(ROOT, name)
            assert ino is not None
            store.tree.link(ino, ROOT, new)

        self._run(link)
        self.now.names[new] = self.now.names[name]

    @rule(name=names)
    def unlink(self, name: bytes) -> None:
        if name not in self.now.names:
            return

        async def unlink(store: Store) -> None:
            ino, last = store.tree.unlink(ROOT, name)
            if last:
                store.forget(ino)

        self._run(unlink)
        del self.now.names[name]

    # -- keeping

    @rule()
    def settle_all(self) -> None:
        async def settle(store: Store) -> None:
            await store.contents.settle_unfinished()
            await store.contents.settle_all()

        self._run(settle)

    @rule()
    def hash(self) -> None:
        self._run(lambda store: store.hasher.once())

    @rule()
    def sync_all(self) -> None:
        self._run(lambda store: store.sync_all())
        self.committed = copy.deepcopy(self.now)

    @rule()
    def sweep(self) -> None:
        self._run(lambda store: Sweeper(store).once())

    @rule()
    def compact(self) -> None:
        async def compact(store: Store) -> None:
            await Sweeper(store).once()
            await Compactor(store).whole(0.0)

        self._run(compact)
        self.committed = copy.deepcopy(self.now)

    @rule()
    def reopen(self) -> None:
        self._thread.close()
        self.committed = copy.deepcopy(self.now)
        self._open_again()

    @rule()
    def crash(self) -> None:
        self._thread.crash()
        self.now = copy.deepcopy(self.committed)
        self._open_again()

    @precondition(lambda self: self.now.names)
    @rule()
    def crash_after_more_work(self) -> None:
        """What was stored but not committed is void, and its room is used again."""
        name = next(iter(self.now.names))
        self.write(name, 0, 20_000, 1)
        self.settle_all()
        self.crash()

    def _open_again(self) -> None:
        faults = audit(self._path)
        assert not faults, faults
        with View(self._path) as view:
            assert not list(Check(view).findings())
        self._thread = StoreThread(self._path)
        self._compare()

    # -- looking

    @invariant()
    def sizes_are_right(self) -> None:
        async def sizes(store: Store) -> dict[bytes, tuple[int, int]]:
            result = {}
            for entry in store.tree.listing(ROOT, 0):
                attr = store.contents.attr(entry.ino)
                assert stat.S_ISREG(attr.mode)
                result[entry.name] = (attr.size, attr.nlink)
            return result

        assert self._run(sizes) == {
            name: (len(self.now.content[number]), self.now.links(number))
            for name, number in self.now.names.items()
        }

    @rule()
    def _compare(self) -> None:
        async def contents(store: Store) -> dict[bytes, bytes]:
            result = {}
            for name in list(self.now.names):
                ino = store.tree.lookup(ROOT, name)
                assert ino is not None
                result[name] = await store.contents.read(ino, 0, SIZE_MAX + 1)
            return result

        found = self._run(contents)
        assert found == {name: self.now.content[n] for name, n in self.now.names.items()}


_settings = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def test_a_store_does_what_the_model_says() -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(_settings, max_examples=15, stateful_step_count=30)
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_store_does_what_the_model_says_at_length() -> None:
    run_state_machine_as_test(
        StoreMachine, settings=settings(_settings, max_examples=150, stateful_step_count=50)
    )
