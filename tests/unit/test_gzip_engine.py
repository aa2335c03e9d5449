"""GNU gzip as an engine: the bytes it always makes, and programs that only say they are it."""

from __future__ import annotations

import fcntl
import os
import random
import subprocess
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives.engine import Params
from cafs.archives.gnu_gzip import GnuGzip
from cafs.archives.piped import SESSION_NICENESS
from cafs.archives.program import Program
from cafs.errors import EngineError
from tests.unit.engine_samples import MACHINE_GZIP, liar, run, text

LEVELS = range(1, 10)


@pytest.fixture(scope="module")
def gnu() -> GnuGzip:
    return GnuGzip.identify(Program.read(MACHINE_GZIP))


def children() -> set[int]:
    """Processes that this one has started, whether they run or have not been waited for."""
    lists = Path("/proc/self/task").glob("*/children")
    return {int(pid) for each in lists for pid in each.read_text().split()}


@pytest.fixture(autouse=True)
def _no_process_or_descriptor_left() -> Iterator[None]:
    running, open_files = children(), len(os.listdir("/proc/self/fd"))
    yield
    assert children() <= running
    assert len(os.listdir("/proc/self/fd")) <= open_files


def gzip_of(file: Path, level: int) -> bytes:
    return subprocess.run(
        [MACHINE_GZIP, "-n", f"-{level}", "-c", file], stdout=subprocess.PIPE, check=True
    ).stdout[10:-8]


def test_it_says_what_it_is(gnu: GnuGzip) -> None:
    assert gnu.version.startswith("gzip 1.")
    assert gnu.kind == "gnu-gzip"
    assert len(gnu.program.sha256) == 64


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_makes_what_the_program_makes(gnu: GnuGzip, tmp_path: Path, level: int) -> None:
    data = text(700_000, level) + os.urandom(150_000) + bytes(300_000)
    (tmp_path / "raw").write_bytes(data)
    stream = run(gnu.compressor(level, background=bool(level % 2)), data)
    assert stream == gzip_of(tmp_path / "raw", level)


@pytest.mark.parametrize("size", [0, 1, 2, 4095, 4096, 4097, 32768, 65535, 65536, 65537, 262144])
def test_sizes_at_borders(gnu: GnuGzip, tmp_path: Path, size: int) -> None:
    data = text(size, size)
    (tmp_path / "raw").write_bytes(data)
    assert run(gnu.compressor(6, background=False), data) == gzip_of(tmp_path / "raw", 6)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 70_000), max_size=12))
def test_how_it_is_fed_changes_nothing(gnu: GnuGzip, cuts: list[int]) -> None:
    data = text(300_000, 3)
    whole = run(gnu.compressor(6, background=False), data)
    compressor = gnu.compressor(6, background=False)
    try:
        out = []
        at = 0
        for cut in cuts:
            out.append(compressor.feed(data[at : at + cut]))
            at = min(len(data), at + cut)
        out.append(compressor.feed(bytearray(data[at:])))
        out.append(compressor.finish())
    finally:
        compressor.close()
    assert b"".join(out) == whole


def _window_end() -> bytes:
    """Bytes in which the match at 65,274 is lost if the window moves on there."""
    chance = random.Random(5)
    data = bytearray(chance.choices(range(150), k=200_000))
    data[65274:65474] = data[32768:32968]
    return bytes(data)


def test_gzip_depends_on_how_it_reads_and_the_engine_does_not(gnu: GnuGzip, tmp_path: Path) -> None:
    data = _window_end()
    (tmp_path / "raw").write_bytes(data)
    expected = gzip_of(tmp_path / "raw", 6)

    # The control: a read that ends one byte before the end of gzip's window.
    process = subprocess.Popen(
        [MACHINE_GZIP, "-n", "-6", "-c"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        stdin, pipe = process.stdin, process.stdin.fileno()
        assert os.write(pipe, data[:65535]) == 65535
        _wait_until_read(pipe)
        # Its output is larger than a pipe: it has to be read while the rest is written.
        writer = threading.Thread(target=lambda: _write_all(stdin, data[65535:]))
        writer.start()
        got = process.stdout.read()
        writer.join()
    assert got[10:-8] != expected

    compressor = gnu.compressor(6, background=False)
    try:
        out = [compressor.feed(data[:65535])]
        _wait_until_read(compressor._piped._process.stdin.fileno())  # type: ignore[union-attr]
        out += [compressor.feed(data[65535:]), compressor.finish()]
    finally:
        compressor.close()
    assert b"".join(out) == expected


def _write_all(pipe: IO[bytes], data: bytes) -> None:
    with pipe:
        pipe.write(data)


def _wait_until_read(pipe: int) -> None:
    """Until the program has taken all that is in the pipe, and waits for more."""
    deadline = time.monotonic() + 20
    while int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), "little"):
        assert time.monotonic() < deadline
        os.sched_yield()


