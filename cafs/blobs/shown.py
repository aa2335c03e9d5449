"""Which bytes of packs another process may be reading: those that a name ever led to.

What an upload has stored before it gets its name can be seen by nobody.  If it never gets one,
its bytes need no grace period: nobody is sending them.  Kept in memory only; what was stored
before the start counts as shown.  Belongs to Chunks, whose lock guards what threads look at.
Invariant: behind end(pack) there are hidden chunks only, as many records as are counted here.
"""

from __future__ import annotations

from collections import Counter

from cafs.blobs.fileheader import HEADER_LENGTH
from cafs.blobs.pack import PackStore
from cafs.types import Extent, PackNo


class Shown:
    """How far into each pack somebody may be reading."""

    def __init__(self, packs: PackStore) -> None:
        self._packs = packs
        self._first_new = packs.next_pack_no
        self._ends = {pack: size for pack, (size, _) in packs.sizes().items()}
        self._hidden: Counter[PackNo] = Counter()

    def end(self, pack: PackNo) -> int:
        """The first byte that nobody can be reading, nor anything behind it."""
        return self._ends.get(pack, HEADER_LENGTH)

    def show(self, extent: Extent) -> None:
        """A chunk is part of content that has a name, or may get one at any time."""
        if extent.offset + extent.stored_length > self.end(extent.pack):
            self._show_whole(extent.pack)

    def show_all(self) -> None:
        """Some of what was hidden gets a name: it is not kept track of which."""
        for pack in list(self._hidden):
            self._show_whole(pack)

    def _show_whole(self, pack: PackNo) -> None:
        # All that is in it, though more than was asked for: then nothing hidden lies before it.
        self._ends[pack] = self._packs.size_of(pack)
        self._hidden.pop(pack, None)

    def landed_hidden(self, extent: Extent) -> None:
        """There is a record now of a chunk that only an upload without a name has."""
        if extent.offset >= self.end(extent.pack):
            self._hidden[extent.pack] += 1

    def gone(self, extent: Extent) -> None:
        """A chunk's record is gone, or points elsewhere."""
        if extent.offset >= self.end(extent.pack):
            self._hidden[extent.pack] -= 1
            if not self._hidden[extent.pack]:
                del self._hidden[extent.pack]

    def is_void(self, pack: PackNo) -> bool:
        """Whether no record points behind end(pack)."""
        return pack not in self._hidden

    def never(self, pack: PackNo) -> bool:
        """Whether nobody can ever have read anything of a pack."""
        return pack >= self._first_new and self.end(pack) <= HEADER_LENGTH

    def forget(self, pack: PackNo) -> None:
        """The pack is gone."""
        self._ends.pop(pack, None)
        self._hidden.pop(pack, None)
