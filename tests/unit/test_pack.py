"""Packs: what was appended is read back, what was synced survives, what is void goes."""

import os
import random
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.blobs import packfile
from cafs.blobs.pack import PackStore, StoredChunk
from cafs.blobs.sidecar import RECORD_LENGTH, SidecarRecord, read_sidecar
from cafs.durable import Disk
from cafs.errors import ChunkDamagedError, DamagedError
from cafs.types import Extent, PackNo

STORE_ID = b"0123456789abcdef"
PACK_SIZE = 10_000
Sizes = dict[PackNo, tuple[int, bool]]


def stored(length: int, seed: int = 0) -> StoredChunk:
    """A chunk of *length* stored bytes that no other seed has."""
    data = random.Random(f"{length} {seed}").randbytes(length)
    digest = xxhash.xxh3_128_digest(data) * 2
    return StoredChunk(digest, data, 0, length, xxhash.xxh3_64_intdigest(data))


def some(count: int, length: int = 1000) -> list[StoredChunk]:
    return [stored(length, seed) for seed in range(count)]


def read(packs: PackStore, extent: Extent) -> bytes | None:
    return packs.read_stored(extent.pack, extent.offset, extent.stored_length)


def sidecar_records(packs: PackStore, pack: PackNo) -> list[SidecarRecord]:
    side = read_sidecar(packs.sidecar_path(pack))
    records = list(side)
    assert side.torn is None
    return records


def assert_intact(packs: PackStore, chunks: list[StoredChunk], extents: list[Extent]) -> None:
    """Each chunk lies where its extent says, and its pack's sidecar says the same."""
    assert len(chunks) == len(extents)
    sides = {
        pack: {record.offset: record for record in sidecar_records(packs, pack)}
        for pack in {extent.pack for extent in extents}
    }
    for chunk, extent in zip(chunks, extents, strict=True):
        assert read(packs, extent) == chunk.stored
        assert sides[extent.pack][extent.offset] == SidecarRecord(
            chunk.sha256,
            extent.offset,
            extent.stored_length,
            extent.codec,
            extent.raw_length,
            extent.xxh3,
        )


@pytest.fixture(autouse=True)
def _descriptors_are_given_back() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert len(os.listdir("/proc/self/fd")) == len(before)


Opener = Callable[..., PackStore]


@pytest.fixture
def open_packs(tmp_path: Path) -> Iterator[Opener]:
    """Opens the packs in tmp_path; problems end the test unless they are announced."""
    opened: list[PackStore] = []

    def open_packs(
        packs: Sizes | None = None, next_pack: int = 1, problems: int = 0, size: int = PACK_SIZE
    ) -> PackStore:
        store = PackStore(Disk(), tmp_path, STORE_ID, size)
        opened.append(store)
        found = store.recover(packs or {}, PackNo(next_pack))
        assert len(found) == problems, found
        return store

    yield open_packs
    for store in opened:
        store.close()


def test_chunks_lie_back_to_back(open_packs: Opener) -> None:
    packs = open_packs()
    chunks = [stored(length) for length in (1, 100, 255)]
    extents = packs.append(chunks)
    assert [(extent.pack, extent.offset) for extent in extents] == [(1, 32), (1, 33), (1, 133)]
    packs.sync()
    assert_intact(packs, chunks, extents)
    assert packs.read_stored(PackNo(1), 32, 101) == bytes(chunks[0].stored) + chunks[1].stored
    packs.check_header(PackNo(1))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9968), max_size=5), max_size=8))
def test_no_chunk_straddles_packs(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[int]]
) -> None:
    directory = tmp_path_factory.mktemp("packs")
    with closing(PackStore(Disk(), directory, STORE_ID, PACK_SIZE)) as packs:
        assert packs.recover({}, PackNo(1)) == []
        chunks: list[StoredChunk] = []
        extents: list[Extent] = []
        for batch in batches:
            fresh = [stored(length, len(chunks) + seed) for seed, length in enumerate(batch)]
            chunks += fresh
            extents += packs.append(fresh)
        packs.sync()
        assert_intact(packs, chunks, extents)
        for pack, (size, sealed) in packs.sizes().items():
            ends = [32] + [e.offset + e.stored_length for e in extents if e.pack == pack]
            starts = [e.offset for e in extents if e.pack == pack]
            assert ends[:-1] == starts
            assert size == ends[-1] == os.path.getsize(packs.pack_path(pack)) <= PACK_SIZE
            assert sealed == (pack != max(packs.sizes()))


