"""What another process does with the index and the pending file, by the document's protocol.

Also a program, for a test that lets it read beside a writer: see main().
"""

from __future__ import annotations

import mmap
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cafs.index import layout
from cafs.index.env import Environment
from cafs.types import Ino

ENTRY, INODE, BLOB = 1, 2, 3
_MASK = (1 << 64) - 1
KEYS = 16
"""Inodes of the test below, and as many names."""
PARENT = Ino(1)


def mix(kind: int, number: int, second: int) -> int:
    """The hash by which a record is marked, from the document's words."""
    x = ((number * 4 + kind) * 0x9E3779B97F4A7C15 & _MASK) ^ second
    x = (x ^ x >> 33) * 0xFF51AFD7ED558CCD & _MASK
    x = (x ^ x >> 33) * 0xC4CEB9FE1A85EC53 & _MASK
    return x ^ x >> 33


class PendingFile:
    """A pending file, for reading."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        magic, version, self.bits = struct.unpack_from("<8sII", self._map)
        assert (magic, version) == (b"CAFSPEND", 1)
        assert len(self._map) == 64 + 2 * (1 << self.bits) // 8
        # Whole words at a time, as a processor does.
        self._words = memoryview(self._map).cast("Q")

    @property
    def clears(self) -> int:
        return self._words[2]

    @property
    def pid(self) -> int:
        return self._words[3]

    @property
    def alive(self) -> int:
        return self._words[4]

    def has(self, kind: int, number: int, second: int = 0) -> bool:
        """Whether a record is marked in either table."""
        bit = mix(kind, number, second) >> (64 - self.bits)
        table = (1 << self.bits) // 64
        word = self._words[8 + bit // 64] | self._words[8 + table + bit // 64]
        return bool(word >> bit % 64 & 1)

    def marks(self) -> int:
        """How many bits are set."""
        return sum(word.bit_count() for word in self._words[8:])

    def close(self) -> None:
        self._words.release()
        self._map.close()


@contextmanager
def opened(path: Path) -> Iterator[PendingFile]:
    """A pending file that is closed at the end."""
    pending = PendingFile(path)
    try:
        yield pending
    finally:
        pending.close()


def name_of(number: int) -> bytes:
    """The name of the test's entry with this number."""
    return b"name %d" % number


def main(index: str, pending_path: str, shared_path: str) -> int:
    """Read records at random until told to stop; says what was seen, or fails.

    *shared*: 64-bit words: 0: stop; then for each record its newest value that a change began
    with, then for each the newest that a change is done with.  A record's value only grows.
    """
    environment = Environment(Path(index))
    pending = PendingFile(Path(pending_path))
    with Path(shared_path).open("r+b") as file:
        shared = memoryview(mmap.mmap(file.fileno(), 0)).cast("Q")
    answered = handed = again = 0
    turn = 0
    while not shared[0]:
        turn = (turn * 6364136223846793005 + 1442695040888963407) & _MASK
        record = (turn >> 33) % (2 * KEYS)
        done = shared[1 + 2 * KEYS + record]
        while True:
            clears = pending.clears
            if clears & 1:
                again += 1
                continue
            with environment.begin() as txn:
                if record < KEYS:
                    value = environment.get(txn, layout.INODES, layout.u48(100 + record))
                    marked = pending.has(INODE, 100 + record)
                    found = int.from_bytes((value or b"")[:8], "little")
                else:
                    name = name_of(record - KEYS)
                    cookie = layout.name_cookie(name)
                    key = layout.entry_key(PARENT, cookie)
                    value = environment.get(txn, layout.ENTRIES, key)
                    marked = pending.has(ENTRY, PARENT, cookie)
                    # Every second value is that there is no such name.
                    found = layout.split_entry(value)[0] if value else -1
            if marked or pending.clears == clears:
                break
            again += 1
        if marked:
            handed += 1
            continue
        begun = shared[1 + record]
        answered += 1
        if found < 0:
            # Right if there was none at some moment since: an odd value lies in [done, begun].
            right = done % 2 == 1 or begun > done
        else:
            right = done <= found <= begun
        if not right:
            print(f"record {record}: {found} is not between {done} and {begun}")
            return 1
    print(answered, handed, again)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
