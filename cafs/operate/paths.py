"""From paths to inodes, and from inodes and blobs back to every path that leads to them.

The index only leads downward, so the way back is one pass over all inodes, one over all
directory entries, each in key order, and one look at each directory above what was found.
Invariant: memory grows with what is asked for, never with the store.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from cafs.errors import FsError, IndexDamagedError, NotFoundError
from cafs.index import layout
from cafs.types import NO_BLOB, ROOT, Attr, BlobNo, Ino
from cafs.view import View

Advance = Callable[[int], None]
"""Told how many records have been looked at."""

LINKS_MAX: Final = 40
"""Symbolic links on the way to one path, as path_resolution(7) has it."""
STEP: Final = 16384
"""Records between two reports of progress."""


def attr_of(view: View, ino: Ino) -> Attr:
    """An inode's record, past the tree's cache: a walk sees each inode once.

    Raises IndexDamagedError if there is none.
    """
    value = view.overlay.get(layout.INODES, layout.u48(ino))
    if value is None:
        raise IndexDamagedError(f"inode {ino} has no record")
    return layout.unpack_inode(value)


class Named(NamedTuple):
    """An inode as one of its names leads to it."""

    parent: Ino
    name: bytes
    """Empty for the root, which is its own parent."""
    ino: Ino


def resolve(view: View, inside: bytes, shown: bytes | None = None) -> Named:
    """What lies at a path from the store's root; a symbolic link at its end is not followed.

    Raises NotFoundError, also for a link on the way that leads out of the store; it names the
    path as *shown*, if that is given.
    """
    shown = inside if shown is None else shown
    here = Named(ROOT, b"", ROOT)
    above: list[Named] = []
    left = [name for name in reversed(inside.split(b"/")) if name]
    links = 0
    while left:
        name = left.pop()
        if name == b".":
            continue
        if name == b"..":
            here = above.pop() if above else here
            continue
        try:
            found = view.tree.lookup(here.ino, name)
        except FsError as error:
            if error.errno == errno.ENOTDIR:
                raise _absent(shown, "a part of it is no directory") from None
            raise _absent(shown, "no such file or directory") from None
        if found is None:
            raise _absent(shown, "no such file or directory")
        if left and stat.S_ISLNK(attr_of(view, found).mode):
            target = view.tree.readlink(found)
            links += 1
            if links > LINKS_MAX:
                raise _absent(shown, "too many symbolic links on the way")
            if target.startswith(b"/"):
                outside = os.fsdecode(target)
                raise _absent(shown, f"a symbolic link on the way leads to {outside}")
            left += [part for part in reversed(target.split(b"/")) if part]
            continue
        above.append(here)
        here = Named(here.ino, name, found)
    return here


def _absent(shown: bytes, why: str) -> NotFoundError:
    return NotFoundError(f"{os.fsdecode(shown)}: {why}")


def inodes_of(
    view: View, blobs: Collection[BlobNo], advance: Advance | None = None
) -> dict[Ino, BlobNo]:
    """Inodes whose content is one of *blobs*; those without a name (open files) included."""
    wanted = set(blobs) - {NO_BLOB}
    # References are exact: when that many have been found, there are no more.
    left = sum(view.blobs.get(number).refs for number in wanted)
    found: dict[Ino, BlobNo] = {}
    if not left:
        return found
    for seen, (key, value) in enumerate(view.overlay.scan(layout.INODES, b"", b"")):
        if advance is not None and seen % STEP == 0:
            advance(seen)
        mode, _, _, blob = layout.inode_content(value)
        # A directory has the count of its entries in place of the blob.
        if blob not in wanted or not stat.S_ISREG(mode):
            continue
        found[Ino(layout.from_u48(key))] = BlobNo(blob)
        left -= 1
        if not left:
            break
    return found


def names_of(
    view: View, inos: Collection[Ino], advance: Advance | None = None
) -> list[tuple[Ino, Ino, bytes]]:
    """Every directory entry that leads to one of *inos*: inode, parent and name."""
    wanted = {ino.to_bytes(6, "little"): ino for ino in inos}
    left = 0
    for ino in inos:
        attr = attr_of(view, ino)
        left += min(attr.nlink, 1) if stat.S_ISDIR(attr.mode) else attr.nlink
    found: list[tuple[Ino, Ino, bytes]] = []
    if not left:
        return found
    for seen, (key, value) in enumerate(view.overlay.scan(layout.ENTRIES, b"", b"")):
        if advance is not None and seen % STEP == 0:
            advance(seen)
        target = wanted.get(value[:6])
        if target is not None:
            found.append((target, Ino(layout.from_u48(key)), value[7:]))
            left -= 1
            if not left:
                break
    return found


def directories(view: View, inos: Iterable[Ino]) -> dict[Ino, bytes]:
    """The path of each of *inos*, which are directories; without an end slash, the root's empty.

    One that has no path (removed while open) is left out.
    """
    parents: dict[Ino, Ino] = {}
    names: dict[Ino, bytes] = {}
    level = set(inos) - {ROOT}
    while level:
        # One listing for all that lie in the same parent: a store has directories of
        # thousands of directories.
        by_parent: defaultdict[Ino, set[Ino]] = defaultdict(set)
        for ino in level:
            parents[ino] = Ino(attr_of(view, ino).aux)
            by_parent[parents[ino]].add(ino)
        for parent, missing in by_parent.items():
            for entry in view.tree.listing(parent, 0):
                if entry.ino in missing:
                    names[entry.ino] = entry.name
                    missing.discard(entry.ino)
                    if not missing:
                        break
        level = {parent for parent in by_parent if parent != ROOT and parent not in parents}
    paths: dict[Ino, bytes] = {ROOT: b""}
    for ino in parents:
        _join(ino, parents, names, paths)
    return paths


def _join(
    ino: Ino, parents: Mapping[Ino, Ino], names: Mapping[Ino, bytes], paths: dict[Ino, bytes]
) -> None:
    """Add the path of *ino* and of what lies above it to *paths*."""
    way: list[Ino] = []
    while ino not in paths:
        if ino not in names or len(way) > len(names):
            return
        way.append(ino)
        ino = parents[ino]
    for each in reversed(way):
        paths[each] = paths[parents[each]] + b"/" + names[each]


def paths_of_inodes(
    view: View, inos: Collection[Ino], advance: Advance | None = None
) -> dict[Ino, list[bytes]]:
    """All paths of each of *inos* from the store's root, sorted; none for one without a name."""
    found: dict[Ino, list[bytes]] = {ino: [] for ino in inos}
    if ROOT in found:
        found[ROOT].append(b"/")
    entries = names_of(view, [ino for ino in inos if ino != ROOT], advance)
    above = directories(view, {parent for _, parent, _ in entries})
    for ino, parent, name in entries:
        if parent in above:
            found[ino].append(above[parent] + b"/" + name)
    for each in found.values():
        each.sort()
    return found


def paths_of_blobs(
    view: View, blobs: Collection[BlobNo], advance: Advance | None = None
) -> dict[BlobNo, list[bytes]]:
    """All paths of the files that have each of *blobs* as their content, sorted.

    *advance* is told of at most ``2 * counters.inodes`` records, or a few more.
    """
    inodes = inodes_of(view, blobs, advance)
    done = view.counters.inodes

    def second(seen: int) -> None:
        if advance is not None:
            advance(done + seen)

    found: dict[BlobNo, list[bytes]] = {blob: [] for blob in blobs}
    for ino, paths in paths_of_inodes(view, inodes, second).items():
        found[inodes[ino]] += paths
    for each in found.values():
        each.sort()
    return found
