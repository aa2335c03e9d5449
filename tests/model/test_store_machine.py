"""A store beside the simplest thing that does the same, through restarts and crashes.

The model is a dictionary of names and a bytearray for each file; `committed` is a copy of it as
of the last commit.  After a crash the store must be what was committed, or any later state that
a commit may have held (none here: commits happen only when the machine asks for them).
"""

from __future__ import annotations

import copy
import stat
from dataclasses import dataclass, field

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    precondition,
    rule,
)

from cafs.errors import FsError
from cafs.operate.compact import Compactor
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, BlobNo, Ino
from tests.model.machine import StoreMachineBase, run_machine
from tests.model.test_draft import PATTERNS, SIZE_MAX
from tests.unit import aged_store

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


class StoreMachine(StoreMachineBase):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.now = Model()
        self.committed = Model()
        self._count = 0
        self._aged: dict[BlobNo, bytes] = {}
        """Content of blobs that were taken apart: nothing here could make it again."""
        self._run(self._rebuild_from_memory)

    async def _rebuild_from_memory(self, store: Store) -> None:
        async def read(number: BlobNo, start: int, end: int) -> bytes:
            return self._aged[number][start:end]

        async def thaw(number: BlobNo) -> None:
            parts = await aged_store.stored(store, self._aged[number])
            assert store.blobs.aged.thaw(number, parts)

        store.reader.aged = read
        store.contents.thaw = thaw

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
                store.nameless.forget(gone)

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
                store.nameless.forget(ino)

        self._run(unlink)
        del self.now.names[name]

    @precondition(lambda self: self.now.names)
    @rule(which=st.integers(0))
    def age(self, which: int) -> None:
        """Take a file's content apart, if it is whole and nobody writes to it."""
        name = sorted(self.now.names)[which % len(self.now.names)]

        async def age(store: Store) -> None:
            ino = store.tree.lookup(ROOT, name)
            assert ino is not None
            await store.contents.settle_unfinished()
            await store.contents.settle_all()
            await store.hasher.once()
            number = store.tree.inodes.get(ino).blob
            if not number or store.contents.writes_on(number):
                return
            if not store.blobs.aged.may_swap(number) or store.blobs.hole_bytes(number):
                return
            data = bytes(await store.reader.read(number, 0, SIZE_MAX + 1))
            # Two seeds: inner blobs that have chunks in common.
            await aged_store.age(store, number, data, number % 2)
            self._aged[number] = data

        self._run(age)

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
        super()._open_again()
        self._run(self._rebuild_from_memory)
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


def test_a_store_does_what_the_model_says() -> None:
    run_machine(StoreMachine, examples=15, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_store_does_what_the_model_says_at_length() -> None:
    run_machine(StoreMachine, examples=150, steps=50)
