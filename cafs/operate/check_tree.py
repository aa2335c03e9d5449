"""The invariants of the tree: inodes, names, links, attributes.

One method an invariant, over one snapshot of the index, in passes along its databases.  What is
remembered between passes lies in arrays (see cafs.operate.tally).  Changes nothing.
"""

from __future__ import annotations

import os
import stat
from array import array
from collections.abc import Callable

from cafs.clock import SystemClock
from cafs.index import layout
from cafs.index.counters import wrapped
from cafs.operate.finding import Change, Finding, Findings
from cafs.operate.tally import Tally
from cafs.tree.names import PROBES
from cafs.tree.tree import DIRECTORY_SIZE
from cafs.types import NO_BLOB, ROOT, Attr, BlobNo, Ino
from cafs.view import View

_ORPHANED = 1
_HAS_TARGET = 2
_ATTACHED = 4
_S_IFDIR = stat.S_IFDIR >> 12
_S_IFLNK = stat.S_IFLNK >> 12


class TreeCheck:
    """Checks of one snapshot's tree.  The methods are called in the order they stand in."""

    def __init__(self, view: View) -> None:
        self._overlay = view.overlay
        self._names = view.tree.names
        self._counters = view.counters
        self._inodes = Tally()
        self._types = bytearray()
        self._directories = Tally()
        self._entries = array("L")
        self._parents = array("Q")
        self._files = self._linked = self._bytes = 0
        self.last_blob = 0
        """The greatest number of a blob that a file has and that is not there."""

    def load(self) -> int:
        """Take the numbers and types of all inodes; how many there are."""
        for key, value in self._overlay.scan(layout.INODES, b"", b""):
            number = layout.from_u48(key)
            kind = value[1] >> 4
            self._inodes.append(number)
            self._types.append(kind)
            if kind == _S_IFDIR:
                self._directories.append(number)
        self._inodes.ready()
        self._directories.ready()
        zeros = bytes(8 * len(self._directories))
        self._entries = array("L", zeros)
        self._parents = array("Q", zeros)
        return len(self._inodes)

    def type_of(self, ino: int) -> int:
        """The type of an inode as mode >> 12; 0 when there is none."""
        rank = self._inodes.rank(ino)
        return self._types[rank] if rank >= 0 else 0

    def check_root(self) -> Findings:
        """The root is there and is a directory."""
        if self.type_of(ROOT) != _S_IFDIR:
            now = SystemClock().now_ns()
            mode, owner = stat.S_IFDIR | 0o755, (os.geteuid(), os.getegid())
            attr = Attr(mode, *owner, 2, DIRECTORY_SIZE, now, now, now, NO_BLOB, ROOT, 0)
            yield Finding(
                "root",
                "the root directory has no record",
                "it gets one, as in a new store: look at its owner and mode",
                ((layout.INODES, layout.u48(ROOT), layout.pack_inode(attr)),),
            )

    def check_entries(self) -> Findings:
        """Each name lies in a directory, where its hash says, and leads to an inode."""
        probed: dict[int, bool] = {}
        directory, place = -1, -1
        for key, value in self._overlay.scan(layout.ENTRIES, b"", b""):
            parent = layout.from_u48(key)
            if parent != directory:
                directory, place = parent, self._directories.rank(parent)
            ino, kind, name = layout.split_entry(value)
            remove: tuple[Change, ...] = ((layout.ENTRIES, key, None),)
            if place < 0:
                yield Finding(
                    "stray-entry",
                    f"{name!r} is a name in inode {parent}, which is no directory",
                    "the name is removed",
                    remove,
                )
                continue
            if not 1 <= len(name) <= 255 or b"/" in name or b"\0" in name or name in (b".", b".."):
                yield Finding(
                    "bad-name",
                    f"directory {parent} has an entry with the impossible name {name!r}",
                    "the name is removed; what it led to gets one in lost+found",
                    remove,
                    Ino(parent),
                )
                continue
            real = self.type_of(ino)
            if not real:
                yield Finding(
                    "dangling-entry",
                    f"{name!r} in directory {parent} leads to inode {ino}, which is not there",
                    "the name is removed",
                    remove,
                    Ino(parent),
                )
                continue
            if real != kind:
                yield Finding(
                    "entry-type",
                    f"{name!r} in directory {parent} has type {kind:#o}, its inode {real:#o}",
                    "the entry gets the inode's type",
                    ((layout.ENTRIES, key, layout.entry_value(ino, real, name)),),
                    ino,
                )
            cookie = layout.entry_cookie(key)
            if cookie != layout.name_cookie(name):
                if parent not in probed:
                    probed[parent] = self._is_probed(parent)
                yield from self._check_place(Ino(parent), cookie, name, ino, probed[parent])
            self._entries[place] += 1
            self._inodes.add(ino)
            if real == _S_IFDIR:
                yield from self._attach(key, Ino(parent), place, ino, name)

    def _is_probed(self, parent: int) -> bool:
        value = self._overlay.get(layout.INODES, layout.u48(parent))
        return value is not None and bool(layout.unpack_inode(value).flags & layout.INODE_PROBED)

    def _check_place(
        self, parent: Ino, cookie: int, name: bytes, ino: Ino, probed: bool
    ) -> Findings:
        found = self._names.find(parent, name, probed=probed)
        if found is not None and found.cookie == cookie:
            return
        free = self._names.place(parent, name)
        key = layout.entry_key(parent, cookie)
        changes: list[Change] = [(layout.ENTRIES, key, None)]
        repair = "the name is removed"
        if found is None and free is not None:
            kind = self.type_of(ino)
            moved = layout.entry_key(parent, free[0])
            changes.append((layout.ENTRIES, moved, layout.entry_value(ino, kind, name)))
            repair = "the name is moved to its place"
            if free[1]:
                value = self._overlay.get(layout.INODES, layout.u48(parent))
                assert value is not None
                attr = layout.unpack_inode(value)
                attr = attr._replace(flags=attr.flags | layout.INODE_PROBED)
                changes.append((layout.INODES, layout.u48(parent), layout.pack_inode(attr)))
        what = "cannot be found where it lies" if found is None else "is there twice"
        yield Finding(
            "entry-place",
            f"{name!r} in directory {parent} {what} (up to {PROBES} places from its hash)",
            repair,
            tuple(changes),
            ino,
        )

    def _attach(self, key: bytes, parent: Ino, place: int, ino: Ino, name: bytes) -> Findings:
        rank = self._directories.rank(ino)
        if ino == ROOT or self._parents[rank]:
            yield Finding(
                "directory-links",
                f"directory {ino} has a second name, {name!r} in directory {parent}",
                "that name is removed",
                ((layout.ENTRIES, key, None),),
                parent,
            )
            return
        self._parents[rank] = parent
        self._directories.counts[place] += 1

    def check_loops(self) -> Findings:
        """From each directory that has a name the way up ends at the root, or at one without."""
        directories, parents = self._directories, self._parents
        for first, number in enumerate(directories.numbers):
            rank, way = first, []
            while rank >= 0 and not directories.marks[rank] & _ATTACHED:
                directories.marks[rank] |= _ATTACHED
                way.append(rank)
                up = parents[rank]
                rank = directories.rank(up) if up else -1
            if rank in way:
                ino = Ino(directories.numbers[rank])
                cut: tuple[Change, ...] = tuple(
                    (layout.ENTRIES, key, None)
                    for key, value in self._overlay.scan(
                        layout.ENTRIES, layout.u48(parents[rank]), layout.u48(parents[rank])
                    )
                    if layout.split_entry(value)[0] == ino
                )
                yield Finding(
                    "loop",
                    f"directory {ino} lies below itself (found from directory {number})",
                    "it is taken out of the loop and gets a name in lost+found",
                    cut,
                )

    def check_orphans(self) -> Findings:
        """What is listed as nameless is there."""
        for key, _ in self._overlay.scan(layout.ORPHANS, b"", b""):
            if not self._inodes.mark(layout.from_u48(key), _ORPHANED):
                yield Finding(
                    "orphan-list",
                    f"inode {layout.from_u48(key)} is listed as an orphan and is not there",
                    "it is taken off the list",
                    ((layout.ORPHANS, key, None),),
                )

    def check_symlinks(self) -> Findings:
        """Each target belongs to a symbolic link."""
        for key, _ in self._overlay.scan(layout.SYMLINKS, b"", b""):
            number = layout.from_u48(key)
            if self.type_of(number) != _S_IFLNK:
                yield Finding(
                    "stray-target",
                    f"inode {number} has a link target and is no symbolic link",
                    "the target is removed",
                    ((layout.SYMLINKS, key, None),),
                )
            else:
                self._inodes.mark(number, _HAS_TARGET)

    def check_xattrs(self) -> Findings:
        """Each extended attribute belongs to an inode."""
        for key, _ in self._overlay.scan(layout.XATTRS, b"", b""):
            number = layout.from_u48(key)
            if not self.type_of(number):
                yield Finding(
                    "stray-xattr",
                    f"the attribute {key[6:]!r} belongs to inode {number}, which is not there",
                    "the attribute is removed",
                    ((layout.XATTRS, key, None),),
                )

    def check_inodes(self, blobs: Tally, size_of: Callable[[int], int | None]) -> Findings:
        """Link counts, entry counts, parents and contents are what the names and blobs say.

        Counts in *blobs* who refers to each; *size_of* knows their sizes.
        """
        for rank, (key, value) in enumerate(self._overlay.scan(layout.INODES, b"", b"")):
            ino = Ino(layout.from_u48(key))
            attr = layout.unpack_inode(value)
            if attr.nlink:
                self._linked += 1
                if stat.S_ISREG(attr.mode):
                    self._files += 1
                    self._bytes += attr.size
            wanted = attr
            problems: list[tuple[str, str]] = []
            if stat.S_ISDIR(attr.mode):
                wanted = self._wanted_directory(ino, attr)
            else:
                wanted = attr._replace(nlink=self._inodes.counts[rank])
            has_name = ino == ROOT or self._inodes.counts[rank] > 0
            if not has_name and attr.nlink:
                yield self._unreachable(ino, attr)
                wanted = wanted._replace(nlink=attr.nlink)
            if wanted.nlink != attr.nlink:
                problems.append(("link-count", f"link count {attr.nlink}, not {wanted.nlink}"))
            if stat.S_ISDIR(attr.mode) and wanted.blob != attr.blob:
                problems.append(("entry-count", f"{attr.blob} entries noted, not {wanted.blob}"))
            if wanted.aux != attr.aux:
                problems.append(("parent", f"parent {attr.aux} noted, not {wanted.aux}"))
            if stat.S_ISREG(attr.mode) and attr.blob and not blobs.add(attr.blob):
                self.last_blob = max(self.last_blob, attr.blob)
                yield _contentless(ino, attr)
            elif stat.S_ISREG(attr.mode) and (size := size_of(attr.blob) or 0) != attr.size:
                problems.append(("size", f"size {attr.size}, but its content has {size}"))
                wanted = wanted._replace(size=size)
            yield from self._check_orphan(key, wanted, rank)
            if stat.S_ISLNK(attr.mode) and not self._inodes.marks[rank] & _HAS_TARGET:
                yield Finding(
                    "link-target",
                    f"symbolic link {ino} has no target",
                    "delete it and make it again",
                    ino=ino,
                )
            for kind, text in problems:
                yield Finding(
                    kind,
                    f"inode {ino} has {text}",
                    "the record is put right",
                    ((layout.INODES, key, layout.pack_inode(wanted)),),
                    ino,
                )

    def _wanted_directory(self, ino: Ino, attr: Attr) -> Attr:
        rank = self._directories.rank(ino)
        entries = self._entries[rank]
        parent = ROOT if ino == ROOT else Ino(self._parents[rank]) or Ino(attr.aux)
        gone = ino != ROOT and not self._parents[rank] and not attr.nlink
        nlink = 0 if gone else 2 + self._directories.counts[rank]
        return attr._replace(nlink=nlink, blob=BlobNo(entries), aux=parent)

    def _unreachable(self, ino: Ino, attr: Attr) -> Finding:
        return Finding(
            "unreachable",
            f"no name leads to inode {ino} (mode {attr.mode:o}, {attr.size} bytes)",
            f"it gets the name lost+found/#{ino}",
            lost=ino,
        )

    def _check_orphan(self, key: bytes, wanted: Attr, rank: int) -> Findings:
        listed = bool(self._inodes.marks[rank] & _ORPHANED)
        if listed == (wanted.nlink == 0):
            return
        ino = Ino(layout.from_u48(key))
        yield Finding(
            "orphan-list",
            f"inode {ino} {'has' if listed else 'has no'} name and is "
            f"{'' if listed else 'not '}listed as an orphan",
            "the list is put right",
            ((layout.ORPHANS, key, None if listed else b""),),
            ino,
        )

    def figures(self) -> dict[str, int]:
        """What the counters must say, after check_inodes()."""
        return {
            "inodes": self._linked,
            "files": self._files,
            "logical_bytes": wrapped(self._bytes),
        }

    @property
    def last(self) -> int:
        """The greatest inode number in use."""
        return self._inodes.numbers[-1] if len(self._inodes) else 0


def _contentless(ino: Ino, attr: Attr) -> Finding:
    """A file whose blob is lost.  It keeps its size and answers EIO: an empty file would be
    taken for what somebody wrote."""
    return Finding(
        "content",
        f"inode {ino} has content blob {attr.blob}, which is not there ({attr.size} bytes)",
        "reading it answers EIO: write the file anew, or delete it",
        ino=ino,
    )
