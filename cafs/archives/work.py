"""What was stored so far for one archive that is being taken apart.

Invariant: what is in here is pinned or held until tidy(), which lets go of all that was not used.
Belongs to the event loop, but for its writers.
"""

from __future__ import annotations

from cafs.archives.gzip_pass import GzipPass
from cafs.archives.inner import InnerWriter
from cafs.archives.segments import Segment
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.ingest import Ingest
from cafs.blobs.recipe import Part
from cafs.types import BlobNo


class Work:
    """What was stored so far for one archive."""

    def __init__(self, ingest: Ingest, blobs: Blobs, depth: int) -> None:
        self._blobs = blobs
        self.depth = depth
        """How deep archives inside it are taken apart, too."""
        self.gzip: GzipPass | None = None
        """What takes it, if it is a gzip file."""
        self.inner = InnerWriter(ingest)
        self.outer = InnerWriter(ingest)
        self.inner_no = blobs.aged.begin()
        self.outer_no: BlobNo | None = None
        self.swapped = False
        self.unmade = False
        """Whether it is left because no engine that is here makes it."""
        self.inner_sha256 = b""
        self.segments: list[Segment] = []
        self.pinned: list[Part] = []
        """Parts of the archive itself that are stored and in no recipe yet."""
        self.plain_bytes = 0
        self.added_bytes = 0

    @property
    def nested(self) -> bool:
        """Whether the inner blob has made parts itself."""
        return self.gzip is not None and self.gzip.nested

    @property
    def tried_depth(self) -> int:
        """The outcome may be another one if archives that lie so deep are left as they lie."""
        return 0 if self.gzip is None else self.gzip.tried_depth

    def tidy(self) -> None:
        """Let go of what was not used; nothing else may follow."""
        aged = self._blobs.aged
        self._blobs.chunks.unpin(recipe.chunk_refs(self.pinned))
        self.inner.abandon()
        self.outer.abandon()
        if not self.swapped:
            if self.outer_no is not None:
                aged.drop(self.outer_no)
            aged.drop(self.inner_no)
