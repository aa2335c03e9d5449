"""Digests that were given a number since the last commit.

The digest tables are ordered by digest, and keeping their pending part sorted would cost every
new chunk and blob; but nobody lists them in order while they are pending.  So they are looked
up here first, by the whole digest, and then in what is committed.
"""

from __future__ import annotations

from typing import Generic, TypeVar

Number = TypeVar("Number", bound=int)


class Recent(Generic[Number]):
    """Digest to number, in two ages.

    add(), drop(), frozen() and thawed() belong to the event loop, get() to any thread.
    """

    def __init__(self) -> None:
        self._young: dict[bytes, Number] = {}
        self._old: dict[bytes, Number] = {}

    def get(self, digest: bytes) -> Number | None:
        """The number, or None."""
        return self._young.get(digest) or self._old.get(digest)

    def add(self, digest: bytes, number: Number) -> None:
        """The digest's records are in the overlay."""
        self._young[digest] = number

    def drop(self, digest: bytes) -> None:
        """They were deleted."""
        self._young.pop(digest, None)
        self._old.pop(digest, None)

    def frozen(self) -> None:
        """A snapshot was taken: what was young goes with it."""
        self._old, self._young = self._young, {}

    def thawed(self) -> None:
        """The snapshot is committed."""
        self._old = {}
