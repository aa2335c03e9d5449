"""Finding the way along a path, as the kernel would for a process of a given user.

The kernel does this for the mount; whoever comes by another door needs it done here: search
permission on every directory, links followed inside the tree, errors as path_resolution(7) has.
Invariant: nothing outside the tree is ever reached.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Sequence
from typing import NamedTuple

from cafs.errors import FsError
from cafs.tree import permissions
from cafs.tree.tree import Tree
from cafs.types import ROOT, Attr, Ino

PATH_MAX = 4095
"""Bytes of a path (limits.h): what a system call would take."""
LINKS_MAX = 40
"""Symbolic links that may be met on the way, as in the kernel."""
READ, WRITE, SEARCH = 4, 2, 1

NOT_THERE = "there is nothing of that name"
DENIED = "the permissions of the tree do not allow it"


class Caller(NamedTuple):
    """Whose permissions count."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()
    """Supplementary groups."""

    def in_group(self, gid: int) -> bool:
        """Whether the group is one of the caller's."""
        return gid == self.gid or gid in self.groups


class Place(NamedTuple):
    """Where a path leads, whether there is something or not."""

    parent: Ino
    """The directory that holds the last name; the root for the root itself."""
    name: bytes
    """That name; empty for the root itself."""
    ino: Ino | None
    """What it leads to."""


def may(tree: Tree, ino: Ino, attr: Attr, caller: Caller, wanted: int) -> bool:
    """Whether the caller may READ, WRITE or SEARCH (or several, added) an inode."""
    if caller.uid == 0:
        # Root may do all of it, but for running a file that nobody may run.
        return True
    mode = attr.mode
    if attr.uid == caller.uid:
        return mode >> 6 & wanted == wanted
    acl = tree.xattrs.get(ino, permissions.ACCESS)
    if acl is not None:
        entries = permissions.parse_acl(acl)
        return permissions.acl_allows(entries, attr.gid, caller.uid, caller.in_group, wanted)
    if caller.in_group(attr.gid):
        return mode >> 3 & wanted == wanted
    return mode & wanted == wanted


def require(tree: Tree, ino: Ino, attr: Attr, caller: Caller, wanted: int) -> None:
    """Raise FsError(EACCES) unless the caller may."""
    if not may(tree, ino, attr, caller, wanted):
        raise FsError(errno.EACCES, DENIED)


def find(tree: Tree, names: Sequence[bytes], caller: Caller) -> Ino:
    """The inode that a path leads to; symbolic links are followed.

    Raises FsError ENOENT, ENOTDIR, ENAMETOOLONG, EACCES (also when a link leads out of the
    tree), ELOOP.
    """
    found = locate(tree, names, caller, follow=True)
    if found.ino is None:
        raise FsError(errno.ENOENT, NOT_THERE)
    return found.ino


def locate(tree: Tree, names: Sequence[bytes], caller: Caller, *, follow: bool) -> Place:
    """Where a path leads; a symbolic link as its last name is followed if *follow* says so.

    The last name need not be there.  Raises what find() does, for all names but the last.
    """
    if sum(map(len, names)) + len(names) > PATH_MAX:
        raise FsError(errno.ENAMETOOLONG, "the path is too long")
    get = tree.inodes.get
    left = list(reversed(names))
    directory, attr = ROOT, get(ROOT)
    place = Place(ROOT, b"", ROOT)
    links = 0
    while left:
        name = left.pop()
        if place.ino is None:
            raise FsError(errno.ENOENT, NOT_THERE)
        if place.ino != directory:
            directory, attr = place.ino, get(place.ino)
        if not stat.S_ISDIR(attr.mode):
            raise FsError(errno.ENOTDIR, "a part of the path is a file")
        if not may(tree, directory, attr, caller, SEARCH):
            raise FsError(errno.EACCES, DENIED)
        if name == b".":
            continue
        if name == b"..":
            if directory == ROOT:
                raise FsError(errno.EACCES, "a symbolic link leads out of the tree")
            above = Ino(attr.aux)
            place = Place(Ino(get(above).aux), b"..", above)
            continue
        child = tree.lookup(directory, name)
        if child is not None and (left or follow):
            child_attr = get(child)
            if stat.S_ISLNK(child_attr.mode):
                links += 1
                if links > LINKS_MAX:
                    raise FsError(errno.ELOOP, "too many symbolic links")
                target = tree.readlink(child)
                if target.startswith(b"/"):
                    raise FsError(errno.EACCES, "a symbolic link leads out of the tree")
                left.extend(part for part in reversed(target.split(b"/")) if part)
                place = Place(place.parent, place.name, directory)
                continue
        place = Place(directory, name, child)
    return place
