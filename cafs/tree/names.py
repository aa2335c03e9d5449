"""Directory entries: names to inodes, in an order that survives everything.

An entry lies at the hash of its name (its cookie).  If that place is taken by another name the
next free one is used, and the directory's inode is marked: only in marked directories does a
look-up have to look further than one record.  Cookies never change while an entry lives, so a
listing can go on from any of them at any time, also after a restart.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from itertools import islice
from operator import attrgetter
from typing import NamedTuple

from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.overlay import Overlay
from cafs.tree.listings import LISTING_MAX, Listings
from cafs.types import DirEntry, Ino

_cookie = attrgetter("cookie")

PROBES = 64
"""Places that a colliding name may be away from its hash; XXH3 is not keyed, so names that
collide can be made on purpose, and then a directory takes this many of them (ENOSPC)."""


class Found(NamedTuple):
    """Where a name is."""

    ino: Ino
    type: int
    cookie: int


class Names:
    """Directory entries over the overlay.  Belongs to the event loop."""

    def __init__(self, overlay: Overlay) -> None:
        self._overlay = overlay
        self._listings = Listings()

    def find(self, parent: Ino, name: bytes, *, probed: bool) -> Found | None:
        """Look a name up; *probed* says whether the directory is marked."""
        cookie = layout.name_cookie(name)
        for _ in range(PROBES if probed else 1):
            value = self._overlay.get(layout.ENTRIES, layout.entry_key(parent, cookie))
            if value is not None and value[7:] == name:
                ino, kind, _ = layout.split_entry(value)
                return Found(ino, kind, cookie)
            cookie = layout.next_cookie(cookie)
        return None

    def place(self, parent: Ino, name: bytes) -> tuple[int, bool] | None:
        """A free place for a new name, and whether it is not the name's own; None when full."""
        cookie = layout.name_cookie(name)
        for probe in range(PROBES):
            if self._overlay.get(layout.ENTRIES, layout.entry_key(parent, cookie)) is None:
                return cookie, probe > 0
            cookie = layout.next_cookie(cookie)
        return None

    def put(self, parent: Ino, cookie: int, name: bytes, ino: Ino, kind: int) -> None:
        """Write an entry at its place."""
        self._listings.drop(parent)
        self._overlay.put(
            layout.ENTRIES, layout.entry_key(parent, cookie), layout.entry_value(ino, kind, name)
        )

    def remove(self, parent: Ino, cookie: int) -> None:
        """Delete an entry."""
        self._listings.drop(parent)
        self._overlay.delete(layout.ENTRIES, layout.entry_key(parent, cookie))

    def listing(self, parent: Ino, after: int) -> Iterable[DirEntry]:
        """Entries behind a cookie, in cookie order; the directory must not change meanwhile."""
        kept = self._listings.get(parent)
        if kept is None and after < layout.FIRST_COOKIE:
            kept = self._whole(parent)
        if kept is None:
            return self._scan(parent, after)
        start = bisect_right(kept, after, key=_cookie)
        return islice(kept, start, None) if start else kept

    def forget(self) -> None:
        """Let go of what is kept of listings."""
        self._listings.clear()

    def _whole(self, parent: Ino) -> list[DirEntry] | None:
        """All entries, to be kept; None if they are too many, or one cannot be read."""
        try:
            entries = list(islice(self._scan(parent, 0), LISTING_MAX + 1))
        except IndexDamagedError:
            # Those before it can be listed.
            return None
        if len(entries) > LISTING_MAX:
            return None
        self._listings.keep(parent, entries)
        return entries

    def _scan(self, parent: Ino, after: int) -> Iterator[DirEntry]:
        start = layout.entry_key(parent, after + 1)
        for key, value in self._overlay.scan(layout.ENTRIES, start, layout.u48(parent)):
            ino, kind, name = layout.split_entry(value)
            yield DirEntry(name, ino, kind, layout.entry_cookie(key))
