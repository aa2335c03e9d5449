"""Trees that are removed, copied and swept beside a plain dictionary, through kills and restarts.

The model is a dictionary of paths; a directory's value is None, a file's is its content.  What a
removal leaves behind is not in it: however much of that is swept, the store shows the same, and
every count is right at every commit.
"""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    initialize,
    invariant,
    rule,
)

from cafs.copying import copy_directory, copy_file, discard
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, Ino
from tests.model.machine import StoreMachineBase, run_machine
from tests.model.test_draft import PATTERNS
from tests.unit.small_store import write

Path_ = tuple[bytes, ...]
Tree = dict[Path_, bytes | None]

NAMES = [b"a", b"b", b"c"]
paths = st.lists(st.sampled_from(NAMES), min_size=1, max_size=4).map(tuple)
lengths = st.sampled_from([0, 100, 5_000, 30_000])


def below(tree: Tree, path: Path_) -> list[Path_]:
    return [each for each in tree if each[: len(path)] == path]


class DetachMachine(StoreMachineBase):
    """See the module's text."""

    def __init__(self) -> None:
        super().__init__()
        self.now: Tree = {}
        self.committed: Tree = {}

    @staticmethod
    def _find(store: Store, path: Path_) -> Ino:
        ino: Ino | None = ROOT
        for name in path:
            assert ino is not None
            ino = store.tree.lookup(ino, name)
        assert ino is not None
        return ino

    def _has_room(self, path: Path_) -> bool:
        """Whether something new can be made there."""
        parent = path[:-1]
        return path not in self.now and (not parent or self.now.get(parent, b"") is None)

    # -- changing

    @initialize()
    def begin(self) -> None:
        for path in ((b"a",), (b"a", b"b"), (b"a", b"b", b"c")):
            self.mkdir(path)
        self.write((b"a", b"b", b"a"), 30_000, 1)
        self.write((b"a", b"c"), 5_000, 2)

    @rule(path=paths)
    def mkdir(self, path: Path_) -> None:
        if not self._has_room(path):
            return

        async def make(store: Store) -> None:
            store.tree.create(self._find(store, path[:-1]), path[-1], 0o040755, 0, 0)

        self._run(make)
        self.now[path] = None

    @rule(path=paths, length=lengths, pattern=st.integers(0, len(PATTERNS) - 1))
    def write(self, path: Path_, length: int, pattern: int) -> None:
        if not self._has_room(path):
            return
        data = PATTERNS[pattern][:length]

        async def make(store: Store) -> None:
            await write(store, self._find(store, path[:-1]), path[-1], data)

        self._run(make)
        self.now[path] = data

    @rule(path=paths, new=paths)
    def link(self, path: Path_, new: Path_) -> None:
        if self.now.get(path) is None or not self._has_room(new):
            return

        async def make(store: Store) -> None:
            store.tree.link(self._find(store, path), self._find(store, new[:-1]), new[-1])

        self._run(make)
        self.now[new] = self.now[path]

    @rule(path=paths)
    def remove(self, path: Path_) -> None:
        if path not in self.now:
            return
        is_directory = self.now[path] is None

        async def take(store: Store) -> None:
            parent = self._find(store, path[:-1])
            if is_directory:
                store.nameless.forget(store.tree.detach(parent, path[-1]))
            else:
                ino, last = store.tree.unlink(parent, path[-1])
                if last:
                    store.nameless.forget(ino)

        self._run(take)
        for each in below(self.now, path):
            del self.now[each]

    @rule(path=paths, new=paths)
    def rename(self, path: Path_, new: Path_) -> None:
        if path not in self.now or not self._has_room(new) or new[: len(path)] == path:
            return

        async def move(store: Store) -> None:
            parents = self._find(store, path[:-1]), self._find(store, new[:-1])
            assert store.tree.rename(parents[0], path[-1], parents[1], new[-1], 0) is None

        self._run(move)
        for each in below(self.now, path):
            self.now[new + each[len(path) :]] = self.now.pop(each)

    @rule(path=paths, new=paths, is_given_up=st.booleans())
    def copy(self, path: Path_, new: Path_, is_given_up: bool) -> None:
        if path not in self.now or not self._has_room(new) or new[: len(path)] == path:
            return
        is_directory = self.now[path] is None

        async def make(store: Store) -> None:
            source = self._find(store, path)
            subdirectories = 0
            if is_directory:
                copy, subdirectories = await copy_directory(store, source, 1, 1)
            else:
                copy = await copy_file(store, source, 1, 1)
            if not is_given_up:
                parent = self._find(store, new[:-1])
                assert store.tree.place(copy, parent, new[-1], subdirectories) is None
            discard(store, copy)

        self._run(make)
        if not is_given_up:
            for each in below(self.now, path):
                self.now[new + each[len(path) :]] = self.now[each]

    # -- keeping

    @rule(limit=st.integers(1, 4))
    def sweep_some(self, limit: int) -> None:
        async def some(store: Store) -> None:
            store.nameless.sweep_detached(limit)

        self._run(some)

    @rule()
    def sweep(self) -> None:
        self._run(lambda store: Sweeper(store).once())

    @rule()
    def commit(self) -> None:
        self._run(lambda store: store.sync_all())
        self.committed = dict(self.now)

    @rule()
    def reopen(self) -> None:
        self._thread.close()
        self.committed = dict(self.now)
        self._open_again()

    @rule()
    def crash(self) -> None:
        self._thread.crash()
        self.now = dict(self.committed)
        self._open_again()

    @rule()
    def nothing_is_left_of_what_was_removed(self) -> None:
        async def everything(store: Store) -> tuple[int, int, bool]:
            await store.sync_all()
            await store.hasher.once()
            await Sweeper(store).once()
            store.nameless.look_again()
            await Sweeper(store).once()
            counters = store.counters
            return counters.inodes, counters.chunks, any(store.tree.inodes.orphans())

        inodes, chunks, orphans = self._run(everything)
        self.committed = dict(self.now)
        assert not orphans
        if not self.now:
            assert (inodes, chunks) == (1, 0)

    # -- looking

    @invariant()
    def all_is_there_and_nothing_else(self) -> None:
        async def walk(store: Store) -> Tree:
            found: Tree = {}
            left: list[tuple[Path_, Ino]] = [((), ROOT)]
            while left:
                path, ino = left.pop()
                for entry in store.tree.listing(ino, 0):
                    attr = store.contents.attr(entry.ino)
                    place = (*path, entry.name)
                    if attr.mode & 0o040000:
                        left.append((place, entry.ino))
                        found[place] = None
                    else:
                        found[place] = await store.contents.read(entry.ino, 0, 1 << 20)
            return found

        assert self._run(walk) == self.now


def test_removed_trees_leave_nothing_and_nothing_else_goes() -> None:
    run_machine(DetachMachine, examples=15, steps=30)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_removed_trees_leave_nothing_and_nothing_else_goes_at_length() -> None:
    run_machine(DetachMachine, examples=200, steps=60)
