"""The first bytes of a blob, which say what it is.

Invariant: no more is read than the chunks that these bytes lie in.
"""

from __future__ import annotations

from cafs.archives.kind import MAGIC_BYTES
from cafs.blobs import recipe
from cafs.types import BlobNo, ChunkNo
from cafs.view import View


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
