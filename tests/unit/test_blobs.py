"""Blob records, recipes and their references; recipes long enough to take several rows."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cafs.blobs import recipe
from cafs.blobs.digests import Digests
from cafs.blobs.recipe import Part
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.newstore import create
from cafs.store import Store
from cafs.types import NO_BLOB, BlobNo, Ino
from tests.model.storethread import StoreThread
from tests.model.test_draft import SMALL

OWNER = Ino(99)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreThread]:
    path: Path = tmp_path_factory.mktemp("blobs") / "store"
    create(path, SMALL)
    thread = StoreThread(path)
    yield thread
    thread.crash()


def digests(data: bytes) -> Digests:
    return Digests(hashlib.sha256(data).digest(), hashlib.sha1(data).digest())


def literals(count: int, length: int = 8) -> list[Part]:
    return [recipe.literal(number.to_bytes(length, "big")) for number in range(count)]


def total(parts: list[Part]) -> int:
    return recipe.total_length(parts)


def parts_of(store: Store, number: BlobNo) -> list[Part]:
    size = store.blobs.get(number).size
    found = list(store.blobs.parts(number, 0, max(1, size)))
    position = 0
    for start, part in found:
        assert start == position
        position += part.length
    assert position == size
    return [part for _, part in found]


def drop(store: Store, number: BlobNo) -> None:
    """Sweep a blob that nothing refers to, a few parts at a time."""
    if store.blobs.get(number).refs:
        store.blobs.unref(number)
    while not store.blobs.sweep(number, 1):
        pass


@pytest.mark.parametrize("count", [1, 40, 128, 129, 1000])
def test_a_recipe_comes_back_whatever_its_length(served: StoreThread, count: int) -> None:
    async def play(store: Store) -> None:
        parts = literals(count)
        number = store.blobs.adopt(parts, total(parts), digests(b"%d" % count))
        store.blobs.ref(number)
        assert parts_of(store, number) == parts
        await store.commit()
        assert parts_of(store, number) == parts
        some = list(store.blobs.parts(number, 12, 20))
        assert [start for start, _ in some] == ([8, 16] if count > 2 else [8] * (count > 1))
        drop(store, number)

    served.run(play)


def test_the_same_content_is_one_blob(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        parts = literals(3)
        number = store.blobs.adopt(parts, total(parts), digests(b"same"))
        store.blobs.ref(number)
        assert store.blobs.adopt(parts, total(parts), digests(b"same")) == number
        assert store.blobs.by_digest.find(digests(b"same").sha256) == number
        await store.commit()
        assert store.blobs.adopt(parts, total(parts), digests(b"same")) == number
        store.blobs.unref(number)
        assert store.blobs.by_digest.find(digests(b"same").sha256) == number, (
            "until the sweep takes it"
        )
        store.blobs.ref(number)
        assert store.blobs.sweep(number, 10), "it has come back in time"
        assert parts_of(store, number) == parts
        drop(store, number)
        assert store.blobs.by_digest.find(digests(b"same").sha256) == NO_BLOB
        assert store.counters.blobs == store.counters.blob_bytes == 0

    served.run(play)


def test_a_reference_that_is_not_there_cannot_be_dropped(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        number = store.blobs.begin(OWNER)
        with pytest.raises(IndexDamagedError):
            store.blobs.unref(number)
        drop(store, number)

    served.run(play)


def test_a_hashed_blob_does_not_change(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        number = store.blobs.adopt(literals(1), 8, digests(b"fixed"))
        store.blobs.ref(number)
        with pytest.raises(IndexDamagedError):
            store.blobs.splice(number, 0, 8, literals(1), 8)
        fork = store.blobs.fork(number, OWNER)
        assert parts_of(store, fork) == literals(1)
        assert (fork, OWNER) in store.blobs.unhashed()
        store.blobs.ref(fork)
        assert store.blobs.hashed(fork, digests(b"fixed")) == number
        assert store.blobs.hashed(fork, digests(b"other")) == fork
        assert (fork, OWNER) not in store.blobs.unhashed()
        drop(store, fork)
        drop(store, number)

    served.run(play)


pieces = st.one_of(
    st.integers(1, 200).map(recipe.hole),
    st.binary(min_size=1, max_size=40).map(recipe.literal),
)
splices = st.lists(
    st.tuples(st.integers(0, 10**6), st.integers(0, 300), st.lists(pieces, max_size=200)),
    max_size=8,
)


def content(parts: list[Part]) -> bytes:
    return b"".join(recipe.expand(part, 0, part.length) for part in parts)


@settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
@given(first=st.lists(pieces, max_size=300), sequence=splices, commit=st.booleans())
def test_splicing_is_what_a_list_says(
    served: StoreThread,
    first: list[Part],
    sequence: list[tuple[int, int, list[Part]]],
    commit: bool,
) -> None:
    """Replace the parts between two borders at the end, or by as many bytes in the middle."""

    async def play(store: Store) -> None:
        number = store.blobs.begin(OWNER)
        store.blobs.ref(number)
        store.blobs.splice(number, 0, 0, first, total(first))
        model = content(first)
        assert content(parts_of(store, number)) == model
        for where, span, new in sequence:
            old = parts_of(store, number)
            begin = where % (len(old) + 1)
            start = total(old[:begin])
            stop = begin + span
            end = total(old[:stop])
            if stop < len(old):
                missing = end - start - total(new)
                if missing < 0:
                    continue
                new = [*new, recipe.hole(missing)] if missing else new
            else:
                end = len(model)
            model = model[:start] + content(new) + model[end:]
            store.blobs.splice(number, start, end, new, len(model))
            found = parts_of(store, number)
            assert content(found) == model
            assert store.blobs.hole_bytes(number) == recipe.hole_length(found)
            kinds = [part.kind for part in found]
            assert (recipe.HOLE, recipe.HOLE) not in itertools.pairwise(kinds) or (
                store.blobs.get(number).flags & layout.BLOB_ROWS
            ), "neighbouring holes are joined, unless they lie in different rows"
            if commit:
                await store.commit()
        assert store.counters.blob_bytes == len(model)
        drop(store, number)
        assert store.counters.blob_bytes == 0
        rows = store.overlay.scan(layout.RECIPES, layout.u48(number), layout.u48(number))
        assert not list(rows), "no row is left behind"

    served.run(play)


def test_a_sweep_takes_every_row_however_few_parts_each_has(served: StoreThread) -> None:
    async def play(store: Store) -> None:
        parts = literals(1000)
        number = store.blobs.begin(OWNER)
        store.blobs.ref(number)
        store.blobs.splice(number, 0, 0, parts, total(parts))
        # Every row loses most of its parts, as random writes into a large file leave them.
        kept = total(parts)
        for start in reversed(range(0, kept, 8 * layout.PARTS_PER_ROW)):
            end = min(start + 8 * (layout.PARTS_PER_ROW - 4), kept)
            hole = recipe.hole(end - start)
            store.blobs.splice(number, start, end, [hole], kept)
        store.blobs.unref(number)
        while not store.blobs.sweep(number, 2 * layout.PARTS_PER_ROW):
            pass
        prefix = layout.u48(number)
        assert list(store.overlay.scan(layout.RECIPES, prefix, prefix)) == []

    served.run(play)
