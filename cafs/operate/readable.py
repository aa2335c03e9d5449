"""Passes over the index that go on behind a record which cannot be read.

For commands that must not lose what they have found out because of one bad record.  Invariant:
what was passed over is counted, and said with the result.
"""

from __future__ import annotations

from collections.abc import Iterator

import lmdb

from cafs._index import unseal
from cafs.index.env import bad_value, damaged
from cafs.view import View

Unreadable = dict[tuple[int, bytes], str]
"""Records that were passed over, by database and key, and what is wrong; without a key: all
behind the place where a page is bad."""


def rows(view: View, database: int, unreadable: Unreadable) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a database in the newest commit, in order, without the bad ones."""
    environment = view.environment
    try:
        with environment.begin() as txn, txn.cursor(environment.databases[database]) as cursor:
            for key, sealed in cursor:
                value = unseal(database, key, sealed)
                if value is None:
                    unreadable[database, key] = str(bad_value(database, key))
                else:
                    yield key, value
    except lmdb.Error as error:
        unreadable[database, b""] = str(damaged(database, error))
