"""One open store: tree and content behind one small interface.

The only door for the mount, HTTP and maintenance.  Owns the order in which the parts are
opened, recovered and closed, and the background tasks.  Invariant: while a Store is open its
lock is held, and everything that changes goes through its one event loop.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from cafs import archive_side, health, priority, storefile
from cafs.accesses import Accesses
from cafs.archive_options import ArchiveOptions
from cafs.blobs import packstart
from cafs.blobs.blobs import Blobs
from cafs.blobs.chunker import ChunkParams
from cafs.blobs.chunks import Chunks
from cafs.blobs.ingest import Ingest
from cafs.blobs.pack import PackStore
from cafs.blobs.packtable import PackTable
from cafs.blobs.reader import Reader
from cafs.clock import Clock, SystemClock
from cafs.config import MountOptions
from cafs.contents import Contents
from cafs.durable import Disk
from cafs.errors import (
    CafsError,
    DiskFullError,
    StoreBusyError,
    from_os_error,
)
from cafs.figures import figures
from cafs.hasher import Hasher
from cafs.index import copyplace, fence, layout, shrink
from cafs.index.committer import Committer
from cafs.index.counters import AHEAD, Counters
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.env import Environment
from cafs.index.overlay import Layer, Overlay
from cafs.index.pending import Pending, default_path, withdraw
from cafs.index.reads import Reads, path_beside
from cafs.index.writer import IndexWriter
from cafs.interval import Interval
from cafs.lastcommit import last_commit
from cafs.latency import Latency
from cafs.lock import StoreLock, holder, wait_until_free
from cafs.nameless import Nameless
from cafs.notices import Notices
from cafs.space import Space
from cafs.tree.tree import Tree
from cafs.types import Ino
from cafs.workers import Workers

log = logging.getLogger(__name__)

DEFAULT_ARCHIVES = ArchiveOptions()
LAST_COMMIT_S = 30.0
"""How long a killed daemon's last commit may take."""
OVERLAY_LIMIT_FULL = 400
"""Index changes that may wait for a commit on a full disk."""
EARLY = 4
"""A commit begins when so large a part of what may wait for it does."""
AUDIT_BUDGET_S = 0.4
"""Time at each start for looking at the index's pages, those near the roots first."""
WORTH = 128 << 10
"""Bytes of free pages that the index may keep."""
INDEX_PAGE = 4096
RECORD_BYTES = 256
"""What an index change takes of a page, about twice."""


