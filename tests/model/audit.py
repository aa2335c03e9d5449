"""Counts a closed store anew, from its records alone, and says what does not agree.

Written apart from the program's own check, so that one mistake is not made twice.  Reads the
newest commit; nothing may have the store open for writing.
"""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path

from cafs.blobs import recipe
from cafs.index import layout
from cafs.index.counters import wrapped
from cafs.types import ROOT, BlobNo, ChunkNo, Ino
from cafs.view import View


def audit(path: Path) -> list[str]:
    """Everything that is wrong with the store; empty when nothing is."""
    with View(path) as view:
        return _Audit(view).run()


class _Audit:
    def __init__(self, view: View) -> None:
        self._view = view
        self._faults: list[str] = []

    def _expect(self, holds: bool, text: str) -> None:
        if not holds:
            self._faults.append(text)

    def _records(self, database: int) -> list[tuple[bytes, bytes]]:
        return list(self._view.overlay.scan(database, b"", b""))

    def run(self) -> list[str]:
        self._tree()
        self._blobs()
        self._chunks()
        self._packs()
        return self._faults

    def _tree(self) -> None:
        counters = self._view.counters
        self.inodes = {
            Ino(layout.from_u48(key)): layout.unpack_inode(value)
            for key, value in self._records(layout.INODES)
        }
        names: Counter[Ino] = Counter()
        entries: Counter[Ino] = Counter()
        subdirectories: Counter[Ino] = Counter()
        for key, value in self._records(layout.ENTRIES):
            parent = Ino(layout.from_u48(key))
            ino, kind, name = layout.split_entry(value)
            attr = self.inodes.get(ino)
            self._expect(attr is not None, f"{name!r} leads to inode {ino}, which is not there")
            if attr is None:
                continue
            self._expect(kind == attr.mode >> 12, f"{name!r} has the wrong type")
            names[ino] += 1
            entries[parent] += 1
            if stat.S_ISDIR(attr.mode):
                subdirectories[parent] += 1
                self._expect(attr.aux == parent, f"directory {ino} has another parent")
        orphans = {Ino(layout.from_u48(key)) for key, _ in self._records(layout.ORPHANS)}
        for ino, attr in self.inodes.items():
            if stat.S_ISDIR(attr.mode):
                links = 2 + subdirectories[ino] if ino == ROOT or names[ino] else 0
                self._expect(attr.blob == entries[ino], f"directory {ino} counts {attr.blob} names")
            else:
                links = names[ino]
            self._expect(attr.nlink == links, f"inode {ino}: {attr.nlink} links, not {links}")
            self._expect((attr.nlink == 0) == (ino in orphans), f"inode {ino} is an orphan or not")
            self._expect(ino < counters.next_ino, f"inode {ino} has a number not given out")
        linked = [attr for attr in self.inodes.values() if attr.nlink]
        files = [attr for attr in linked if stat.S_ISREG(attr.mode)]
        self._expect(counters.inodes == len(linked), f"inodes: {counters.inodes}, {len(linked)}")
        self._expect(counters.files == len(files), f"files: {counters.files}, {len(files)}")
        logical = wrapped(sum(attr.size for attr in files))
        self._expect(
            counters.logical_bytes == logical, f"logical: {counters.logical_bytes}, {logical}"
        )

    def _blobs(self) -> None:
        view, counters = self._view, self._view.counters
        refs = Counter(
            attr.blob for attr in self.inodes.values() if stat.S_ISREG(attr.mode) and attr.blob
        )
        mates = {
            layout.from_u48(key): (record.flags & layout.BLOB_MATED, record.mate)
            for key, value in self._records(layout.BLOBS)
            if (record := layout.unpack_blob(value)).flags & layout.BLOB_MATED
        }
        files = set(refs)
        for number, (kind, mate) in mates.items():
            if kind == layout.BLOB_AGED:
                refs[mate] += 1
                self._expect(
                    mates.get(mate) == (layout.BLOB_INNER, number),
                    f"blob {number} is aged, and its inner blob {mate} does not say so",
                )
        dead = {key for key, _ in self._records(layout.DEAD)}
        unhashed = {layout.from_u48(key) for key, _ in self._records(layout.UNHASHED)}
        by_digest = {
            database: {bytes(key) for key, _ in self._records(database)}
            for database in (layout.BLOB_SHA256, layout.BLOB_SHA1)
        }
        self.parts: Counter[ChunkNo] = Counter()
        numbers: set[int] = set()
        rows: set[int] = set()
        used = 0
        holes: Counter[BlobNo] = Counter()
        for key, value in self._records(layout.BLOBS):
            number = BlobNo(layout.from_u48(key))
            numbers.add(number)
            record = layout.unpack_blob(value)
            self._expect(
                record.refs == refs[number], f"blob {number}: {record.refs}, not {refs[number]}"
            )
            is_dead = layout.dead_key(b"b", number) in dead
            self._expect((record.refs == 0) == is_dead, f"blob {number} waits for the sweep or not")
            is_unhashed = bool(record.flags & layout.BLOB_UNHASHED)
            is_inner = bool(record.flags & layout.BLOB_INNER)
            self._expect(not (is_inner and number in files), f"a file has inner blob {number}")
            if record.refs:
                self._expect(is_unhashed == (number in unhashed), f"blob {number}: unhashed or not")
                used = wrapped(used + (0 if is_inner else record.size))
            for database, digest in (
                (layout.BLOB_SHA256, record.sha256),
                (layout.BLOB_SHA1, record.sha1),
            ):
                found = layout.digest_key(digest, number) in by_digest[database]
                listed = not (is_unhashed or is_inner)
                self._expect(found == listed, f"blob {number}: its digest is listed or not")
                by_digest[database].discard(layout.digest_key(digest, number))
            if record.flags & layout.BLOB_ROWS:
                rows.add(number)
            parts = list(view.blobs.parts(number, 0, max(1, record.size)))
            self.parts.update(recipe.chunk_refs(part for _, part in parts))
            holes[number] = recipe.hole_length(part for _, part in parts)
            position = 0
            for start, part in parts:
                if record.refs:
                    self._expect(start == position, f"blob {number}: a gap at {position}")
                    aged = bool(record.flags & layout.BLOB_AGED)
                    self._expect(part.kind != recipe.MADE or aged, f"blob {number} is not aged")
                position = start + part.length
            if record.refs:
                self._expect(position == record.size, f"blob {number} ends at {position}")
        for left in by_digest.values():
            self._expect(not left, f"digests lead to no blob: {left}")
        found_rows = {layout.from_u48(key) for key, _ in self._records(layout.RECIPES)}
        self._expect(found_rows <= rows, f"rows of no blob: {found_rows - rows}")
        self._expect(unhashed <= numbers, f"unhashed, but not there: {unhashed - numbers}")
        for ino, attr in self.inodes.items():
            if stat.S_ISREG(attr.mode):
                wanted = holes[attr.blob]
                self._expect(attr.aux == wanted, f"inode {ino}: {attr.aux} in holes, not {wanted}")
        for number, count in refs.items():
            self._expect(number in numbers, f"{count} inodes have blob {number}, not there")
        self._expect(counters.blobs == len(files), f"blobs: {counters.blobs}, {len(files)}")
        self._expect(counters.blob_bytes == used, f"blob bytes: {counters.blob_bytes}, {used}")

    def _chunks(self) -> None:
        counters = self._view.counters
        dead = {key for key, _ in self._records(layout.DEAD)}
        listed = {bytes(key) for key, _ in self._records(layout.CHUNK_SHA256)}
        self.live: Counter[int] = Counter()
        self.live_bytes: Counter[int] = Counter()
        raw = stored = count = 0
        for key, value in self._records(layout.CHUNKS):
            number = ChunkNo(layout.from_u48(key))
            record = layout.unpack_chunk(value)
            wanted = self.parts.pop(number, 0)
            self._expect(record.refs == wanted, f"chunk {number}: {record.refs}, not {wanted}")
            is_dead = layout.dead_key(b"c", number) in dead
            self._expect((record.refs == 0) == is_dead, f"chunk {number} waits for the sweep")
            digest = layout.digest_key(record.sha256, number)
            self._expect(digest in listed, f"chunk {number}: its digest is not listed")
            listed.discard(digest)
            extent = record.extent
            self.live[extent.pack] += 1
            self.live_bytes[extent.pack] += extent.stored_length
            raw += extent.raw_length
            stored += extent.stored_length
            count += 1
            self._view.read_chunk(number, extent)
        self._expect(not listed, f"digests lead to no chunk: {listed}")
        self._expect(not self.parts, f"recipes name chunks that are not there: {self.parts}")
        found = (counters.chunks, counters.raw_bytes, counters.stored_bytes)
        self._expect(found == (count, raw, stored), f"chunks: {found}, not {(count, raw, stored)}")

    def _packs(self) -> None:
        for number, record in self._view.pack_table.items():
            live, size = self.live.pop(number, 0), self.live_bytes[number]
            self._expect(
                (record.live_chunks, record.live_bytes) == (live, size),
                f"pack {number}: {record.live_chunks} chunks, not {live}",
            )
        self._expect(not self.live, f"chunks lie in packs that are not there: {self.live}")
