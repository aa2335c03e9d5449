"""The pending file says of everything that has changed since the newest commit that it has."""

from __future__ import annotations

import errno
import mmap
import os
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cafs import newstore
from cafs._index import clear, mark, retire
from cafs.errors import DiskError
from cafs.index import layout
from cafs.index.env import Environment
from cafs.index.overlay import Overlay
from cafs.index.pending import BITS_MAX, BITS_MIN, Pending, default_path, withdraw
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.store import Store, open_store
from cafs.types import ROOT, BlobNo, Ino
from tests.unit.pending_reader import (
    BLOB,
    ENTRY,
    INODE,
    KEYS,
    PARENT,
    PendingFile,
    mix,
    name_of,
    opened,
)
from tests.unit.small_store import OPTIONS, PARAMS, noise, write

PROJECT = Path(__file__).parents[2]


class Index(NamedTuple):
    path: Path
    environment: Environment
    writer: IndexWriter


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("pending")
    (path / "index").mkdir()
    lock = StoreLock(path)
    writer = IndexWriter(path / "index", lock.fd)
    writer.write([{} for _ in layout.DATABASES])
    environment = Environment(path / "index")
    yield Index(path, environment, writer)
    environment.close()
    writer.close()
    lock.release()


# -- the file ------------------------------------------------------------------------------------


def test_a_file_is_made_and_goes_with_its_daemon(tmp_path: Path) -> None:
    path = tmp_path / "file"
    pending = Pending(path)
    with opened(path) as seen:
        assert (seen.alive, seen.pid, seen.clears, seen.bits) == (1, os.getpid(), 0, 20)
        assert seen.marks() == 0
        assert path.stat().st_mode & 0o777 == 0o644
        pending.close()
        assert (seen.alive, seen.clears & 1) == (0, 1)
    assert os.listdir(tmp_path) == []


def test_a_file_that_was_left_behind_is_retired_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"
    left = Pending(path)
    mark(left.buffer, left.table, layout.INODES, layout.u48(7), b"")
    with opened(path) as old:
        pending = Pending(path)
        assert (old.alive, old.clears & 1) == (0, 1)
        with opened(path) as new:
            assert (new.alive, new.clears) == (1, 0)
            assert old.has(INODE, 7) and not new.has(INODE, 7)
        pending.close()
    left.buffer.close()


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 64, b"CAFSPEND" + bytes(100)])
def test_what_is_no_pending_file_is_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    (tmp_path / "file.new").write_bytes(b"left by a kill")
    pending = Pending(path)
    with opened(path) as seen:
        assert seen.alive == 1
    pending.close()
    assert os.listdir(tmp_path) == []


def test_without_room_for_a_file_there_is_none_and_the_old_one_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    left = Pending(path)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with opened(path) as old:
        monkeypatch.setattr(os, "posix_fallocate", full)
        assert Pending.publish(path) is None
        assert (old.alive, old.clears & 1) == (0, 1)
    assert not path.exists()
    left.buffer.close()


