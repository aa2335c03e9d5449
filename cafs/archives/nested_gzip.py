"""A gzip file that is a member of a tar, as it passes by: its content goes into the inner blob.

botocore, which is in most Python apps on a cloud, brings its descriptions of services so: two
releases differ little in what is inside, and in every file outside.  Headers are RFC 1952's.  See
:mod:`cafs.archives.nested_file`.
"""

from __future__ import annotations

from collections.abc import Callable

from cafs.archives.gzip_format import (
    FIXED_SIZE,
    KEPT_MAX,
    TRAILER_SIZE,
    Header,
    header_length,
    read_header,
)
from cafs.archives.nested_file import NestedFile
from cafs.archives.trial import Guess, Sample

Guesser = Callable[[Sample, Header], list[Guess]]


class NestedGzip(NestedFile[Guesser]):
    """Takes one gzip file."""

    _trailer = False
    """Whether a stream was the last that came, so that its trailer is next."""

    def _first(self) -> int:
        return TRAILER_SIZE if self._trailer else FIXED_SIZE

    def _length_of(self, held: bytes) -> int:
        if self._trailer:
            return TRAILER_SIZE
        length = header_length(held)
        if length < 0 or max(length, len(held)) > KEPT_MAX:
            return 0
        return length or len(held) + 1

    def _header(self, view: memoryview) -> int:
        if not self._trailer and len(self._held) >= FIXED_SIZE:
            # A name ends where it ends: that is looked for in all that came, not byte by byte.
            came = bytes(self._held) + bytes(view[: KEPT_MAX + 1 - len(self._held)])
            length = header_length(came)
            if length > 0:
                self._wanted = length
            else:
                self._wanted = len(came) + (len(came) <= KEPT_MAX)
        return super()._header(view)

    def _follows(self, header: bytes) -> None:
        self._trailer = not self._trailer
        if self._trailer:
            fields = read_header(header)
            self._begin(lambda sample: self._guesser_of_kind(sample, fields))
