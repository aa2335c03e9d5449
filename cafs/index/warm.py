"""Bringing the index into the page cache when a daemon starts.

A cold index is read one random page at a time by whoever looks something up, which a disk
answers a hundred times slower than one read from its beginning to its end.  Whoever starts a
daemon begins with this, since the disk has nothing else to do meanwhile.  Invariant: it is
only ever a hint: nobody waits for it, it changes nothing, and it fails in silence.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Final

from cafs.index.pages import FILE

SHARE: Final = 0.5
"""How much of the memory that is free an index may take; a larger one would push itself out."""
_PIECE_BYTES: Final = 4 << 20


def start(directory: Path) -> threading.Thread | None:
    """Read the index in *directory* in a thread; None when there is none, or it is too large."""
    path = directory / FILE
    try:
        size = path.stat().st_size
    except OSError:
        return None
    if not size or size > SHARE * _available_bytes():
        return None
    thread = threading.Thread(target=_read_all, args=(path,), name="warm", daemon=True)
    thread.start()
    return thread


def _read_all(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return
    buffer = bytearray(_PIECE_BYTES)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        offset = 0
        # The interpreter is free for others during each read.
        while got := os.preadv(fd, [buffer], offset):
            offset += got
    except OSError:
        # Whoever needs the page that cannot be read will say so.
        pass
    finally:
        os.close(fd)


def _available_bytes() -> int:
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return 0
    for line in text.splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
