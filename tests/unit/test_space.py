"""When changes are let in, and what becomes of the reserve."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cafs.durable import Disk
from cafs.errors import DiskError, DiskFullError, ReadOnlyError
from cafs.lock import NAME as LOCK_NAME
from cafs.space import FRACTION, Space

MIB = 1 << 20


class StillClock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds


class Scene:
    """A disk whose figures the test sets."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.path = path
        self.free = 512 * MIB
        self.read_only = False
        self.refuses: OSError | None = None
        (path / LOCK_NAME).touch()
        real = os.statvfs(path)
        touch = os.utime

        def statvfs(where: Any) -> os.statvfs_result:
            fields = list(real)
            fields[0] = fields[1] = 4096
            fields[2] = 1024 * MIB // 4096
            fields[3] = fields[4] = self.free // 4096
            fields[8] = real.f_flag | os.ST_RDONLY if self.read_only else real.f_flag
            return os.statvfs_result(fields)

        def utime(where: Any, *args: Any, **kwargs: Any) -> None:
            if self.refuses is not None:
                raise self.refuses
            touch(where, *args, **kwargs)

        monkeypatch.setattr(os, "statvfs", statvfs)
        monkeypatch.setattr(os, "utime", utime)
        self.clock = StillClock()
        self.space = Space(Disk(), path, 8 * MIB, self.clock)

    def later(self, free: int | None = None) -> None:
        if free is not None:
            self.free = free
        self.clock.seconds += 2

    @property
    def reserve(self) -> int:
        return (self.path / "reserve").stat().st_size


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def refusal(call: Callable[[], object]) -> type[BaseException] | None:
    try:
        call()
    except (DiskFullError, ReadOnlyError) as error:
        return type(error)
    return None


def test_the_reserve_is_taken_when_there_is_room(scene: Scene) -> None:
    assert scene.reserve == 8 * MIB
    assert (scene.path / "reserve").stat().st_blocks * 512 >= 8 * MIB


def test_a_write_is_let_in_while_the_margin_stays(scene: Scene) -> None:
    margin = 1024 * MIB // FRACTION
    scene.later(margin + 10 * MIB)
    assert refusal(lambda: scene.space.admit(10 * MIB)) is None
    assert refusal(lambda: scene.space.admit(10 * MIB + 1)) is DiskFullError
    assert scene.space.free() == 10 * MIB
    assert refusal(scene.space.admit_removal) is None, "deleting works"


def test_what_waits_for_a_commit_needs_room_too(scene: Scene) -> None:
    scene.later(1024 * MIB // FRACTION + 10 * MIB)
    scene.space.commit_bytes = lambda: 6 * MIB
    assert refusal(lambda: scene.space.admit(4 * MIB)) is None
    assert refusal(lambda: scene.space.admit(5 * MIB)) is DiskFullError


def test_trouble_is_over_when_there_is_twice_the_margin(scene: Scene) -> None:
    margin = 1024 * MIB // FRACTION
    scene.later(margin - 1)
    assert refusal(lambda: scene.space.admit(0)) is DiskFullError
    assert isinstance(scene.space.problem, DiskFullError)
    scene.later(margin + MIB)
    assert refusal(lambda: scene.space.admit(0)) is None
    assert isinstance(scene.space.problem, DiskFullError), "it could begin anew any moment"
    scene.later(2 * margin)
    scene.space.look()
    assert scene.space.problem is None


@pytest.mark.parametrize("way", ["statvfs", "refusal"])
def test_a_read_only_disk_refuses_every_change(scene: Scene, way: str) -> None:
    if way == "statvfs":
        scene.read_only = True
    else:
        # After an error ext4 takes no changes, and statvfs(3) does not show it.
        scene.refuses = OSError(30, "Read-only file system")
    scene.later()
    assert refusal(lambda: scene.space.admit(0)) is ReadOnlyError
    assert refusal(scene.space.admit_removal) is ReadOnlyError
    assert isinstance(scene.space.problem, ReadOnlyError)
    scene.read_only, scene.refuses = False, None
    scene.later()
    assert refusal(scene.space.admit_removal) is None
    assert scene.space.problem is None


def test_it_is_noticed_though_nobody_writes(scene: Scene) -> None:
    scene.refuses = OSError(30, "Read-only file system")
    scene.later()
    scene.space.look()
    assert isinstance(scene.space.problem, ReadOnlyError)


def test_an_error_of_the_disk_lasts_until_a_commit_succeeds(scene: Scene) -> None:
    scene.space.failed(DiskError("write to a pack: Input/output error"))
    scene.later()
    scene.space.look()
    assert isinstance(scene.space.problem, DiskError)
    assert refusal(lambda: scene.space.admit(0)) is None
    scene.space.recovered()
    assert scene.space.problem is None


def test_the_reserve_is_given_up_once_and_taken_again(scene: Scene) -> None:
    assert scene.space.release_reserve()
    assert scene.reserve == 0
    assert not scene.space.release_reserve()
    scene.later(20 * MIB)
    scene.space.restore_reserve()
    scene.space.look()
    assert scene.reserve == 0, "there is not room enough for it"
    scene.later(512 * MIB)
    scene.space.look()
    assert scene.reserve == 8 * MIB


def test_figures_are_not_asked_for_at_each_request(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    real = os.statvfs

    def count(path: Any) -> os.statvfs_result:
        asked.append(path)
        return real(path)

    monkeypatch.setattr(os, "statvfs", count)
    scene.later()
    for _ in range(1000):
        scene.space.admit(0)
    assert len(asked) == 1
