"""Memory maps: shared and private, in one process and across two."""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import subprocess

from tests.mount.conftest import Place
from tests.mount.syscalls import fails

PAGE = mmap.PAGESIZE
SIZE = 40 * PAGE + 123


def _file(place: Place, data: bytes) -> int:
    path = place / "mapped"
    path.write_bytes(data)
    return os.open(path, os.O_RDWR)


def test_shared_map_reads_what_was_written(place: Place) -> None:
    data = random.Random(1).randbytes(SIZE)
    fd = _file(place, data)
    try:
        with mmap.mmap(fd, SIZE, prot=mmap.PROT_READ) as view:
            assert view[:] == data
            os.pwrite(fd, b"changed", 5 * PAGE - 3)
            assert view[5 * PAGE - 3 : 5 * PAGE + 4] == b"changed"
    finally:
        os.close(fd)


def test_shared_map_writes_reach_the_file(place: Place) -> None:
    model = bytearray(random.Random(2).randbytes(SIZE))
    fd = _file(place, bytes(model))
    try:
        with mmap.mmap(fd, SIZE) as view:
            for at in (0, PAGE - 2, 17 * PAGE + 5, SIZE - 9):
                view[at : at + 9] = model[at : at + 9] = b"by memory"
            assert os.pread(fd, SIZE, 0) == model  # read(2) sees the dirty pages
            view.flush()
        os.fsync(fd)
    finally:
        os.close(fd)
    assert (place / "mapped").read_bytes() == model


def test_map_outlives_its_descriptor_and_its_name(place: Place) -> None:
    fd = _file(place, b"a" * SIZE)
    view = mmap.mmap(fd, SIZE)
    os.close(fd)
    os.link(place / "mapped", place / "other")
    os.unlink(place / "mapped")
    view[10:13] = b"xyz"
    view.flush()
    view.close()
    assert (place / "other").read_bytes()[8:15] == b"aaxyzaa"


def test_private_map_stays_private(place: Place) -> None:
    fd = _file(place, b"a" * SIZE)
    try:
        with mmap.mmap(fd, SIZE, flags=mmap.MAP_PRIVATE) as view:
            view[:3] = b"own"
            assert os.pread(fd, 3, 0) == b"aaa"
            assert view[:4] == b"owna"
    finally:
        os.close(fd)
    assert (place / "mapped").read_bytes() == b"a" * SIZE


def test_shared_map_across_processes(place: Place) -> None:
    fd = _file(place, bytes(SIZE))
    try:
        with mmap.mmap(fd, SIZE) as view:
            child = os.fork()
            if child == 0:
                own = os.open(place / "mapped", os.O_RDWR)
                with mmap.mmap(own, SIZE) as theirs:
                    theirs[3 * PAGE : 3 * PAGE + 5] = b"child"
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert view[3 * PAGE : 3 * PAGE + 5] == b"child"
    finally:
        os.close(fd)


def test_map_of_a_hole_and_of_the_tail_page(place: Place) -> None:
    path = place / "mapped"
    path.touch()
    os.truncate(path, 3 * PAGE + 10)
    fd = os.open(path, os.O_RDWR)
    try:
        with mmap.mmap(fd, 3 * PAGE + 10) as view:
            assert view[:] == bytes(3 * PAGE + 10)
            view[2 * PAGE] = 7
            view.flush()
        assert os.fstat(fd).st_size == 3 * PAGE + 10
    finally:
        os.close(fd)
    assert path.read_bytes() == bytes(2 * PAGE) + b"\7" + bytes(PAGE + 9)


def test_write_beyond_the_end_of_a_mapped_file_shows_in_a_longer_map(place: Place) -> None:
    fd = _file(place, b"a" * 10)
    try:
        with mmap.mmap(fd, 10) as short:
            os.pwrite(fd, b"b" * PAGE, 10)
            with mmap.mmap(fd, 10 + PAGE) as long:
                assert long[:] == b"a" * 10 + b"b" * PAGE
                long[0:1] = b"c"
            assert short[0:1] == b"c"
    finally:
        os.close(fd)


def test_truncate_under_a_map_zeroes_the_rest_of_the_page(place: Place) -> None:
    fd = _file(place, b"a" * (2 * PAGE))
    try:
        with mmap.mmap(fd, 2 * PAGE) as view:
            os.ftruncate(fd, 100)
            os.ftruncate(fd, 2 * PAGE)
            assert view[:] == b"a" * 100 + bytes(2 * PAGE - 100)
    finally:
        os.close(fd)


def test_executable_runs_and_is_busy_meanwhile(place: Place) -> None:
    program = place / "cat"
    shutil.copy2("/bin/cat", program)
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        with fails(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        out, _ = running.communicate(b"through the mount")
    assert out == b"through the mount"
