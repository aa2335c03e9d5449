"""A store opened for looking: no lock, no event loop, no change.

What a view shows is the newest commit at the moment it was opened, whether a daemon runs or
not; ask a daemon to commit first (cafs.control, command ``commit``) to see what it has pending.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cafs import storefile
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.chunks import Chunks
from cafs.blobs.pack import PackStore
from cafs.blobs.packtable import PackTable
from cafs.blobs.reader import verified
from cafs.clock import SystemClock
from cafs.durable import Disk
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.counters import Counters
from cafs.index.env import Environment
from cafs.index.overlay import Overlay
from cafs.tree.tree import Tree
from cafs.types import BlobNo, ChunkNo, Extent


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
        """A blob's bytes, piece by piece, each verified.  Raises ChunkDamagedError."""
        for _, part in self.blobs.parts(blob, 0, self.blobs.get(blob).size):
            if part.kind == recipe.CHUNK:
                number = ChunkNo(part.ref)
                yield self.read_chunk(number, self.chunks.get(number).extent)
            else:
                # A hole may be longer than memory.
                for low in range(0, part.length, 1 << 20):
                    yield recipe.expand(part, low, min(part.length, low + (1 << 20)))