class Store:
    """A store that is open for writing; see open_store()."""

    def __init__(
        self,
        path: Path,
        options: MountOptions,
        lock: StoreLock,
        clock: Clock,
        disk: Disk,
        archives: ArchiveOptions = DEFAULT_ARCHIVES,
    ) -> None:
        self.path = path
        self.options = options
        self.clock = clock
        self.notices = Notices()
        self.file = storefile.read(path)
        self._lock = lock
        params = self.file.params
        self.disk = disk
        # Of no use to anybody, and each may be as large as the index.
        shrink.clear(path / "index")
        copyplace.clear(path)
        # Before anybody trusts a page.  What there is no time for now is looked at later.
        audit = fence.guard(path / "index", AUDIT_BUDGET_S)
        self.index_audited = audit.complete
        self._index_faults = len(audit.faults)
        self._writer = IndexWriter(path / "index", lock.fd)
        self._writer.start()
        self.environment = Environment(path / "index")
        self.environment.clear_dead_readers()
        # Before anything changes: others answer from the index as long as nothing is marked.
        usual = default_path(self.file.id)
        pending_file = options.pending_file or usual
        # Whoever opens the pending file looks for this one beside it.
        self.reads = Reads.publish(path_beside(pending_file), path / "index" / "lock.mdb")
        self.pending = Pending.publish(pending_file)
        if options.pending_file not in (None, usual):
            # A daemon before this one may have had it there, and been killed.
            withdraw(usual)
            path_beside(usual).unlink(missing_ok=True)
        self.overlay = Overlay(self.environment, self.pending)
        self.counters = Counters.decode(self.overlay.get(layout.META, COUNTERS_KEY))
        self._inos_ahead, self._inos_recorded = AHEAD, 0
        self.packs = PackStore(self.disk, path / "packs", self.file.id, params.pack_size)
        self.pack_table = PackTable(self.overlay)
        short = packstart.recover(
            self.packs, self.pack_table, self.overlay, self.counters.next_pack, path
        )
        self.space = Space(self.disk, path, options.reserve, clock)
        self.workers = Workers(options.ingest_threads, "ingest")
        self.readers = Workers(2, "read")
        # What it does in the idle class needs no niceness beside that, and what it does with the
        # interpreter's lock must not be held up.
        self.aside = Workers(1, "hash", niceness=0 if priority.may_idle() else 19)
        self.syncer = Workers(1, "sync")
        self.chunks = Chunks(self.overlay, self.counters, self.packs, self.pack_table)
        packstart.condemn(self.chunks, self.overlay, short)
        self.blobs = Blobs(self.overlay, self.counters, self.chunks)
        self.tree = Tree(self.overlay, self.counters, self.blobs, clock)
        chunk_params = ChunkParams(
            params.chunk_min, params.chunk_avg, params.chunk_max, params.zip_members
        )
        self.reader = Reader(self.blobs, self.packs, self.readers, options.chunk_cache)
        self.contents = Contents(
            self.tree,
            self.blobs,
            Ingest(self.chunks, chunk_params),
            self.reader,
            self.workers,
            self.aside,
            self.syncer,
            self.space,
            self.disk,
            path / "spool",
            clock,
            options.pending_bytes,
            self.notices,
        )
        self.contents.make_room = self.make_room
        self.latency = Latency()
        self.reports: dict[str, Callable[[], dict[str, Any]]] = {}
        """Sections of a status that others know, by name."""
        self.accesses = Accesses(
            self.contents, self.space, clock, self.notices, relatime=options.atime == "relatime"
        )
        self.archives = archive_side.build(self, archives)
        self.overlay.ahead = self.contents.ahead
        self.nameless = Nameless(self.tree, self.contents, clock)
        self.hasher = Hasher(self.contents)
        self.committer = Committer(self.overlay, self._prepare, self._write, clock)
        self.committer.thawed.append(self._thawed)
        self.committer.failed.append(self.space.failed)
        self._interval = Interval(
            self.contents,
            self.committer,
            self.overlay,
            self.environment,
            self.nameless,
            self.space,
            options.commit_interval,
        )
        self._index_bytes = self.environment.file_bytes()
        self.space.commit_bytes = self._commit_bytes
        self.damaged_reads = 0
        """Requests that found damage and did not come from the mount."""

    # -- commit ------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self.contents.save_times()
        self.chunks.heal(self.clock.now_ns())
        self.pack_table.save(self.packs, self.clock.now_ns())
        self.chunks.recent.frozen()
        self.blobs.by_digest.recent.frozen()
        self.counters.generation += 1
        self.counters.next_pack = self.packs.next_pack_no
        self._put_counters()

    def _put_counters(self) -> None:
        self._inos_recorded = self._inos_ahead
        self.overlay.put(layout.META, COUNTERS_KEY, self.counters.encode(self._inos_ahead))

    def _write(self, layer: Layer) -> None:
        try:
            self.packs.sync()
            self._writer.write(layer)
        except DiskFullError:
            if not self.archives.give_way() and not self.space.release_reserve():
                raise
            log.warning("the disk under %s is full: using the reserve to commit", self.path)
            self.packs.sync()
            self._writer.write(layer)

    def _commit_bytes(self) -> int:
        # At most each change copies a page, or all pages are copied once; and what is new.
        changes = self.overlay.pending
        return min(changes * INDEX_PAGE, self._index_bytes) + changes * RECORD_BYTES

    @property
    def overlay_limit(self) -> int:
        """Changes that may wait for a commit.

        Few while the disk is full: what waits is committed as one, and must fit the reserve.
        """
        if isinstance(self.space.problem, DiskFullError):
            return OVERLAY_LIMIT_FULL
        return self.options.overlay_limit

    def _thawed(self) -> None:
        self.chunks.recent.thawed()
        self.blobs.by_digest.recent.thawed()
        self._index_bytes = self.environment.file_bytes()
        self.space.recovered()
        if self.space.problem is None:
            self.space.restore_reserve()

    async def shrink_index(self) -> int:
        """Give the index's free pages back to the disk; how many bytes.

        Commits wait meanwhile, for as long as copying what is in use takes.  Raises
        DiskFullError and its kin; then the index is as it was.
        """
        # Ageing first, whose steps may be long: commits do not wait for the end of one.
        async with (
            self.archives.parked(),
            self.committer.paused() as clean,
            self.workers.parked(),
        ):
            before = self.environment.file_bytes()
            if not clean or before - self.environment.used_bytes() < max(WORTH, before // 8):
                return 0
            await trio.to_thread.run_sync(self._writer.prepare_shrunk)
            # No checkpoint and no other thread in the index from here on.
            self.overlay.suspend()
            self.environment.close()
            try:
                self._writer.replace_with_shrunk()
            finally:
                self.environment.open()
                self.overlay.renew()
            return max(0, before - self.environment.file_bytes())

    async def commit(self) -> None:
        """Return when all that the tree shows is on disk.  Raises DiskFullError and its kin."""
        await self.committer.commit()

    async def sync_file(self, ino: Ino) -> None:
        """Return when a file, as its users see it now, is on disk: fsync(2)."""
        await self.contents.settle(ino)
        await self.commit()

    async def sync_all(self) -> None:
        """Return when everything is on disk.  Raises what the disk says if it is not."""
        await self.contents.settle_all()
        await self.commit()
        problem = self.contents.first_error()
        if problem is not None:
            raise problem

    async def make_room(self) -> None:
        """Wait while more changes are pending than the overlay may hold.

        A commit begins long before that: what is pending is in memory.
        """
        if self.overlay.pending > self.overlay_limit // EARLY and not self.overlay.frozen:
            self.committer.urge()
        while self.overlay.pending > self.overlay_limit:
            await self.commit()

    async def keep(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run a task that never ends; a defect in it must not end the mount."""
        while True:
            # Where the store is closed at once, the task would begin with one that is closed.
            await trio.lowlevel.checkpoint_if_cancelled()
            try:
                await task()
            except Exception:
                log.exception("defect in a background task of %s: it begins anew", self.path)
            await trio.sleep(self.options.commit_interval)

    # -- life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """The background tasks, for ever."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.committer.run)
            nursery.start_soon(self.keep, self._interval.run)
            nursery.start_soon(self.keep, self.hasher.run)
            nursery.start_soon(self.keep, self.contents.blocks.run)
            nursery.start_soon(self.keep, self.archives.run)
            nursery.start_soon(self.keep, partial(self.accesses.run, self.reads))

    async def close(self) -> None:
        """Commit everything and let go.

        Raises DiskFullError and its kin when something could not be stored; the store is closed
        all the same.
        """
        problem: CafsError | None = None
        try:
            await self.archives.close()
            self._inos_ahead = 0
            problem = await last_commit(self.contents, self.committer, self.overlay)
            if problem is None and self._inos_recorded and not self.space.read_only:
                # So that an end in order passes over no numbers.  A failure does no harm.
                self._put_counters()
                await self.committer.once()
        finally:
            self.let_go()
        if problem is not None:
            raise problem

    def let_go(self) -> None:
        """End threads and processes and close what is open; commits nothing."""
        self.archives.let_go()
        self.workers.close()
        self.readers.close()
        with self.contents.feeder.in_haste():
            self.aside.close()
        self.syncer.close()
        self.overlay.close()
        self.environment.close()
        self._writer.close()
        self.packs.close()
        # When the writer process has ended: what it has not committed is void.
        if self.pending is not None:
            self.pending.close()
        if self.reads is not None:
            self.reads.close()
        self._lock.release()

    def status(self) -> dict[str, Any]:
        """What operators ask first; keys end with their unit."""
        counters = self.counters
        self.space.look()
        problem = self.space.problem or self.committer.error
        problem = problem or health.damage(self.chunks, self._index_faults) or self.archives.problem
        answer = figures(counters)
        answer["index_file_bytes"] = self.environment.file_bytes()
        answer["index_copy_age_s"] = copyplace.age_s(self.path, self.clock.now_ns())
        answer["pending"] = {
            "changes_count": self.overlay.pending,
            "content_bytes": self.contents.pending_bytes,
            "files_being_written_count": self.contents.being_written,
            "removed_directories_count": len(self.tree.detached),
            "last_commit_s": round(self.committer.last_seconds, 4),
        }
        answer["disk"] = {"free_bytes": self.space.free(), "total_bytes": self.space.total}
        answer |= {name: report() for name, report in self.reports.items()}
        answer["health"] = health.answer(problem)
        return answer


async def _lock(path: Path, mountpoint: Path | None) -> StoreLock:
    """The store's lock.  Waits for what a killed daemon left: a child in its last commit."""
    try:
        return StoreLock(path, mountpoint)
    except StoreBusyError:
        held_by = holder(path)
        if held_by is not None and os.path.exists(f"/proc/{held_by.pid}"):
            raise
    await trio.to_thread.run_sync(wait_until_free, path, LAST_COMMIT_S)
    return StoreLock(path, mountpoint)


@asynccontextmanager
async def open_store(
    path: Path,
    options: MountOptions,
    mountpoint: Path | None = None,
    clock: Clock | None = None,
    disk: Disk | None = None,
    archives: ArchiveOptions = DEFAULT_ARCHIVES,
) -> AsyncIterator[Store]:
    """Open a store for writing, run its background tasks, close it at the end.

    *disk* is the file layer that packs and spools go through, the real one unless given.
    Raises StoreBusyError, StoreMissingError, StoreVersionError, IndexDamagedError.
    """
    storefile.read(path)
    lock = await _lock(path, mountpoint)
    try:
        store = Store(path, options, lock, clock or SystemClock(), disk or Disk(), archives)
    except OSError as error:
        lock.release()
        if error.errno == errno.ENOENT:
            raise from_os_error(error, f"open the store {path}") from error
        raise
    except BaseException:
        lock.release()
        raise
    async with trio.open_nursery() as nursery:
        store.nameless.reap_orphans()
        nursery.start_soon(store.run)
        try:
            yield store
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await store.close()
