"""One pack that still takes chunks, and the sidecar beside it.

Owns the write descriptors of an unsealed pack, and what must be kept in memory until it is
known to be on disk.  Invariant: synced <= size, and every byte below *synced* was covered by an
fdatasync that succeeded.

A failed fdatasync is not simply tried again.  The kernel marks the pages it could not write as
clean (fsync(2), "On Linux ..."; the PostgreSQL developers' "fsyncgate"), so that the next call
would report success for bytes that never reached the disk.  Therefore a chunk's stored bytes
stay in memory until a sync has covered them, and after a failure all of them are written anew,
at the same offsets, before the next fdatasync.

A sidecar is written with each sync and made durable when its pack is sealed: syncing it every
time would double the cost of a commit, and is needed for nothing, because the index has all
that it says.  In between it is made durable each time that many records wait for it: until then
they stay in memory, for the same reason as the chunks.  After a power loss the sidecar of the
youngest pack may be incomplete; PackStore.recover() says so, and PackStore.rewrite_sidecar()
puts it right from the index.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from cafs.blobs import fileheader, sidecar
from cafs.blobs.fileheader import HEADER_LENGTH, PACK_MAGIC, SIDECAR_MAGIC, FileHeader
from cafs.blobs.sidecar import SidecarRecord
from cafs.durable import Disk
from cafs.errors import CafsError, DiskFullError
from cafs.types import Extent

log = logging.getLogger(__name__)

SIDE_KEPT_MAX = 4 << 20
"""Bytes of a sidecar that may wait in memory to become durable: 65,536 chunks."""
BEGIN_WRITING_FROM = 256 << 10
"""Bytes that the disk begins with before a sync asks for them; few are better off together."""


class StoredChunk(NamedTuple):
    """A chunk as it is to lie in a pack."""

    sha256: bytes
    """Of the raw bytes."""
    stored: bytes | bytearray | memoryview
    codec: int
    raw_length: int
    xxh3: int
    """XXH3-64 of *stored*."""


class Paths(NamedTuple):
    """Where a pack and its sidecar lie."""

    pack: str
    sidecar: str


class _Pending(NamedTuple):
    offset: int
    chunk: StoredChunk


class PackFile:
    """An unsealed pack.

    append() may run in one thread while sync() runs in another; two of the same kind may not.
    """

    def __init__(
        self, disk: Disk, paths: Paths, header: FileHeader, *, size: int, side: bytes
    ) -> None:
        """Go on with a pack that is *size* bytes long, all of it durable.

        *side* is what its sidecar holds and may keep, header included; empty if there is none.
        """
        self.number = header.pack
        self.size = size
        """Bytes appended so far, the header's included."""
        self.synced = size
        """Bytes that are durable."""
        self.full = False
        """Takes no more chunks; the next sync seals it."""
        self.sealed = False
        self.names_changed = False
        """A name was made in the directory, which has not been synced since."""
        self._disk = disk
        self._paths = paths
        self._header = header
        self._lock = threading.Lock()  # guards _pending, size, synced, _unsynced_bytes, _begun
        self._pending: list[_Pending] = []
        self._unsynced_bytes = 0
        self._begun = size
        """Bytes that the disk was told to begin with."""
        self._pack_fd: int | None = None
        self._lost = False  # a sync failed: what is pending must be written again
        self._side_fd: int | None = None
        # What of the sidecar is not known to be durable, and where in its file that begins.
        self._side = bytearray(side or fileheader.encode(SIDECAR_MAGIC, header))
        self._side_start = 0
        self._side_written = len(side)
        self._side_cut: int | None = None  # its file may have records of chunks from here on
        self._recorded = size  # chunks before this offset are in _side, or never will be
        self._side_lags = False

    @classmethod
    def create(cls, disk: Disk, paths: Paths, header: FileHeader) -> PackFile:
        """A new pack without chunks.  Raises DiskFullError and its kin; then no file is left."""
        pack = cls(disk, paths, header, size=0, side=b"")
        fd = disk.open(paths.pack, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        try:
            disk.pwrite_all(fd, [fileheader.encode(PACK_MAGIC, header)], 0)
        except CafsError:
            with contextlib.suppress(CafsError):
                disk.close(fd)
                disk.unlink(paths.pack)
            raise
        pack._pack_fd = fd
        pack.size = pack._recorded = HEADER_LENGTH
        pack.names_changed = True
        return pack

    @property
    def unsynced_bytes(self) -> int:
        """Bytes of chunks that are kept in memory until they are durable."""
        return self._unsynced_bytes

    def append(self, chunks: Sequence[StoredChunk]) -> list[Extent]:
        """Write *chunks* at the end; not durable before the next sync().

        When it raises, nothing was appended: what may have been written is overwritten next.
        """
        chunks = _to_keep(chunks)
        offset = self.size
        extents = []
        pending = []
        for chunk in chunks:
            length = len(chunk.stored)
            if not 0 < length <= sidecar.STORED_LENGTH_MAX:
                raise ValueError(f"a stored chunk cannot have {length} bytes")
            extents.append(
                Extent(self.number, offset, length, chunk.codec, chunk.raw_length, chunk.xxh3)
            )
            pending.append(_Pending(offset, chunk))
            offset += length
        self._disk.pwrite_all(self._open_pack(), [chunk.stored for chunk in chunks], self.size)
        with self._lock:
            self._pending += pending
            self._unsynced_bytes += offset - self.size
            self.size = offset
        return extents

    def cut(self, end: int) -> None:
        """Let the pack end at *end*, the end of a chunk; not while it is appended to or synced.

        The file is not touched: its bytes behind *end* are overwritten, or cut off later.
        """
        with self._lock:
            self._pending = [entry for entry in self._pending if entry.offset < end]
            self._unsynced_bytes = sum(len(entry.chunk.stored) for entry in self._pending)
            self.size = end
            self.synced = min(self.synced, end)
        if self._recorded > end:
            self._recorded = end
            least = 0 if self._side_start else HEADER_LENGTH
            self._side = sidecar.cut(self._side, least, end)
            self._side_written = min(self._side_written, self._side_start + len(self._side))
            self._side_cut = end if self._side_cut is None else min(end, self._side_cut)

    def begin_writing(self) -> None:
        """Have the disk begin with what was appended, if that is much.  Any thread; may block."""
        with self._lock:
            fd, low, high = self._pack_fd, min(self._begun, self.size), self.size
            if fd is None or high - low < BEGIN_WRITING_FROM:
                return
            self._begun = high
        # Should it be closed meanwhile, another file begins early at most.
        self._disk.begin_writing(fd, low, high - low)

    def sync(self) -> None:
        """Make durable what was appended before the call; seal the pack if it is full.

        May be called again after it raised.
        """
        if self.sealed:
            return
        # Read before the size: once it is set nothing is appended, so the size is the last one.
        full = self.full
        with self._lock:
            pending = list(self._pending)
            size = self.size
        self._record(pending)
        complete = self._write_sidecar()
        if size > self.synced:
            self._sync_pack(pending)
            with self._lock:
                del self._pending[: len(pending)]
                self._unsynced_bytes -= sum(len(entry.chunk.stored) for entry in pending)
                self.synced = size
        if complete and (full or len(self._side) > SIDE_KEPT_MAX):
            self._sync_sidecar()
        if full and complete:
            self._seal()

    def _sync_pack(self, pending: list[_Pending]) -> None:
        fd = self._open_pack()
        if self._lost:
            if not self.synced:
                self._disk.pwrite_all(fd, [fileheader.encode(PACK_MAGIC, self._header)], 0)
            if pending:
                stored = [entry.chunk.stored for entry in pending]
                self._disk.pwrite_all(fd, stored, pending[0].offset)
        # Set before: a failed sync may also have lost what was appended while it ran.
        self._lost = True
        self._disk.sync_data(fd)
        self._lost = False

    def _record(self, pending: list[_Pending]) -> None:
        """Add the sidecar records of those chunks that have none yet."""
        for offset, chunk in pending:
            if offset >= self._recorded:
                self._recorded = offset + len(chunk.stored)
                self._side += sidecar.encode_record(
                    SidecarRecord(
                        chunk.sha256,
                        offset,
                        len(chunk.stored),
                        chunk.codec,
                        chunk.raw_length,
                        chunk.xxh3,
                    )
                )

    def _write_sidecar(self) -> bool:
        """Write what the sidecar lacks; False when the disk has no room for it.

        That alone is no reason to fail a commit, least of all one that deletes: the records
        stay in memory, the next sync tries again, and the pack is not sealed before.
        """
        try:
            fd = self._open_sidecar()
            if self._side_cut is not None:
                self._cut_sidecar(fd, self._side_cut)
            tail = bytes(memoryview(self._side)[self._side_written - self._side_start :])
            if tail:
                self._disk.pwrite_all(fd, [tail], self._side_written)
                self._side_written += len(tail)
        except DiskFullError as error:
            if not self._side_lags:
                log.warning("a sidecar waits for room on the disk: %s", error)
            self._side_lags = True
            return False
        self._side_lags = False
        return True

    def _cut_sidecar(self, fd: int, end: int) -> None:
        """Take the records of chunks from *end* on away from what the file has."""
        if self._side_start:
            # If any of these go, all that was in memory went before.
            self._side_start = self._side_written = self._durable_records(fd, end)
        self._disk.truncate(fd, self._side_written)
        if self._side_start:
            # Before others take their place: a power loss must not mix the two.
            self._disk.sync_data(fd)
        self._side_cut = None

    def _durable_records(self, fd: int, before: int) -> int:
        """Where in the file the durable records end of chunks that lie before an offset."""
        length = self._side_start
        while length > HEADER_LENGTH:
            start = length - sidecar.RECORD_LENGTH
            try:
                record = sidecar.decode_record(
                    self._disk.pread_exact(fd, sidecar.RECORD_LENGTH, start)
                )
            except CafsError:
                # As good as none: a start that finds it missing has it written anew.
                record = None
            if record is not None and record.offset < before:
                break
            length = start
        return length

    def settle_sidecar(self) -> None:
        """Make the sidecar durable if much of it waits for that; if it cannot be it waits on.

        At a start, when nobody may have done it yet.
        """
        if len(self._side) > SIDE_KEPT_MAX:
            with contextlib.suppress(CafsError):
                self._sync_sidecar()

    def _sync_sidecar(self) -> None:
        try:
            self._disk.sync_data(self._open_sidecar())
        except CafsError:
            # As with the pack: all of it, not only what was written last.
            self._side_written = self._side_start
            raise
        self._side_start += len(self._side)
        self._side = bytearray()

    def _seal(self) -> None:
        self.sealed = True
        self.close()

    def replace_sidecar(self, records: Sequence[SidecarRecord]) -> None:
        """Take *records* for what the sidecar should hold; the next sync writes it anew.

        Not while sync() runs.
        """
        fresh = bytearray(fileheader.encode(SIDECAR_MAGIC, self._header))
        for record in sorted(records, key=lambda record: record.offset):
            if record.offset < self._recorded:
                fresh += sidecar.encode_record(record)
        self._side = fresh
        self._side_start = self._side_written = 0
        self._side_cut = None
        self._close_side()

    def _open_sidecar(self) -> int:
        if self._side_fd is None:
            fresh = os.O_TRUNC if not self._side_written else 0
            flags = os.O_RDWR | os.O_CREAT | fresh
            self._side_fd = self._disk.open(self._paths.sidecar, flags)
            self.names_changed = True
        return self._side_fd

    def _close_side(self) -> None:
        if self._side_fd is not None:
            fd, self._side_fd = self._side_fd, None
            self._disk.close(fd)

    def close(self) -> None:
        """Close the descriptors; syncs nothing."""
        for fd in (self._pack_fd, self._side_fd):
            if fd is not None:
                # A sealed pack is durable already, another one is cut at its next start.
                with contextlib.suppress(CafsError):
                    self._disk.close(fd)
        self._pack_fd = self._side_fd = None

    def _open_pack(self) -> int:
        if self._pack_fd is None:
            self._pack_fd = self._disk.open(self._paths.pack, os.O_WRONLY)
        return self._pack_fd


def _to_keep(chunks: Sequence[StoredChunk]) -> list[StoredChunk]:
    """The chunks with bytes that nobody will change before they are durable, and with little more.

    A view keeps all of what it is a view of in memory.  That may be a batch of megabytes of which
    only one chunk is new; where the new ones make up most of it, a copy would be for nothing.
    """
    seen = Counter[int]()
    for chunk in chunks:
        if isinstance(chunk.stored, memoryview):
            seen[id(chunk.stored.obj)] += chunk.stored.nbytes
    kept = []
    for chunk in chunks:
        stored = chunk.stored
        if isinstance(stored, memoryview):
            whole = memoryview(stored.obj).nbytes
            copied = not stored.readonly or whole > 2 * seen[id(stored.obj)]
        else:
            copied = not isinstance(stored, bytes)
        kept.append(chunk._replace(stored=bytes(stored)) if copied else chunk)
    return kept