def test_nothing_counts_as_durable_before_a_sync(open_packs: Opener) -> None:
    packs = open_packs()
    packs.append(some(12))
    assert packs.sizes() == {1: (9032, False), 2: (3032, False)}
    assert packs.synced() == {1: 0, 2: 0}
    assert packs.unsynced_bytes == 12000
    packs.sync()
    assert packs.sizes() == {1: (9032, True), 2: (3032, False)}
    assert packs.synced() == {1: 9032, 2: 3032}
    assert packs.unsynced_bytes == 0


def test_going_on_after_a_restart(open_packs: Opener) -> None:
    packs = open_packs()
    chunks = some(12)
    extents = packs.append(chunks)
    packs.sync()
    committed, next_pack = packs.sizes(), packs.next_pack_no
    packs.close()

    packs = open_packs(committed, next_pack)
    assert packs.sizes() == committed
    more = [stored(1000, seed) for seed in range(100, 110)]
    extents += packs.append(more)
    assert extents[12][:2] == (2, 3032)
    packs.sync()
    assert_intact(packs, chunks + more, extents)
    assert [pack for pack, (_, sealed) in packs.sizes().items() if not sealed] == [3]


def test_what_was_not_committed_is_void(open_packs: Opener, tmp_path: Path) -> None:
    packs = open_packs()
    chunks = some(3)
    extents = packs.append(chunks)
    packs.sync()
    committed = packs.sizes()
    packs.append([stored(1000, seed) for seed in range(50, 70)])
    packs.sync()
    assert len(os.listdir(tmp_path)) == 6
    packs.close()

    packs = open_packs(committed, 2)
    assert sorted(os.listdir(tmp_path)) == ["00000001.pack", "00000001.side"]
    assert os.path.getsize(packs.pack_path(PackNo(1))) == 3032
    assert len(sidecar_records(packs, PackNo(1))) == 3
    other = [stored(500, seed) for seed in range(9)]
    extents += packs.append(other)
    packs.sync()
    assert_intact(packs, chunks + other, extents)


def test_a_kill_in_the_middle_of_a_sync(open_packs: Opener) -> None:
    """The sidecar has records of chunks that no commit has seen, and a torn one."""
    packs = open_packs()
    chunks = some(3)
    extents = packs.append(chunks)
    packs.sync()
    committed = packs.sizes()
    packs.append(some(2, 700))
    packs.sync()
    with open(packs.sidecar_path(PackNo(1)), "ab") as file:
        file.write(b"torn")
    packs.close()
    packs = open_packs(committed, 2)
    assert len(sidecar_records(packs, PackNo(1))) == 3
    assert_intact(packs, chunks, extents)


def test_recovering_twice_is_the_same(open_packs: Opener, tmp_path: Path) -> None:
    packs = open_packs()
    packs.append(some(12))
    packs.sync()
    committed = packs.sizes()
    packs.append(some(12))
    packs.close()
    open_packs(committed, 3).close()
    once = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    open_packs(committed, 3).close()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == once


def test_foreign_files_are_left_alone(open_packs: Opener, tmp_path: Path) -> None:
    for name in ("00000009.pack", "00000009.side", "0000000a.side.new"):
        (tmp_path / name).write_bytes(b"void")
    for name in ("README", "9.pack", "lost+found.pack", "00000009.pack.bak"):
        (tmp_path / name).write_bytes(b"not ours")
    open_packs()
    assert sorted(os.listdir(tmp_path)) == [
        "00000009.pack.bak",
        "9.pack",
        "README",
        "lost+found.pack",
    ]


def full_and_open(open_packs: Opener) -> tuple[Sizes, list[Extent], list[StoredChunk]]:
    """Pack 1 sealed with 9 chunks, pack 2 open with 3."""
    packs = open_packs()
    chunks = some(12)
    extents = packs.append(chunks)
    packs.sync()
    packs.close()
    return packs.sizes(), extents, chunks


