"""The invariants of content: blobs, their recipes and digests, and who refers to which chunk.

One method an invariant, over one snapshot of the index, in passes along its databases; see
cafs.operate.check_tree.  Changes nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

from cafs.blobs import recipe
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.counters import wrapped
from cafs.index.layout import BLOB_INNER, BLOB_ROWS, BLOB_UNHASHED, BlobRecord
from cafs.operate.check_aged import AgedCheck
from cafs.operate.finding import Finding, Findings
from cafs.operate.tally import Tally
from cafs.types import BlobNo
from cafs.view import View

IN_SHA256 = 1
_IN_SHA1 = 2
DEAD = 4
_UNHASHED = 8


class ContentCheck:
    """Checks of one snapshot's blobs.  The methods are called in their order."""

    def __init__(self, view: View) -> None:
        self._overlay = view.overlay
        self.blobs = Tally()
        """Blobs, and how many inodes have each (counted by the tree's check)."""
        self._sizes = array("Q")
        self._sha256 = array("Q")
        self._sha1 = array("Q")
        self._hashed = bytearray()
        """Whether digests must lead to the blob."""
        self._inner = bytearray()
        self._aged = AgedCheck(view)
        self.chunks = Tally()
        """Chunks, and how many parts of recipes name each."""
        self._raw = array("L")
        self._chunk_sha256 = array("Q")
        self._figures = {"blobs": 0, "blob_bytes": 0}
        self._lost = {"next_blob": 0, "next_chunk": 0}
        """The greatest numbers of what is named and not there: nothing new may get them."""

    # -- loading -----------------------------------------------------------------------------

    def load_blobs(self) -> int:
        """Take what later passes compare with; how many blobs there are."""
        for key, value in self._overlay.scan(layout.BLOBS, b"", b""):
            record = layout.unpack_blob(value)
            self.blobs.append(layout.from_u48(key))
            self._sizes.append(record.size)
            self._sha256.append(_prefix(record.sha256))
            self._sha1.append(_prefix(record.sha1))
            inner = bool(record.flags & BLOB_INNER)
            self._hashed.append(not record.flags & BLOB_UNHASHED and not inner)
            self._inner.append(inner)
            self._aged.load(self.blobs.numbers[-1], record)
        self.blobs.ready()
        return len(self.blobs)

    def load_chunks(self) -> int:
        """Take what later passes compare with; how many chunks there are."""
        for key, value in self._overlay.scan(layout.CHUNKS, b"", b""):
            record = layout.unpack_chunk(value)
            self.chunks.append(layout.from_u48(key))
            self._raw.append(record.extent.raw_length)
            self._chunk_sha256.append(_prefix(record.sha256))
        self.chunks.ready()
        return len(self.chunks)

    def size_of(self, blob: int) -> int | None:
        """A blob's size, or None when there is no such blob."""
        rank = self.blobs.rank(blob)
        return self._sizes[rank] if rank >= 0 else None

    # -- digests and lists -------------------------------------------------------------------

    def check_engines(self) -> Findings:
        """The records of what makes parts of recipes."""
        yield from self._aged.check_version()
        yield from self._aged.check_engines()

    def check_blob_digests(self) -> Findings:
        """Each row of the blobs' digest tables belongs to a blob with that digest."""
        tables = (
            (layout.BLOB_SHA256, self._sha256, IN_SHA256),
            (layout.BLOB_SHA1, self._sha1, _IN_SHA1),
        )
        for database, prefixes, bit in tables:
            yield from self._check_digests(database, self.blobs, prefixes, bit, self._hashed)

    def check_chunk_digests(self) -> Findings:
        """Each row of the chunks' digest table belongs to a chunk with that digest."""
        yield from self._check_digests(
            layout.CHUNK_SHA256, self.chunks, self._chunk_sha256, IN_SHA256, None
        )

    def _check_digests(
        self,
        database: int,
        tally: Tally,
        prefixes: array[int],
        bit: int,
        wanted: bytearray | None,
    ) -> Findings:
        table = layout.DATABASES[database].decode()
        for key, _ in self._overlay.scan(database, b"", b""):
            number = layout.digest_number(key)
            rank = tally.rank(number)
            if rank < 0 or prefixes[rank] != _prefix(key) or not (wanted is None or wanted[rank]):
                yield Finding(
                    "stale-digest",
                    f"{table} leads from {key[: layout.DIGEST_PREFIX].hex()} to {number}, "
                    "which does not have that digest",
                    "the row is removed",
                    ((database, key, None),),
                )
            else:
                tally.marks[rank] |= bit

    def check_dead(self) -> Findings:
        """The queue of the sweep names blobs and chunks that are there."""
        for key, _ in self._overlay.scan(layout.DEAD, b"", b""):
            tally = self.blobs if key.startswith(b"b") else self.chunks
            if not tally.mark(layout.from_u48(key[1:]), DEAD):
                yield Finding(
                    "dead-queue",
                    f"the sweep waits for {name(key)}, which is not there",
                    "the row is removed",
                    ((layout.DEAD, key, None),),
                )

    def check_unhashed(self) -> Findings:
        """What waits for its digests is a blob without, with an owner."""
        for key, value in self._overlay.scan(layout.UNHASHED, b"", b""):
            rank = self.blobs.rank(layout.from_u48(key))
            if rank < 0 or self._hashed[rank] or self._inner[rank] or len(value) != 6:
                yield Finding(
                    "unhashed-list",
                    f"blob {layout.from_u48(key)} waits for digests and "
                    f"{'is not there' if rank < 0 else 'is not one that needs them'}",
                    "the row is removed",
                    ((layout.UNHASHED, key, None),),
                )
            else:
                self.blobs.marks[rank] |= _UNHASHED

    # -- blobs and recipes -------------------------------------------------------------------

    def check_recipe_rows(self) -> Findings:
        """Each row of a recipe belongs to a blob that keeps its recipe in rows."""
        number, fits = -1, False
        for key, _ in self._overlay.scan(layout.RECIPES, b"", b""):
            if layout.from_u48(key) != number:
                number = layout.from_u48(key)
                value = self._overlay.get(layout.BLOBS, key[:6])
                fits = value is not None and bool(layout.unpack_blob(value).flags & BLOB_ROWS)
            if not fits:
                yield Finding(
                    "stray-recipe",
                    f"there is a recipe row for blob {number}, which has none",
                    "the row is removed",
                    ((layout.RECIPES, key, None),),
                )

    def check_blobs(self) -> Findings:
        """Counts, lists, digests and recipe of each blob.  Counts references to chunks."""
        for rank, (key, value) in enumerate(self._overlay.scan(layout.BLOBS, b"", b"")):
            number = layout.from_u48(key)
            record = layout.unpack_blob(value)
            marks = self.blobs.marks[rank]
            refs = self.blobs.counts[rank]
            if refs:
                self._figures["blobs"] += 1
                self._figures["blob_bytes"] += record.size
            self._lost["next_blob"] = max(self._lost["next_blob"], record.mate)
            yield from self._aged.check_mate(number, record, refs)
            if self._inner[rank]:
                refs = self._aged.refs(number)
            if record.refs != refs:
                whose = "outer blobs" if self._inner[rank] else "inodes"
                # Its inodes are lost; what was deleted has no references noted any more.
                fileless = not refs and not self._inner[rank]
                yield Finding(
                    "blob-refs",
                    f"blob {number} has reference count {record.refs}, but {refs} {whose} have it",
                    "it gets a name in lost+found" if fileless else "the count is put right",
                    ((layout.BLOBS, key, layout.pack_blob(record._replace(refs=refs))),),
                    fileless=BlobNo(number) if fileless else None,
                )
            yield from self.check_queued(b"b", number, refs, queued=bool(marks & DEAD))
            dying = record.flags & BLOB_UNHASHED and not refs
            if record.flags & BLOB_UNHASHED:
                if not marks & _UNHASHED and not dying:
                    yield self._unlisted(number)
            elif self._hashed[rank]:
                for database, bit, digest in (
                    (layout.BLOB_SHA256, IN_SHA256, record.sha256),
                    (layout.BLOB_SHA1, _IN_SHA1, record.sha1),
                ):
                    if not marks & bit:
                        yield missing_digest("blob", database, digest, number)
            yield from self._check_recipe(number, record, whole=not dying)

    def _unlisted(self, number: int) -> Finding:
        owner = next(
            (
                layout.from_u48(key)
                for key, value in self._overlay.scan(layout.INODES, b"", b"")
                if layout.unpack_inode(value).blob == number and value[1] >> 4 == 0o10
            ),
            0,
        )
        return Finding(
            "unhashed-list",
            f"blob {number} has no digests and does not wait for them",
            "it is listed",
            ((layout.UNHASHED, layout.u48(number), layout.u48(owner)),),
        )

    @staticmethod
    def check_queued(kind: bytes, number: int, refs: int, *, queued: bool) -> Findings:
        """What nothing refers to, and only that, waits for the sweep."""
        if queued == (refs == 0):
            return
        key = layout.dead_key(kind, number)
        yield Finding(
            "dead-queue",
            f"{name(key)} has {refs} references and is {'' if queued else 'not '}"
            "waiting for the sweep",
            "the queue is put right",
            ((layout.DEAD, key, None if queued else b""),),
        )

    def _rows(self, number: int, record: BlobRecord) -> Iterator[tuple[int, bytes]]:
        if not record.flags & BLOB_ROWS:
            yield 0, record.parts
            return
        prefix = layout.u48(number)
        for key, value in self._overlay.scan(layout.RECIPES, prefix, prefix):
            yield layout.recipe_start(key), value

    def _check_recipe(self, number: int, record: BlobRecord, *, whole: bool) -> Findings:
        at = -1
        lost = 0
        made = False
        problem = ""
        for start, encoded in self._rows(number, record):
            if at < 0 and not whole:
                at = start
            if start != max(at, 0):
                problem = problem or f"a row begins at {start}, not at {max(at, 0)}"
            at = start
            try:
                parts = recipe.decode(encoded)
            except IndexDamagedError as error:
                problem = problem or str(error)
                continue
            for part in parts:
                if recipe.KINDS[part.kind].counts_chunk:
                    rank = self.chunks.rank(part.ref)
                    if rank < 0:
                        lost = lost or part.ref
                        self._lost["next_chunk"] = max(self._lost["next_chunk"], part.ref)
                    else:
                        self.chunks.counts[rank] += 1
                        if not _fits(part, self._raw[rank]):
                            problem = problem or f"chunk {part.ref} has another length"
                elif part.kind == recipe.MADE and whole:
                    made = True
                    problem = problem or self._aged.problem(number, record, part)
                at += part.length
        if max(at, 0) != record.size and whole:
            problem = problem or f"it makes {max(at, 0)} bytes, not {record.size}"
        unmarked = self._aged.unmarked(number, record) if made else None
        if unmarked is not None:
            yield unmarked
            return
        if lost:
            problem = problem or f"chunk {lost} is not there"
        if problem:
            yield Finding(
                "recipe",
                f"the recipe of blob {number} (SHA-256 {record.sha256.hex()}) is wrong: {problem}",
                "delete or restore the files that have it: cafs blob "
                f"{record.sha256.hex()[:16]} names them",
            )

    def figures(self) -> dict[str, int]:
        """What the counters must say, after check_blobs()."""
        return self._figures | {"blob_bytes": wrapped(self._figures["blob_bytes"])}

    def last(self) -> dict[str, int]:
        """The greatest numbers in use, as the counters call the next ones.

        Those of what is lost are: a file or a recipe would have what got such a number next.
        """
        return {
            name: max(lost, tally.numbers[-1] if len(tally) else 0)
            for (name, lost), tally in zip(
                self._lost.items(), (self.blobs, self.chunks), strict=True
            )
        }


def _fits(part: recipe.Part, raw_length: int) -> bool:
    """Whether a part can be the chunk, or a piece of it."""
    if part.kind == recipe.SLICE:
        return recipe.slice_offset(part) + part.length <= raw_length
    return part.length == raw_length


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[: layout.DIGEST_PREFIX], "big")


def name(key: bytes) -> str:
    """What a key of the sweep's queue means."""
    return f"{'blob' if key.startswith(b'b') else 'chunk'} {layout.from_u48(key[1:])}"


def missing_digest(kind: str, database: int, digest: bytes, number: int) -> Finding:
    """A record that its digest does not lead to."""
    key = digest[: layout.DIGEST_PREFIX] + layout.u48(number)
    return Finding(
        "missing-digest",
        f"{kind} {number} cannot be found by its digest {digest.hex()}",
        "the row is added",
        ((database, key, b""),),
    )
