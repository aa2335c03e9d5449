"""Files that a path leads to and that a pass does nothing about, with the reason.

Who names a path hears of everything that is there; a pass by the rules does not, because that
would be the whole store.  Invariant: a blob counts once, however many files have it.
"""

from __future__ import annotations

from collections import Counter

from cafs.index import layout
from cafs.types import NO_BLOB
from cafs.view import View

NO_ARCHIVE = "it is no archive"
DAMAGED = "it is damaged"


class PassedOver:
    """Those of one pass over a view."""

    def __init__(self, view: View, *, asked: bool) -> None:
        """*asked*: a path was named."""
        self._view = view
        self._asked = asked
        self._reasons: dict[int, str] = {}

    def add(self, number: int, why: str | None = None) -> None:
        """A blob that nothing is done about; without *why*, its record says it."""
        if self._asked:
            self._reasons[number] = why or self._why(number)

    def counts(self) -> dict[str, int]:
        """How many there are, by the reason."""
        return dict(Counter(self._reasons.values()).most_common())

    def _why(self, number: int) -> str:
        if number == NO_BLOB:
            return "it is empty"
        value = self._view.overlay.get(layout.BLOBS, layout.u48(number))
        if value is None:
            return DAMAGED
        flags = layout.blob_use(value)[1]
        if not layout.blob_size(value):
            return "it is empty"
        if flags & layout.BLOB_UNHASHED:
            return "it is being written to"
        return "it is taken apart already" if flags & layout.BLOB_AGED else "it is stored plain"
