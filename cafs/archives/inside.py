"""Which files inside an archive are archives themselves, and who makes their streams.

Runs in worker threads, one call at a time; blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from cafs.archives import gnu_gzip, gzip_format, zip_format, zlib_engine
from cafs.archives.engine import Engine
from cafs.archives.gzip_format import Header
from cafs.archives.inner import InnerWriter
from cafs.archives.nested_file import NestedFile, Room
from cafs.archives.nested_gzip import NestedGzip
from cafs.archives.nested_zip import NestedZip
from cafs.archives.trial import Guess, Sample, Seen, Trials

PROGRAMS_MAX: Final = 4096
"""Gzip files inside one tar that take a process of their own to be made again: some milliseconds
for each."""
MISSES_MAX: Final = 64
"""So many gzip files in a row that nobody makes: then the others are not tried."""
_SMALL: Final = 64 << 10
"""Bytes in a gzip file of which zlib may make what GNU gzip made, without a process."""


class NestedSeen:
    """What was right for archives inside others, of each kind by itself."""

    def __init__(self) -> None:
        self.zip = Seen()
        self.gzip = Seen()
        self.small_gzip = Seen()


class Inside:
    """For all that is inside one archive."""

    def __init__(self, engines: Sequence[Engine], seen: NestedSeen, depth_max: int) -> None:
        """*depth_max*: what lies so deep is still taken apart; 1 for members of the archive."""
        self._depth_max = depth_max
        self.tried = 0
        """How deep there was something that may have been an archive."""
        self._zlib = [each for each in engines if each.kind == zlib_engine.KIND]
        self._programs = [each for each in engines if each.kind == gnu_gzip.KIND]
        self._zip = Trials(seen.zip)
        self._gzip = Trials(seen.gzip)
        self._small_gzip = Trials(seen.small_gzip)
        self._run = 0
        """Streams that a program makes."""
        self._misses = 0

    def takes(
        self,
        head: bytes,
        inner: InnerWriter,
        room: Room,
        *,
        depth: int = 1,
    ) -> NestedFile[Any] | None:
        """What takes a file *depth* deep that begins with *head*; None if it is no archive."""
        if depth > self._depth_max:
            return None

        within = partial(self.takes, depth=depth + 1)
        found: NestedFile[Any] | None = None
        if head.startswith(zip_format.MAGIC) and self._zlib:
            found = NestedZip(inner, self._of_zip, room, within)
        elif head.startswith(gzip_format.MAGIC) and self._misses < MISSES_MAX:
            found = NestedGzip(inner, self._of_gzip, room, within)
        if found is not None:
            # Also one of stored files only may be too much.
            self.tried = max(self.tried, depth)
        return found

    def _of_zip(self, sample: Sample) -> list[Guess]:
        return self._zip.guesses(sample, self._zlib)

    def _of_gzip(self, sample: Sample, header: Header) -> list[Guess]:
        found: list[Guess] = []
        if sample.whole and len(sample.raw) <= _SMALL:
            found = self._small_gzip.guesses(sample, self._zlib, header)
        if not found:
            programs = self._programs if self._run < PROGRAMS_MAX else []
            found = self._gzip.guesses(sample, [*programs, *self._zlib], header)
        self._misses = 0 if found else self._misses + 1
        self._run += bool(found) and found[0].engine.kind == gnu_gzip.KIND
        return found
