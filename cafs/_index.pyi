"""native/index/module.c: checks of the index's values, and marks in the pending file."""

from _typeshed import WriteableBuffer

def seal(database: int, key: bytes, value: bytes, /) -> bytes:
    """The value with its check behind it; as it is in a database without checks.

    Raises ValueError for a database that there is not.
    """

def unseal(database: int, key: bytes, sealed: bytes, /) -> bytes | None:
    """The value without its check, or None when the check is wrong.

    In a database without checks: the value as it is.  Raises ValueError for a database that
    there is not.
    """

def mark(buffer: WriteableBuffer, table: int, database: int, key: bytes, value: bytes, /) -> None:
    """Mark a record in a table, 0 or 1, of the pending file in *buffer*.

    An entry is marked by the name in its *value*, or by its key if that is empty.  Does nothing
    for databases that are not marked.  Raises ValueError for anything that is no pending file.
    """

def clear(buffer: WriteableBuffer, table: int, /) -> None:
    """Take the marks of a table back; ``clears`` is odd meanwhile."""

def retire(buffer: WriteableBuffer, /) -> None:
    """Nobody marks here any more: ``alive`` becomes 0, and ``clears`` odd for ever."""
