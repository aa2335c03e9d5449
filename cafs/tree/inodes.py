"""Inode records: numbers, attributes, and which of them wait to be forgotten.

Belongs to the event loop.  Invariant: the counters of inodes, files and logical bytes agree
with the records that have a link.
"""

from __future__ import annotations

import errno
import stat
from collections import OrderedDict
from collections.abc import Iterator

from cafs.errors import FsError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.overlay import Overlay
from cafs.types import Attr, Ino

_KEPT_MAX = 65_536
"""Decoded records that are kept: a tree of so many files is walked again at once."""


class Inodes:
    """Inodes over the overlay, with a cache of decoded records."""

    def __init__(self, overlay: Overlay, counters: Counters) -> None:
        self._overlay = overlay
        self._counters = counters
        self._cache: OrderedDict[Ino, Attr] = OrderedDict()
        self.decoded = 0
        """Records that were not at hand so far."""
        self.nameless: set[Ino] = set()
        """Those that have no name, but for what a daemon before left and nobody has met yet."""

    def get(self, ino: Ino) -> Attr:
        """The record.  Raises FsError(ESTALE) for an inode that is gone."""
        attr = self._cache.get(ino)
        if attr is None:
            value = self._overlay.get(layout.INODES, layout.u48(ino))
            if value is None:
                raise FsError(errno.ESTALE, f"inode {ino} is gone")
            attr = layout.unpack_inode(value)
            self.decoded += 1
            self._remember(ino, attr)
        return attr

    def find(self, ino: Ino) -> Attr | None:
        """The record, or None."""
        try:
            return self.get(ino)
        except FsError:
            return None

    def allocate(self) -> Ino:
        """A number that was never used."""
        ino = Ino(self._counters.next_ino)
        self._counters.next_ino += 1
        return ino

    def put(self, ino: Ino, attr: Attr) -> None:
        """Write a record, new or changed, and keep the counters."""
        old = self._cache.get(ino) or self.find(ino)
        counters = self._counters
        linked, was_linked = attr.nlink > 0, old is not None and old.nlink > 0
        if linked != was_linked or (linked and old is not None and old.size != attr.size):
            file = stat.S_ISREG(attr.mode)
            counters.inodes += linked - was_linked
            if file:
                counters.files += linked - was_linked
                before = old.size if old is not None and was_linked else 0
                counters.add_logical((attr.size if linked else 0) - before)
        shown = old is None or _shown(old) != _shown(attr)
        self._overlay.put(layout.INODES, layout.u48(ino), layout.pack_inode(attr), shown=shown)
        self._remember(ino, attr)

    def moves_ahead(self, ino: Ino) -> None:
        """Its users see more from now on than its record says, until that is put, too."""
        self._overlay.mark_inode(ino)

    def remove(self, ino: Ino) -> None:
        """Delete a record that has no links left."""
        self._cache.pop(ino, None)
        self.nameless.discard(ino)
        self._overlay.delete(layout.INODES, layout.u48(ino))
        self._overlay.delete(layout.ORPHANS, layout.u48(ino))

    def add_orphan(self, ino: Ino) -> None:
        """Remember, also over a crash, that the inode has no name and is to be removed."""
        self.nameless.add(ino)
        self._overlay.put(layout.ORPHANS, layout.u48(ino), b"")

    def drop_link(self, ino: Ino, attr: Attr, now_ns: int) -> bool:
        """One name less for an inode that is no directory; whether it was its last."""
        left = attr.nlink - 1
        self.put(ino, attr._replace(nlink=left, ctime_ns=now_ns))
        if left == 0:
            self.add_orphan(ino)
        return left == 0

    def named(self, ino: Ino) -> None:
        """The inode has a name from now on: take it off the list of orphans."""
        self.nameless.discard(ino)
        self._overlay.delete(layout.ORPHANS, layout.u48(ino))

    def orphans(self) -> Iterator[Ino]:
        """Inodes without a name."""
        for key, _ in self._overlay.scan(layout.ORPHANS, b"", b""):
            ino = Ino(layout.from_u48(key))
            self.nameless.add(ino)
            yield ino

    def forget(self) -> None:
        """Let go of the decoded records."""
        self._cache.clear()

    def _remember(self, ino: Ino, attr: Attr) -> None:
        cache = self._cache
        cache[ino] = attr
        if len(cache) > _KEPT_MAX:
            cache.popitem(last=False)


def _shown(attr: Attr) -> tuple[int, ...]:
    """What other readers of the index look at; link counts and the other times are not.

    Of a directory they need no more than who may enter it and where ``..`` leads, so it is not
    pending whenever one of its names is.
    """
    if stat.S_ISDIR(attr.mode):
        return attr.mode, attr.uid, attr.gid, attr.aux
    return attr.mode, attr.uid, attr.gid, attr.size, attr.mtime_ns, attr.blob, attr.aux
