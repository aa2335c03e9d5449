"""Content that is being written, against a bytearray.

Everything a writer may do to a file, in any order, with settling and commits in between; after
each step what a reader sees is what the bytearray says.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cafs.blobs import recipe
from cafs.config import StoreParams
from cafs.index import layout
from cafs.newstore import create
from cafs.store import Store
from cafs.types import ROOT, Attr, ChunkNo, Ino
from tests.model.storethread import StoreThread

SMALL = StoreParams(chunk_min=64, chunk_avg=4096, chunk_max=16384, pack_size=8 << 20)
SIZE_MAX = 90_000

_random = random.Random(20)
# Few patterns, so that the same chunks come again and again; one is zeros, one is short-period.
PATTERNS = (
    _random.randbytes(SIZE_MAX),
    _random.randbytes(SIZE_MAX),
    bytes(SIZE_MAX),
    b"0123456789abcdef" * (SIZE_MAX // 16),
)


@dataclass(frozen=True)
class Op:
    kind: str
    offset: int = 0
    length: int = 0
    pattern: int = 0

    def data(self) -> bytes:
        return PATTERNS[self.pattern][self.offset % 977 :][: self.length]


_lengths = st.one_of(
    st.integers(1, 300), st.integers(1, 20_000), st.sampled_from([64, 4096, 16384, 30_000])
)
_offsets = st.one_of(
    st.integers(0, 300), st.integers(0, 60_000), st.sampled_from([0, 4096, 16384, 32768])
)
_patterns = st.integers(0, len(PATTERNS) - 1)
ops = st.lists(
    st.one_of(
        st.builds(Op, st.just("append"), length=_lengths, pattern=_patterns),
        st.builds(Op, st.just("write"), _offsets, _lengths, _patterns),
        st.builds(Op, st.just("truncate"), _offsets),
        st.sampled_from([Op("settle"), Op("finish"), Op("commit"), Op("hash")]),
    ),
    min_size=1,
    max_size=14,
)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StoreThread]:
    path: Path = tmp_path_factory.mktemp("draft") / "store"
    create(path, SMALL)
    thread = StoreThread(path)
    yield thread
    thread.close()


_names = iter(f"file{number}".encode() for number in range(10**9))


async def new_file(store: Store) -> Ino:
    ino = store.tree.create(ROOT, next(_names), 0o100644, 0, 0)
    store.contents.opened(ino, writable=True)
    return ino


async def finish(store: Store, ino: Ino) -> None:
    """The last writer leaves, what it left behind is stored, and another one comes."""
    store.contents.closed(ino, writable=True)
    await store.contents.settle_unfinished()
    await store.contents.settle_all()
    with trio.fail_after(30):
        # What was hashed aside gets its name a moment later.
        while store.contents.has_draft(ino):
            await trio.sleep(0.001)
    store.contents.opened(ino, writable=True)


async def remove(store: Store, ino: Ino) -> None:
    """Give the file up, so that files of earlier examples cost later ones nothing."""
    store.contents.closed(ino, writable=True)
    await store.contents.settle_all()
    store.tree.inodes.put(ino, store.tree.inodes.get(ino)._replace(nlink=0))
    assert store.contents.discard(ino)
    store.tree.reap(ino)


def check_recipe(store: Store, attr: Attr) -> None:
    """Parts follow one another from 0 to the size, within the bounds of their kinds."""
    if not attr.blob:
        assert attr.size == 0
        return
    record = store.blobs.get(attr.blob)
    assert record.size == attr.size
    position = 0
    hole_before = False
    holes = 0
    for start, part in store.blobs.parts(attr.blob, 0, max(1, attr.size)):
        assert start == position
        assert part.length > 0
        position += part.length
        if part.kind == recipe.CHUNK:
            chunk = store.chunks.get(ChunkNo(part.ref))
            assert chunk.extent.raw_length == part.length <= SMALL.chunk_max
            assert chunk.refs > 0
        elif part.kind == recipe.LITERAL:
            assert part.length <= recipe.LITERAL_MAX
        is_hole = part.kind == recipe.HOLE
        assert not (hole_before and is_hole), "neighbouring holes are one part"
        hole_before = is_hole
        holes += part.length if is_hole else 0
    assert position == attr.size
    assert attr.aux == holes


async def play(store: Store, sequence: list[Op]) -> None:
    ino = await new_file(store)
    model = bytearray()
    contents = store.contents
    for op in sequence:
        if op.kind in ("append", "write"):
            offset = len(model) if op.kind == "append" else op.offset
            data = op.data()[: max(0, SIZE_MAX - offset)]
            if not data:
                continue
            await contents.write(ino, offset, data, privileged=True)
            if offset > len(model):
                model += bytes(offset - len(model))
            model[offset : offset + len(data)] = data
        elif op.kind == "truncate":
            await contents.truncate(ino, op.offset, privileged=True)
            model = model[: op.offset] + bytes(max(0, op.offset - len(model)))
        elif op.kind == "settle":
            await contents.settle(ino)
            attr = store.tree.inodes.get(ino)
            assert attr.size == len(model)
            check_recipe(store, attr)
        elif op.kind == "finish":
            await finish(store, ino)
        elif op.kind == "hash":
            await finish(store, ino)
            await store.hasher.once()
            check_digests(store, ino, bytes(model))
        else:
            await store.sync_file(ino)
        attr = contents.attr(ino)
        assert attr.size == len(model)
        # What is overwritten may count twice, but no byte is left out.
        assert 0 <= attr.aux <= model.count(0)
        assert await contents.read(ino, 0, len(model) + 10) == model
        middle = len(model) // 2
        assert await contents.read(ino, middle, middle + 500) == model[middle : middle + 500]
    await finish(store, ino)
    attr = store.tree.inodes.get(ino)
    assert attr.size == len(model)
    assert await contents.read(ino, 0, len(model) + 1) == model
    check_recipe(store, attr)
    await store.hasher.once()
    # The owner has it open again, but writes nothing: the digests are those of the content.
    check_digests(store, ino, bytes(model))
    assert contents.pending_bytes == 0
    await remove(store, ino)
    assert not store.chunks._pins, "a chunk is still pinned with no work under way"


def check_digests(store: Store, ino: Ino, content: bytes) -> None:
    blob = store.tree.inodes.get(ino).blob
    if not content:
        return
    record = store.blobs.get(blob)
    assert not record.flags & layout.BLOB_UNHASHED
    assert record.sha256 == hashlib.sha256(content).digest()
    assert record.sha1 == hashlib.sha1(content, usedforsecurity=False).digest()
    assert store.blobs.by_digest.find(record.sha256) == blob


_checks = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=250, deadline=None, suppress_health_check=_checks)
@given(sequence=ops)
def test_any_order_of_writing_is_what_a_bytearray_says(
    served: StoreThread, sequence: list[Op]
) -> None:
    served.run(lambda store: play(store, sequence))


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(max_examples=5000, deadline=None, suppress_health_check=_checks)
@given(sequence=ops)
def test_any_order_of_writing_at_length(served: StoreThread, sequence: list[Op]) -> None:
    served.run(lambda store: play(store, sequence))


# -- large files, whose recipes take several rows ------------------------------------------------

LARGE = 3_000_000


def large_content(seed: int) -> bytearray:
    return bytearray(random.Random(seed).randbytes(LARGE))


async def make_large(store: Store, seed: int) -> tuple[Ino, bytearray]:
    ino = await new_file(store)
    model = large_content(seed)
    for offset in range(0, LARGE, 131072):
        await store.contents.write(
            ino, offset, bytes(model[offset : offset + 131072]), privileged=True
        )
    await finish(store, ino)
    return ino, model


@pytest.mark.parametrize("offset", [0, 1, 700_001, LARGE // 2, LARGE - 10])
def test_a_small_patch_makes_few_new_chunks(served: StoreThread, offset: int) -> None:
    async def check(store: Store) -> None:
        ino, model = await make_large(store, 1)
        old = store.tree.inodes.get(ino).blob
        before = {part.ref for _, part in store.blobs.parts(old, 0, LARGE)}
        assert len(before) > 2 * layout.PARTS_PER_ROW, "the recipe is to take several rows"
        await store.contents.write(ino, offset, b"changed", privileged=True)
        model[offset : offset + 7] = b"changed"
        await finish(store, ino)
        assert await store.contents.read(ino, 0, LARGE) == model
        attr = store.tree.inodes.get(ino)
        check_recipe(store, attr)
        after = {part.ref for _, part in store.blobs.parts(attr.blob, 0, LARGE)}
        # One changed chunk, and what the cutting needs to fall into step with the old cuts.
        assert 1 <= len(after - before) <= 12
        await remove(store, ino)

    served.run(check)


def test_appending_in_pieces_gives_the_chunks_of_the_whole(served: StoreThread) -> None:
    async def check(store: Store) -> None:
        whole, model = await make_large(store, 2)
        ino = await new_file(store)
        offset = 0
        pieces = random.Random(3)
        while offset < LARGE:
            length = pieces.randrange(1, 200_000)
            await store.contents.write(
                ino, offset, bytes(model[offset : offset + length]), privileged=True
            )
            offset = min(LARGE, offset + length)
            if pieces.random() < 0.5:
                await finish(store, ino)
        await finish(store, ino)
        await store.hasher.once()
        assert store.tree.inodes.get(ino).blob == store.tree.inodes.get(whole).blob
        await remove(store, ino)
        await remove(store, whole)

    served.run(check)


@pytest.mark.parametrize("seed", range(6))
def test_a_large_file_under_random_patches(served: StoreThread, seed: int) -> None:
    async def check(store: Store) -> None:
        ino, model = await make_large(store, seed)
        choice = random.Random(seed)
        for _ in range(25):
            offset = choice.randrange(0, LARGE + 50_000)
            kind = choice.random()
            if kind < 0.7:
                data = PATTERNS[choice.randrange(4)][: choice.choice([1, 100, 5000, 70_000])]
                await store.contents.write(ino, offset, data, privileged=True)
                model += bytes(max(0, offset - len(model)))
                model[offset : offset + len(data)] = data
            elif kind < 0.8:
                await store.contents.truncate(ino, offset, privileged=True)
                model = model[:offset] + bytes(max(0, offset - len(model)))
            elif kind < 0.9:
                await store.contents.settle(ino)
                check_recipe(store, store.tree.inodes.get(ino))
            else:
                await finish(store, ino)
        assert await store.contents.read(ino, 0, len(model)) == model
        await finish(store, ino)
        check_recipe(store, store.tree.inodes.get(ino))
        assert await store.contents.read(ino, 0, len(model)) == model
        await store.hasher.once()
        check_digests(store, ino, bytes(model))
        await remove(store, ino)

    served.run(check)


# -- several at once -----------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_settling_reading_and_writing_at_once(served: StoreThread, seed: int) -> None:
    """A settle that is under way neither loses nor shows half of what is written meanwhile."""

    async def check(store: Store) -> None:
        choice = random.Random(seed)
        ino = await new_file(store)
        model = bytearray()
        writing = True

        async def settle_again_and_again() -> None:
            while writing:
                await store.contents.settle(ino)
                await trio.lowlevel.checkpoint()

        async def read_again_and_again() -> None:
            while writing:
                # What is there must not change while it is only settled: 'model' grows and
                # changes in one step with the write, so look at what both agree on before.
                size = len(model)
                seen = bytes(model)
                found = await store.contents.read(ino, 0, size)
                if seen == model:
                    assert found == seen
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(settle_again_and_again)
            nursery.start_soon(read_again_and_again)
            for _ in range(40):
                roll = choice.random()
                if roll < 0.1:
                    await store.contents.truncate(ino, 0, privileged=True)
                    model.clear()
                elif roll < 0.2:
                    size = choice.randrange(1, 60_000)
                    await store.contents.truncate(ino, size, privileged=True)
                    model[:] = model[:size] + bytes(max(0, size - len(model)))
                else:
                    append = roll < 0.7
                    offset = len(model) if append else choice.randrange(0, 60_000)
                    data = PATTERNS[choice.randrange(2)][offset % 991 :][
                        : choice.randrange(1, 9000)
                    ]
                    await store.contents.write(ino, offset, data, privileged=True)
                    model += bytes(max(0, offset - len(model)))
                    model[offset : offset + len(data)] = data
            writing = False
        assert await store.contents.read(ino, 0, len(model) + 1) == model
        await finish(store, ino)
        check_recipe(store, store.tree.inodes.get(ino))
        assert await store.contents.read(ino, 0, len(model) + 1) == model
        await store.hasher.once()
        check_digests(store, ino, bytes(model))
        await remove(store, ino)

    served.run(check)
