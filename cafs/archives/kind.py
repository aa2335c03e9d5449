"""Which kind of archive a blob may be, by its first bytes."""

from __future__ import annotations

from typing import Final

from cafs.archives import gzip_format, zip_format

GZIP: Final = "gzip"
ZIP: Final = "zip"
KINDS: Final = (GZIP, ZIP)
MAGIC_BYTES: Final = 4
_MAGIC: Final = ((gzip_format.MAGIC, GZIP), (zip_format.MAGIC, ZIP))


def kind_of(head: bytes) -> str:
    """GZIP or ZIP, or empty for what is no archive, by its first MAGIC_BYTES bytes or more."""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), "")