def test_its_environment_is_not_ours(
    gnu: GnuGzip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = text(100_000)
    (tmp_path / "raw").write_bytes(data)
    expected = gzip_of(tmp_path / "raw", 6)
    monkeypatch.setenv("GZIP", "-1")
    assert run(gnu.compressor(6, background=False), data) == expected


def test_an_upgrade_under_a_running_engine_changes_nothing(gnu: GnuGzip, tmp_path: Path) -> None:
    data = text(100_000)
    (tmp_path / "raw").write_bytes(data)
    copy = tmp_path / "gzip-copy"
    copy.write_bytes(MACHINE_GZIP.read_bytes())
    engine = GnuGzip.identify(Program.read(copy))
    copy.write_text("#!/bin/sh\necho another\n")
    assert run(engine.compressor(6, background=False), data) == gzip_of(tmp_path / "raw", 6)


@pytest.mark.parametrize("params", [0, 10, 6 | 8 << 4, 6 | 1 << 8, 1 << 11, -1])
def test_parameters_that_are_not_its_own(gnu: GnuGzip, params: int) -> None:
    with pytest.raises(EngineError):
        gnu.compressor(params, background=False)


def test_parameters_are_packed_as_the_format_says() -> None:
    assert Params(6, 9, 2).pack() == 6 | 9 << 4 | 2 << 8
    assert Params.unpack(6 | 9 << 4 | 2 << 8) == Params(6, 9, 2)


@pytest.mark.parametrize("version", ["pigz 2.6", "Apple gzip 403", "BusyBox v1", "", "gzip"])
def test_what_is_not_gnu_gzip_is_told_apart(tmp_path: Path, version: str) -> None:
    with pytest.raises(EngineError, match="not GNU gzip"):
        GnuGzip.identify(Program.read(liar(tmp_path, "cat", version)))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "bytes"),
        (b"neither script nor program", "no binary"),
        (b'#!/bin/sh\nexec /usr/bin/gzip "$@"\n', "no binary"),
        (b"\x7fELF and no more", "run"),
    ],
)
def test_what_is_no_program(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "gzip"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=words):
        GnuGzip.identify(Program.read(path))


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be read"):
        Program.read(tmp_path / "gzip")


HOSTILE = {
    "hangs": "sleep 1000",
    "hangs with closed output": "exec >&- 2>&-; sleep 1000",
    "reads and is silent": "cat >/dev/null; sleep 1000",
    "writes forever": "cat /dev/zero",
    "trickles": "while :; do printf x; sleep 0.02; done",
    "complains forever": "cat /dev/zero >&2",
    "dies at once": "exit 3",
    "dies in the middle": "head -c 5000 >/dev/null; kill -9 $$",
    "ends well and early": "exit 0",
    "makes no gzip": "cat",
    "is cut off": "/usr/bin/gzip -nc6 | head -c 3000",
    "has another header": "/usr/bin/gzip -c6 | tr '\\010' '\\011'",
    "leaves a child behind": "sleep 1000 & exit 0",
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_program_is_an_error_in_bounded_time(tmp_path: Path, how: str) -> None:
    engine = GnuGzip.identify(Program.read(liar(tmp_path, HOSTILE[how])), patience_s=0.2)
    began = time.monotonic()
    with pytest.raises(EngineError) as caught:
        run(engine.compressor(6, background=True), text(600_000) + os.urandom(600_000))
    # The patience, and what the input would take at the slowest rate in proportion to it.
    assert time.monotonic() - began < 15
    assert caught.value.meaning.exit_code == 16
    assert str(tmp_path) in str(caught.value) or "gzip" in str(caught.value)


def test_what_it_complains_about_is_handed_on(tmp_path: Path) -> None:
    engine = GnuGzip.identify(Program.read(liar(tmp_path, "cat >/dev/null; echo no >&2; exit 5")))
    with pytest.raises(EngineError, match=r"ended with status 5: no"):
        run(engine.compressor(6, background=False), b"some")


def test_a_liar_may_make_other_bytes(gnu: GnuGzip, tmp_path: Path) -> None:
    engine = GnuGzip.identify(Program.read(liar(tmp_path, "exec /usr/bin/gzip -nc1")))
    data = text(200_000)
    made = run(engine.compressor(6, background=False), data)
    assert made == run(gnu.compressor(1, background=False), data)


@pytest.mark.parametrize("feeding", [False, True])
def test_a_compressor_that_nobody_wants_any_more(gnu: GnuGzip, feeding: bool) -> None:
    compressor = gnu.compressor(9, background=True)
    if feeding:
        compressor.feed(bytes(4 << 20))
    compressor.close()
    compressor.close()
    with pytest.raises(EngineError):
        compressor.feed(bytes(8192))


def test_background_work_stands_back(gnu: GnuGzip) -> None:
    for background, niceness in ((True, 19), (False, os.getpriority(os.PRIO_PROCESS, 0))):
        compressor = gnu.compressor(6, background=background)
        try:
            pid = compressor._piped._process.pid
            assert os.getpriority(os.PRIO_PROCESS, pid) == niceness
            group = Path(f"/proc/{pid}/autogroup")
            if background and group.exists() and os.geteuid() == 0:
                assert group.read_text().split()[-1] == str(SESSION_NICENESS)
        finally:
            compressor.close()


def test_many_at_once(gnu: GnuGzip) -> None:
    data = text(300_000)
    expected = run(gnu.compressor(6, background=False), data)
    compressors = [gnu.compressor(6, background=True) for _ in range(6)]
    out: list[list[bytes]] = [[] for _ in compressors]
    step = 100_000
    for at in range(0, len(data), step):
        for compressor, mine in zip(compressors, out, strict=True):
            mine.append(compressor.feed(data[at : at + step]))
    for compressor, mine in zip(compressors, out, strict=True):
        mine.append(compressor.finish())
        compressor.close()
    assert all(b"".join(mine) == expected for mine in out)
