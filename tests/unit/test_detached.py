"""Removed directories: gone in one step, emptied later, right at every commit in between."""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from cafs.errors import FsError
from cafs.newstore import create
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.tree.detached import is_detached
from cafs.tree.tree import RENAME_EXCHANGE
from cafs.types import ROOT, Ino
from cafs.view import View
from tests.model.storethread import QUIET, StoreThread
from tests.unit import small_store
from tests.unit.small_store import PARAMS, assert_sound, noise, write

DIRECTORY = stat.S_IFDIR | 0o755
FILE = stat.S_IFREG | 0o644

Work = Callable[[Store], Awaitable[None]]
in_store = partial(small_store.in_store, options=QUIET)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def fill(store: Store, parent: Ino, widths: list[int]) -> int:
    """Directories of directories, files in the lowest; how many names."""
    count = 0
    for number in range(widths[0]):
        count += 1
        if len(widths) > 1:
            below = store.tree.create(parent, b"%02x" % number, DIRECTORY, 0, 0)
            count += fill(store, below, widths[1:])
        else:
            store.tree.create(parent, b"file%d" % number, FILE, 0, 0)
    return count


async def swept(store: Store) -> None:
    await Sweeper(store).once()


def test_a_removed_tree_is_gone_at_once_and_swept_later(path: Path) -> None:
    async def work(store: Store) -> None:
        tree = store.tree
        top = tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        names = fill(store, top, [4, 4, 4])
        await write(store, top, b"large", noise(1, 50_000))
        kept = await write(store, ROOT, b"kept", noise(2, 50_000))
        tree.link(kept, top, b"other name")
        before = store.counters.inodes
        tree.detach(ROOT, b"top")
        assert tree.lookup(ROOT, b"top") is None
        assert tree.inodes.get(ROOT).nlink == 2
        # Nothing below has been touched yet.
        assert store.counters.inodes == before - 1
        await store.commit()
        assert store.nameless.sweep_detached(10).entries == 10
        await store.commit()
        await swept(store)
        assert not tree.detached
        assert store.counters.inodes == 2
        assert names + 4 == before
        assert tree.inodes.get(kept).nlink == 1
        assert store.counters.files == 1
        assert len(await store.contents.read(kept, 0, 100_000)) == 50_000
        assert not list(tree.inodes.orphans())
        await store.commit()

    in_store(path, work)
    assert_sound(path)


def test_taking_out_costs_the_same_however_much_is_below(path: Path) -> None:
    async def work(store: Store) -> None:
        changes = []
        for name, widths in ((b"small", [1]), (b"large", [8, 8, 8])):
            top = store.tree.create(ROOT, name, DIRECTORY, 0, 0)
            fill(store, top, widths)
            before = store.overlay.pending
            store.tree.detach(ROOT, name)
            changes.append(store.overlay.pending - before)
        assert changes[0] == changes[1] <= 5

    in_store(path, work)


def test_one_that_is_empty_may_be_forgotten_before_that_is_seen(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Store) -> None:
        top = store.tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        fill(store, top, [4])
        store.tree.detach(ROOT, b"top")
        # As many as there are: whether there are more is for the next step to see.
        assert store.nameless.sweep_detached(4).entries == 4
        store.nameless.forget(top)
        await swept(store)
        assert not store.tree.detached
        assert store.counters.inodes == 1

    in_store(path, work)
    assert_sound(path)
    assert not caplog.records


def test_an_open_file_in_it_stays_readable(path: Path) -> None:
    async def work(store: Store) -> None:
        top = store.tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        data = noise(3, 30_000)
        ino = await write(store, top, b"file", data)
        store.contents.opened(ino, writable=False)
        store.tree.detach(ROOT, b"top")
        await swept(store)
        await store.commit()
        assert store.contents.attr(ino).nlink == 0
        assert await store.contents.read(ino, 0, 100_000) == data
        store.contents.closed(ino, writable=False)
        store.nameless.look_again()
        with pytest.raises(FsError):
            store.contents.attr(ino)
        await swept(store)
        assert store.counters.chunks == 0

    in_store(path, work)
    assert_sound(path)


def test_nothing_can_be_put_into_it(path: Path) -> None:
    async def work(store: Store) -> None:
        tree = store.tree
        top = tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        below = tree.create(top, b"below", DIRECTORY, 0, 0)
        lowest = tree.create(below, b"lowest", DIRECTORY, 0, 0)
        file = tree.create(ROOT, b"file", FILE, 0, 0)
        nameless = tree.nameless(FILE, 0, 0)
        tree.detach(ROOT, b"top")
        attempts: list[Callable[[Ino], object]] = [
            lambda directory: tree.create(directory, b"new", FILE, 0, 0),
            lambda directory: tree.link(file, directory, b"new"),
            lambda directory: tree.rename(ROOT, b"file", directory, b"new", 0),
            lambda directory: tree.place(nameless, directory, b"new"),
        ]
        for directory in (top, below, lowest):
            for attempt in attempts:
                with pytest.raises(FsError) as caught:
                    attempt(directory)
                assert caught.value.errno == errno.ENOENT
        # What is in the tree is not affected.
        tree.place(nameless, ROOT, b"new")

    in_store(path, work)