@pytest.mark.parametrize("pack", [1, 2])
@pytest.mark.parametrize("left", [None, 0, 20, 2500])
def test_a_missing_or_short_pack_is_a_problem(
    open_packs: Opener, tmp_path: Path, pack: int, left: int | None
) -> None:
    committed, extents, chunks = full_and_open(open_packs)
    path = tmp_path / f"{pack:08x}.pack"
    if left is None:
        path.unlink()
    else:
        os.truncate(path, left)
    packs = PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE)
    [problem] = packs.recover(committed, PackNo(3))
    assert (problem.pack, problem.sidecar_only) == (pack, False)
    assert "committed" in problem.text
    with closing(packs):
        for chunk, extent in zip(chunks, extents, strict=True):
            if extent.pack != pack or extent.offset + extent.stored_length <= (left or 0):
                assert read(packs, extent) == chunk.stored
            else:
                with pytest.raises(ChunkDamagedError, match=f"{pack:08x}.pack"):
                    read(packs, extent)
        # The record stays, and nothing is appended behind a hole.
        assert packs.sizes()[PackNo(pack)] == (committed[PackNo(pack)][0], True)
        [extent] = packs.append([stored(100)])
        assert extent.pack == (2 if pack == 1 else 3)
        packs.sync()
        assert_intact(packs, [stored(100)], [extent])


@pytest.mark.parametrize("how", ["missing", "short"])
def test_while_a_pack_is_missing_nothing_is_void(
    open_packs: Opener, tmp_path: Path, how: str
) -> None:
    """An index that is older than the packs must not cost what it does not know."""
    known, _, _ = full_and_open(open_packs)
    packs = open_packs(known, 3)
    later = [stored(1000, seed) for seed in range(50, 70)]
    extents = packs.append(later)
    packs.sync()
    packs.close()
    assert {extent.pack for extent in extents} == {2, 3, 4}
    foreign = tmp_path / "00000009.pack"
    foreign.write_bytes(b"void")
    gone = tmp_path / "00000001.pack"
    if how == "missing":
        gone.unlink()
    else:
        os.truncate(gone, 2500)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir() if path != foreign}
    packs = PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE)
    with closing(packs):
        problems = packs.recover(known, PackNo(3))
        assert {problem.pack for problem in problems if problem.kept} == {2, 3, 4}
        assert [problem.pack for problem in problems if not problem.kept] == [1]
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
        # Nothing is put where something lies that may still be needed.
        [extent] = packs.append([stored(100)])
        assert extent.pack == 5
        packs.sync()
        assert_intact(packs, later, extents)


def test_a_missing_pack_in_which_nothing_is_alive_is_no_problem(
    open_packs: Opener, tmp_path: Path
) -> None:
    known, _, _ = full_and_open(open_packs)
    packs = open_packs(known, 3)
    packs.append(some(12, 700))
    packs.sync()
    packs.close()
    (tmp_path / "00000001.pack").unlink()
    packs = PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE)
    with closing(packs):
        assert packs.recover(known, PackNo(3), {PackNo(1)}) == []
    assert not (tmp_path / "00000003.pack").exists()


@pytest.mark.parametrize(
    ("at", "change"), [(0, b"X"), (8, b"\0"), (12, b"\7"), (16, b"another store's")]
)
def test_a_foreign_header_takes_no_chunks(
    open_packs: Opener, tmp_path: Path, at: int, change: bytes
) -> None:
    committed, extents, chunks = full_and_open(open_packs)
    with open(tmp_path / "00000002.pack", "r+b") as file:
        file.seek(at)
        file.write(change)
    packs = open_packs(committed, 3, problems=1)
    # Each chunk has its own checksum: what is intact can still be read.
    assert [read(packs, extent) for extent in extents] == [chunk.stored for chunk in chunks]
    assert packs.append([stored(100)])[0].pack == 3
    with pytest.raises(DamagedError, match=r"00000002\.pack"):
        packs.check_header(PackNo(2))


