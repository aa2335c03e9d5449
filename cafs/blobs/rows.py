"""Rows: the recipes that are too long for their blob's record.

Owns the keys and values of the recipes database, and the cutting of a recipe into rows.
Invariant: the rows of a blob are contiguous, and each has its own first byte as its key.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice
from typing import NamedTuple

from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.overlay import Overlay
from cafs.types import BlobNo

_CACHED = 256


class Row(NamedTuple):
    """A stretch of a recipe, decoded."""

    starts: list[int]
    """First byte of each part."""
    parts: list[Part]
    end: int


class Rows:
    """The recipes database over the overlay.  Belongs to the event loop."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._decoded: OrderedDict[bytes, Row] = OrderedDict()

    def range(self, number: BlobNo, start: int, end: int) -> Iterator[Row]:
        """The rows that speak of bytes [start, end)."""
        prefix = layout.u48(number)
        first = self._overlay.floor(layout.RECIPES, layout.recipe_key(number, start), prefix)
        for key, value in self._overlay.scan(layout.RECIPES, first or prefix, prefix):
            begin = layout.recipe_start(key)
            if begin >= end:
                return
            yield self._row(key, begin, value)

    def _row(self, key: bytes, begin: int, value: bytes) -> Row:
        row = self._decoded.get(key)
        if row is None:
            row = decoded(begin, value)
            self._keep(key, row)
        return row

    def _keep(self, key: bytes, row: Row) -> None:
        self._decoded[key] = row
        if len(self._decoded) > _CACHED:
            self._decoded.popitem(last=False)

    def put(self, number: BlobNo, start: int, parts: Sequence[Part]) -> None:
        """Write *parts* as rows, from byte *start* of the blob on."""
        index = 0
        while index < len(parts):
            group = parts[index : index + layout.PARTS_PER_ROW]
            while len(encoded := recipe.encode(group)) > layout.ROW_MAX and len(group) > 1:
                group = group[: len(group) // 2]
            self.put_encoded(number, start, encoded)
            # What is appended next joins it.
            row = row_of(start, list(group))
            self._keep(layout.recipe_key(number, start), row)
            start = row.end
            index += len(group)

    def put_encoded(self, number: BlobNo, start: int, row: bytes) -> None:
        """Write one row as it is."""
        key = layout.recipe_key(number, start)
        self._decoded.pop(key, None)
        self._overlay.put(layout.RECIPES, key, row)

    def first(self, number: BlobNo, limit: int | None = None) -> list[tuple[int, bytes]]:
        """First byte and encoded bytes of the first rows, at most *limit* or all."""
        prefix = layout.u48(number)
        found = islice(self._overlay.scan(layout.RECIPES, prefix, prefix), limit)
        return [(layout.recipe_start(key), value) for key, value in found]

    def delete(self, number: BlobNo, start: int) -> None:
        """Take out the row that begins at byte *start*."""
        key = layout.recipe_key(number, start)
        self._decoded.pop(key, None)
        self._overlay.delete(layout.RECIPES, key)


def decoded(start: int, encoded: bytes) -> Row:
    """An encoded row that begins at byte *start*.  Raises IndexDamagedError."""
    return row_of(start, recipe.decode(encoded))


def row_of(start: int, parts: list[Part]) -> Row:
    """A row of *parts* that begins at byte *start*."""
    *starts, end = accumulate((part.length for part in parts), initial=start)
    return Row(starts, parts, end)


def split(begin: int, part: Part, start: int, end: int) -> Iterator[tuple[int, Part]]:
    """A part as pieces before (-1), inside (0) and after (1) [start, end): only holes are cut."""
    stop = begin + part.length
    if stop <= start:
        yield -1, part
    elif begin >= end:
        yield 1, part
    elif begin >= start and stop <= end:
        yield 0, part
    elif part.kind == recipe.HOLE:
        if begin < start:
            yield -1, part._replace(length=start - begin)
        yield 0, part._replace(length=min(stop, end) - max(begin, start))
        if stop > end:
            yield 1, part._replace(length=stop - end)
    else:
        raise IndexDamagedError(f"a part at {begin} is no border for [{start}, {end})")


def join(parts: list[Part]) -> list[Part]:
    """Neighbouring holes as one; empty parts left out."""
    joined: list[Part] = []
    for part in parts:
        if not part.length:
            continue
        if part.kind == recipe.HOLE and joined and joined[-1].kind == recipe.HOLE:
            joined[-1] = part._replace(length=part.length + joined[-1].length)
        else:
            joined.append(part)
    return joined