def test_an_old_file_that_cannot_be_taken_away_keeps_the_daemon_from_starting(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").mkdir()
    with pytest.raises(DiskError, match=r"take .*file away"):
        Pending.publish(tmp_path / "file")
    withdraw(tmp_path / "nothing there")


@pytest.mark.parametrize("bits", [BITS_MIN, 13])
def test_marks_are_where_the_document_says(tmp_path: Path, bits: int) -> None:
    pending = Pending(tmp_path / "file", bits)
    key = layout.entry_key(Ino(5), layout.name_cookie(b"a name"))
    entry = layout.entry_value(Ino(9), 8, b"a name")
    marks = [
        (layout.INODES, layout.u48(1 << 47), b"", (INODE, 1 << 47, 0)),
        (layout.BLOBS, layout.u48(77), b"anything", (BLOB, 77, 0)),
        (layout.RECIPES, layout.recipe_key(BlobNo(78), 4096), b"", (BLOB, 78, 0)),
        (layout.ENTRIES, key, entry, (ENTRY, 5, layout.name_cookie(b"a name"))),
        # Away from its own place: others look for it there all the same.
        (
            layout.ENTRIES,
            layout.entry_key(Ino(6), layout.name_cookie(b"a name") + 9),
            entry,
            (ENTRY, 6, layout.name_cookie(b"a name")),
        ),
        (layout.ENTRIES, layout.entry_key(Ino(7), 1234), b"", (ENTRY, 7, 1234)),
    ]
    with opened(tmp_path / "file") as seen:
        for table in (0, 1):
            for database, record, value, place in marks:
                before = seen.marks()
                assert not seen.has(*place)
                mark(pending.buffer, table, database, record, value)
                assert seen.has(*place)
                assert seen.marks() == before + 1
                bit = mix(*place) >> (64 - bits)
                at = 64 + table * (1 << bits) // 8 + bit // 8
                assert pending.buffer[at] >> bit % 8 & 1
            mark(pending.buffer, table, layout.CHUNKS, layout.u48(1), b"")
            mark(pending.buffer, table, layout.META, b"counters", b"")
            assert seen.marks() == len(marks)
            clear(pending.buffer, table)
            assert seen.marks() == 0
            assert seen.clears == 2 * (table + 1)
    pending.close()


def test_only_pending_files_are_marked(tmp_path: Path) -> None:
    for size in (0, 63, 64, 64 + 256, 1000):
        with pytest.raises(ValueError, match="no pending file"):
            mark(bytearray(size), 0, layout.INODES, layout.u48(1), b"")
        with pytest.raises(ValueError, match="no pending file"):
            clear(bytearray(size), 0)
        with pytest.raises(ValueError, match="no pending file"):
            retire(bytearray(size))
    for bits in (BITS_MIN - 1, BITS_MAX + 1, 64, 255):
        data = bytearray(64 + 2 * (1 << min(bits, 12)) // 8)
        struct.pack_into("<8sII", data, 0, b"CAFSPEND", 1, bits)
        with pytest.raises(ValueError, match="no pending file"):
            clear(data, 0)
    good = bytearray(64 + 2 * (1 << BITS_MIN) // 8)
    struct.pack_into("<8sII", good, 0, b"CAFSPEND", 1, BITS_MIN)
    with pytest.raises(ValueError, match="no table 2"):
        mark(good, 2, layout.INODES, layout.u48(1), b"")
    with pytest.raises(ValueError, match="no database"):
        mark(good, 0, 15, layout.u48(1), b"")
    with pytest.raises(BufferError):
        clear(bytes(good), 0)


# -- the overlay ---------------------------------------------------------------------------------


class Op(NamedTuple):
    kind: str
    database: int = 0
    key: int = 0
    value: int = 0


_records = {"database": st.sampled_from([1, 2, 6, 7]), "key": st.integers(0, 9)}
ops = st.lists(
    st.one_of(
        st.builds(Op, st.just("put"), **_records, value=st.integers(0, 3)),
        st.builds(Op, st.just("delete"), **_records),
        st.builds(Op, st.just("ahead"), key=st.integers(0, 9)),
        st.sampled_from([Op("freeze"), Op("thaw"), Op("fail"), Op("unmark")]),
    ),
    max_size=50,
)


def _record(database: int, number: int) -> tuple[bytes, tuple[int, int, int]]:
    if database == layout.INODES:
        return layout.u48(500 + number), (INODE, 500 + number, 0)
    if database == layout.ENTRIES:
        cookie = layout.name_cookie(name_of(number))
        # Some are away from their own place.
        return layout.entry_key(PARENT, cookie + number % 3), (ENTRY, PARENT, cookie)
    if database == layout.RECIPES:
        return layout.recipe_key(BlobNo(600), number << 20), (BLOB, 600, 0)
    return layout.u48(700 + number), (BLOB, 700 + number, 0)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sequence=ops)
def test_what_differs_from_the_commit_is_marked(index: Index, sequence: list[Op]) -> None:
    path = index.path / "pending"
    pending = Pending(path, BITS_MIN + 6)
    overlay = Overlay(index.environment, pending)
    ahead: set[Ino] = set()
    overlay.ahead = lambda: ahead

    def check() -> None:
        with index.environment.begin() as txn:
            for database in (1, 2, 6, 7):
                for number in range(10):
                    key, place = _record(database, number)
                    if overlay.get(database, key) != index.environment.get(txn, database, key):
                        assert seen.has(*place)
        assert all(seen.has(INODE, ino) for ino in ahead)

    with closing(overlay), opened(path) as seen:
        for op in sequence:
            key, _ = _record(op.database or 1, op.key)
            if op.kind == "put":
                value = layout.entry_value(Ino(op.value + 1), 8, name_of(op.key))
                overlay.put(op.database, key, value)
            elif op.kind == "delete":
                overlay.delete(op.database, key)
            elif op.kind == "ahead":
                ino = Ino(800 + op.key)
                if ino in ahead:
                    ahead.discard(ino)
                else:
                    overlay.mark_inode(ino)
                    ahead.add(ino)
            elif op.kind == "unmark":
                overlay.unmark()
            elif op.kind == "thaw" and overlay.frozen:
                index.writer.write(overlay.freeze())
                overlay.thaw()
            elif op.kind == "freeze" or overlay.frozen:
                overlay.freeze()
            check()
        ahead.clear()
        for _ in range(2):
            index.writer.write(overlay.freeze())
            overlay.thaw()
        assert seen.marks() == 0
        assert seen.clears % 2 == 0
    pending.close()


def test_marks_do_not_outlive_the_last_commit(index: Index, tmp_path: Path) -> None:
    pending = Pending(tmp_path / "pending")
    overlay = Overlay(index.environment, pending)
    ahead = {Ino(800)}
    overlay.ahead = lambda: ahead
    with closing(overlay), opened(tmp_path / "pending") as seen:
        overlay.mark_inode(Ino(800))
        index.writer.write(overlay.freeze())
        overlay.thaw()
        overlay.unmark()
        assert seen.has(INODE, 800)
        ahead.clear()
        overlay.unmark()
        assert seen.marks() == 0
    pending.close()


def test_a_reader_in_another_process_never_sees_what_is_over(index: Index, tmp_path: Path) -> None:
    """Values only grow; whatever is answered was true at a moment while it was asked."""
    pending = Pending(tmp_path / "pending", BITS_MIN + 4)
    overlay = Overlay(index.environment, pending)
    shared_path = tmp_path / "shared"
    shared_path.write_bytes(bytes(8 * (1 + 4 * KEYS)))
    with shared_path.open("r+b") as file:
        region = mmap.mmap(file.fileno(), 0)
    shared = memoryview(region).cast("Q")

    def change(record: int) -> None:
        value = shared[1 + record] + 1
        shared[1 + record] = value
        if record < KEYS:
            overlay.put(layout.INODES, layout.u48(100 + record), value.to_bytes(8, "little"))
        else:
            name = name_of(record - KEYS)
            key = layout.entry_key(PARENT, layout.name_cookie(name))
            if value % 2:
                overlay.delete(layout.ENTRIES, key)
            else:
                overlay.put(layout.ENTRIES, key, layout.entry_value(Ino(value), 8, name))
        shared[1 + 2 * KEYS + record] = value

    for record in range(2 * KEYS):
        change(record)
        change(record)
    index.writer.write(overlay.freeze())
    overlay.thaw()
    reader = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.unit.pending_reader"),
            *(str(index.path / "index"), str(tmp_path / "pending"), str(shared_path)),
        ],
        cwd=PROJECT,
        stdout=subprocess.PIPE,
        text=True,
    )
    rng = random.Random(1)
    commits = 0
    try:
        while commits < 400 and reader.poll() is None:
            for _ in range(rng.choice((0, 1, 5, 30))):
                change(rng.randrange(2 * KEYS))
            layer = overlay.freeze()
            # Changes go on while a commit is under way.
            for _ in range(rng.choice((0, 0, 3))):
                change(rng.randrange(2 * KEYS))
            index.writer.write(layer)
            overlay.thaw()
            commits += 1
        shared[0] = 1
        out, _ = reader.communicate(timeout=30)
    finally:
        reader.kill()
        reader.wait()
        shared.release()
        region.close()
        overlay.close()
        pending.close()
    assert reader.returncode == 0, out
    answered, handed, _ = map(int, out.split())
    assert answered > 100
    assert handed > 10


