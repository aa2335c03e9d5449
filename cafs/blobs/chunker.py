"""Where content is cut into chunks: the parameters, the native kernel's face, and its oracle.

Invariant: where a slice ends depends only on the parameters and on the bytes from the
slice's beginning on.  So the cuts of some content are the same however its bytes arrive,
and content that was changed in one place is cut as before soon after that place.

:func:`reference_split` says the same as the kernel in plain Python, some thousand times
slower; the tests hold them together.  docs/decisions/0002-chunking.md has the choices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cafs import _chunker
from cafs.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

KIB = 1024
MIB = 1024 * KIB

DIGEST_SIZE = 32
"""Bytes of one SHA-256 digest."""

WINDOW = 64
"""Bytes that decide, with the length so far, whether to cut; also the least min_size."""
MIN_AVG_SIZE = 4 * KIB
MAX_AVG_SIZE = 4 * MIB
MAX_SIZE = 16 * MIB - 1
"""The index has 24 bits for a chunk's length."""


@dataclass(frozen=True, slots=True)
class ChunkParams:
    """How a store cuts content; fixed when the store is made.  Sizes are in bytes."""

    min_size: int = 16 * KIB
    """No cut before, except at the end of the content and at zip members."""
    avg_size: int = 64 * KIB
    """A power of two.  Before it cuts are rare, behind it frequent."""
    max_size: int = 256 * KIB
    """No slice is longer."""
    zip_members: bool = True
    """Also cut where zip members begin and end, in whatever content they lie."""

    def validate(self) -> None:
        """Raise ConfigError, naming the bound, unless the kernel takes these sizes."""
        if not MIN_AVG_SIZE <= self.avg_size <= MAX_AVG_SIZE:
            raise ConfigError(
                f"avg_size is {self.avg_size}: must be between {MIN_AVG_SIZE} and {MAX_AVG_SIZE}"
            )
        if self.avg_size & (self.avg_size - 1):
            raise ConfigError(f"avg_size is {self.avg_size}: must be a power of two")
        if not WINDOW <= self.min_size <= self.avg_size:
            raise ConfigError(
                f"min_size is {self.min_size}: must be between {WINDOW} and avg_size "
                f"({self.avg_size})"
            )
        if not self.avg_size <= self.max_size <= MAX_SIZE:
            raise ConfigError(
                f"max_size is {self.max_size}: must be between avg_size ({self.avg_size}) "
                f"and {MAX_SIZE}"
            )


def split(
    data: ReadableBuffer, params: ChunkParams, final: bool, left: ReadableBuffer = b""
) -> list[int]:
    """Where to cut *left* and *data*, which follows it.

    *left* begins at a cut: it is what was left behind by the last call, and is not copied
    together with *data*.  Returns the ends (exclusive, ascending, from the start of *left*) of
    all slices that no later byte can change.  The caller keeps what is behind the last end: at
    most ``max_size + 30`` bytes.  With *final* the content ends with *data*, and so does the
    last slice.

    Slices at zip members may be as short as one byte; all others have at least
    ``min_size`` bytes, except the last.  Takes at most 2**31 bytes each.  Blocks, with the GIL
    released throughout.  Raises ValueError for parameters that :meth:`ChunkParams.validate`
    would refuse.
    """
    return _chunker.split(
        data,
        params.min_size,
        params.avg_size,
        params.max_size,
        final,
        params.zip_members,
        left=left,
    )


def sha256_each(buffers: Sequence[ReadableBuffer]) -> bytes:
    """The SHA-256 digests, joined, of some buffers.

    Many at once are hashed side by side, which takes hardly longer than the longest alone.
    Blocks, with the GIL released.
    """
    return _chunker.sha256_each(buffers)


# What follows is the oracle: written to be read, and to share nothing with the kernel.

_LOCAL = b"PK\x03\x04"
_DIRECTORY = b"PK\x01\x02"
_DESCRIPTOR = b"PK\x07\x08"
_LOCAL_HEADER_SIZE = 30
_METHODS = {0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 12, 14, 16, 18, 19, 20, *range(93, 100)}
_NORMALIZATION = 2

GEAR = tuple(
    int.from_bytes(hashlib.sha256(bytes([value])).digest()[:8], "little") for value in range(256)
)
"""The rolling hash adds one of these for each byte; the kernel has the same table."""


class _Undecided(Exception):
    """Bytes that have not come yet could change the answer."""


def _mark_at(data: bytes, at: int, params: ChunkParams, final: bool) -> tuple[bytes, int]:
    """The signature that begins at *at*, b"" if none, and the length of a local header."""
    signature = data[at : at + 4]
    if len(signature) < 4:
        possible = (_LOCAL, _DIRECTORY, _DESCRIPTOR)
        if not final and any(mark.startswith(signature) for mark in possible):
            raise _Undecided
        return b"", 0
    if signature in (_DIRECTORY, _DESCRIPTOR):
        return signature, 0
    if signature != _LOCAL:
        return b"", 0
    header = data[at : at + _LOCAL_HEADER_SIZE]
    if len(header) < _LOCAL_HEADER_SIZE:
        if not final:
            raise _Undecided
        return b"", 0
    name_size = int.from_bytes(header[26:28], "little")
    size = _LOCAL_HEADER_SIZE + name_size + int.from_bytes(header[28:30], "little")
    plausible = (
        header[4] <= 63
        and header[7] & 0xC0 == 0
        and int.from_bytes(header[8:10], "little") in _METHODS
        and 1 <= name_size <= 4095
        and size <= params.max_size
    )
    return (_LOCAL, size) if plausible else (b"", 0)


def _rolling_hashes(data: bytes) -> list[int]:
    """For each position the hash of the 64 bytes before it: older ones are shifted out."""
    hashes = [0]
    for value in data:
        hashes.append((hashes[-1] * 2 + GEAR[value]) % 2**64)
    return hashes


def _content_says_cut(rolled: int, length: int, params: ChunkParams) -> bool:
    """Whether a slice that has reached *length* should end where the hash is *rolled*."""
    if length < params.min_size:
        return False
    bits = params.avg_size.bit_length() - 1
    bits += _NORMALIZATION if length < params.avg_size else -_NORMALIZATION
    return rolled >> (64 - bits) == 0


def _slice_end(data: bytes, hashes: list[int], start: int, params: ChunkParams, final: bool) -> int:
    """Where the slice ends that begins at *start*; raises _Undecided."""
    kind = b""
    if params.zip_members:
        kind, header_size = _mark_at(data, start, params, final)
        if kind == _LOCAL:
            if start + header_size <= len(data):
                return start + header_size
            if final:
                return len(data)
            raise _Undecided
    for end in range(start + 1, len(data) + 1):
        length = end - start
        if length == params.max_size or _content_says_cut(hashes[end], length, params):
            return end
        if end == len(data):
            break
        if params.zip_members:
            mark, _ = _mark_at(data, end, params, final)
            # Entries of the central directory stay together.
            if mark and not (mark == _DIRECTORY and kind == _DIRECTORY):
                return end
    if final:
        return len(data)
    raise _Undecided


def reference_split(data: bytes, params: ChunkParams, final: bool) -> list[int]:
    """What :func:`split` must return, by the definition and without haste."""
    ends: list[int] = []
    hashes = _rolling_hashes(data)
    start = 0
    while start < len(data):
        try:
            end = _slice_end(data, hashes, start, params, final)
        except _Undecided:
            break
        ends.append(end)
        start = end
    return ends
