"""native/bulk/module.c: thousands of records of the index at once."""

from collections.abc import Callable
from typing import Any

def entries(
    get: Callable[[bytes, None, Any], bytes | None],
    handle: Any,
    layers: tuple[dict[bytes, bytes | None], ...],
    parents: tuple[int, ...],
    names: tuple[bytes, ...],
    /,
) -> list[int]:
    """What each name leads to in the directory beside it: inode << 4 | type (mode >> 12).

    0: there is no such entry at the name's own place, or the directory is 0; -1: another name
    lies there; -2: the record is damaged.  *get* reads *handle*'s committed values, *layers* lie
    above them.  Raises what *get* raises.
    """

def sizes(
    get: Callable[[bytes, None, Any], bytes | None],
    handle: Any,
    layers: tuple[dict[bytes, bytes | None], ...],
    inodes: tuple[int, ...],
    /,
) -> list[int]:
    """The size in each inode's record; -1: there is none; -2: it is damaged."""
