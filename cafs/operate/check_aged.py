"""The invariants of blobs that were taken apart: pairs, engines, made parts and slices.

What cafs.operate.check_content asks about these while it goes through the blobs.  Changes
nothing.  Invariant: memory grows with the blobs that were taken apart, not with their bytes.
"""

from __future__ import annotations

from cafs.archives.engine_record import EngineRecord
from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.layout import (
    AGED_VERSION,
    BLOB_AGED,
    BLOB_INNER,
    BLOB_MATED,
    BLOB_NESTED,
    BLOB_UNHASHED,
    BlobRecord,
)
from cafs.operate.finding import Finding, Findings
from cafs.types import BlobNo
from cafs.view import View


class AgedCheck:
    """Which blobs belong together, in one snapshot."""

    def __init__(self, view: View) -> None:
        self._overlay = view.overlay
        self._version = view.file.format_version
        self._inner: dict[int, int] = {}
        """Of an outer blob the inner one that it names."""
        self._outer: dict[int, int] = {}
        """Of an inner blob the outer one that it names."""
        self._named_by: dict[int, int] = {}
        """The other way round: of an outer blob the inner one that names it."""
        self._sizes: dict[int, int] = {}
        """Bytes of each inner blob."""
        self._engines: set[int] = set()

    def load(self, number: int, record: BlobRecord) -> None:
        """Take what is compared later; called for each blob, before anything else."""
        if record.flags & BLOB_AGED:
            self._inner[number] = record.mate
        elif record.flags & BLOB_INNER:
            self._outer[number] = record.mate
            self._named_by[record.mate] = number
            self._sizes[number] = record.size

    def check_engines(self) -> Findings:
        """The records of engines can be understood, and are numbered without gaps."""
        prefix = layout.engine_key(0)[:-5]
        for key, value in self._overlay.scan(layout.META, prefix, prefix):
            shown = key.decode("ascii", "replace")
            digits = key[len(prefix) :]
            number = int(digits) if digits.isdigit() else 0
            problem = ""
            try:
                EngineRecord.unpack(number, value)
            except IndexDamagedError as error:
                problem = str(error)
            if number != len(self._engines) + 1 or key != layout.engine_key(number):
                problem = f"it is not number {len(self._engines) + 1}"
            self._engines.add(number)
            if problem:
                yield Finding(
                    "engine",
                    f"the record {shown} is wrong: {problem}",
                    "restore the index with: cafs rebuild STORE",
                )

    def check_version(self) -> Findings:
        """A store that has aged blobs says so, so that no older program touches it."""
        if (self._inner or self._outer) and self._version < AGED_VERSION:
            yield Finding(
                "format-version",
                f"store.toml says version {self._version}, and the store has blobs that need "
                f"version {AGED_VERSION}",
                "it is put right when the store is mounted: cafs mount STORE MOUNTPOINT",
            )

    def refs(self, number: int) -> int:
        """How often an inner blob is referred to: by its outer one, or not at all."""
        outer = self._outer.get(number)
        return int(outer is not None and self._inner.get(outer) == number)

    def check_mate(self, number: int, record: BlobRecord, inodes: int) -> Findings:
        """A blob and its mate name each other; no file has an inner blob."""
        if record.flags & BLOB_MATED == BLOB_MATED:
            yield _unusable(number, record, "it is marked as aged and as an inner blob at once")
        elif record.flags & BLOB_AGED and self._outer.get(record.mate) != number:
            there = record.mate in self._outer
            why = "belongs to another blob" if there else "is not there"
            yield _unusable(number, record, f"its inner blob {record.mate} {why}")
        elif record.flags & BLOB_INNER and inodes:
            yield Finding(
                "mate",
                f"blob {number} is the inner blob of blob {record.mate}, and {inodes} inodes "
                "have it as their content",
                "restore the index with: cafs rebuild STORE",
            )

    def problem(self, number: int, record: BlobRecord, part: Part) -> str:
        """What is wrong with a made part of a blob that is not dying; empty if nothing is."""
        how = recipe.made(part)
        if record.flags & BLOB_NESTED:
            size: int | None = record.size
        elif record.flags & BLOB_AGED:
            size = self._sizes.get(record.mate)
        else:
            return "it has a made part, and the blob is not marked as aged"
        if how.engine not in self._engines:
            return f"a made part needs engine {how.engine}, which is not there"
        if size is not None and how.start + how.raw_length > size:
            return f"a made part needs bytes beyond the {size} of the inner blob"
        return ""

    def unmarked(self, number: int, record: BlobRecord) -> Finding | None:
        """A blob with made parts lost its mark: an older record of it came back."""
        inner = self._named_by.get(number)
        if inner is None or record.flags & (BLOB_MATED | BLOB_UNHASHED):
            return None
        wanted = record._replace(flags=record.flags | BLOB_AGED, mate=BlobNo(inner))
        return Finding(
            "mate",
            f"blob {number} has parts that are made from inner blob {inner}, and is not marked",
            "it is marked",
            ((layout.BLOBS, layout.u48(number), layout.pack_blob(wanted)),),
        )


def _unusable(number: int, record: BlobRecord, why: str) -> Finding:
    digest = record.sha256.hex()
    return Finding(
        "mate",
        f"blob {number} (SHA-256 {digest}) was taken apart, and cannot be rebuilt: {why}",
        f"delete or restore the files that have it: cafs blob {digest[:16]} names them",
    )
