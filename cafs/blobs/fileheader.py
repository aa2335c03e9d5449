"""The 32 bytes that a pack and a sidecar begin with.

Invariant: a file whose header does not name this store and this pack is not read as one of it.
docs/format.md, "Packs", states the bytes.
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cafs.errors import DamagedError, StoreVersionError
from cafs.types import PackNo

PACK_MAGIC: Final = b"CAFSPACK"
SIDECAR_MAGIC: Final = b"CAFSSIDE"
VERSION: Final = 1
STORE_ID_LENGTH: Final = 16

_HEADER: Final = struct.Struct("<8sII16s")
HEADER_LENGTH: Final = _HEADER.size


class FileHeader(NamedTuple):
    """Whose file it is."""

    pack: PackNo
    store_id: bytes
    """16 bytes, as in ``store.toml``."""


def encode(magic: bytes, header: FileHeader) -> bytes:
    """The first :data:`HEADER_LENGTH` bytes of a file."""
    return _HEADER.pack(magic, VERSION, header.pack, header.store_id)


def decode(magic: bytes, data: bytes, name: str) -> FileHeader:
    """What the first :data:`HEADER_LENGTH` bytes of the file *name* say.

    Raises DamagedError when they are not such a header, StoreVersionError when a newer cafs
    has written it.
    """
    try:
        found, version, pack, store_id = _HEADER.unpack(data)
    except struct.error as error:
        raise DamagedError(f"{name} is shorter than its header") from error
    if found != magic:
        raise DamagedError(f"{name} does not begin with {magic.decode()}")
    if version > VERSION:
        raise StoreVersionError(f"{name} has version {version}, this cafs knows up to {VERSION}")
    if not version:
        raise DamagedError(f"{name} has version 0")
    return FileHeader(PackNo(pack), store_id)
