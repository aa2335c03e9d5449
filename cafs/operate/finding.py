"""What a check can find, and the changes that would put it right.

Invariant: a finding's changes were computed from the same snapshot that it was found in, and
are right by themselves; two findings about one record are repaired one after the other, with a
check in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cafs.types import BlobNo, Ino

Change = tuple[int, bytes, "bytes | None"]
"""A database of cafs.index.layout, a key, and its value; None deletes it."""


class Finding(NamedTuple):
    """One thing that is not as it must be."""

    kind: str
    """A word or two for programs, stable: ``link-count``, ``dead-queue`` ..."""
    what: str
    """One sentence for people."""
    repair: str
    """What ``--repair`` does about it, or what the operator can do."""
    changes: tuple[Change, ...] = ()
    """What ``--repair`` writes; nothing when it cannot help."""
    ino: Ino | None = None
    """The inode that it is about, if there is one: its path tells where."""
    lost: Ino | None = None
    """An inode that no name leads to, which gets one in lost+found."""
    fileless: BlobNo | None = None
    """A blob that files had and no inode has, which gets one with a name in lost+found."""

    @property
    def repairable(self) -> bool:
        """Whether ``--repair`` does something about it."""
        return bool(self.changes) or self.needs_name

    @property
    def needs_name(self) -> bool:
        """Whether something gets a name in lost+found."""
        return self.lost is not None or self.fileless is not None


Findings = Iterator[Finding]
OnProgress = Callable[[str, int, int], None]
"""What is being checked, and how many records of how many."""
