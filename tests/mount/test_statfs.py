"""df and df -i: true figures, and quickly."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

from tests.mount.conftest import Place
from tests.mount.mounted import Mount


def _used_inodes(path: Path) -> int:
    status = os.statvfs(path)
    return status.f_files - status.f_ffree


def test_figures_make_sense(place: Place) -> None:
    status = os.statvfs(place.path)
    assert status.f_namemax == 255
    assert status.f_bsize >= 512
    assert status.f_frsize >= 512
    assert 0 < status.f_bavail <= status.f_bfree <= status.f_blocks
    assert 0 < status.f_favail <= status.f_files
    assert status.f_ffree <= status.f_files
    assert not status.f_flag & os.ST_RDONLY


def test_df_reads_them(place: Place) -> None:
    for option in ("-k", "-i"):
        done = subprocess.run(["df", option, place.path], check=True, stdout=subprocess.PIPE)
        figures = done.stdout.splitlines()[1].split()
        assert int(figures[1]) >= int(figures[3]) > 0


def test_each_file_counts_and_each_link_does_not(cafs_place: Place) -> None:
    before = _used_inodes(cafs_place.path)
    for i in range(50):
        (cafs_place / f"f{i}").touch()
    (cafs_place / "d").mkdir()
    (cafs_place / "s").symlink_to("x")
    os.link(cafs_place / "f0", cafs_place / "l")
    assert _used_inodes(cafs_place.path) == before + 52
    for i in range(50):
        os.unlink(cafs_place / f"f{i}")
    assert _used_inodes(cafs_place.path) == before + 3
    os.unlink(cafs_place / "l")
    (cafs_place / "d").rmdir()
    (cafs_place / "s").unlink()
    assert _used_inodes(cafs_place.path) == before


def test_written_bytes_are_used_once_however_often_they_are_there(
    cafs_place: Place, cafs_mount: Mount
) -> None:
    size = 24 << 20
    data = random.Random(11).randbytes(size)

    def used() -> int:
        status = os.statvfs(cafs_place.path)
        return (status.f_blocks - status.f_bfree) * status.f_frsize

    stored = _allocated(cafs_mount.store)
    for i in range(3):
        with (cafs_place / f"copy{i}").open("wb") as stream:
            stream.write(data)
            os.fsync(stream.fileno())
    grown = _allocated(cafs_mount.store) - stored
    assert size * 0.95 < grown < size * 1.5
    assert used() >= size


def _allocated(path: Path) -> int:
    """Bytes that a directory takes on its disk."""
    return sum(
        os.lstat(Path(directory) / name).st_blocks * 512
        for directory, _, names in os.walk(path)
        for name in names
    )
