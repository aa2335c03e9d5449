"""What the first bytes of a blob say that it is.

Invariant: no more is read than the chunks that these bytes lie in.
"""

from __future__ import annotations

from typing import Final

from cafs.blobs import recipe
from cafs.types import BlobNo, ChunkNo
from cafs.view import View

GZIP: Final = "gzip"
ZIP: Final = "zip"
KINDS: Final = (GZIP, ZIP)
_MAGIC: Final = ((b"\x1f\x8b\x08", GZIP), (b"PK\x03\x04", ZIP))
MAGIC_BYTES: Final = 4


def kind_of(head: bytes) -> str | None:
    """What the first bytes of a blob say that it is; None: nothing that can be taken apart."""
    return next((kind for magic, kind in _MAGIC if head.startswith(magic)), None)


def head_of(view: View, blob: BlobNo) -> bytes:
    """The first few bytes of a blob.  Raises DamagedError."""
    head = b""
    for _, part in view.blobs.parts(blob, 0, MAGIC_BYTES):
        if part.kind == recipe.CHUNK:
            number = ChunkNo(part.ref)
            head += view.read_chunk(number, view.chunks.get(number).extent)
        elif part.kind == recipe.LITERAL:
            head += part.data
        else:
            # Nothing that an archive begins with is stored otherwise.
            break
        if len(head) >= MAGIC_BYTES:
            break
    return head[:MAGIC_BYTES]
