"""The random exerciser in each of its modes, briefly; `fsx.py` runs it for longer by hand."""

from __future__ import annotations

import os
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


def test_the_exerciser_itself_notices(tmp_path: Path) -> None:
    exerciser = Exerciser(tmp_path / "file", 1, MODES["plain"])
    exerciser.run(50)
    with (tmp_path / "file").open("rb+") as stream:
        stream.seek(len(exerciser.model) // 2)
        stream.write(bytes([exerciser.model[len(exerciser.model) // 2] ^ 1]))
    with pytest.raises(Mismatch, match="instead of"):
        exerciser.run(0)
    exerciser.close()
