"""From bytes to stored chunks: cut, hash, deduplicate, compress, append.

Runs in worker threads; the event loop only hands bytes in and takes parts out.  Every chunk in
a returned part is pinned until it is counted into a recipe or unpinned (see cafs.blobs.chunks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from cafs import _digest
from cafs.blobs import chunker, codec, recipe
from cafs.blobs.chunker import DIGEST_SIZE, ChunkParams
from cafs.blobs.chunks import Chunks
from cafs.blobs.pack import StoredChunk
from cafs.blobs.recipe import Part

ZSTD_LEVEL = 1
"""Measured on 3.7 GB of blobstore content: level 3 gains under 1 % for half the speed."""


class Slice(NamedTuple):
    """Bytes to be cut."""

    data: bytes
    final: bool
    """The content ends here, so that the last cut is its end."""
    compressible: bool
    left: bytes = b""
    """What comes before *data*; it begins at a cut."""


class Pieces(NamedTuple):
    """How a slice was cut."""

    pieces: list[memoryview]
    length: int
    """Bytes that the pieces cover; what is behind could still be cut differently."""
    compressible: bool


class Cut(NamedTuple):
    """What became of a slice."""

    parts: list[Part]
    length: int
    """Bytes that the parts cover."""
    digests: bytes
    """SHA-256 of each part, joined."""


class Ingest:
    """What all streams of a store share.  Any thread; blocks."""

    def __init__(self, chunks: Chunks, params: ChunkParams, level: int = ZSTD_LEVEL) -> None:
        """*level* is zstd's, for chunks that are stored for the first time."""
        self.chunks = chunks
        self.params = params
        self._level = level

    def split(self, given: Slice) -> Pieces:
        """Cut a slice."""
        data, final, compressible, left = given
        ends = chunker.split(data, self.params, final, left)
        return Pieces(_pieces(left, data, ends), ends[-1] if ends else 0, compressible)

    def store(self, cut: Sequence[Pieces]) -> list[Cut]:
        """Hash and store what was cut.

        Several slices at once, because each hand-over of the interpreter lock may take as long
        as the work on a small file.  Raises DiskFullError and its kin, and then nothing is
        pinned.
        """
        self.chunks.bound_unsynced()
        digests = chunker.sha256_each([piece for pieces, _, _ in cut for piece in pieces])
        names: list[bytes] = []
        large: list[tuple[memoryview, bool]] = []
        at = 0
        for pieces, _, compressible in cut:
            for piece in pieces:
                if len(piece) > recipe.LITERAL_MAX:
                    names.append(digests[at : at + DIGEST_SIZE])
                    large.append((piece, compressible))
                at += DIGEST_SIZE

        def encode(missing: list[int]) -> list[StoredChunk]:
            return _encode([(names[i], *large[i]) for i in missing], self._level)

        numbers = iter(self.chunks.intern(names, encode) if names else ())
        stored = []
        at = 0
        for pieces, length, _ in cut:
            parts = [
                recipe.chunk(next(numbers), len(piece))
                if len(piece) > recipe.LITERAL_MAX
                else recipe.literal(bytes(piece))
                for piece in pieces
            ]
            end = at + len(pieces) * DIGEST_SIZE
            stored.append(Cut(parts, length, digests[at:end]))
            at = end
        return stored


def _pieces(left: bytes, data: bytes, ends: list[int]) -> list[memoryview]:
    """The slices of *left* and *data* that end at *ends*; only one across the border is copied."""
    border = len(left)
    before, behind = memoryview(left), memoryview(data)
    pieces = []
    start = 0
    for end in ends:
        if start >= border:
            piece = behind[start - border : end - border]
        elif end <= border:
            piece = before[start:end]
        else:
            piece = memoryview(b"".join((before[start:], behind[: end - border])))
        pieces.append(piece)
        start = end
    return pieces


def _encode(chunks: list[tuple[bytes, memoryview, bool]], level: int) -> list[StoredChunk]:
    """The stored forms of chunks, given with their SHA-256 and whether to try compression."""
    result = []
    for compressible in (True, False):
        some = [(name, raw) for name, raw, wanted in chunks if wanted is compressible]
        forms = codec.encode_many([raw for _, raw in some], level, compressible)
        sums = _digest.xxh3_each([stored for _, stored in forms])
        for (name, raw), (kind, stored), xxh3 in zip(some, forms, sums, strict=True):
            result.append(StoredChunk(name, stored, kind, len(raw), xxh3))
    return result