def test_sidecars_that_lack_something_are_told_and_put_right(
    open_packs: Opener, tmp_path: Path
) -> None:
    committed, extents, chunks = full_and_open(open_packs)
    (tmp_path / "00000001.side").unlink()
    os.truncate(tmp_path / "00000002.side", 32 + 64 + 10)
    packs = PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE)
    problems = packs.recover(committed, PackNo(3))
    assert [(problem.pack, problem.sidecar_only) for problem in problems] == [(1, True), (2, True)]
    assert "between 1032 and 3032" in problems[1].text
    with closing(packs):
        records = {
            pack: [
                SidecarRecord(chunk.sha256, *extent[1:])
                for chunk, extent in zip(chunks, extents, strict=True)
                if extent.pack == pack
            ]
            for pack in (PackNo(1), PackNo(2))
        }
        more = some(2, 600)
        extents += packs.append(more)
        packs.sync()
        assert len(sidecar_records(packs, PackNo(2))) == 3
        for pack, wanted in records.items():
            packs.rewrite_sidecar(pack, wanted[::-1])
        packs.rewrite_sidecar(
            PackNo(2),
            records[PackNo(2)]
            + [SidecarRecord(c.sha256, *e[1:]) for c, e in zip(more, extents[12:], strict=True)],
        )
        last = some(1, 800)
        extents += packs.append(last)
        packs.sync()
        assert_intact(packs, chunks + more + last, extents)
        packs.roll()
        packs.sync()
        assert_intact(packs, chunks + more + last, extents)
    assert open_packs(packs.sizes(), 3)


def test_rolling_seals_and_makes_removable(open_packs: Opener, tmp_path: Path) -> None:
    packs = open_packs()
    [extent] = packs.append([stored(100)])
    packs.sync()
    with pytest.raises(ValueError, match="not sealed"):
        packs.remove(PackNo(1))
    packs.roll()
    packs.sync()
    assert packs.sizes() == {1: (132, True)}
    [other] = packs.append([stored(100, 1)])
    assert other.pack == 2
    packs.retire(PackNo(1))
    assert list(packs.sizes()) == [2]
    assert read(packs, extent) == stored(100).stored
    packs.remove(PackNo(1))
    packs.remove(PackNo(1))
    packs.sync()
    assert sorted(os.listdir(tmp_path)) == ["00000002.pack", "00000002.side"]
    with pytest.raises(ChunkDamagedError, match="pack 1 is missing"):
        read(packs, extent)


def test_several_unsealed_packs_at_start(open_packs: Opener) -> None:
    committed, _, _ = full_and_open(open_packs)
    committed[PackNo(1)] = (committed[PackNo(1)][0], False)
    packs = open_packs(committed, 3)
    assert packs.append([stored(10)])[0].pack == 2
    packs.sync()
    assert packs.sizes() == {1: (9032, True), 2: (3042, False)}


def test_bytes_that_change_after_the_append_do_no_harm(open_packs: Opener) -> None:
    packs = open_packs()
    buffer = bytearray(b"as it was")
    chunk = stored(9)._replace(stored=memoryview(buffer))
    [extent] = packs.append([chunk])
    buffer[:] = b"otherwise"
    packs.sync()
    assert read(packs, extent) == b"as it was"


@pytest.mark.parametrize(
    ("taken", "all_stays"), [([1], False), (range(3), False), (range(5), True)]
)
def test_a_chunk_that_waits_for_a_sync_keeps_no_batch_in_memory(
    open_packs: Opener, taken: Sequence[int], all_stays: bool
) -> None:
    packs = open_packs()
    batch = random.Random(1).randbytes(8000)
    alone = sys.getrefcount(batch)

    def append() -> list[Extent]:
        whole = memoryview(batch)
        views = [whole[1000 * number :][:1000] for number in taken]
        return packs.append([stored(1000)._replace(stored=view) for view in views])

    extents = append()
    assert (sys.getrefcount(batch) > alone) is all_stays
    packs.sync()
    assert sys.getrefcount(batch) == alone
    for number, extent in zip(taken, extents, strict=True):
        assert read(packs, extent) == batch[1000 * number :][:1000]


def test_what_cannot_be_stored_is_refused(open_packs: Opener, tmp_path: Path) -> None:
    packs = open_packs()
    with pytest.raises(ValueError, match="does not fit"):
        packs.append([stored(PACK_SIZE - 31)])
    with pytest.raises(ValueError, match="0 bytes"):
        packs.append([stored(0)])
    assert packs.append([]) == []
    with pytest.raises(ValueError):
        PackStore(Disk(), tmp_path, STORE_ID, 1 << 32)
    with pytest.raises(ValueError):
        PackStore(Disk(), tmp_path, b"short", PACK_SIZE)
    with pytest.raises(ValueError, match="recover"):
        PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE).append([stored(1)])


def test_nowait_reads_only_what_is_open_and_cached(open_packs: Opener) -> None:
    packs = open_packs()
    chunk = stored(100)
    [extent] = packs.append([chunk])
    where = (extent.pack, extent.offset, [(100, extent.codec, extent.raw_length, extent.xxh3)])
    raw = packs.read_run(*where, nowait=False)
    assert packs.read_run(*where, nowait=True) in (None, raw)
    packs.close()
    packs = open_packs()
    assert packs.read_run(*where, nowait=True) is None
    assert raw is not None


