"""The C library's allocator, set for megabyte buffers that come and go.

By default glibc maps each buffer of a write or read anew and unmaps it afterwards: the kernel
then zeroes and faults in every page of it, which costs more than copying the bytes.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import trio

from cafs.mount import translate
from cafs.store import Store

# malloc.h; mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_M_ARENA_MAX = -8

BUFFER_MAX = 32 << 20
"""Bytes: what is larger is mapped as before (glibc takes no more)."""
IDLE_S = 5.0
"""After so long without reading or writing, memory is given back."""
ASKED_IDLE_S = 60.0
"""The same of what is kept decoded of the tree, after so long without a question about it."""
KEPT = 64 << 20
"""Bytes of free heap that are kept for the next buffers."""


async def give_back_when_idle(store: Store) -> None:
    """Let go of caches and free heap each time that whoever fills them has come to rest."""

    def content() -> tuple[int, ...]:
        return store.contents.being_written, store.reader.fetched, store.counters.generation

    def forget_tree() -> None:
        store.tree.forget()
        store.environment.rest()
        translate.forget()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_at_rest, IDLE_S, content, store.reader.forget)
        nursery.start_soon(_at_rest, ASKED_IDLE_S, lambda: store.tree.inodes.decoded, forget_tree)


async def _at_rest(after_s: float, look: Callable[[], object], forget: Callable[[], None]) -> None:
    """Call *forget* when *look* has not changed for *after_s*, once for each value."""
    forgotten = seen = None
    while True:
        await trio.sleep(after_s)
        now = look()
        if now == seen and now != forgotten:
            forgotten = now
            forget()
            try:
                ctypes.CDLL("libc.so.6").malloc_trim(0)
            except (OSError, AttributeError):
                return
        seen = now


def tune_allocator() -> None:
    """Keep freed buffers for the next ones.  Does nothing with another C library."""
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, BUFFER_MAX)
    mallopt(_M_TRIM_THRESHOLD, KEPT)
    # Threads that free each other's buffers share few heaps rather than fragmenting many.
    mallopt(_M_ARENA_MAX, 2)
