"""A look at LMDB's pages without LMDB: are they whole, and what to do where they are not.

LMDB has no checksums and trusts its pages: a page that was damaged on disk may end the process
(an assertion) or hide keys as if they had never been.  So the pages of the newest commit are
looked at by the rules of LMDB's own format (lmdb.h, mdb.c: MDB_page, MDB_node, MDB_meta), with
bounds, and each value is held to its check.  Invariant: nothing is written here; what can be
done about a fault is noted in it, and cafs.index.fence does it.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import lmdb

from cafs._index import unseal
from cafs.errors import IndexDamagedError, from_os_error
from cafs.index import layout, meta

FILE: Final = meta.FILE
ADVICE: Final = "bring the index back from its last copy: cafs rebuild STORE"
CORE: Final = ("free", "main")
"""LMDB's own two databases."""
_HEADER: Final = struct.Struct("<QHHHH")
_META: Final = struct.Struct("<IIQQ")
_DB: Final = struct.Struct("<IHHQQQQQ")
_NODE: Final = struct.Struct("<HHHH")
_U64: Final = struct.Struct("<Q")
_BRANCH, _LEAF, _OVERFLOW = 1, 2, 4
_BIG, _SUBDATA = 1, 2
_NONE: Final = (1 << 64) - 1
_NOWHERE: Final = 0xFFFFFFFFFFFE
"""A page number that no index reaches: LMDB answers MDB_PAGE_NOTFOUND."""
_ROOT_AT: Final = _DB.size - 8
_NUMBERS: Final = {name.decode(): number for number, name in enumerate(layout.DATABASES)}
_FENCED: Final = "what is in it answers EIO"
_VALUE_LOST: Final = "that record answers EIO"
_KEY_KNOWN: Final = "it is put right at the next start"


class Fault(NamedTuple):
    """A page, or a record on it, that is not what was written."""

    page: int
    database: str
    why: str
    link: tuple[int, bytes] | None
    """Where in the file to write what, to fence the page off or to put the key right; None if
    neither can be."""
    low: bytes = b""
    """The keys that may be lost are at or above this one, ..."""
    high: bytes | None = None
    """... and below this one, if there is any above."""
    effect: str = _FENCED

    def __str__(self) -> str:
        return f"page {self.page} of index database {self.database} is damaged: {self.why}"

    @property
    def one_record(self) -> bool:
        """Whether the page itself is whole, and one of its records is not."""
        return self.effect is not _FENCED


class Audit(NamedTuple):
    """What was looked at and found."""

    faults: list[Fault]
    pages: int
    complete: bool
    """Whether there was time for all pages; those near the roots come first."""


class _Todo(NamedTuple):
    page: int
    link: tuple[int, bytes] | None
    database: str
    depth: int
    """Levels from here to the leaves, this one included."""
    low: bytes
    """No key here is below this one, ..."""
    high: bytes | None
    """... or at or above this one."""


Keep = Callable[[str, bytes, bytes], None]
"""Takes a database, a key and its value."""


class _Bad(Exception):
    """Why a page cannot be trusted."""


