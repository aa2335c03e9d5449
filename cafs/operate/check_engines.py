"""Whether the programs that archives are made again with are kept in the store, unharmed.

Without such a copy an archive is readable only as long as the machine's own program stays what it
is, and nobody would notice before an upgrade takes it away.  Asked by check and by scrub; changes
nothing.  Invariant: an engine that nothing stored needs is not spoken of.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

from cafs.archives.engine_copies import Copies
from cafs.archives.engine_record import EngineRecord, records_in
from cafs.archives.nested import engines_of
from cafs.durable import Disk
from cafs.errors import DamagedError, EngineError
from cafs.index import layout
from cafs.index.layout import BLOB_AGED
from cafs.types import BlobNo
from cafs.view import View

ADVICE: Final = (
    "restart the daemon: it puts the copy back if this machine still has the same program; "
    "else put the file back from a backup of the store"
)


class Lacking(NamedTuple):
    """An engine that something stored needs, and of which no program is kept."""

    number: int
    record: EngineRecord
    why: str

    def __str__(self) -> str:
        return (
            f"engine {self.number} ({self.record.version}), which archives need, "
            f"has no copy: {self.why}"
        )


def lacking(view: View) -> list[Lacking]:
    """Engines whose copies are missing or damaged, all of them."""
    copies = Copies(view.path, Disk())
    found: dict[int, Lacking] = {}
    for number, value in records_in(view.overlay).items():
        try:
            record = EngineRecord.unpack(number, value)
        except DamagedError:
            # Said by the check of the records.
            continue
        why = ""
        for name in record.programs:
            try:
                copies.read(name)
                break
            except EngineError as error:
                why = why or str(error)
        else:
            found[number] = Lacking(number, record, why)
    needed = _needed(view, set(found)) if found else set()
    return [each for number, each in sorted(found.items()) if number in needed]


def _needed(view: View, numbers: set[int]) -> set[int]:
    """Those of the engines that some archive is made with."""
    needed: set[int] = set()
    for blob in _aged(view):
        try:
            needed |= engines_of(view.blobs, blob) & numbers
        except DamagedError:
            continue
        if needed == numbers:
            break
    return needed


def _aged(view: View) -> Iterator[BlobNo]:
    for key, value in view.overlay.scan(layout.BLOBS, b"", b""):
        try:
            refs, flags = layout.blob_use(value)
        except DamagedError:
            continue
        if refs and flags & BLOB_AGED:
            yield BlobNo(layout.from_u48(key))
