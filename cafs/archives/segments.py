"""What an archive was found to consist of, and the recipe that this leads to.

Invariant: the segments of an archive, in order, are all of its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from cafs.archives.deflated import Stream
from cafs.archives.engine import Engine
from cafs.archives.trial import Guess
from cafs.blobs.recipe import Part
from cafs.errors import CafsError

Segment = Part | Stream
"""Bytes that are stored, their chunk pinned; or a stream that engines may make."""


class LeftError(CafsError):
    """An archive is left as it is, for a reason that will not change."""


class UnmadeError(LeftError):
    """No engine that is here makes it: one that is missing or refused may be the one."""


class Bounds(NamedTuple):
    """How much may come out of an archive."""

    inflated: int
    """Bytes in all."""
    ratio: int
    """Bytes for each byte of the archive."""

    def check(self, raw: int, size: int) -> None:
        """Raise LeftError if *raw* bytes out of the first *size* bytes are too many."""
        if raw > self.inflated:
            raise LeftError("more inside it than archives.max_inflated")
        # The first bytes of a good archive may well be a long row of zeros.
        if raw > (1 << 20) and raw > self.ratio * size:
            raise LeftError("inflates more than archives.max_ratio")


def engines_of_choice(segments: Sequence[Segment], choice: int) -> list[Engine]:
    """What the guess number *choice* needs, each once, as outer_recipe() takes them."""
    found: dict[Engine, None] = {}
    for segment in segments:
        if not isinstance(segment, Part):
            found[_guess(segment, choice).engine] = None
    return list(found)


def outer_recipe(
    segments: Sequence[Segment], choice: int, numbers: Mapping[Engine, int]
) -> list[Part]:
    """The parts of the archive, with the guess number *choice* for each stream.

    A stream that has fewer guesses is made by its last one.
    """
    parts: list[Part] = []
    for segment in segments:
        if isinstance(segment, Part):
            parts.append(segment)
        else:
            guess = _guess(segment, choice)
            parts += segment.parts(numbers[guess.engine], guess.params)
    return parts


def _guess(stream: Stream, choice: int) -> Guess:
    return stream.guesses[min(choice, len(stream.guesses) - 1)]
