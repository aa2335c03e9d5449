"""The index is in the page cache soon after a start, and nothing fails for it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest

from cafs.index import warm
from cafs.index.pages import FILE

_SIZE = 16 << 20


def resident(path: Path) -> int:
    """How many pages of a file are in memory."""
    with path.open("r+b") as stream, mmap.mmap(stream.fileno(), 0) as mapped:
        pages = len(mapped) // mmap.PAGESIZE
        found = (ctypes.c_ubyte * pages)()
        view = ctypes.c_char.from_buffer(mapped)
        try:
            address = ctypes.c_void_p(ctypes.addressof(view))
            assert ctypes.CDLL(None).mincore(address, ctypes.c_size_t(len(mapped)), found) == 0
        finally:
            del view
        return sum(page & 1 for page in found)


@pytest.fixture
def index(tmp_path: Path) -> Path:
    path = tmp_path / FILE
    with path.open("wb") as stream:
        stream.write(os.urandom(_SIZE))
        stream.flush()
        os.fsync(stream.fileno())
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if resident(path) > _SIZE // mmap.PAGESIZE // 10:
        pytest.skip("this file system keeps what it is asked to forget")
    return path


def test_all_of_it_is_read(index: Path) -> None:
    thread = warm.start(index.parent)
    assert thread is not None
    thread.join(30)
    # The kernel may take some of it back at any time.
    assert resident(index) >= 0.99 * (_SIZE // mmap.PAGESIZE)


def test_one_that_is_too_large_or_not_there_is_left(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert warm.start(tmp_path / "absent") is None
    monkeypatch.setattr(warm, "SHARE", 1e-9)
    assert warm.start(index.parent) is None
    assert resident(index) < _SIZE // mmap.PAGESIZE // 10
