"""A rename whose commit fails has happened all the same: the kernel must not go on as if not."""

from __future__ import annotations

import os

import pytest

from tests.fault.smalldisk import wait_until
from tests.lifecycle.test_lifecycle import Place, pytestmark
from tests.lifecycle.test_lifecycle import place as place
from tests.lifecycle.test_unmount import limit, writer_of

assert pytestmark


@pytest.mark.parametrize("replaces", [False, True])
def test_what_is_synced_after_a_rename_that_failed_is_kept(place: Place, replaces: bool) -> None:
    pid = place.up("--commit-interval", "1min")["pid"]
    assert isinstance(pid, int)
    new, old = place.mountpoint / "new", place.mountpoint / "old"
    new.write_text("new")
    if replaces:
        old.write_text("old")
    assert old.exists() == replaces
    ino = new.stat().st_ino
    writer = writer_of(pid)
    unlimited = limit(writer, 4096)
    with pytest.raises(OSError, match=r"Input/output error|No space"):
        os.rename(new, old)
    limit(writer, unlimited)
    wait_until("the kernel knows better", lambda: old.exists() and old.stat().st_ino == ino)
    wait_until("also of the name that is gone", lambda: not new.exists())
    with old.open("a") as file:
        file.write(" and more")
        file.flush()
        os.fsync(file.fileno())
    place.kill()
    place.up()
    assert old.read_text() == "new and more"
    assert os.listdir(place.mountpoint) == ["old"]
