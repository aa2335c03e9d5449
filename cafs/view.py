"""A store opened for looking: no lock, no event loop, no change.

What a view shows is the newest commit at the moment it was opened, whether a daemon runs or
not; ask a daemon to commit first (cafs.control, command ``commit``) to see what it has pending.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Self

from cafs import storefile
from cafs.blobs.blobs import Blobs
from cafs.blobs.chunks import Chunks
from cafs.blobs.pack import PackStore
from cafs.blobs.packtable import PackTable
from cafs.blobs.reader import verified
from cafs.blobs.recipe import Part
from cafs.clock import SystemClock
from cafs.durable import Disk
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.counters import Counters
from cafs.index.env import Environment
from cafs.index.layout import BLOB_AGED, BLOB_INNER
from cafs.index.overlay import Overlay
from cafs.tree.tree import Tree
from cafs.types import BlobNo, ChunkNo, Extent

if TYPE_CHECKING:
    from cafs.archives.offline import Offline


class View:
    """One commit of one store.  Use as a context manager; belongs to one thread."""

    def __init__(self, path: Path) -> None:
        """Raises StoreMissingError, StoreVersionError, IndexDamagedError."""
        self.path = path
        self.file = storefile.read(path)
        self.environment = Environment(path / "index")
        self.overlay = Overlay(self.environment)
        self.counters = Counters.decode(self.overlay.get(layout.META, COUNTERS_KEY))
        self.packs = PackStore(Disk(), path / "packs", self.file.id, self.file.params.pack_size)
        self.pack_table = PackTable(self.overlay)
        self.chunks = Chunks(self.overlay, self.counters, self.packs, self.pack_table)
        self.blobs = Blobs(self.overlay, self.counters, self.chunks)
        self.tree = Tree(self.overlay, self.counters, self.blobs, SystemClock())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the index and the packs."""
        self.overlay.close()
        self.environment.close()
        self.packs.close()

    def read_chunk(self, number: ChunkNo, extent: Extent) -> bytes:
        """A chunk's bytes, verified.  Raises ChunkDamagedError."""
        stored = self.packs.read_stored(extent.pack, extent.offset, extent.stored_length)
        return verified(number, extent, stored)

    def content(self, blob: BlobNo) -> Iterator[bytes]:
        """A blob's bytes, piece by piece, each verified.

        Raises ChunkDamagedError, and RebuildError and EngineError for one that was taken apart.
        """
        return self.offline.content(blob)

    @cached_property
    def offline(self) -> Offline:
        """Reads blobs, taken apart or not."""
        # Imported here, and not by every command that only looks at names.
        from cafs.archives.offline import Offline

        return Offline(self.path, self.blobs, self.read_chunk)

    def recipes(self, blob: BlobNo) -> Iterator[Part]:
        """All parts that say where a blob's bytes lie: its own, and those of its inner blob."""
        record = self.blobs.get(blob)
        for _, part in self.blobs.parts_of(blob, record, 0, record.size):
            yield part
        if record.flags & BLOB_AGED:
            for _, part in self.blobs.parts(record.mate, 0, self.blobs.get(record.mate).size):
                yield part

    def outer(self, blob: BlobNo) -> BlobNo | None:
        """The blob that has this recipe for its files: of an inner one the outer one.

        None if there is no such blob.
        """
        value = self.overlay.get(layout.BLOBS, layout.u48(blob))
        if value is None:
            return None
        record = layout.unpack_blob(value)
        return record.mate if record.flags & BLOB_INNER else blob
