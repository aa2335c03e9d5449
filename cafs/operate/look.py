"""What one blob and one file are: their records, put together for people and programs.

Only looks.  Invariant: bytes that verify() calls right have been compared with the chunk's
XXH3 and SHA-256 and the blob's SHA-256 and SHA-1, all of them.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cafs.archives.engine_record import EngineRecord
from cafs.archives.nested import engines_of
from cafs.blobs import codec, recipe
from cafs.blobs.recipe import Part
from cafs.errors import CafsError, ChunkDamagedError, DiskError
from cafs.index import layout
from cafs.index.layout import (
    BLOB_AGED,
    BLOB_INNER,
    BLOB_NESTED,
    BLOB_UNHASHED,
    BlobRecord,
    ChunkRecord,
)
from cafs.operate.ageing_state import State
from cafs.operate.paths import Advance, attr_of
from cafs.operate.sharing import Use, use_of
from cafs.types import NO_BLOB, Attr, BlobNo, ChunkNo, Ino
from cafs.view import View

_PIECE = 1 << 20


class Kind(NamedTuple):
    """Parts of a recipe that are of one kind."""

    name: str
    """As cafs.blobs.recipe names it."""
    parts: int
    length: int
    """Bytes of the blob."""


class AgedLook(NamedTuple):
    """What a blob that was taken apart is made of."""

    inner: BlobNo
    size: int
    """Bytes that are stored for it: what is inside the archive, and inside archives in it."""
    engines: list[tuple[int, str]]
    """Number and version of each engine that makes its bytes again."""
    rebuild_s: float
    """How long that takes, by the speed that ageing has measured."""


class BlobLook(NamedTuple):
    """A blob's record and what its recipe says at once."""

    blob: BlobNo
    record: BlobRecord
    kinds: list[Kind]
    use: Use
    aged: AgedLook | None
    """None while the recipe is plain."""

    @property
    def hashed(self) -> bool:
        """Whether the digests are known: not while it is being written."""
        return not self.record.flags & BLOB_UNHASHED

    @property
    def ratio(self) -> float | None:
        """Raw bytes of the distinct chunks for each byte in packs; None without chunks."""
        return self.use.raw_bytes / self.use.stored_bytes if self.use.stored_bytes else None


class FileLook(NamedTuple):
    """An inode's record and what belongs to it."""

    ino: Ino
    attr: Attr
    blob: BlobLook | None
    """A regular file's content; None while it has none."""
    target: bytes | None
    """Where a symbolic link points to."""
    xattrs: list[bytes]
    """Names of extended attributes, sorted."""


class PlacedChunk(NamedTuple):
    """A chunk where a blob has it."""

    offset: int
    """First byte in the blob."""
    number: ChunkNo
    record: ChunkRecord

    @property
    def codec(self) -> str:
        """How it is stored."""
        extent = self.record.extent
        known = codec.CODECS.get(extent.as_sound().codec)
        name = known.name if known else f"unknown ({extent.codec})"
        return f"{name}, damaged" if extent.damaged else name


class Damage(NamedTuple):
    """A stretch of a blob that cannot be read back as it was written."""

    offset: int
    length: int
    chunk: PlacedChunk | None
    """None when each chunk is right, and the blob as a whole is not."""
    problem: str


class Verdict(NamedTuple):
    """What reading a blob back showed."""

    read_bytes: int
    damages: list[Damage]


def look_at_blob(view: View, blob: BlobNo) -> BlobLook:
    """A blob, from its record, its recipe and its chunks' records.  Raises IndexDamagedError."""
    record = view.blobs.get(blob)
    counts = dict.fromkeys(recipe.KINDS, 0)
    lengths = dict.fromkeys(recipe.KINDS, 0)
    for _, part in view.blobs.parts(blob, 0, record.size):
        counts[part.kind] += 1
        lengths[part.kind] += part.length
    kinds = [
        Kind(kind.name, counts[number], lengths[number]) for number, kind in recipe.KINDS.items()
    ]
    aged = _look_at_aged(view, blob, record) if record.flags & BLOB_AGED else None
    return BlobLook(blob, record, kinds, use_of(view, blob), aged)


def _look_at_aged(view: View, blob: BlobNo, record: BlobRecord) -> AgedLook:
    engines = []
    for number in sorted(engines_of(view.blobs, blob)):
        value = view.overlay.get(layout.META, layout.engine_key(number))
        version = "unknown" if value is None else EngineRecord.unpack(number, value).version
        engines.append((number, version))
    # All of this goes through engines: what they make of it, too, where archives are nested.
    size = view.blobs.get(record.mate).size
    parts = view.blobs.parts(record.mate, 0, size)
    made = sum(part.length for _, part in parts if part.kind == recipe.MADE)
    seconds = size / State.load(view.path).rebuild_bytes_per_s
    return AgedLook(record.mate, size - made, engines, seconds)


