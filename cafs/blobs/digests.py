"""The two digests of a blob, and the tables by which blobs are found under them.

Belongs to the event loop.  Invariant: who is found has a record and a recipe that can be read.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

from cafs.blobs.rows import Rows
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.layout import BLOB_ROWS
from cafs.index.overlay import Overlay
from cafs.index.recent import Recent
from cafs.types import NO_BLOB, BlobNo

log = logging.getLogger(__name__)


class Digests(NamedTuple):
    """Both names of a blob."""

    sha256: bytes
    sha1: bytes


class ByDigest:
    """The tables of digests over the overlay."""

    def __init__(self, overlay: Overlay, rows: Rows) -> None:
        self._overlay = overlay
        self._rows = rows
        self.recent: Recent[BlobNo] = Recent()

    def find(self, sha256: bytes) -> BlobNo:
        """The blob with this SHA-256, or NO_BLOB: also if there are only such as cannot be read.

        Nothing is shared with these.  The same content, written again, gets a sound one.
        """
        recent = self.recent.get(sha256)
        if recent is not None:
            return recent
        (numbers,) = self._overlay.committed_numbers(layout.BLOB_SHA256, [sha256])
        for number in map(BlobNo, numbers):
            try:
                if self._has(number, sha256):
                    return number
            except IndexDamagedError as error:
                log.debug("blob %d is passed over: %s", number, error)
        return NO_BLOB

    def _has(self, number: BlobNo, sha256: bytes) -> bool:
        value = self._overlay.get(layout.BLOBS, layout.u48(number))
        if value is None:
            return False
        record = layout.unpack_blob(value)
        if record.sha256 != sha256:
            return False
        if record.flags & BLOB_ROWS:
            # Each is checked.
            self._rows.first(number)
        return True

    def put(self, number: BlobNo, digests: Digests) -> None:
        """From now on the blob is found."""
        self.recent.add(digests.sha256, number)
        self._overlay.put(layout.BLOB_SHA256, layout.digest_key(digests.sha256, number), b"")
        self._overlay.put(layout.BLOB_SHA1, layout.digest_key(digests.sha1, number), b"")

    def delete(self, number: BlobNo, digests: Digests) -> None:
        """From now on it is not found any more."""
        self.recent.drop(digests.sha256)
        self._overlay.delete(layout.BLOB_SHA256, layout.digest_key(digests.sha256, number))
        self._overlay.delete(layout.BLOB_SHA1, layout.digest_key(digests.sha1, number))