class _Walk:
    """One walk over the pages of one snapshot."""

    def __init__(self, fd: int, txn_id: int | None, keep: Keep | None = None) -> None:
        self._fd = fd
        self._keep = keep
        self._size, self._last, self._dbs = _newest_meta(fd, txn_id)
        self._file_pages = os.fstat(fd).st_size // self._size
        self._seen = bytearray(self._last + 1)
        self._entries: dict[str, int] = {}
        self._wanted: dict[str, int] = {}
        self._free: list[int] = []
        self._damaged: set[str] = set()
        self.faults: list[Fault] = []
        self.pages = 0

    def run(self, deadline: float | None) -> bool:
        todo: deque[_Todo] = deque()
        for name, place in (("free", 0), ("main", 1)):
            self._take_db(name, self._dbs[place], None, todo)
        while todo:
            if deadline is not None and time.monotonic() > deadline:
                return False
            each = todo.popleft()
            try:
                self._visit(each, todo)
            except _Bad as bad:
                self._damaged.add(each.database)
                self.faults.append(
                    Fault(each.page, each.database, str(bad), each.link, each.low, each.high)
                )
        for name, wanted in self._wanted.items():
            if name not in self._damaged and self._entries[name] != wanted:
                text = f"it has {self._entries[name]} keys and should have {wanted}"
                self.faults.append(Fault(0, name, text, None))
        twice = [page for page in self._free if page <= self._last and self._seen[page]]
        if twice or any(page > self._last for page in self._free):
            page = twice[0] if twice else max(self._free)
            self.faults.append(Fault(page, "free", "listed as free and in use", None))
        return True

    def _take_db(
        self, name: str, record: bytes, link: tuple[int, bytes] | None, todo: deque[_Todo]
    ) -> None:
        _, _, depth, _, _, _, entries, root = _DB.unpack(record)
        self._entries[name] = 0
        self._wanted[name] = entries
        if root != _NONE:
            todo.append(_Todo(root, link, name, depth, b"", None))
        elif entries:
            self.faults.append(Fault(0, name, f"it has no pages for {entries} keys", None))

    def _read(self, page: int, count: int = 1) -> bytes:
        if not 2 <= page <= self._last or page + count > self._file_pages:
            raise _Bad(f"there is no page {page}: the way to it is damaged or was fenced off")
        if any(self._seen[page : page + count]):
            raise _Bad("another page leads to it, too")
        for each in range(page, page + count):
            self._seen[each] = 1
        self.pages += count
        return os.pread(self._fd, self._size, page * self._size)

    def _visit(self, each: _Todo, todo: deque[_Todo]) -> None:
        data = self._read(each.page)
        number, _, flags, lower, upper = _HEADER.unpack_from(data)
        if number != each.page:
            raise _Bad(f"it says that it is page {number}")
        if flags != (_LEAF if each.depth == 1 else _BRANCH):
            raise _Bad(f"its flags are {flags:#x}")
        if not (_HEADER.size < lower <= upper <= self._size) or lower & 1:
            raise _Bad(f"its space is from {lower} to {upper}")
        count = (lower - _HEADER.size) // 2
        places = struct.unpack_from(f"<{count}H", data, _HEADER.size)
        if min(places) < upper or max(places) + _NODE.size > self._size:
            raise _Bad("a node lies outside")
        if flags == _LEAF:
            self._leaf(each, data, places, todo)
        else:
            self._branch(each, data, places, todo)

    def _branch(self, each: _Todo, data: bytes, places: Sequence[int], todo: deque[_Todo]) -> None:
        before = each.low
        found = []
        for index, place in enumerate(places):
            low, high, top, length = _NODE.unpack_from(data, place)
            key = data[place + 8 : place + 8 + length]
            if len(key) != length:
                raise _Bad("a key reaches over its end")
            # The first key of a branch says nothing; LMDB leaves it empty.
            if index and not self._in_order(each.database, before, key):
                raise _Bad("its keys are not in order")
            before = key if index else each.low
            link = (each.page * self._size + place, _NOWHERE.to_bytes(6, "little"))
            child = low | high << 16 | top << 32
            found.append(_Todo(child, link, each.database, each.depth - 1, before, each.high))
        self._below_high(each, before)
        for left, right in itertools.pairwise(found):
            todo.append(left._replace(high=right.low))
        todo.append(found[-1])

    @staticmethod
    def _in_order(database: str, before: bytes, key: bytes) -> bool:
        if database == "free":
            return int.from_bytes(before, "little") <= int.from_bytes(key, "little")
        return before <= key

    def _below_high(self, each: _Todo, last: bytes) -> None:
        """A key at or above the next page's would never be found: LMDB looks for it there."""
        if each.high is not None and self._in_order(each.database, each.high, last):
            raise _Bad("it has keys of the page behind it")

    def _leaf(self, each: _Todo, data: bytes, places: Sequence[int], todo: deque[_Todo]) -> None:
        before = each.low
        found = []
        database = _NUMBERS.get(each.database)
        for index, place in enumerate(places):
            low, high, flags, length = _NODE.unpack_from(data, place)
            size = low | high << 16
            start = place + 8 + length
            key = data[place + 8 : start]
            if start + (8 if flags & _BIG else size) > self._size or not length:
                raise _Bad("a node reaches over its end")
            if flags & ~(_BIG | _SUBDATA) or (flags & _SUBDATA and each.database != "main"):
                raise _Bad(f"a node has flags {flags:#x}")
            at = each.page * self._size + start
            value: bytes | None = data[start : start + size]
            if flags & _BIG:
                value = self._big(each, _U64.unpack_from(data, start)[0], size, at, key)
            sound = True
            if database is not None and value is not None:
                sound = unseal(database, key, value) is not None
                if not sound:
                    right = _right_key(database, key, value)
                    self._bad_record(each, database, key, right, at - length)
                    sound, key = right is not None, right or key
            if not self._in_order(each.database, before, key) or (index and key == before):
                raise _Bad("its keys are not in order")
            before = key
            if flags & _BIG:
                pass
            elif flags & _SUBDATA:
                if size != _DB.size:
                    raise _Bad("a database's record has another length")
                link = (at + _ROOT_AT, _U64.pack(_NOWHERE))
                self._take_db(key.decode("ascii", "replace"), bytes(value or b""), link, todo)
            if self._keep is not None and value is not None and sound:
                found.append((key, value))
            if each.database == "free" and value is not None:
                self._free += [page for (page,) in _U64.iter_unpack(value[8 : len(value) & ~7])]
        self._below_high(each, before)
        if self._keep is not None:
            for key, value in found:
                self._keep(each.database, key, value)
        self._entries[each.database] += len(places)

    def _bad_record(
        self, each: _Todo, database: int, key: bytes, right: bytes | None, at: int
    ) -> None:
        """Note a value whose check is wrong; *right* is the key that it belongs to, if known."""
        shown = layout.shown_key(database, key)
        if right is None:
            why = f"the value of key {shown} is not what was written"
            fault = Fault(each.page, each.database, why, None, key, key + b"\0", _VALUE_LOST)
        else:
            why = f"key {shown} should be {layout.shown_key(database, right)}"
            # Nothing is lost: the range is empty.
            fault = Fault(each.page, each.database, why, (at, right), right, right, _KEY_KNOWN)
        self.faults.append(fault)

    def _big(self, each: _Todo, page: int, size: int, at: int, key: bytes) -> bytes | None:
        """A value with pages of its own: its fault is that of one key."""
        count = -(-(size + _HEADER.size) // self._size)
        link = (at, _U64.pack(_NOWHERE))
        try:
            data = self._read(page, count)
            number, _, flags, low, high = _HEADER.unpack_from(data)
            if number != page or flags != _OVERFLOW or low | high << 16 != count:
                raise _Bad("it is no overflow page of this value")
            return os.pread(self._fd, size, page * self._size + _HEADER.size)
        except _Bad as bad:
            fault = Fault(page, each.database, str(bad), link, key, key + b"\0")
            self.faults.append(fault)
            return None


def _right_key(database: int, key: bytes, value: bytes) -> bytes | None:
    """The key that differs in one bit and has this value, or None."""
    number = int.from_bytes(key, "big")
    for bit in range(8 * len(key)):
        right = (number ^ 1 << bit).to_bytes(len(key), "big")
        if unseal(database, right, value) is not None:
            return right
    return None


def _newest_meta(fd: int, txn_id: int | None) -> tuple[int, int, tuple[bytes, bytes]]:
    """Page size, last page and records of both core databases, of the commit *txn_id*."""
    found: dict[int, tuple[int, int, tuple[bytes, bytes]]] = {}
    size = 4096
    for page in (0, 1):
        data = os.pread(fd, 4096, page * size)
        if len(data) < 4096:
            continue
        if not meta.Page(data).whole:
            continue
        start = _HEADER.size + _META.size
        free, main = (data[start + i * _DB.size : start + (i + 1) * _DB.size] for i in (0, 1))
        last, txn = struct.unpack_from("<QQ", data, start + 2 * _DB.size)
        size = _DB.unpack(free)[0]
        found[txn] = (size, last, (free, main))
        if not 512 <= size <= 65536 or size & (size - 1):
            raise IndexDamagedError(f"the index has an impossible page size, {size}")
    wanted = max(found, default=None) if txn_id is None else txn_id
    if wanted is None or wanted not in found:
        raise IndexDamagedError("the index has no page that says where it begins", advice=ADVICE)
    size, last, _ = found[wanted]
    if (last + 1) * size > (1 << 40):
        raise IndexDamagedError("the index claims more pages than it can have")
    return found[wanted]


def audit(
    directory: Path, budget_s: float | None = None, keep: Keep | None = None, *, lock: bool = True
) -> Audit:
    """Look at the pages of the newest commit of the index at *directory*.

    *keep* is given all that lies in pages that are whole, in the order of keys.  *lock* is for
    an index that others may write to.

    May run beside a writer: a read transaction keeps the pages from being used anew.  Not in a
    process that has the index open.  Raises IndexDamagedError when there is nothing to begin
    with, DiskError when the file cannot be read.
    """
    deadline = None if budget_s is None else time.monotonic() + budget_s
    try:
        fd = os.open(directory / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise IndexDamagedError(f"{directory / FILE} is missing", advice=ADVICE) from error
    except OSError as error:
        raise from_os_error(error, f"open {directory / FILE}") from error
    try:
        with _pinned(directory, lock) as txn:
            walk = _Walk(fd, txn.id(), keep)
            complete = walk.run(deadline)
            return Audit(walk.faults, walk.pages, complete)
    except OSError as error:
        raise from_os_error(error, f"read {directory / FILE}") from error
    finally:
        os.close(fd)


class _pinned:
    """A read transaction that needs nothing of the index but its meta page."""

    def __init__(self, directory: Path, lock: bool) -> None:
        try:
            self._env = lmdb.open(
                str(directory),
                map_size=1 << 40,
                readonly=True,
                create=False,
                readahead=False,
                lock=lock,
            )
        except lmdb.Error as error:
            raise IndexDamagedError(f"{directory}: {error}", advice=ADVICE) from error
        self._txn = self._env.begin()

    def __enter__(self) -> lmdb.Transaction[bytes]:
        return self._txn

    def __exit__(self, *_: object) -> None:
        self._txn.abort()
        self._env.close()
