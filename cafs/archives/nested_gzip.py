"""A gzip file that is a member of a tar, as it passes by: its content goes into the inner blob.

botocore, which is in most Python apps on a cloud, brings its descriptions of services so: two
releases differ little in what is inside, and in every file outside.  Headers are RFC 1952's.  See
:mod:`cafs.archives.nested_file`.
"""

from __future__ import annotations

from collections.abc import Callable

from cafs.archives.gzip_format import (
    FIXED_SIZE,
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
        # A name ends where it ends.
        return max(length or len(held) + 1, 0)

    def _follows(self, header: bytes) -> None:
        self._trailer = not self._trailer
        if self._trailer:
            fields = read_header(header)
            self._begin(lambda sample: self._guesser_of_kind(sample, fields))
