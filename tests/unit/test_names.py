"""Names that collide: found, listed once, with cookies that stay, and bounded in number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from cafs.index import layout
from cafs.index.overlay import Overlay
from cafs.tree import names
from cafs.tree.names import Names
from cafs.types import Ino
from tests.unit.test_overlay import Index
from tests.unit.test_overlay import index as index

PARENT = Ino(7)


class Directory(NamedTuple):
    names: Names

    def add(self, name: bytes, ino: int) -> bool:
        """Whether it was displaced."""
        place = self.names.place(PARENT, name)
        assert place is not None
        self.names.put(PARENT, place[0], name, Ino(ino), 8)
        return place[1]


@pytest.fixture
def directory(index: Index) -> Iterator[Directory]:
    overlay = Overlay(index.environment)
    yield Directory(Names(overlay))
    overlay.close()


@pytest.fixture
def collisions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every name wants the same place, the last but one."""
    monkeypatch.setattr(layout, "name_cookie", lambda name: (1 << 63) - 2)


def test_a_name_is_found_at_its_own_hash(directory: Directory) -> None:
    assert not directory.add(b"name", 20)
    found = directory.names.find(PARENT, b"name", probed=False)
    assert found is not None
    assert (found.ino, found.type, found.cookie) == (20, 8, layout.name_cookie(b"name"))
    assert directory.names.find(PARENT, b"other", probed=True) is None
    assert directory.names.find(Ino(8), b"name", probed=True) is None


@pytest.mark.usefixtures("collisions")
def test_names_that_collide_are_all_found(directory: Directory) -> None:
    displaced = [directory.add(b"name%d" % number, 20 + number) for number in range(5)]
    assert displaced == [False, True, True, True, True]
    for number in range(5):
        found = directory.names.find(PARENT, b"name%d" % number, probed=True)
        assert found is not None and found.ino == 20 + number
    # The order goes around the end of the range; each is listed once.
    listed = [entry.ino for entry in directory.names.listing(PARENT, 2)]
    assert sorted(listed) == [20, 21, 22, 23, 24]


@pytest.mark.usefixtures("collisions")
def test_a_gap_between_them_hides_none(directory: Directory) -> None:
    for number in range(3):
        directory.add(b"name%d" % number, 20 + number)
    gone = directory.names.find(PARENT, b"name1", probed=True)
    assert gone is not None
    directory.names.remove(PARENT, gone.cookie)
    last = directory.names.find(PARENT, b"name2", probed=True)
    assert last is not None and last.ino == 22
    assert directory.add(b"name3", 23)
    again = directory.names.find(PARENT, b"name3", probed=True)
    assert again is not None and again.cookie == gone.cookie


@pytest.mark.usefixtures("collisions")
def test_names_made_to_collide_are_bounded(directory: Directory) -> None:
    for number in range(names.PROBES):
        directory.add(b"name%d" % number, 20 + number)
    assert directory.names.place(PARENT, b"one too many") is None


def test_a_listing_goes_on_from_any_cookie(directory: Directory) -> None:
    for number in range(50):
        directory.add(b"file%d" % number, 100 + number)
    entries = list(directory.names.listing(PARENT, 2))
    assert [entry.cookie for entry in entries] == sorted(entry.cookie for entry in entries)
    for position in (0, 10, 48, 49):
        rest = list(directory.names.listing(PARENT, entries[position].cookie))
        assert rest == entries[position + 1 :]
