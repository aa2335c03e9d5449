"""Walking a part of the tree in the order of its names, and picking from it.

Invariant: memory grows with the depth of the tree and the largest directories on the way, and
an inode's record is read only when a condition asks for it.
"""

from __future__ import annotations

import fnmatch
import re
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from cafs.index import layout
from cafs.operate import digests
from cafs.operate.paths import STEP, Advance, attr_of
from cafs.types import Attr, BlobNo, Ino
from cafs.view import View

_DIRECTORY: Final = stat.S_IFDIR >> 12
_TYPES: Final = {
    "f": stat.S_IFREG >> 12,
    "d": _DIRECTORY,
    "l": stat.S_IFLNK >> 12,
    "p": stat.S_IFIFO >> 12,
    "s": stat.S_IFSOCK >> 12,
    "c": stat.S_IFCHR >> 12,
    "b": stat.S_IFBLK >> 12,
}
TYPES: Final = tuple(_TYPES)
"""Letters for the types of inodes, as find(1) has them."""


class Met(NamedTuple):
    """Something met on a walk."""

    path: bytes
    """Below where the walk began, which stands before it; the beginning itself as it was given."""
    name: bytes
    """The last part of the path."""
    ino: Ino
    type: int
    """As in a directory entry: mode >> 12."""


class Conditions(NamedTuple):
    """What find() picks; None: anything."""

    blobs: frozenset[BlobNo] | None = None
    """Regular files that have one of these as their content."""
    larger: int | None = None
    """Regular files of more than so many bytes."""
    smaller: int | None = None
    """Regular files of fewer bytes."""
    older: int | None = None
    """Modified before this time, in ns since 1970."""
    newer: int | None = None
    """Modified after this time, in ns since 1970."""
    types: Sequence[str] | None = None
    """Letters of TYPES."""
    glob: bytes | None = None
    """The last part of the path, as fnmatch(3) without flags has it."""


def entries(view: View, directory: Ino) -> Iterator[tuple[bytes, Ino, int]]:
    """Name, inode and type of each entry, in order of the names' bytes."""
    prefix = layout.u48(directory)
    # One bytes object an entry: a directory may have millions.  A name holds no NUL, so that
    # it sorts before its continuations.
    packed = sorted(
        value[7:] + b"\0" + value[:7]
        for _, value in view.overlay.scan(layout.ENTRIES, prefix, prefix)
    )
    for each in packed:
        yield each[:-8], Ino(int.from_bytes(each[-7:-1], "little")), each[-1]


def walk(view: View, root: Ino, path: bytes) -> Iterator[Met]:
    """*root*, which is at *path*, and all below it: a directory before what is in it."""
    kind = attr_of(view, root).mode >> 12
    name = path.rstrip(b"/").rpartition(b"/")[2]
    yield Met(path, name or b"/", root, kind)
    if kind != _DIRECTORY:
        return
    above = path.rstrip(b"/")
    levels = [(above, entries(view, root))]
    while levels:
        above, left = levels[-1]
        for name, ino, kind in left:
            below = above + b"/" + name
            yield Met(below, name, ino, kind)
            if kind == _DIRECTORY:
                levels.append((below, entries(view, ino)))
                break
        else:
            levels.pop()


def blobs_that_begin_with(view: View, text: str) -> frozenset[BlobNo]:
    """All blobs whose SHA-256 or SHA-1 begins with *text*.  Raises UsageError."""
    return frozenset(match.blob for match in digests.matches(view, digests.parse(text)))


def find(
    view: View, root: Ino, path: bytes, wanted: Conditions, advance: Advance | None = None
) -> Iterator[tuple[Met, Attr]]:
    """What meets all conditions at and below *root*, which is at *path*, with its record."""
    types = None if wanted.types is None else {_TYPES[letter] for letter in wanted.types}
    if wanted.blobs is not None or wanted.larger is not None or wanted.smaller is not None:
        regular = {_TYPES["f"]}
        types = regular if types is None else types & regular
    matches = None
    if wanted.glob is not None:
        matches = re.compile(fnmatch.translate(wanted.glob.decode("latin-1")).encode("latin-1"))
    for seen, met in enumerate(walk(view, root, path)):
        if advance is not None and seen % STEP == 0:
            advance(seen)
        if types is not None and met.type not in types:
            continue
        if matches is not None and not matches.match(met.name):
            continue
        attr = attr_of(view, met.ino)
        if _meets(attr, wanted):
            yield met, attr


def _meets(attr: Attr, wanted: Conditions) -> bool:
    return (
        (wanted.blobs is None or attr.blob in wanted.blobs)
        and (wanted.larger is None or attr.size > wanted.larger)
        and (wanted.smaller is None or attr.size < wanted.smaller)
        and (wanted.older is None or attr.mtime_ns < wanted.older)
        and (wanted.newer is None or attr.mtime_ns > wanted.newer)
    )
