"""From bytes to stored chunks: cut, hash, deduplicate, compress, append.

Runs in worker threads; the event loop only hands bytes in and takes parts out.  What is fed to
one stream must be fed in order.  Every chunk in a returned part is pinned until it is
counted into a recipe or unpinned (see cafs.blobs.chunks).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from cafs.blobs import chunker, codec, recipe
from cafs.blobs.blobs import Digests
from cafs.blobs.chunker import ChunkParams
from cafs.blobs.chunks import Chunks
from cafs.blobs.pack import StoredChunk
from cafs.blobs.recipe import Part

DIGEST = 32
ZSTD_LEVEL = 1
"""Measured on 3.7 GB of blobstore content: level 3 gains under 1 % for half the speed."""


class Slice(NamedTuple):
    """Bytes to be cut; they begin at a cut."""

    data: bytes
    final: bool
    """The content ends here, so that the last cut is its end."""
    compressible: bool


class Cut(NamedTuple):
    """What became of a slice."""

    parts: list[Part]
    length: int
    """Bytes that the parts cover; what is behind could still be cut differently."""
    digests: bytes
    """SHA-256 of each part, joined."""


class Ingest:
    """What all streams of a store share."""

    def __init__(self, chunks: Chunks, params: ChunkParams) -> None:
        self.chunks = chunks
        self.params = params

    def cut(self, slices: Sequence[Slice]) -> list[Cut]:
        """Cut, hash and store some slices.  Any thread; blocks.

        Several at once, because each hand-over of the interpreter lock may take as long as the
        work on a small file.  Raises DiskFullError and its kin, and then nothing is pinned.
        """
        self.chunks.bound_unsynced()
        pieces: list[list[memoryview]] = []
        split = []
        names: list[bytes] = []
        large: list[tuple[memoryview, bool]] = []
        for data, final, compressible in slices:
            ends, digests = chunker.split(data, self.params, final)
            view = memoryview(data)
            begins = [0, *ends]
            cut = [view[low:high] for low, high in zip(begins, ends, strict=False)]
            for number, piece in enumerate(cut):
                if len(piece) > recipe.LITERAL_MAX:
                    names.append(digests[number * DIGEST : (number + 1) * DIGEST])
                    large.append((piece, compressible))
            pieces.append(cut)
            split.append((begins[-1], digests))

        def encode(missing: list[int]) -> list[StoredChunk]:
            return _encode([(names[i], *large[i]) for i in missing])

        numbers = iter(self.chunks.intern(names, encode) if names else ())
        result = []
        for cut, (length, digests) in zip(pieces, split, strict=True):
            parts = [
                recipe.chunk(next(numbers), len(piece))
                if len(piece) > recipe.LITERAL_MAX
                else recipe.literal(bytes(piece))
                for piece in cut
            ]
            result.append(Cut(parts, length, digests))
        return result


def _encode(chunks: list[tuple[bytes, memoryview, bool]]) -> list[StoredChunk]:
    """The stored forms of chunks, given with their SHA-256 and whether to try compression."""
    result = []
    for compressible in (True, False):
        some = [(name, raw) for name, raw, wanted in chunks if wanted is compressible]
        forms = codec.encode_many([raw for _, raw in some], ZSTD_LEVEL, compressible)
        for (name, raw), (kind, stored) in zip(some, forms, strict=True):
            xxh3 = xxhash.xxh3_64_intdigest(stored)
            result.append(StoredChunk(name, stored, kind, len(raw), xxh3))
    return result


def feed_all(ingest: Ingest, feeds: Sequence[tuple[IngestStream, list[bytes], bool]]) -> list[Fed]:
    """Feed several streams at once.  Nothing has changed in any of them when it raises."""
    joined = [join(buffers) for _, buffers, _ in feeds]
    slices = [
        stream.slice(data, final) for (stream, _, final), data in zip(feeds, joined, strict=True)
    ]
    return [
        stream.advance(each, len(data), cut, stream.digest(data, each.final, cut.digests))
        for (stream, _, _), each, data, cut in zip(
            feeds, slices, joined, ingest.cut(slices), strict=True
        )
    ]


def join(buffers: Sequence[bytes]) -> bytes:
    """The buffers as one, without a copy if it is only one."""
    return buffers[0] if len(buffers) == 1 else b"".join(buffers)


class Fed(NamedTuple):
    """What a call of feed() added to a stream."""

    parts: list[Part]
    length: int
    """Bytes that the parts cover."""
    rewound: int
    """The first of those bytes were covered before: the last part is replaced."""
    digests: Digests | None
    """Of all that was fed, when the call was final and the stream began at byte 0."""


class IngestStream:
    """Content that arrives in order.

    It begins at byte 0, or (appending) with *tail*, the bytes of the last part of what is there
    already; *head*, the first bytes of the content, then decides whether compression is tried,
    and there are no digests of the whole.
    """

    def __init__(self, head: bytes = b"", tail: bytes = b"") -> None:
        self._rest = b""
        self._tail = tail
        self.whole = not head
        """Whether there will be digests of the whole content."""
        self.aside = False
        """Whether a thread of its own hashes it: then hash() is called, not digest()."""
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(usedforsecurity=False)
        self._position = 0
        self._hashed = 0
        self._late = b""
        """Bytes that SHA-1 has seen and SHA-256 has not."""
        self._compressible: bool | None = not codec.looks_compressed(head) if head else None

    def slice(self, joined: bytes, final: bool) -> Slice:
        """What must be cut when *joined* comes next; advance() with the result follows."""
        before = self._tail or self._rest
        data = before + joined if before else joined
        if self._compressible is None and data:
            self._compressible = not codec.looks_compressed(data[:64])
        return Slice(data, final, bool(self._compressible))

    def advance(self, given: Slice, fresh: int, cut: Cut, digests: Digests | None) -> Fed:
        """Take note of how a slice with *fresh* new bytes was cut, and of what digest() gave.

        After a final slice everything is covered.  If more comes after that, the last part is
        made anew, so that what is appended in small pieces is cut as if it had come at once.
        """
        rewound = len(self._tail)
        data, parts = given.data, cut.parts
        if given.final:
            self._rest, self._tail = b"", data[len(data) - parts[-1].length :] if parts else b""
        else:
            self._rest, self._tail = data[cut.length :], b""
        self._position += fresh
        return Fed(parts, cut.length, rewound, digests)

    @property
    def position(self) -> int:
        """Bytes that were fed."""
        return self._position

    def digest(self, joined: bytes, final: bool, slice_digests: bytes) -> Digests | None:
        """Hash the next bytes of the whole; the digests if the content ends there.

        Any thread, but in the order of the bytes.  *slice_digests* are those of what was cut
        of it: if one slice is the whole content its digest need not be computed again.
        """
        if not self.whole:
            return None
        self._sha1.update(joined)
        self._late += joined
        if final and len(slice_digests) == DIGEST and not self._hashed:
            return Digests(slice_digests, self._sha1.digest())
        self._catch_up()
        return self.digests() if final else None

    def hash(self, buffers: Sequence[bytes], start: int) -> None:
        """Hash buffers, whose first byte is byte *start* of the content, as far as is new.

        For a thread of its own, beside the cutting: what had to be cut again after a failure
        comes here twice.
        """
        self._catch_up()
        for buffer in buffers:
            fresh = buffer[max(0, self._hashed - start) :]
            self._sha1.update(fresh)
            self._sha256.update(fresh)
            self._hashed += len(fresh)
            start += len(buffer)

    def digests(self) -> Digests:
        """The digests of all that was hashed."""
        self._catch_up()
        return Digests(self._sha256.digest(), self._sha1.digest())

    def _catch_up(self) -> None:
        self._sha256.update(self._late)
        self._hashed += len(self._late)
        self._late = b""
