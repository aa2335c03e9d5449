"""A zip that is a member of a tar: wheels in a buildpack's cache, jars in a droplet.

Its members are found by their local headers (APPNOTE.TXT 6.3.10, section 4.3.7), for its central
directory comes last.  See :mod:`cafs.archives.nested_file`.
"""

from __future__ import annotations

import struct
from typing import Final

from cafs.archives.deflated import Guesser
from cafs.archives.nested_file import NestedFile, Next
from cafs.archives.zip_format import DEFLATED, ENCRYPTED, LOCAL, MAGIC, STREAMED
from cafs.blobs import recipe

LEAST: Final = recipe.LITERAL_MAX
"""A member of so many bytes is shorter than what says how to make it."""
_ZIP64: Final = 0xFFFFFFFF
_DESCRIPTOR: Final = struct.Struct("<4s3L")
"""Behind a member whose sizes were not known before it."""
_DESCRIPTOR_MAGIC: Final = b"PK\x07\x08"


class NestedZip(NestedFile[Guesser]):
    """Takes one zip."""

    def _first(self) -> int:
        return len(MAGIC)

    def _length_of(self, held: bytes) -> int:
        if held.startswith(_DESCRIPTOR_MAGIC):
            return _DESCRIPTOR.size
        if not held.startswith(MAGIC):
            # The central directory, or something that only looked like a zip.
            return 0
        if len(held) < LOCAL.size:
            return LOCAL.size
        name_length, extra_length = LOCAL.unpack_from(held)[-2:]
        return LOCAL.size + int(name_length) + int(extra_length)

    def _follows(self, header: bytes) -> None:
        if not header.startswith(MAGIC):
            return
        _, _, flags, method, _, _, _, length, raw_length, _, _ = LOCAL.unpack_from(header)
        streamed = bool(flags & STREAMED)
        deflated = method == DEFLATED and not flags & ENCRYPTED
        if _ZIP64 in (length, raw_length):
            self._next = Next.REST
        elif deflated and streamed:
            self._begin(self._guesser_of_kind)
        elif deflated and length > LEAST and raw_length <= self._room.ratio * length:
            self._begin(self._guesser_of_kind, length, raw_length)
        elif not streamed:
            self._as_it_lies_for(length)
        else:
            self._next = Next.REST
