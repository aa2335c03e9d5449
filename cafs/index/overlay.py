"""The index as this process sees it: what is committed, and above it what is not yet.

Owns the pending changes and the read transaction.  All methods belong to one thread (the
event loop) unless they say otherwise.  The invariant: a key's value is that of the newest
layer that has the key, in the order *active* (since the last snapshot), *frozen* (on its way
to disk), LMDB.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import lmdb
from sortedcontainers import SortedDict

from cafs import _bulk
from cafs._index import mark, unseal
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.env import Environment, bad_value, checked, damaged
from cafs.index.pending import Pending
from cafs.types import Generation, Ino

log = logging.getLogger(__name__)

Layer = list[dict[bytes, "bytes | None"]]
"""One dict a database; None says that the key was deleted."""

_MISSING: Any = object()


def _new_layer() -> Layer:
    return [
        SortedDict() if number in layout.RANGED else {} for number in range(len(layout.DATABASES))
    ]


class Overlay:
    """Reads through all layers; writes into the uppermost."""

    def __init__(self, env: Environment, pending: Pending | None = None) -> None:
        self._env = env
        self._pending = pending
        self.ahead: Callable[[], Iterable[Ino]] = tuple
        """Inodes that show what no record has yet: they stay marked over a commit."""
        self._carried = False
        # Marks of what was ahead at the last freeze wait for a commit that may not come.
        self._active = _new_layer()
        self._frozen: Layer | None = None
        self._txn = env.begin()
        self._changes = 0
        self.generation = Generation(0)
        """Generation of the changes that are now being gathered."""

    @property
    def pending(self) -> int:
        """Changes that are not committed (a key that changes twice counts twice)."""
        return self._changes

    @property
    def dirty(self) -> bool:
        """Whether something is gathered that no snapshot holds yet."""
        return any(self._active)

    def get(self, database: int, key: bytes) -> bytes | None:
        """The value of a key, or None.  Raises IndexDamagedError on a bad page or value."""
        value = self._active[database].get(key, _MISSING)
        if value is not _MISSING:
            return value  # type: ignore[no-any-return]
        if self._frozen is not None:
            value = self._frozen[database].get(key, _MISSING)
            if value is not _MISSING:
                return value  # type: ignore[no-any-return]
        try:
            sealed = self._txn.get(key, db=self._env.databases[database])
        except lmdb.Error as error:
            raise self._broken(database, error) from error
        if sealed is None:
            return None
        # As checked() does, without a call for each record.
        value = unseal(database, key, sealed)
        if value is None:
            raise bad_value(database, key)
        return value

    def entries_at(self, parents: Sequence[int], names: Sequence[bytes]) -> list[int]:
        """What many names lead to; see cafs._bulk.entries()."""
        source = self._source(layout.ENTRIES)
        try:
            return _bulk.entries(*source, tuple(parents), tuple(names))
        except lmdb.Error as error:
            raise self._broken(layout.ENTRIES, error) from error

    def sizes_of(self, inodes: Sequence[int]) -> list[int]:
        """The sizes of many inodes; see cafs._bulk.sizes()."""
        source = self._source(layout.INODES)
        try:
            return _bulk.sizes(*source, tuple(inodes))
        except lmdb.Error as error:
            raise self._broken(layout.INODES, error) from error

    def _source(self, database: int) -> tuple[Any, Any, tuple[dict[bytes, bytes | None], ...]]:
        """What _bulk reads a database from: empty layers are left out."""
        layers = (self._active, self._frozen)
        filled = tuple(layer[database] for layer in layers if layer is not None and layer[database])
        return self._txn.get, self._env.databases[database], filled

    # Each call of LMDB lets go of the interpreter lock, and a thread gets it back when the event
    # loop next pauses.  So what threads ask for is asked in as few calls as there can be.

    def get_anywhere(self, database: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """As get() for each of the keys, for a thread other than the owner; None also for a value
        that is damaged.

        Looks at the layers first and only then begins a transaction: a commit that empties a
        layer in between is in that transaction.
        """
        values: list[Any] = [self._above(database, key) for key in keys]
        if _MISSING in values:
            try:
                with self._env.begin() as txn:
                    for at, value in enumerate(values):
                        if value is _MISSING:
                            values[at] = self._readable(txn, database, keys[at])
            except lmdb.Error as error:
                raise damaged(database, error) from error
        return values

    def _readable(self, txn: lmdb.Transaction[bytes], database: int, key: bytes) -> bytes | None:
        try:
            return self._env.get(txn, database, key)
        except IndexDamagedError as error:
            log.debug("passed over: %s", error)
            return None

    def _above(self, database: int, key: bytes) -> object:
        for layer in (self._active, self._frozen):
            if layer is not None:
                value = layer[database].get(key, _MISSING)
                if value is not _MISSING:
                    return value
        return _MISSING

    def committed_numbers(self, database: int, digests: Iterable[bytes]) -> list[list[int]]:
        """Numbers under each digest's prefix in the newest commit.  Any thread."""
        result = []
        try:
            with (
                self._env.begin() as txn,
                txn.cursor(self._env.databases[database]) as cursor,
            ):
                for digest in digests:
                    prefix = digest[: layout.DIGEST_PREFIX]
                    numbers = []
                    found = cursor.set_range(prefix)
                    while found and (key := cursor.key()).startswith(prefix):
                        numbers.append(layout.digest_number(key))
                        found = cursor.next()
                    result.append(numbers)
        except lmdb.Error as error:
            raise damaged(database, error) from error
        return result

    def put(self, database: int, key: bytes, value: bytes, *, shown: bool = True) -> None:
        """Set a key.  Not *shown*: whoever answers from the record before is right, too."""
        pending = self._pending
        if shown and pending is not None:
            mark(pending.buffer, pending.table, database, key, value)
        self._active[database][key] = value
        self._changes += 1

    def delete(self, database: int, key: bytes) -> None:
        """Remove a key; one that is not there is no error."""
        pending = self._pending
        if pending is not None:
            entry = self._entry(key) if database == layout.ENTRIES else b""
            mark(pending.buffer, pending.table, database, key, entry)
        self._active[database][key] = None
        self._changes += 1

    def _entry(self, key: bytes) -> bytes:
        """An entry that goes: the name in it says where others look for it."""
        try:
            return self.get(layout.ENTRIES, key) or b""
        except IndexDamagedError:
            # Others cannot read it, either.
            return b""

    def mark_inode(self, ino: Ino) -> None:
        """From now on the inode shows what no record has: say so before anybody sees it."""
        pending = self._pending
        if pending is not None:
            mark(pending.buffer, pending.table, layout.INODES, layout.u48(ino), b"")

    def scan(self, database: int, start: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Keys from *start* on that begin with *prefix*, in order, with their values.

        The caller may stop at any time and must not change the database while it goes on.
        """
        layers: list[Iterator[bytes]] = []
        sources: list[dict[bytes, bytes | None]] = []
        for layer in (self._active, self._frozen):
            if layer is not None and layer[database]:
                sources.append(layer[database])
                layers.append(layer[database].irange(start))  # type: ignore[attr-defined]
        committed = self._scan_committed(database, start, prefix)
        if not layers:
            yield from committed
            return
        heads: list[bytes | None] = [next(keys, None) for keys in layers]
        below = next(committed, None)
        while True:
            candidates = [head for head in heads if head is not None]
            if below is not None:
                candidates.append(below[0])
            if not candidates:
                return
            key = min(candidates)
            if not key.startswith(prefix):
                return
            value: bytes | None = None
            taken = False
            for index, head in enumerate(heads):
                if head == key:
                    if not taken:
                        value, taken = sources[index][key], True
                    heads[index] = next(layers[index], None)
            if below is not None and below[0] == key:
                if not taken:
                    value = below[1]
                below = next(committed, None)
            if value is not None:
                yield key, value

    def _scan_committed(
        self, database: int, start: bytes, prefix: bytes
    ) -> Iterator[tuple[bytes, bytes]]:
        last: bytes | None = None
        while True:
            txn = self._txn
            try:
                with txn.cursor(self._env.databases[database]) as cursor:
                    if not cursor.set_range(start if last is None else last):
                        return
                    for key, value in cursor.iternext():
                        if key == last:
                            continue
                        if not key.startswith(prefix):
                            return
                        last = key
                        yield key, checked(database, key, value)
                        if self._txn is not txn:
                            # Something else met a damaged page meanwhile (see _broken()).
                            break
                    else:
                        return
            except lmdb.Error as error:
                raise self._broken(database, error) from error

    def floor(self, database: int, key: bytes, prefix: bytes) -> bytes | None:
        """The greatest key up to *key* that begins with *prefix*, or None."""
        while True:
            best = self._floor_committed(database, key)
            for layer in (self._active, self._frozen):
                if layer is not None and layer[database]:
                    found = next(
                        layer[database].irange(None, key, reverse=True),  # type: ignore[attr-defined]
                        None,
                    )
                    if found is not None and (best is None or found > best):
                        best = found
            if best is None or not best.startswith(prefix):
                return None
            if self.get(database, best) is not None:
                return best
            # Deleted: look below it.
            key = _before(best)

    def _floor_committed(self, database: int, key: bytes) -> bytes | None:
        try:
            with self._txn.cursor(self._env.databases[database]) as cursor:
                if cursor.set_range(key):
                    if cursor.key() == key:
                        return key
                    return cursor.key() if cursor.prev() else None
                return cursor.key() if cursor.last() else None
        except lmdb.Error as error:
            raise self._broken(database, error) from error

    def freeze(self) -> Layer:
        """Take what has gathered as the next commit; call again only after thaw()."""
        if self._frozen is None:
            self._frozen, self._active = self._active, _new_layer()
            self.generation = Generation(self.generation + 1)
            if self._pending is not None:
                self._pending.swap()
                self._carried = False
                for ino in self.ahead():
                    self.mark_inode(ino)
                    self._carried = True
        return self._frozen

    @property
    def frozen(self) -> bool:
        """Whether a snapshot is on its way to disk (or failed and waits to be tried again)."""
        return self._frozen is not None

    def thaw(self) -> None:
        """The frozen layer is committed: read it from LMDB from now on."""
        frozen, self._frozen = self._frozen, None
        assert frozen is not None
        self.renew()
        if self._pending is not None:
            self._pending.committed()
        self._changes = sum(map(len, self._active))

    def unmark(self) -> None:
        """Take away marks that have outlived their commit, if nothing at all is pending."""
        if self._carried and not self.dirty and not self.frozen and not tuple(self.ahead()):
            assert self._pending is not None
            self._pending.swap()
            self._pending.committed()
            self._carried = False

    def renew(self) -> None:
        """Read from the newest commit."""
        self._txn.abort()
        self._txn = self._env.begin()

    def _broken(self, database: int, error: lmdb.Error) -> IndexDamagedError:
        """What LMDB found; its transaction answers nothing any more after that, so a new one."""
        self.renew()
        return damaged(database, error)

    def suspend(self) -> None:
        """End the read transaction; renew() comes before anything else."""
        self._txn.abort()

    def close(self) -> None:
        """End the read transaction."""
        self._txn.abort()


def _before(key: bytes) -> bytes:
    """The greatest key of the same length that is smaller."""
    return (int.from_bytes(key, "big") - 1).to_bytes(len(key), "big")