# -- the store -----------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "store"
    newstore.create(path, PARAMS)
    return path


def _seen(opened_store: Store) -> PendingFile:
    assert opened_store.pending is not None
    return PendingFile(opened_store.pending.path)


async def _committed(opened_store: Store, seen: PendingFile) -> None:
    """Commit until nothing is on its way any more."""
    await opened_store.sync_all()
    for _ in range(2):
        opened_store.overlay.put(layout.META, b"counters", opened_store.counters.encode())
        await opened_store.commit()


def test_the_file_is_named_by_the_store_and_gone_when_it_is_closed(store: Path) -> None:
    async def main() -> None:
        async with open_store(store, OPTIONS) as opened_store:
            path = default_path(opened_store.file.id)
            assert path.exists()
            assert path.name == f"cafs-{opened_store.file.id.hex()}.pending"
        assert not path.exists()

    trio.run(main)


def test_a_new_file_is_pending_and_its_directory_is_not(store: Path) -> None:
    async def main() -> None:
        async with open_store(store, OPTIONS) as opened_store:
            seen = _seen(opened_store)
            tree = opened_store.tree
            directory = tree.create(ROOT, b"d", 0o40755, 0, 0)
            await _committed(opened_store, seen)
            assert not seen.marks()
            ino = await write(opened_store, directory, b"f", b"content")
            cookie = layout.name_cookie(b"f")
            assert seen.has(INODE, ino) and seen.has(ENTRY, directory, cookie)
            assert not seen.has(INODE, directory)
            await _committed(opened_store, seen)
            assert not seen.marks()
            # Who may enter is another matter.
            tree.inodes.put(directory, tree.inodes.get(directory)._replace(mode=0o40700))
            assert seen.has(INODE, directory)
            tree.link(ino, ROOT, b"second")
            assert seen.has(ENTRY, ROOT, layout.name_cookie(b"second"))
            assert not seen.has(INODE, ino)
            tree.rename(directory, b"f", ROOT, b"g", 0)
            assert seen.has(ENTRY, directory, cookie)
            assert seen.has(ENTRY, ROOT, layout.name_cookie(b"g"))
            tree.unlink(ROOT, b"second")
            await _committed(opened_store, seen)
            assert not seen.marks()
            tree.rename(ROOT, b"d", ROOT, b"e", 0)
            tree.create(ROOT, b"x", 0o40755, 0, 0)
            tree.rename(ROOT, b"e", tree.lookup(ROOT, b"x") or ROOT, b"e", 0)
            # Another parent: "..", too, leads elsewhere.
            assert seen.has(INODE, directory)
            seen.close()

    trio.run(main)


