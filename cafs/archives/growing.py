"""Content that is being rebuilt, as far as it has come.

Owns where its bytes lie until somebody has read them: in a file of the cache, or, where that
has no room or its disk fails, the newest of them in memory.  Invariant: what was given to
:meth:`Growing.append` is read back unchanged, or not at all.
"""

from __future__ import annotations

import logging
import threading
from array import array
from typing import Final

import xxhash

from cafs.archives import cachefile
from cafs.archives.cache import Cache, NewFile
from cafs.archives.cachefile import BLOCK, Identity
from cafs.durable import Disk
from cafs.errors import CafsError
from cafs.types import BlobNo

log = logging.getLogger(__name__)

WINDOW: Final = 16 << 20
"""Bytes that are kept in memory where there is no file."""


class BehindError(Exception):
    """The bytes that were asked for are no longer here: they have to be made again."""


class LostError(BehindError):
    """Nor will they come back here: whoever keeps this makes others wait for nothing."""


class Growing:
    """The first bytes of a blob.  Thread-safe; blocks for as long as the page cache takes."""

    def __init__(
        self, disk: Disk, cache: Cache, blob: BlobNo, identity: Identity, window: int = WINDOW
    ) -> None:
        self._disk = disk
        self._cache = cache
        self._blob = blob
        self._identity = identity
        self._window = max(window, BLOCK)
        self._lock = threading.Lock()
        self._sums = array(cachefile.SUM)
        self._tail = bytearray()
        """What is behind the last whole block."""
        self._in_file = 0
        """Blocks that the file has; those behind them are in memory."""
        self._memory: dict[int, bytes] = {}
        self._file: NewFile | None = None
        self._tried = False
        """Whether the cache was asked for a file."""
        self._spoilt = False
        """Whether there is no file, or one that takes no more."""
        self._memory_from = 0
        """The first block in memory if there are any, else the next one."""
        self.position = 0
        """Bytes so far."""

    @property
    def everything(self) -> bool:
        """Whether all bytes up to *position* are still here."""
        return not self._spoilt or self._memory_from <= self._in_file

    @property
    def in_memory(self) -> bool:
        """Whether some of them are in memory."""
        return bool(self._memory)

    @property
    def filed(self) -> bool:
        """Whether there is a file, that has all of them and takes more."""
        return self._file is not None and not self._spoilt

    def has(self, start: int, end: int) -> bool:
        """Whether bytes [start, end) are here, or will be."""
        # Numbers only: in another thread the blocks themselves come and go.
        kept = self._memory_from * BLOCK
        return self.everything or end <= self._in_file * BLOCK or start >= kept

    def append(self, data: bytes | bytearray | memoryview) -> None:
        """The next bytes.  By one thread at a time."""
        with self._lock:
            self._tail += data
            whole = len(self._tail) // BLOCK * BLOCK
            if self.position + len(data) == self._identity.size:
                whole = len(self._tail)
            if whole:
                blocks = bytes(memoryview(self._tail)[:whole])
                del self._tail[:whole]
                self._put(blocks)
            self.position += len(data)

    def _put(self, blocks: bytes) -> None:
        at = len(self._sums)
        view = memoryview(blocks)
        for low in range(0, len(blocks), BLOCK):
            self._sums.append(xxhash.xxh3_64_intdigest(view[low : low + BLOCK]))
        if not self._tried:
            self._tried = True
            self._file = self._cache.begin(self._blob, self._identity.size)
            self._spoilt = self._file is None
        if self._file is not None and self._file.unwanted:
            self._give_up(self._file)
        if not self._spoilt and self._file is not None:
            try:
                self._disk.pwrite_all(self._file.fd, [blocks], at * BLOCK)
                self._in_file = self._memory_from = len(self._sums)
                self._file.written = self._in_file * BLOCK
                return
            except CafsError as error:
                log.info("%s; what is rebuilt is kept in memory for now", error)
                self._spoilt = True
        for low in range(0, len(blocks), BLOCK):
            self._memory[at + low // BLOCK] = blocks[low : low + BLOCK]
        while len(self._memory) * BLOCK > self._window:
            del self._memory[self._memory_from]
            self._memory_from += 1

    def _give_up(self, file: NewFile) -> None:
        """The disk needs the room: what is in the file is gone, the next bytes are kept here."""
        self._file, self._spoilt, self._in_file = None, True, 0
        self._cache.give_up(file)

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), all below *position*.  Raises BehindError, LostError."""
        with self._lock:
            edge = len(self._sums) * BLOCK
            pieces = [self._block(number) for number in range(start // BLOCK, _upto(end, edge))]
            if end > edge:
                pieces.append(bytes(self._tail))
            low = min(start // BLOCK * BLOCK, edge)
            joined = pieces[0] if len(pieces) == 1 else b"".join(pieces)
            return joined[start - low : end - low]

    def _block(self, number: int) -> bytes:
        if number >= self._in_file:
            block = self._memory.get(number)
            if block is None:
                raise BehindError
            return block
        if self._file is None:
            # The cache has it, or had it: it may have needed the room since.
            raise LostError
        length = min(BLOCK, self._identity.size - number * BLOCK)
        try:
            block = self._disk.pread_exact(self._file.fd, length, number * BLOCK)
            cachefile.check(block, self._sums[number])
        except CafsError as error:
            log.warning("blob %d: %s; it is rebuilt again", self._blob, error)
            raise LostError from error
        return block

    def finish(self) -> None:
        """The content is whole: if all of it is in the file, that is the cache's now.

        If the cache cannot have it, it is still read from here, for as long as somebody does.
        """
        with self._lock:
            if self._file is None or self._in_file != len(self._sums):
                return
            ending = cachefile.ending(self._identity, self._sums)
            try:
                self._disk.pwrite_all(self._file.fd, [ending], self._identity.size)
            except CafsError as error:
                log.info("%s", error)
                self._spoilt = True
                return
            if self._cache.finish(self._file):
                self._file = None

    def close(self) -> None:
        """Let go of what is not in the cache."""
        with self._lock:
            self._memory.clear()
            self._memory_from = len(self._sums)
            if self._file is not None:
                file, self._file = self._file, None
                self._cache.give_up(file)


def _upto(end: int, edge: int) -> int:
    return cachefile.blocks_of(min(end, edge))