def test_a_restart_goes_on_wherever_it_was_stopped(path: Path) -> None:
    """Killed after each commit of a sweep in small steps."""
    thread = StoreThread(path)

    async def begin(store: Store) -> None:
        top = store.tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        fill(store, top, [3, 3, 3])
        await write(store, top, b"file", noise(4, 20_000))
        store.tree.detach(ROOT, b"top")
        await store.commit()

    async def step(store: Store) -> int:
        count = store.nameless.sweep_detached(5).entries
        await store.commit()
        # Not committed: void after the kill.
        store.nameless.sweep_detached(3)
        return count

    async def over(store: Store) -> bool:
        return not store.tree.detached

    thread.run(begin)
    rounds = 0
    while not thread.run(over):
        thread.run(step)
        thread.crash()
        assert_sound(path)
        thread = StoreThread(path)
        rounds += 1
        assert rounds < 50
    assert rounds > 5
    thread.run(lambda store: store.commit())
    thread.run(swept)
    thread.close()
    assert_sound(path)
    with View(path) as view:
        assert view.counters.inodes == 1
        assert view.counters.chunks == 0


def test_a_check_and_a_look_beside_it_find_nothing_wrong(path: Path) -> None:
    from cafs.operate.paths import paths_of_inodes

    inside: list[Ino] = []

    async def work(store: Store) -> None:
        top = store.tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        below = store.tree.create(top, b"below", DIRECTORY, 0, 0)
        inside.append(store.tree.create(below, b"file", FILE, 0, 0))
        outer = store.tree.create(ROOT, b"outer", DIRECTORY, 0, 0)
        store.tree.rename(ROOT, b"top", outer, b"top", 0)
        store.tree.detach(outer, b"top")
        store.tree.rmdir(ROOT, b"outer")
        store.nameless.forget(outer)
        await store.commit()

    in_store(path, work)
    assert_sound(path)
    with View(path) as view:
        assert view.counters.files == 1, "it counts until it is swept"
        assert paths_of_inodes(view, inside) == {inside[0]: []}


def test_damage_in_it_stops_neither_the_rest_nor_the_daemon(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Store) -> None:
        one = store.tree.create(ROOT, b"one", DIRECTORY, 0, 0)
        bad = store.tree.create(one, b"bad", DIRECTORY, 0, 0)
        fill(store, bad, [3])
        two = store.tree.create(ROOT, b"two", DIRECTORY, 0, 0)
        fill(store, two, [3])
        store.tree.detach(ROOT, b"two")
        store.tree.detach(ROOT, b"one")
        real = store.tree.names.listing

        def listing(parent: Ino, after: int) -> object:
            if parent == bad:
                raise FsError(errno.EIO)
            return real(parent, after)

        store.tree.names.listing = listing  # type: ignore[method-assign, assignment]
        await swept(store)
        assert store.tree.inodes.find(two) is None
        assert store.tree.inodes.find(one) is None
        assert is_detached(store.tree.inodes.get(bad))

    in_store(path, work)
    assert "cannot be emptied" in caplog.text


def test_placing_takes_the_place_of_what_is_there_in_one_step(path: Path) -> None:
    async def work(store: Store) -> None:
        tree = store.tree
        old = await write(store, ROOT, b"old", noise(5, 9000))
        tree.link(old, ROOT, b"second")
        new = tree.nameless(FILE, 5, 6)
        assert tree.place(new, ROOT, b"old") is None
        assert tree.lookup(ROOT, b"old") == new
        assert tree.inodes.get(old).nlink == 1
        last = tree.nameless(FILE, 5, 6)
        gone = tree.place(last, ROOT, b"second")
        assert gone == old
        store.nameless.forget(old)
        directory = tree.nameless(DIRECTORY, 1, 1)
        tree.place_below(tree.nameless(DIRECTORY, 1, 1), directory, b"below")
        tree.place(directory, ROOT, b"directory", 1)
        assert tree.inodes.get(ROOT).nlink == 3
        assert tree.inodes.get(directory).nlink == 3
        for name, number in ((b"directory", errno.EISDIR), (b"old", None)):
            more = tree.nameless(FILE, 0, 0)
            if number is None:
                assert tree.place(more, ROOT, name) == new
                store.nameless.forget(new)
            else:
                with pytest.raises(FsError) as caught:
                    tree.place(more, ROOT, name)
                assert caught.value.errno == number
                tree.reap(more)
        await store.commit()

    in_store(path, work)
    assert_sound(path)


@pytest.mark.slow
def test_a_hundred_thousand_names_are_taken_out_without_holding_anybody_up(path: Path) -> None:
    async def work(store: Store) -> None:
        top = store.tree.create(ROOT, b"top", DIRECTORY, 0, 0)
        fill(store, top, [40, 50, 50])
        await store.commit()
        began = time.monotonic()
        store.tree.detach(ROOT, b"top")
        await store.commit()
        assert time.monotonic() - began < 1.0
        longest = 0.0
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal longest
                while True:
                    before = time.monotonic()
                    await trio.sleep(0.001)
                    longest = max(longest, time.monotonic() - before)

            nursery.start_soon(watch)
            await Sweeper(store).once(20_000)
            nursery.cancel_scope.cancel()
        print(f"{time.monotonic() - began:.1f} s, longest wait {longest * 1000:.0f} ms")
        assert longest < 0.5
        await store.commit()

    in_store(path, work)
    assert_sound(path)


@pytest.mark.parametrize("there", ["from", "to"])
def test_nothing_is_exchanged_with_what_lies_in_a_removed_directory(path: Path, there: str) -> None:
    async def work(store: Store) -> None:
        tree = store.tree
        removed = tree.create(ROOT, b"removed", DIRECTORY, 0, 0)
        tree.create(removed, b"in", FILE, 0, 0)
        live = tree.create(ROOT, b"live", FILE, 0, 0)
        tree.detach(ROOT, b"removed")
        one, two = (ROOT, b"live"), (removed, b"in")
        if there == "from":
            one, two = two, one
        with pytest.raises(FsError) as caught:
            tree.rename(*one, *two, RENAME_EXCHANGE)
        assert caught.value.errno == errno.ENOENT
        assert tree.lookup(ROOT, b"live") == live

    in_store(path, work)