def test_what_is_being_written_stays_pending_over_commits(store: Path) -> None:
    async def main() -> None:
        async with open_store(store, OPTIONS) as opened_store:
            seen = _seen(opened_store)
            contents = opened_store.contents
            ino = await write(opened_store, ROOT, b"f", noise(1, 300_000))
            await opened_store.contents.finished(ino)
            await _committed(opened_store, seen)
            assert not seen.has(INODE, ino)
            contents.opened(ino, writable=True)
            for number in range(5):
                # Not settled: stat(2) and read(2) show it, and no record has it.
                await contents.write(ino, number * 1000, b"changed", privileged=True)
                assert contents.attr(ino).mtime_ns != opened_store.tree.inodes.get(ino).mtime_ns
                opened_store.tree.create(ROOT, b"other %d" % number, 0o100644, 0, 0)
                await opened_store.commit()
                assert seen.has(INODE, ino)
            contents.closed(ino, writable=True)
            await _committed(opened_store, seen)
            await contents.finished(ino)
            await _committed(opened_store, seen)
            assert not seen.has(INODE, ino)
            seen.close()

    trio.run(main)


def test_a_second_reference_to_a_blob_leaves_it_readable(store: Path) -> None:
    async def main() -> None:
        async with open_store(store, OPTIONS) as opened_store:
            seen = _seen(opened_store)
            data = noise(2, 300_000)
            first = await write(opened_store, ROOT, b"first", data)
            await opened_store.contents.finished(first)
            await _committed(opened_store, seen)
            blob = opened_store.tree.inodes.get(first).blob
            second = await write(opened_store, ROOT, b"second", data)
            await opened_store.contents.finished(second)
            assert opened_store.tree.inodes.get(second).blob == blob
            assert seen.has(INODE, second)
            assert not seen.has(INODE, first) and not seen.has(BLOB, blob)
            seen.close()

    trio.run(main)