def test_reading_without_recovering(open_packs: Opener, tmp_path: Path) -> None:
    _, extents, chunks = full_and_open(open_packs)
    with closing(PackStore(Disk(), tmp_path, STORE_ID, PACK_SIZE)) as packs:
        assert_intact(packs, chunks, extents)


def test_at_most_so_many_descriptors(open_packs: Opener) -> None:
    packs = open_packs(size=64)
    chunks = [stored(32, seed) for seed in range(200)]
    extents = packs.append(chunks)
    assert len({extent.pack for extent in extents}) == 200
    packs.sync()
    before = len(os.listdir("/proc/self/fd"))
    for chunk, extent in zip(chunks, extents, strict=True):
        assert read(packs, extent) == chunk.stored
    assert len(os.listdir("/proc/self/fd")) - before == 128


def test_appending_syncing_and_reading_at_once(open_packs: Opener) -> None:
    packs = open_packs(size=100_000)
    done = threading.Event()
    results: list[tuple[list[StoredChunk], list[Extent]]] = []
    faults: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                faults.append(error)

        return run

    def append(seed: int) -> None:
        mine: tuple[list[StoredChunk], list[Extent]] = ([], [])
        for turn in range(40):
            chunks = [stored(100 + turn * 20, seed * 1000 + turn * 3 + n) for n in range(3)]
            extents = packs.append(chunks)
            assert [read(packs, extent) for extent in extents] == [c.stored for c in chunks]
            mine[0].extend(chunks)
            mine[1].extend(extents)
        results.append(mine)

    def sync() -> None:
        while not done.is_set():
            sizes = packs.sizes()
            packs.sync()
            durable = packs.synced()
            assert all(durable[pack] >= size for pack, (size, _) in sizes.items())

    writers = [threading.Thread(target=guarded(lambda s=s: append(s))) for s in range(4)]  # type: ignore[misc]
    syncer = threading.Thread(target=guarded(sync))
    for thread in (*writers, syncer):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    syncer.join()
    assert not faults
    packs.sync()
    chunks = [chunk for mine in results for chunk in mine[0]]
    extents = [extent for mine in results for extent in mine[1]]
    assert len({extent[:2] for extent in extents}) == len(extents) == 480
    assert_intact(packs, chunks, extents)
    assert packs.unsynced_bytes == 0


@pytest.mark.parametrize("kept", [packfile.SIDE_KEPT_MAX, 3 * RECORD_LENGTH, 0])
def test_a_sidecar_is_cut_wherever_it_is(
    open_packs: Opener, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    monkeypatch.setattr(packfile, "SIDE_KEPT_MAX", kept)
    packs = open_packs(size=1 << 20)
    chunks: list[StoredChunk] = []
    extents: list[Extent] = []
    for turn, (added, taken) in enumerate([(4, 1), (3, 6), (5, 0), (1, 1), (2, 6), (6, 2)]):
        more = [stored(1000 + turn, 100 * turn + n) for n in range(added)]
        extents += packs.append(more)
        chunks += more
        if turn != 3:
            packs.sync()
        if taken:
            end = extents[-taken].offset
            assert packs.cut(PackNo(1), end, 1) > 0
            del chunks[-taken:], extents[-taken:]
        if turn == 4:
            # Behind a cut a start sees what the last commit had.
            packs.sync()
            packs.close()
            packs = open_packs({PackNo(1): (end, False)}, 2, size=1 << 20)
        packs.sync()
        assert_intact(packs, chunks, extents)
        records = sidecar_records(packs, PackNo(1))
        assert [record.offset for record in records] == [extent.offset for extent in extents]
    packs.roll()
    packs.sync()
    assert_intact(packs, chunks, extents)


def test_few_records_of_a_sidecar_stay_in_memory(
    open_packs: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packfile, "SIDE_KEPT_MAX", 100 * RECORD_LENGTH)
    packs = open_packs(size=1 << 20)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for turn in range(40):
            packs.append([stored(50, turn * 100 + n) for n in range(100)])
            packs.sync()
        kept = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(sidecar_records(packs, PackNo(1))) == 4000
    assert kept < 1000 * RECORD_LENGTH
