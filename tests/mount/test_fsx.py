"""The random exerciser in each of its modes, briefly; `fsx.py` runs it for longer by hand."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.fsx import MODES, Exerciser, Mismatch
from tests.mount.mounted import Mount


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("seed", range(2))
def test_random_io(place: Place, mode: str, seed: int) -> None:
    exerciser = Exerciser(place / "file", seed, MODES[mode])
    try:
        exerciser.run(250)
    finally:
        exerciser.close()


def test_random_io_on_a_larger_file(place: Place) -> None:
    exerciser = Exerciser(place / "file", 5, MODES["mmap"], max_size=8 << 20, max_piece=1 << 20)
    try:
        exerciser.run(120)
    finally:
        exerciser.close()


def test_random_io_across_restarts(cafs_place: Place, cafs_mount: Mount) -> None:
    path = cafs_place / "file"
    model = bytearray()
    for round_ in range(3):
        copy = cafs_place / f"copy{round_}"
        exerciser = Exerciser(copy, round_, MODES["all but direct"])
        exerciser.run(100)
        exerciser.close()
        model = exerciser.model
        os.rename(copy, path)
        cafs_mount.restart()
        assert path.read_bytes() == bytes(model)


STRIPE = 10_000
WRITERS = 4
STRIPES = 12
"""Of each writer; they lie interleaved, so that neighbours share pages and chunks."""


def _write_own_stripes(path: Path, writer: int, steps: int) -> None:
    """Write and read back only what is this writer's; raise Mismatch at the first wrong byte."""
    rng = random.Random(writer)
    model = [bytearray(STRIPE) for _ in range(STRIPES)]
    fd = os.open(path, os.O_RDWR)
    for _ in range(steps):
        index, at = rng.randrange(STRIPES), rng.randrange(STRIPE)
        start = (index * WRITERS + writer) * STRIPE
        piece = rng.randbytes(min(rng.choice((1, 300, 5000)), STRIPE - at))
        os.pwrite(fd, piece, start + at)
        model[index][at : at + len(piece)] = piece
        look = rng.randrange(STRIPES)
        got = os.pread(fd, STRIPE, (look * WRITERS + writer) * STRIPE)
        if got != bytes(model[look][: len(got)]) or any(model[look][len(got) :]):
            raise Mismatch(f"writer {writer}, stripe {look}")
    os.close(fd)


def test_writers_of_one_file_side_by_side(place: Place) -> None:
    path = place / "shared"
    path.touch()
    children = []
    for writer in range(WRITERS):
        child = os.fork()
        if child == 0:
            try:
                _write_own_stripes(path, writer, 150)
            except BaseException as error:
                os.write(2, f"{error!r}\n".encode())
                os._exit(1)
            os._exit(0)
        children.append(child)
    # Meanwhile what they write is made durable and forgotten by the kernel, again and again.
    fd = os.open(path, os.O_RDONLY)
    try:
        failed = 0
        while children:
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            for child in list(children):
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    children.remove(child)
                    failed += status != 0
    finally:
        os.close(fd)
    assert not failed


def test_the_exerciser_itself_notices(tmp_path: Path) -> None:
    exerciser = Exerciser(tmp_path / "file", 1, MODES["plain"])
    exerciser.run(50)
    with (tmp_path / "file").open("rb+") as stream:
        stream.seek(len(exerciser.model) // 2)
        stream.write(bytes([exerciser.model[len(exerciser.model) // 2] ^ 1]))
    with pytest.raises(Mismatch, match="instead of"):
        exerciser.run(0)
    exerciser.close()