def look_at_inode(view: View, ino: Ino) -> FileLook:
    """An inode with what belongs to it.  Raises IndexDamagedError."""
    attr = attr_of(view, ino)
    regular = stat.S_ISREG(attr.mode) and attr.blob != NO_BLOB
    return FileLook(
        ino,
        attr,
        look_at_blob(view, attr.blob) if regular else None,
        view.tree.readlink(ino) if stat.S_ISLNK(attr.mode) else None,
        sorted(view.tree.xattrs.names(ino)),
    )


def placed_chunks(view: View, blob: BlobNo) -> Iterator[PlacedChunk]:
    """A blob's chunks in its own order, each as often as it has it.

    Of an aged blob those of its inner one, at their places there.
    """
    record = view.blobs.get(blob)
    if record.flags & BLOB_AGED:
        blob, record = record.mate, view.blobs.get(record.mate)
    for offset, part in view.blobs.parts_of(blob, record, 0, record.size):
        if recipe.KINDS[part.kind].counts_chunk:
            number = ChunkNo(part.ref)
            yield PlacedChunk(offset, number, view.chunks.get(number))


def verify(view: View, blob: BlobNo, advance: Advance | None = None) -> Verdict:
    """Read a blob back and compare all checksums; names every chunk that is wrong.

    *advance* is told of bytes.  A chunk that the disk cannot read is a wrong one, too.  One that
    was taken apart is rebuilt.
    """
    record = view.blobs.get(blob)
    if record.flags & BLOB_AGED:
        return _verify_aged(view, blob, record, advance)
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    damages: list[Damage] = []
    done = 0
    for offset, part in view.blobs.parts(blob, 0, record.size):
        if part.kind == recipe.MADE and record.flags & BLOB_NESTED:
            # Of what stands behind it, by an engine: whoever reads the outer blob proves it.
            done += part.length
            continue
        elif recipe.KINDS[part.kind].counts_chunk:
            place = PlacedChunk(offset, ChunkNo(part.ref), view.chunks.get(ChunkNo(part.ref)))
            try:
                pieces = iter((_right_bytes(view, place, part),))
            except (ChunkDamagedError, DiskError) as error:
                damages.append(Damage(offset, part.length, place, str(error)))
                pieces = iter(())
        else:
            pieces = _made_bytes(part)
        for piece in pieces:
            sha256.update(piece)
            sha1.update(piece)
        done += part.length
        if advance is not None:
            advance(done)
    if done != record.size:
        problem = f"the recipe ends at {done} of {record.size} bytes"
        damages.append(Damage(done, record.size - done, None, problem))
    if not damages and not record.flags & BLOB_UNHASHED:
        whole = [("SHA-256", sha256, record.sha256), ("SHA-1", sha1, record.sha1)]
        if record.flags & BLOB_INNER:
            whole.pop()
        damages += [
            Damage(0, record.size, None, f"its {name} is {made.hexdigest()}, not {wanted.hex()}")
            for name, made, wanted in whole
            if made.digest() != wanted
        ]
    return Verdict(done, damages)


def _verify_aged(view: View, blob: BlobNo, record: BlobRecord, advance: Advance | None) -> Verdict:
    damages = [
        damage._replace(problem=f"inside it: {damage.problem}")
        for damage in verify(view, record.mate).damages
    ]
    sha256, sha1 = hashlib.sha256(), hashlib.sha1(usedforsecurity=False)
    done = 0
    try:
        for piece in view.content(blob):
            sha256.update(piece)
            sha1.update(piece)
            done += len(piece)
            if advance is not None:
                advance(done)
    except CafsError as error:
        damages.append(Damage(done, record.size - done, None, str(error)))
    else:
        if (sha256.digest(), sha1.digest()) != (record.sha256, record.sha1):
            problem = f"what is rebuilt has the SHA-256 {sha256.hexdigest()}"
            damages.append(Damage(0, record.size, None, problem))
    return Verdict(done, damages)


def _right_bytes(view: View, place: PlacedChunk, part: Part) -> bytes:
    data = view.read_chunk(place.number, place.record.extent)
    if part.kind == recipe.CHUNK and len(data) != part.length:
        raise ChunkDamagedError(
            f"chunk {place.number} has {len(data)} bytes, its place in the blob {part.length}"
        )
    if hashlib.sha256(data).digest() != place.record.sha256:
        raise ChunkDamagedError(f"chunk {place.number} is not what its SHA-256 says")
    if part.kind == recipe.SLICE:
        offset = recipe.slice_offset(part)
        data = data[offset : offset + part.length]
        if len(data) != part.length:
            raise ChunkDamagedError(f"a slice ends behind the end of chunk {place.number}")
    return data


def _made_bytes(part: Part) -> Iterator[bytes]:
    # A hole may be longer than memory.
    for low in range(0, part.length, _PIECE):
        yield recipe.expand(part, low, min(part.length, low + _PIECE))
