"""A pack's sidecar: one record for each chunk that lies in it.

Owns the bytes of a record, and reading them back.  Who writes it, and when it becomes durable,
is :mod:`cafs.blobs.pack`.  Invariant: every record stands alone and carries a checksum of
itself, so that a torn tail costs what it tore and nothing else.  The chunk table is rebuilt
from sidecars; docs/format.md, "Sidecars", states the bytes.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

import xxhash

from cafs.blobs import fileheader
from cafs.blobs.fileheader import HEADER_LENGTH, SIDECAR_MAGIC, FileHeader
from cafs.errors import NotFoundError, from_os_error

_BODY: Final = struct.Struct("<32sIIIIQ")
_CHECK: Final = struct.Struct("<Q")
RECORD_LENGTH: Final = _BODY.size + _CHECK.size
STORED_LENGTH_MAX: Final = (1 << 24) - 1
"""Bytes of a stored chunk: its length shares a word with the codec."""
_RECORDS_AT_ONCE: Final = 16384


class SidecarRecord(NamedTuple):
    """What is needed to find, check and decode one chunk of the pack."""

    sha256: bytes
    """Of the raw bytes."""
    offset: int
    """Bytes from the start of the pack file."""
    stored_length: int
    codec: int
    raw_length: int
    xxh3: int
    """XXH3-64 of the stored bytes."""

    @property
    def end(self) -> int:
        """The offset after the chunk."""
        return self.offset + self.stored_length


def encode_record(record: SidecarRecord) -> bytes:
    """The :data:`RECORD_LENGTH` bytes of a record.

    Raises ValueError or struct.error for a value that its field cannot hold.
    """
    if record.stored_length > STORED_LENGTH_MAX:
        raise ValueError(f"a stored chunk cannot have {record.stored_length} bytes")
    body = _BODY.pack(
        record.sha256,
        record.offset,
        record.codec << 24 | record.stored_length,
        record.raw_length,
        0,
        record.xxh3,
    )
    return body + _CHECK.pack(xxhash.xxh3_64_intdigest(body))


def decode_record(data: bytes) -> SidecarRecord | None:
    """The record in *data*, or None when they are not the bytes of one."""
    if len(data) != RECORD_LENGTH:
        return None
    body = data[: _BODY.size]
    if _CHECK.unpack_from(data, _BODY.size)[0] != xxhash.xxh3_64_intdigest(body):
        return None
    sha256, offset, word, raw_length, reserved, xxh3 = _BODY.unpack(body)
    if reserved or offset < HEADER_LENGTH:
        return None
    return SidecarRecord(sha256, offset, word & STORED_LENGTH_MAX, word >> 24, raw_length, xxh3)


def cut(data: bytearray, least: int, end: int) -> bytearray:
    """Records without those of chunks that begin at or behind *end*; the first *least* bytes
    are something else and stay."""
    length = len(data)
    while length > least:
        record = decode_record(bytes(memoryview(data)[length - RECORD_LENGTH : length]))
        if record is not None and record.offset < end:
            break
        length -= RECORD_LENGTH
    return data[:length]


class Sidecar:
    """A sidecar that is being read; iterate it once for its records, in the order written.

    Holds the file open for as long as the iteration lasts.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self.header = self._read_header()
        self.good_length = HEADER_LENGTH
        """Bytes of the file that were understood so far."""
        self.torn: str | None = None
        """Once iterated: where and why the reading stopped early; None if it did not."""

    def _read_header(self) -> FileHeader:
        try:
            with open(self.path, "rb") as file:
                data = file.read(HEADER_LENGTH)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no sidecar {self.path}") from error
        except OSError as error:
            raise from_os_error(error, f"read {self.path}") from error
        return fileheader.decode(SIDECAR_MAGIC, data, self.path)

    def __iter__(self) -> Iterator[SidecarRecord]:
        self.good_length = HEADER_LENGTH
        self.torn = None
        try:
            with open(self.path, "rb") as file:
                file.seek(HEADER_LENGTH)
                while block := file.read(_RECORDS_AT_ONCE * RECORD_LENGTH):
                    for start in range(0, len(block), RECORD_LENGTH):
                        record = decode_record(block[start : start + RECORD_LENGTH])
                        if record is None:
                            self.torn = f"{self.path}: no record at byte {self.good_length}"
                            return
                        self.good_length += RECORD_LENGTH
                        yield record
        except OSError as error:
            raise from_os_error(error, f"read {self.path}") from error


def read_sidecar(path: str | os.PathLike[str]) -> Sidecar:
    """The sidecar at *path*, ready to be iterated.

    Raises NotFoundError when there is none, DamagedError or StoreVersionError when its header
    is not one, DiskError when it cannot be read.  A record that is damaged ends the iteration;
    :attr:`Sidecar.torn` then says so.
    """
    return Sidecar(path)
