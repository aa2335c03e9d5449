"""Listings that are kept: the same as what a look into the index shows, and bounded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cafs.index import layout
from cafs.index.overlay import Overlay
from cafs.tree import listings
from cafs.tree.listings import Listings
from cafs.tree.names import Names
from cafs.types import DirEntry, Ino
from tests.unit.test_overlay import Index
from tests.unit.test_overlay import index as index

PARENTS = (Ino(7), Ino(8))


@pytest.fixture
def overlay(index: Index) -> Iterator[Overlay]:
    overlay = Overlay(index.environment)
    yield overlay
    overlay.close()


def _entries(count: int) -> list[DirEntry]:
    return [DirEntry(b"%d" % n, Ino(100 + n), 8, 3 + n) for n in range(count)]


_steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "remove", "list"]),
        st.sampled_from(PARENTS),
        st.integers(0, 9),
        st.sampled_from([0, 2, 1 << 60, 1 << 62]),
    ),
    max_size=40,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(steps=_steps)
def test_a_listing_shows_every_change(
    overlay: Overlay, steps: list[tuple[str, Ino, int, int]]
) -> None:
    names = Names(overlay)
    for step, parent, number, after in steps:
        name = b"name%d" % number
        cookie = layout.name_cookie(name)
        if step == "add":
            names.put(parent, cookie, name, Ino(100 + number), 8)
        elif step == "remove":
            names.remove(parent, cookie)
        else:
            # Names that were never asked have kept nothing.
            assert list(names.listing(parent, after)) == list(Names(overlay).listing(parent, after))
    for parent in PARENTS:
        for each in list(names.listing(parent, 0)):
            names.remove(parent, each.cookie)
        assert list(names.listing(parent, 0)) == []


def test_a_large_directory_is_read_as_it_is_listed(
    overlay: Overlay, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(overlay)
    for number in range(20):
        name = b"name%d" % number
        names.put(PARENTS[0], layout.name_cookie(name), name, Ino(100 + number), 8)
    whole = list(names.listing(PARENTS[0], 0))
    names.forget()
    monkeypatch.setattr("cafs.tree.names.LISTING_MAX", 19)
    assert list(names.listing(PARENTS[0], 0)) == whole
    assert list(names.listing(PARENTS[0], whole[4].cookie)) == whole[5:]
    # Nothing was kept: a change behind its back shows.
    overlay.delete(layout.ENTRIES, layout.entry_key(PARENTS[0], whole[0].cookie))
    assert list(names.listing(PARENTS[0], 0)) == whole[1:]


def test_the_oldest_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "NAMES_MAX", 10)
    kept = Listings()
    for directory in range(4):
        kept.keep(Ino(directory), _entries(2))
    assert [kept.get(Ino(n)) is not None for n in range(4)] == [False, True, True, True]
    kept.drop(Ino(2))
    kept.keep(Ino(5), _entries(2))
    assert [kept.get(Ino(n)) is not None for n in (1, 3, 5)] == [True, True, True]


def test_empty_directories_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listings, "NAMES_MAX", 10)
    kept = Listings()
    for directory in range(100):
        kept.keep(Ino(directory), [])
    assert sum(kept.get(Ino(n)) is not None for n in range(100)) == 10
