"""Content that cannot be stored: who hears of it, and how it ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cafs import upload
from cafs.config import MountOptions
from cafs.errors import DiskError, IndexDamagedError
from cafs.index.overlay import Layer
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, Attr, ChunkNo, Ino
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS, assert_sound, in_store, noise, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


@contextmanager
def nothing_counted(store: Store) -> Iterator[None]:
    """The index is damaged in a place that is needed to store content."""

    def damaged(numbers: Sequence[ChunkNo], *, hidden: bool = False) -> None:
        raise IndexDamagedError("a bad page")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store.chunks, "count", damaged)
        yield


def begin(store: Store) -> Ino:
    """A new file, open for writing."""
    ino = store.tree.create(ROOT, b"file", 0o100644, 0, 0)
    store.contents.opened(ino, writable=True)
    return ino


def test_what_cannot_be_stored_is_told_and_ends_with_new_content(path: Path) -> None:
    async def work(store: Store) -> None:
        contents = store.contents
        ino = begin(store)
        await contents.write(ino, 0, noise(1, 5000), privileged=True)
        with nothing_counted(store), pytest.raises(IndexDamagedError):
            await contents.settle(ino)
        with pytest.raises(IndexDamagedError):
            await contents.write(ino, 5000, b"more", privileged=True)
        assert contents.attr(ino).size == 5000
        contents.closed(ino, writable=True)
        await contents.settle_unfinished()
        assert contents.has_draft(ino)
        # As `cp` does it: what was there does not matter any more.
        contents.opened(ino, writable=True)
        await contents.truncate(ino, 0, privileged=True)
        await contents.write(ino, 0, noise(2, 7000), privileged=True)
        await store.sync_file(ino)
        contents.closed(ino, writable=True)
        await contents.finished(ino)
        assert await contents.read(ino, 0, 9000) == noise(2, 7000)
        assert contents.pending_bytes == 0
        await store.sync_all()
        assert not store.chunks._pins

    in_store(path, work, QUIET)
    assert_sound(path)


def test_an_upload_that_cannot_be_stored_leaves_nothing(path: Path) -> None:
    async def work(store: Store) -> None:
        with nothing_counted(store), pytest.raises(IndexDamagedError):
            async with upload.begin(store, 0o600, 0, 0) as incoming:
                await incoming.write(noise(1, 5000))
                await incoming.finish()
        assert not list(store.tree.inodes.orphans())
        assert store.contents.being_written == store.contents.pending_bytes == 0

    in_store(path, work, QUIET)
    assert_sound(path)


def test_an_upload_goes_even_if_its_end_fails(path: Path) -> None:
    async def work(store: Store) -> None:
        closed = store.contents.closed

        def fails(ino: Ino, *, writable: bool) -> None:
            closed(ino, writable=writable)
            raise IndexDamagedError("a bad page")

        with pytest.MonkeyPatch.context() as patch, pytest.raises(IndexDamagedError):
            patch.setattr(store.contents, "closed", fails)
            async with upload.begin(store, 0o600, 0, 0):
                pass
        assert not list(store.tree.inodes.orphans())

    in_store(path, work, QUIET)


def test_a_write_of_no_bytes_changes_nothing(path: Path) -> None:
    async def work(store: Store) -> None:
        contents = store.contents
        ino = begin(store)
        with trio.fail_after(20):
            await contents.write(ino, 0, b"", privileged=True)
            await contents.settle(ino)
            await contents.write(ino, 0, b"", privileged=True, last=True)
            await contents.settle(ino)
            await contents.write(ino, 100, b"", privileged=True)
            assert contents.attr(ino).size == 0
            await contents.write(ino, 0, b"some", privileged=True)
            await contents.write(ino, 4, b"", privileged=True, last=True)
            await contents.settle(ino)
        contents.closed(ino, writable=True)
        assert await contents.read(ino, 0, 100) == b"some"

    in_store(path, work, QUIET)
    assert_sound(path)


def test_a_commit_has_all_times_but_that_of_a_damaged_inode(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Store) -> None:
        contents, find = store.contents, store.tree.inodes.find
        bad, good = [await write(store, ROOT, name, b"bytes") for name in (b"bad", b"good")]
        await contents.finished(bad)
        await contents.finished(good)
        for ino in (bad, good):
            contents.opened(ino, writable=True)
            await contents.write(ino, 0, b"B", privileged=True)
        before = find(good)
        shown = contents.attr(good).mtime_ns
        assert before is not None and before.mtime_ns < shown

        def damaged(ino: Ino) -> Attr | None:
            if ino == bad:
                raise IndexDamagedError("a bad page")
            return find(ino)

        with monkeypatch.context() as patch:
            patch.setattr(store.tree.inodes, "find", damaged)
            with pytest.raises(IndexDamagedError):
                contents.save_times(bad)
            await store.commit()
        after = find(good)
        assert after is not None and after.mtime_ns == shown
        assert f"inode {bad}: the time of its last write is lost: a bad page" in caplog.text
        for ino in (bad, good):
            contents.closed(ino, writable=True)

    in_store(path, work, QUIET)


def test_a_writer_waits_while_nothing_can_be_committed(path: Path) -> None:
    """The packs are well, and the index is not: what is pending would grow without end."""

    async def work(store: Store) -> None:
        contents = store.contents
        ino = begin(store)
        data = noise(1, 16 << 20)

        def fails(layer: Layer) -> None:
            raise DiskError("write the index: Input/output error")

        written = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(store._writer, "write", fails)
            with pytest.raises(DiskError):
                while written < len(data):
                    piece = data[written : written + (1 << 16)]
                    await contents.write(ino, written, piece, privileged=True)
                    written += len(piece)
                    await contents.settle(ino)
        assert store.overlay.pending < 2 * store.overlay_limit
        assert contents.attr(ino).size == written
        # The disk is well again.
        await contents.write(ino, written, b"end", privileged=True)
        await store.sync_file(ino)
        contents.closed(ino, writable=True)
        assert await contents.read(ino, 0, written + 3) == data[:written] + b"end"

    in_store(path, work, MountOptions(commit_interval=60.0, overlay_limit=1000))
    assert_sound(path)
