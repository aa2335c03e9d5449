"""Files as their users see them: the tree's records with what is being written on top.

Owns the drafts, the times of writes that no record has yet, and who has a file open.  Belongs
to the event loop.  Invariant: what attr() shows is what a reader of the mount must see now;
what the records say is what a commit at this moment would keep.
"""

from __future__ import annotations

import logging
import stat
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from cafs.blobs.blobs import Blobs
from cafs.blobs.draft import Draft
from cafs.blobs.feeder import Feeder
from cafs.blobs.ingest import Ingest
from cafs.blobs.reader import Reader
from cafs.blobs.spool import Spool
from cafs.blocks import Blocks
from cafs.clock import Clock
from cafs.durable import Disk
from cafs.errors import CafsError
from cafs.index.layout import BLOB_AGED
from cafs.notices import Notices
from cafs.space import Space
from cafs.tree import sizes
from cafs.tree.tree import Tree
from cafs.types import NO_BLOB, Attr, BlobNo, Ino
from cafs.workers import Workers

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 128
"""Parts of a recipe that are listed once more in one step."""
FEW_CHANGES = 100
"""Index changes that may wait for a commit at any time, on a full disk, too."""


class Contents:
    """The content of all files of a store.  Implements what drafts need (Surroundings)."""

    def __init__(
        self,
        tree: Tree,
        blobs: Blobs,
        ingest: Ingest,
        reader: Reader,
        workers: Workers,
        aside: Workers,
        syncer: Workers,
        space: Space,
        disk: Disk,
        spool_directory: Path,
        clock: Clock,
        pending_limit: int,
        notices: Notices,
    ) -> None:
        self.tree = tree
        self.blobs = blobs
        self.ingest = ingest
        self.reader = reader
        self.blocks = Blocks(notices)
        self.workers = workers
        self.aside = aside
        self.feeder = Feeder(ingest, workers, aside, syncer)
        self._space = space
        self._disk = disk
        self._spool_directory = spool_directory
        self._clock = clock
        self._pending_limit = pending_limit
        self.pending_bytes = 0
        """Bytes that wait in memory to become chunks."""
        self._crowd = trio.lowlevel.ParkingLot()
        # Writers that wait until less waits in memory.
        self._drafts: dict[Ino, Draft] = {}
        self._hidden: set[Ino] = set()
        self._touched: dict[Ino, int] = {}
        self._openers: Counter[Ino] = Counter()
        self._writers: Counter[Ino] = Counter()
        self._to_settle: deque[Ino] = deque()
        self.unfinished = trio.Event()
        """Set when a file without writers needs more than a job to be finished."""
        self._waiting = trio.lowlevel.ParkingLot()
        # Those in finished().
        self.thaw: Callable[[BlobNo], Awaitable[None]] | None = None
        """Gives a blob that was taken apart its plain recipe back."""
        self.make_room: Callable[[], Awaitable[None]] | None = None
        """Waits while too much waits for a commit."""
        self._spools = 0

    # -- what drafts need --------------------------------------------------------------------

    def publish(self, ino: Ino, blob: BlobNo, size: int) -> None:
        """See cafs.blobs.draft.Surroundings."""
        if ino not in self._hidden:
            self.blobs.reveal(blob)
        elif blob != NO_BLOB and not size:
            # Just begun: nobody else has it.
            self.blobs.hidden.add(blob)
        before = self.tree.inodes.get(ino).aux
        self.tree.publish(ino, blob, size)
        if ino not in self._drafts and self.tree.inodes.get(ino).aux != before:
            # The same content was there already, with other holes.
            self.blocks.change(ino)

    def hide(self, ino: Ino) -> None:
        """A new inode that no name leads to, and which nobody is shown before reveal()."""
        self._hidden.add(ino)

    def reveal(self, ino: Ino) -> None:
        """The inode is about to get a name."""
        self._hidden.discard(ino)
        self.blobs.reveal(self.tree.inodes.get(ino).blob)

    @asynccontextmanager
    async def forked(self, ino: Ino, source: BlobNo, size: int) -> AsyncIterator[BlobNo]:
        """See cafs.blobs.draft.Surroundings; the block has to publish what it is given."""
        # A commit may fall between two steps: until then it belongs to an inode without a name.
        keeper = self.tree.nameless(stat.S_IFREG, 0, 0)
        try:
            fork = self.blobs.begin(ino)
            self.tree.publish(keeper, fork, 0)
            while self.blobs.fork_more(fork, source, PARTS_AT_ONCE, size):
                self.tree.publish(keeper, fork, self.blobs.get(fork).size)
                await trio.lowlevel.checkpoint()
            yield fork
        finally:
            self.tree.reap(keeper)

    def new_spool(self, ino: Ino) -> Spool:
        """See cafs.blobs.draft.Surroundings."""
        self._spools += 1
        return Spool(self._disk, self._spool_directory, f"{ino}.{self._spools}")

    def digests_arrived(self, ino: Ino) -> None:
        """See cafs.blobs.draft.Surroundings."""
        if ino not in self._writers:
            self._finished(ino)

    def held(self, change_bytes: int) -> None:
        """See cafs.blobs.draft.Surroundings."""
        self.pending_bytes += change_bytes
        if change_bytes < 0 and self.pending_bytes < self._pending_limit:
            self._crowd.unpark_all()

    def _could_not_store(self, error: CafsError) -> None:
        self._space.failed(error)
        # Those who wait for room in memory would wait as long as the disk is ill.
        self._crowd.unpark_all()

    # -- looking -----------------------------------------------------------------------------

    def attr(self, ino: Ino) -> Attr:
        """The attributes as of now.  Raises FsError(ESTALE)."""
        attr = self.tree.inodes.get(ino)
        draft = self._drafts.get(ino)
        if draft is not None:
            attr = draft.over(attr)
            self.blocks.show(ino, attr)
        touched = self._touched.get(ino)
        if touched is not None:
            attr = attr._replace(mtime_ns=touched, ctime_ns=max(touched, attr.ctime_ns))
        return attr

    async def read(self, ino: Ino, start: int, end: int) -> bytes:
        """Bytes [start, end) of a file, shorter at its end.  Raises ChunkDamagedError."""
        return bytes(await self.view(ino, start, end))

    async def view(self, ino: Ino, start: int, end: int) -> bytes | memoryview:
        """As read(), without a copy where the bytes are a part of what was read."""
        draft = self._drafts.get(ino)
        if draft is not None:
            return await draft.read(start, end)
        attr = self.tree.inodes.get(ino)
        end = min(end, attr.size)
        if start >= end:
            return b""
        return await self.reader.read(attr.blob, start, end)

    # -- opening and closing -----------------------------------------------------------------

    def opened(self, ino: Ino, *, writable: bool) -> None:
        """Somebody has the file open from now on."""
        self._openers[ino] += 1
        if writable:
            self._writers[ino] += 1

    def is_open(self, ino: Ino) -> bool:
        """Whether somebody has the file open."""
        return ino in self._openers

    def reads_on(self, blob: BlobNo) -> bool:
        """Whether somebody has a file with this content open, and so may be in the midst of it."""
        for ino in list(self._openers):
            try:
                attr = self.tree.inodes.find(ino)
            except CafsError:
                # Nobody reads what has lost its record, and it says nothing of other files.
                continue
            if attr is not None and attr.blob == blob:
                return True
        return False

    def closed(self, ino: Ino, *, writable: bool) -> None:
        """Somebody let go of it; the last writer's leaving begins to finish its content."""
        _decrement(self._openers, ino)
        if writable:
            _decrement(self._writers, ino)
            if ino not in self._writers:
                self._finish(ino)

    def discard(self, ino: Ino) -> bool:
        """Drop what is being written to a file that goes; False while somebody works on it."""
        self._touched.pop(ino, None)
        draft = self._drafts.get(ino)
        if draft is not None and draft.busy:
            return False
        self._hidden.discard(ino)
        self.blocks.drop(ino)
        if draft is None:
            return True
        draft.discard()
        del self._drafts[ino]
        self._waiting.unpark_all()
        return True

    # -- changing ----------------------------------------------------------------------------

    def _draft(self, ino: Ino) -> Draft:
        draft = self._drafts.get(ino)
        if draft is None:
            attr = self.tree.inodes.get(ino)
            self.tree.inodes.moves_ahead(ino)
            draft = self._drafts[ino] = Draft(self, ino, attr.blob, attr.size)
        return draft

    async def _plain(self, ino: Ino) -> None:
        """Return when a draft can be put on top of what the file has."""
        while ino not in self._drafts:
            blob = self.tree.inodes.get(ino).blob
            if blob == NO_BLOB or not self.blobs.get(blob).flags & BLOB_AGED:
                return
            if self.thaw is None:
                raise CafsError(f"blob {blob} is taken apart, and nothing here can rebuild it")
            await self.thaw(blob)

    def writes_on(self, blob: BlobNo) -> bool:
        """Whether somebody writes on top of a blob: its recipe is not to be exchanged."""
        return any(draft.rests_on(blob) for draft in self._drafts.values())

    async def write(
        self, ino: Ino, offset: int, data: bytes, *, privileged: bool, last: bool = False
    ) -> None:
        """Write to a file.  Raises FsError(EFBIG), DiskFullError and its kin; then nothing was
        written.

        *last* says that nothing more will be appended before it is settled.
        """
        sizes.check_end(offset + len(data))
        self._space.admit(self.pending_bytes + len(data))
        while self.pending_bytes > self._pending_limit:
            await self._crowd.park()
            if self._space.problem is not None and self.pending_bytes > self._pending_limit:
                raise self._space.problem
        if self.make_room is not None and self.blobs.overlay.pending > FEW_CHANGES:
            await self.make_room()
        await self._plain(ino)
        draft = self._draft(ino)
        if not draft.append_now(offset, data, last=last):
            await draft.write(offset, data)
        self._changed(ino, privileged=privileged)

    async def truncate(self, ino: Ino, size: int, *, privileged: bool) -> None:
        """Set a file's size, as ftruncate(2): the times change even if the size does not.

        Raises FsError(EFBIG), DiskFullError and its kin.
        """
        now = self.attr(ino).size
        sizes.check_size(size, now)
        if size > now:
            self._space.admit(0)
        if size:
            await self._plain(ino)
        await self._draft(ino).truncate(size)
        self._changed(ino, privileged=privileged)
        if ino not in self._writers:
            self._finish(ino)

    def _changed(self, ino: Ino, *, privileged: bool) -> None:
        self._touched[ino] = self._clock.now_ns()
        self.tree.written(ino, privileged=privileged)

    def save_times(self, ino: Ino | None = None) -> None:
        """Put the times of writes into the records: of one inode, or of all before a commit."""
        inos = list(self._touched) if ino is None else [ino] if ino in self._touched else []
        for each in inos:
            try:
                attr = self.tree.inodes.find(each)
            except CafsError as error:
                if ino is not None:
                    raise
                # A commit has to have the times of all others.
                attr = None
                text = "inode %d: the time of its last write is lost: %s; what to do: %s"
                log.error(text, each, error, error.advice)
            touched = self._touched.pop(each)
            if attr is not None:
                ctime = max(touched, attr.ctime_ns)
                self.tree.inodes.put(each, attr._replace(mtime_ns=touched, ctime_ns=ctime))

    # -- settling ----------------------------------------------------------------------------

    async def settle(self, ino: Ino) -> None:
        """Bring all that was written to a file into its record.  Raises DiskFullError ..."""
        draft = self._drafts.get(ino)
        if draft is not None:
            await self._settle(ino, draft)
        self.save_times(ino)

    async def _settle(self, ino: Ino, draft: Draft) -> None:
        await draft.settle()
        if self._drafts.get(ino) is draft:
            self.blocks.settle(ino, draft.over(self.tree.inodes.get(ino)))

    async def settle_all(self) -> None:
        """Settle every file; a failure is kept by its draft and tried again next time."""
        self.feeder.flush()

        async def one(ino: Ino, draft: Draft) -> None:
            try:
                await self._settle(ino, draft)
            except CafsError as error:
                if draft.error is None:
                    log.error("inode %d: cannot store what was written: %s", ino, error)
                draft.error = error
                self._could_not_store(error)
            if ino not in self._writers and self._drafts.get(ino) is draft:
                self._finished(ino)

        async with trio.open_nursery() as nursery:
            for ino, draft in list(self._drafts.items()):
                if draft.dirty:
                    nursery.start_soon(one, ino, draft)
                elif ino not in self._writers:
                    self._finished(ino)
        self.save_times()

    def _finish(self, ino: Ino) -> None:
        """No writer is left: store the rest, soon, and give the blob its digests."""
        draft = self._drafts.get(ino)
        if draft is None:
            return
        attr = self.tree.inodes.find(ino)
        if attr is None or (attr.nlink == 0 and ino not in self._openers):
            # It has no name and nobody reads it: it is about to be reaped.
            return
        if not draft.dirty:
            self._finished(ino)
        elif not draft.finish_now(lambda: self._finished(ino)):
            self._to_settle.append(ino)
            self.unfinished.set()

    def _finished(self, ino: Ino) -> None:
        draft = self._drafts.get(ino)
        if draft is None or ino in self._writers or draft.busy or draft.dirty:
            if draft is not None and draft.error is not None:
                self._could_not_store(draft.error)
            return
        if draft.awaits_digests:
            return
        draft.take_digests()
        self.blocks.settle(ino, draft.over(self.tree.inodes.get(ino)))
        draft.close()
        del self._drafts[ino]
        self._waiting.unpark_all()

    async def finished(self, ino: Ino) -> None:
        """Return when nothing of a file waits to be stored any more, nor for its digests.

        At once if somebody has it open for writing, because that may go on for ever.
        """
        with self.feeder.in_haste():
            while ino in self._drafts and ino not in self._writers:
                await self._waiting.park()

    async def settle_unfinished(self) -> None:
        """Settle the files that unfinished was set for."""
        self.unfinished = trio.Event()
        while self._to_settle:
            ino = self._to_settle.popleft()
            draft = self._drafts.get(ino)
            if draft is None:
                continue
            try:
                await self._settle(ino, draft)
            except CafsError as error:
                draft.error = error
                self._could_not_store(error)
            self._finished(ino)

    def ahead(self) -> Iterable[Ino]:
        """Inodes of which attr() and read() may show more than their records."""
        return self._drafts.keys() | self._touched.keys()

    @property
    def being_written(self) -> int:
        """Files with content that is not finished."""
        return len(self._drafts)

    def has_draft(self, ino: Ino) -> bool:
        """Whether the file is being written or waits to be finished."""
        return ino in self._drafts

    def first_error(self) -> CafsError | None:
        """Why something that was written cannot be stored, if so."""
        return next((draft.error for draft in self._drafts.values() if draft.error), None)


def _decrement(counter: Counter[Ino], ino: Ino) -> None:
    counter[ino] -= 1
    if counter[ino] <= 0:
        del counter[ino]
