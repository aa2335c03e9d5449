"""At rest the index takes no memory of those who have it open, and is there again at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs.index import layout
from cafs.index.env import Environment
from cafs.index.overlay import Layer
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock

RECORDS = 5_000
WAIT_S = 20.0


class HastyWriter(IndexWriter):
    """Its process rests after a moment."""

    def start(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            program = (
                "import sys; from cafs.index import writer_process as it; it.REST_S = 0.01; "
                f"sys.exit(it.main({str(self._directory)!r}))"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(self._lock_fd,),
                bufsize=0,
                cwd=Path(__file__).parents[2],
            )
        return self._process


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[HastyWriter]:
    (tmp_path / "index").mkdir()
    lock = StoreLock(tmp_path)
    writer = HastyWriter(tmp_path / "index", lock.fd)
    yield writer
    writer.close()
    lock.release()


def layer(first: int, count: int) -> Layer:
    changes: Layer = [{} for _ in layout.DATABASES]
    for number in range(first, first + count):
        changes[layout.SYMLINKS][layout.u48(number)] = b"a target %d" % number
    return changes


def mapped_kib(pid: int, file: Path) -> int | None:
    """Resident KiB of the file's mapping; None without one."""
    found = None
    mine = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            mine = line.endswith(str(file))
            found = 0 if mine and found is None else found
        elif mine and line.startswith("Rss:"):
            found = (found or 0) + int(line.split()[1])
    return found


def anonymous_kib(pid: int) -> int:
    """What a process has in memory that belongs to no file."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss_Anon:"))


def test_a_writer_at_rest_gives_back_what_a_batch_took(writer: HastyWriter) -> None:
    writer.write(layer(1, 10))
    before = anonymous_kib(writer.pid)
    writer.write(layer(1, 20 * RECORDS))
    deadline = time.monotonic() + WAIT_S
    while (more := anonymous_kib(writer.pid) - before) > 10 << 10:
        assert time.monotonic() < deadline, f"the writer still has {more} KiB of the batch"
        time.sleep(0.005)


def test_a_writer_at_rest_maps_nothing_and_goes_on(writer: HastyWriter, tmp_path: Path) -> None:
    file = tmp_path / "index" / "data.mdb"
    for turn in range(3):
        writer.write(layer(1 + turn * RECORDS, RECORDS))
        deadline = time.monotonic() + WAIT_S
        while mapped_kib(writer.pid, file) is not None:
            assert time.monotonic() < deadline, "the writer still has the index mapped"
            time.sleep(0.005)
    environment = Environment(tmp_path / "index")
    with environment.begin() as txn:
        for number in (1, RECORDS + 1, 3 * RECORDS):
            value = environment.get(txn, layout.SYMLINKS, layout.u48(number))
            assert value == b"a target %d" % number
    environment.close()


def test_a_reader_at_rest_has_no_pages_and_reads_on(writer: HastyWriter, tmp_path: Path) -> None:
    file = tmp_path / "index" / "data.mdb"
    writer.write(layer(1, RECORDS))
    environment = Environment(tmp_path / "index")
    with environment.begin() as txn:
        for _ in range(2):
            for number in range(1, RECORDS + 1, 7):
                value = environment.get(txn, layout.SYMLINKS, layout.u48(number))
                assert value == b"a target %d" % number
            before = mapped_kib(os.getpid(), file)
            environment.rest()
            after = mapped_kib(os.getpid(), file)
            assert before is not None and after is not None
            assert before > 100 and after < before / 4
    environment.close()
