"""Breaks chosen pages of an index file."""

from __future__ import annotations

import struct
from pathlib import Path

from cafs.index import pages

SIZE = 4096


def leaves(index: Path, database: str) -> list[int]:
    """What may be leaf pages of a database, those in the middle of its keys first."""
    found: list[tuple[bytes, int]] = []
    keys: list[bytes] = []

    def keep(name: str, key: bytes, _value: bytes) -> None:
        if name == database:
            keys.append(key)

    pages.audit(index, keep=keep)
    data = (index / pages.FILE).read_bytes()
    wanted = set(keys)
    for page in range(2, len(data) // SIZE):
        start = page * SIZE
        number, _, flags, lower, _ = struct.unpack_from("<QHHHH", data, start)
        if number != page or flags != 2 or lower <= 16:
            continue
        place = start + struct.unpack_from("<H", data, start + 16)[0]
        length = struct.unpack_from("<H", data, place + 6)[0]
        key = data[place + 8 : place + 8 + length]
        if key in wanted:
            found.append((key, page))
    ordered = [page for _, page in sorted(found)]
    middle = len(ordered) // 2
    return sorted(ordered, key=lambda page: abs(ordered.index(page) - middle))


def break_leaf(index: Path, database: str) -> int:
    """Fill a leaf page of a database with zeros; its number."""
    file = index / pages.FILE
    pristine = file.read_bytes()
    for page in leaves(index, database):
        data = bytearray(pristine)
        data[page * SIZE : (page + 1) * SIZE] = bytes(SIZE)
        file.write_bytes(data)
        # Pages of older commits look the same, and are not in use.
        faults = pages.audit(index).faults
        if any(fault.database == database and fault.page == page for fault in faults):
            return page
    raise AssertionError(f"{database} has no leaf page")


def break_root(index: Path) -> None:
    """Destroy both meta pages."""
    file = index / pages.FILE
    data = bytearray(file.read_bytes())
    data[: 2 * SIZE] = bytes(2 * SIZE)
    file.write_bytes(data)


def flip(index: Path, database: str, key: bytes, *, in_key: bool = False, bit: int = 0) -> None:
    """Flip one bit of the value that a key has, or of the key; in pages of older commits, too."""
    values: list[bytes] = []

    def keep(name: str, found: bytes, value: bytes) -> None:
        if (name, found) == (database, key):
            values.append(value)

    pages.audit(index, keep=keep)
    record = key + values[0]
    file = index / pages.FILE
    data = bytearray(file.read_bytes())
    place = data.find(record)
    assert place >= 0
    while place >= 0:
        # Counted from the end of what is flipped, where numbers in keys have their low bits.
        end = place + (len(key) if in_key else len(record))
        data[end - 1 - bit // 8] ^= 1 << bit % 8
        place = data.find(record, place + 1)
    file.write_bytes(data)
