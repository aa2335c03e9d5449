"""A small real disk for the tests that fill one or make it ill."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fault.smalldisk import SmallDisk, need_loop_devices


@pytest.fixture
def disk() -> Iterator[SmallDisk]:
    need_loop_devices()
    disk = SmallDisk()
    yield disk
    disk.close()
