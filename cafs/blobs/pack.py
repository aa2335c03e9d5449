"""Packs: append-only files of stored chunks, back to back.

Owns the directory ``packs/``: which pack takes the next chunk, when packs become durable, how
they are read and how they go.  Knows nothing of what refers to a chunk.  Invariants, for each
pack: committed <= synced <= size; a chunk never straddles two packs; a number is never used for
a second pack that an index has seen.  docs/format.md, "Packs", states the bytes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from cafs import _fetch
from cafs.blobs import fileheader, packrecovery, sidecar
from cafs.blobs.descriptors import Descriptors
from cafs.blobs.fileheader import HEADER_LENGTH, SIDECAR_MAGIC, STORE_ID_LENGTH, FileHeader
from cafs.blobs.packfile import PackFile, StoredChunk
from cafs.blobs.packrecovery import Problem
from cafs.blobs.sidecar import SidecarRecord
from cafs.durable import Disk
from cafs.errors import ChunkDamagedError, DamagedError, NotFoundError, from_os_error
from cafs.types import Extent, PackNo

__all__ = ["PACK_SIZE_MAX", "PackStore", "Problem", "StoredChunk"]

StoredForm = tuple[int, int, int, int]
"""A chunk as it lies in a pack: stored length, codec, raw length, XXH3-64 of the stored bytes."""
StoredRun = tuple[PackNo, int, Sequence[StoredForm]]
"""Chunks that lie side by side in a pack, from an offset on."""

PACK_SIZE_MAX: Final = (1 << 32) - 1
"""Bytes: offsets have 32 bits."""


class PackStore:
    """The packs of one store.  Thread-safe.

    Reading needs no recover(); a process that only looks inside calls nothing else.  Appending
    does, exactly once, and by the one process that holds the store's lock.
    """

    def __init__(
        self, disk: Disk, directory: str | os.PathLike[str], store_id: bytes, pack_size: int
    ) -> None:
        """*pack_size* is the length in bytes that a pack never exceeds."""
        if not HEADER_LENGTH < pack_size <= PACK_SIZE_MAX:
            raise ValueError(f"a pack cannot have {pack_size} bytes")
        if len(store_id) != STORE_ID_LENGTH:
            raise ValueError(f"a store's id has {STORE_ID_LENGTH} bytes")
        self._disk = disk
        self._directory = os.fspath(directory)
        self._store_id = store_id
        self._pack_size = pack_size
        self._descriptors = Descriptors(disk, self.pack_path)
        # Lock order: _sync_lock, _append_lock, _lock.  The first two are held over I/O; _lock
        # guards the dictionaries and is held for moments, so that sizes() never waits.
        self._sync_lock = threading.Lock()
        self._append_lock = threading.Lock()
        self._lock = threading.Lock()
        self._sizes: dict[PackNo, tuple[int, bool]] = {}
        self._open: dict[PackNo, PackFile] = {}
        self._current: PackFile | None = None
        self._next = PackNo(0)
        self._names_changed = False

    def pack_path(self, pack: PackNo) -> str:
        """Where the pack lies."""
        return packrecovery.paths_of(self._directory, pack).pack

    def sidecar_path(self, pack: PackNo) -> str:
        """Where its sidecar lies."""
        return packrecovery.paths_of(self._directory, pack).sidecar

    def recover(
        self,
        packs: Mapping[PackNo, tuple[int, bool]],
        next_pack_no: PackNo,
        empty: Collection[PackNo] = (),
    ) -> list[Problem]:
        """Bring the directory to the last commit, and be ready to append.

        *packs* has the committed length and whether sealed; *next_pack_no* is above every number
        that was ever committed; nothing is alive in those in *empty*.  Files of other packs are
        removed, unsealed packs are cut to their committed length.  A pack that is missing, too
        short or not ours is returned as a problem, keeps its record and takes no more chunks;
        reading what it lost raises ChunkDamagedError.  While one is missing or too short that is
        not empty, nothing is removed or cut, and no number is used that a file has.  Raises
        DiskError and its kin when the directory cannot be read or changed.
        """
        found = packrecovery.recover(self._disk, self._directory, self._store_id, packs, empty)
        with self._lock:
            # What cannot be appended to is as good as sealed.
            self._sizes = {pack: (size, True) for pack, (size, _) in packs.items()}
            self._open = {pack.number: pack for pack in found.open}
            for pack in found.open:
                pack.full = True
                self._sizes[pack.number] = (pack.size, False)
            if found.open and found.open[-1].size < self._pack_size:
                self._current = found.open[-1]
                self._current.full = False
            self._next = max(next_pack_no, PackNo(found.last + 1))
        return found.problems

    # -- writing

    def append(self, pieces: Sequence[StoredChunk]) -> list[Extent]:
        """Write *pieces* behind what is there; where each lies, in the same order.

        Not durable before the next sync().  Until then the stored bytes are kept in memory
        (writable buffers as a copy): whoever appends looks at :attr:`unsynced_bytes` and calls
        sync() when that is too much.  Blocks on the disk.

        Raises DiskFullError and its kin; the pieces then count as not appended, though some
        may lie in a pack as bytes that nothing refers to.
        """
        extents: list[Extent] = []
        with self._append_lock:
            while len(extents) < len(pieces):
                first = len(extents)
                pack = self._pack_for(len(pieces[first].stored))
                size = pack.size
                last = first
                while last < len(pieces):
                    size += len(pieces[last].stored)
                    if size > self._pack_size:
                        break
                    last += 1
                extents += pack.append(pieces[first:last])
                with self._lock:
                    self._sizes[pack.number] = (pack.size, False)
        return extents

    def _pack_for(self, length: int) -> PackFile:
        """The pack that takes a chunk of *length* bytes.  Called with _append_lock."""
        if length > self._pack_size - HEADER_LENGTH:
            raise ValueError(f"a chunk of {length} bytes does not fit in a pack")
        current = self._current
        if current is not None and current.size + length <= self._pack_size:
            return current
        number = self._next
        if not number:
            raise ValueError("recover() comes before append()")
        # Not used again even if this fails: what it may leave behind is void.
        self._next = PackNo(number + 1)
        paths = packrecovery.paths_of(self._directory, number)
        fresh = PackFile.create(self._disk, paths, FileHeader(number, self._store_id))
        with self._lock:
            self._open[number] = fresh
            self._sizes[number] = (fresh.size, False)
            self._current = fresh
            if current is not None:
                current.full = True
        return fresh

    @contextmanager
    def not_syncing(self) -> Iterator[None]:
        """Within the block nothing is synced: for cut()."""
        with self._sync_lock:
            yield

    def cut(self, pack: PackNo, end: int, least: int) -> int:
        """Let an unsealed pack end at *end* if that makes it *least* bytes shorter; by how many.

        Nothing behind *end* may be referred to, not by an append() of a moment ago either.  The
        file stays as long as it is until trim().  Within not_syncing().
        """
        with self._append_lock, self._lock:
            found = self._open.get(pack)
            if found is None or found.sealed or found.size - end < max(1, least):
                return 0
            freed = found.size - end
            found.cut(end)
            self._sizes[pack] = (end, False)
            return freed

    def trim(self, pack: PackNo) -> None:
        """Cut the file of a pack to its size.  Any thread; blocks.

        Only when an index that has this size, or a larger one, is on disk: a pack that is
        shorter than its index says is damaged.  Raises DiskError and its kin.
        """
        with self._append_lock:
            with self._lock:
                size = self._sizes.get(pack, (0, True))[0]
            if size:
                packrecovery.truncate(self._disk, self.pack_path(pack), size)

    def roll(self) -> None:
        """Take no more chunks in the current pack: the next sync() seals it."""
        with self._append_lock, self._lock:
            if self._current is not None:
                self._current.full = True
                self._current = None

    def begin_writing(self) -> None:
        """Have the disk begin with what was appended, so that sync() waits less.  May block."""
        with self._lock:
            packs = list(self._open.values())
        for pack in packs:
            pack.begin_writing()

    def sync(self) -> None:
        """Make durable all that was appended before the call, and seal the packs that are full.

        Any thread; append() goes on meanwhile.  Raises DiskError and its kin; then nothing
        counts as durable that was not before, and it may be called again.  It never reports
        success for bytes whose fdatasync failed once: those are written anew from memory first
        (see :mod:`cafs.blobs.packfile`).
        """
        with self._sync_lock:
            with self._lock:
                packs = list(self._open.values())
            for pack in packs:
                pack.sync()
                self._names_changed |= pack.names_changed
                pack.names_changed = False
            if self._names_changed:
                self._disk.sync_directory(self._directory)
                self._names_changed = False
            with self._lock:
                for pack in packs:
                    if pack.sealed:
                        del self._open[pack.number]
                        self._sizes[pack.number] = (pack.size, True)

    @property
    def unsynced_bytes(self) -> int:
        """Stored bytes that are kept in memory until they are durable."""
        with self._lock:
            return sum(pack.unsynced_bytes for pack in self._open.values())

    @property
    def open_packs(self) -> frozenset[PackNo]:
        """Those that are not sealed yet."""
        with self._lock:
            return frozenset(self._open)

    @property
    def next_pack_no(self) -> PackNo:
        """The number of the next new pack."""
        return self._next

    def size_of(self, pack: PackNo) -> int:
        """Length of one pack as appended so far; 0 of one that is retired."""
        with self._lock:
            return self._sizes.get(pack, (0, True))[0]

    def sizes(self) -> dict[PackNo, tuple[int, bool]]:
        """Length and whether sealed, of each pack that is not retired, as appended so far.

        All of it is durable once a sync() that begins after this call has returned: that is
        when an index may record it.  Does not wait for the disk.
        """
        with self._lock:
            return dict(self._sizes)

    def synced(self) -> dict[PackNo, int]:
        """Durable length of each pack that is not retired."""
        with self._lock:
            durable = {pack: size for pack, (size, _) in self._sizes.items()}
            durable.update((pack.number, pack.synced) for pack in self._open.values())
            return durable

    # -- reading

    def read_stored(self, pack: PackNo, offset: int, length: int) -> bytes:
        """*length* stored bytes, of one chunk or of several that lie back to back.

        Unchecked: the caller compares XXH3.  Raises ChunkDamagedError when the pack is missing
        or ends before that, DiskError when it cannot be read.
        """
        with self._reading(pack, nowait=False) as fd:
            assert fd is not None
            return self._disk.pread_exact(fd, length, offset)

    def read_run(
        self, pack: PackNo, offset: int, chunks: Sequence[StoredForm], nowait: bool
    ) -> bytes | None:
        """The raw bytes of chunks that lie side by side from *offset* on, verified.

        *nowait*: None instead of waiting for the disk.  Raises _fetch.BadChunk for the first
        chunk that is not what was stored, ChunkDamagedError when the pack is missing, DiskError
        when it cannot be read.
        """
        with self._reading(pack, nowait) as fd:
            if fd is None:
                return None
            try:
                return _fetch.read_run(fd, offset, chunks, nowait)
            except OSError as error:
                raise from_os_error(error, f"read {self.pack_path(pack)} at {offset}") from error

    def read_pieces(self, pieces: Sequence[bytes | StoredRun], nowait: bool) -> bytes | None:
        """Bytes as they are and runs as read_run() reads them, one behind the other, in one copy.

        Raises what read_run() raises.
        """
        fds: dict[PackNo, int] = {}
        with ExitStack() as stack:
            for piece in pieces:
                if isinstance(piece, tuple) and piece[0] not in fds:
                    fd = stack.enter_context(self._reading(piece[0], nowait))
                    if fd is None:
                        return None
                    fds[piece[0]] = fd
            asked = [
                (fds[piece[0]], piece[1], piece[2]) if isinstance(piece, tuple) else piece
                for piece in pieces
            ]
            try:
                return _fetch.read_pieces(asked, nowait)
            except OSError as error:
                names = ", ".join(self.pack_path(pack) for pack in fds)
                raise from_os_error(error, f"read {names}") from error

    @contextmanager
    def _reading(self, pack: PackNo, nowait: bool) -> Iterator[int | None]:
        """A descriptor within the block; with *nowait* None instead of opening the pack."""
        descriptors = self._descriptors
        entry = descriptors.borrow_if_open(pack)
        if entry is None:
            if nowait:
                yield None
                return
            try:
                entry = descriptors.borrow(pack)
            except NotFoundError as error:
                raise ChunkDamagedError(f"pack {pack} is missing: {error}") from error
        try:
            yield entry.fd
        finally:
            descriptors.give_back(entry)

    def check_header(self, pack: PackNo) -> None:
        """Raises DamagedError unless the pack's file says that it is this pack of this store.

        Reading does not insist on it: each chunk has its own checksum, and a damaged header
        must not take the chunks with it.
        """
        path = self.pack_path(pack)
        if packrecovery.header_of(self._disk, path) != FileHeader(pack, self._store_id):
            raise DamagedError(f"{path} is not pack {pack} of this store")

    # -- going

    def retire(self, pack: PackNo) -> None:
        """Leave a sealed pack out of sizes() from now on; it can still be read.

        Comes before the commit by which the index forgets the pack, as remove() comes after it.
        Raises ValueError for a pack that is not sealed: roll() and sync() come first.
        """
        with self._lock:
            if pack in self._open:
                raise ValueError(f"pack {pack} is not sealed")
            self._sizes.pop(pack, None)

    def remove(self, pack: PackNo) -> None:
        """Remove a retired pack and its sidecar.  May be called again after it raised.

        Not synced: a pack that comes back with a power loss is unknown to the index, and
        recover() removes it.
        """
        self.retire(pack)
        self._descriptors.forget(pack)
        for path in (self.pack_path(pack), self.sidecar_path(pack)):
            try:
                self._disk.unlink(path)
            except NotFoundError:
                pass  # Done by an earlier try.

    def punch(self, pack: PackNo, ranges: Iterable[tuple[int, int]]) -> int:
        """Give the space of dead bytes [start, end) of a sealed pack back.  Any thread.

        Returns how many bytes that were.  Raises DiskError and its kin.
        """
        fd = self._disk.open(self.pack_path(pack), os.O_WRONLY)
        try:
            before = os.fstat(fd).st_blocks
            for start, end in ranges:
                self._disk.punch(fd, start, end - start)
            return max(0, before - os.fstat(fd).st_blocks) * 512
        finally:
            self._disk.close(fd)

    def rewrite_sidecar(self, pack: PackNo, records: Iterable[SidecarRecord]) -> None:
        """Make the sidecar hold *records*: all chunks that the index has in this pack.

        A sealed pack's is durable on return, another's once its pack is sealed.
        """
        with self._sync_lock:
            with self._lock:
                open_pack = self._open.get(pack)
            if open_pack is not None:
                open_pack.replace_sidecar(list(records))
                return
            header = fileheader.encode(SIDECAR_MAGIC, FileHeader(pack, self._store_id))
            body = (
                sidecar.encode_record(record)
                for record in sorted(records, key=lambda record: record.offset)
            )
            self._disk.write_file(self.sidecar_path(pack), b"".join((header, *body)))

    def close(self) -> None:
        """Close every descriptor; syncs nothing.  Nothing else may be called afterwards."""
        with self._sync_lock, self._append_lock:
            self._descriptors.close()
            with self._lock:
                for pack in self._open.values():
                    pack.close()
                self._open.clear()
                self._current = None
