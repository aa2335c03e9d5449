"""Packs on a disk that fails at any one point: nothing that was acknowledged is lost.

The same work is done again and again, each time with the next change of the disk failing, until
a run comes to its end without a fault.
"""

import errno
import os
import random
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import xxhash

from cafs.blobs import packfile
from cafs.blobs.pack import PackStore, StoredChunk
from cafs.blobs.sidecar import RECORD_LENGTH, read_sidecar
from cafs.durable import Disk
from cafs.errors import CafsError, DiskError, DiskFullError
from cafs.types import Extent, PackNo
from tests.fault.faulty import Fault, FaultyDisk
from tests.fault.volatile import VolatileDisk

STORE_ID = b"0123456789abcdef"
PACK_SIZE = 5_000
Sizes = dict[PackNo, tuple[int, bool]]


def stored(length: int, seed: int) -> StoredChunk:
    data = random.Random(f"{length} {seed}").randbytes(length)
    return StoredChunk(
        xxhash.xxh3_128_digest(data) * 2, data, 0, length, xxhash.xxh3_64_intdigest(data)
    )


class Work:
    """Appends, syncs and removes as a store would; remembers what was acknowledged."""

    def __init__(self, disk: Disk, directory: Path, patient: Callable[[], None] | None) -> None:
        """*patient*: called when a step fails, which is then tried again; None gives up."""
        self.packs = PackStore(disk, directory, STORE_ID, PACK_SIZE)
        self._patient = patient
        self.appended: list[tuple[StoredChunk, Extent]] = []
        self.committed: Sizes = {}
        self.durable: list[tuple[StoredChunk, Extent]] = []
        self.faults = 0

    def _try(self, step: Callable[[], None]) -> None:
        for _ in range(5):
            try:
                return step()
            except CafsError:
                self.faults += 1
                if self._patient is None:
                    raise
                self._patient()
        raise AssertionError("does not recover")

    def run(self) -> None:
        assert self.packs.recover({}, PackNo(1)) == []
        seed = 0
        for lengths in ([700, 900], [100], [2000, 2000, 2000, 600], [4000], [50, 60]):
            chunks = [stored(length, seed + n) for n, length in enumerate(lengths)]
            seed += len(chunks)
            self._try(lambda chunks=chunks: self._append(chunks))  # type: ignore[misc]
            if len(lengths) != 1:
                self._try(self._commit)
        self._try(self._commit)
        self.packs.roll()
        self._try(self._commit)
        self._remove(self.appended[0][1].pack)

    def _append(self, chunks: list[StoredChunk]) -> None:
        self.appended += zip(chunks, self.packs.append(chunks), strict=True)

    def _commit(self) -> None:
        sizes, appended = self.packs.sizes(), list(self.appended)
        self.packs.sync()
        self.committed, self.durable = sizes, appended

    def _remove(self, pack: PackNo) -> None:
        if not self.committed[pack][1]:
            return
        self.packs.retire(pack)
        self.appended = [entry for entry in self.appended if entry[1].pack != pack]
        self._try(self._commit)
        self._try(lambda: self.packs.remove(pack))


def assert_intact(
    directory: Path, committed: Sizes, chunks: list[tuple[StoredChunk, Extent]]
) -> None:
    """A start from *committed* finds every one of *chunks*, and no file too many."""
    with closing(PackStore(Disk(), directory, STORE_ID, PACK_SIZE)) as packs:
        problems = packs.recover(committed, PackNo(100))
        assert not [problem for problem in problems if not problem.sidecar_only]
        for chunk, extent in chunks:
            assert (
                packs.read_stored(extent.pack, extent.offset, extent.stored_length) == chunk.stored
            )
        names = {int(name.split(".")[0], 16) for name in os.listdir(directory)}
        assert names == set(committed)
        for pack, (size, _) in committed.items():
            assert os.path.getsize(packs.pack_path(pack)) == size


def assert_sidecars(directory: Path, chunks: list[tuple[StoredChunk, Extent]]) -> None:
    """The sidecars have a record for each of *chunks*."""
    for chunk, extent in chunks:
        side = read_sidecar(directory / f"{extent.pack:08x}.side")
        assert (chunk.sha256, *extent[1:]) in [tuple(record) for record in side]


def every_fault(
    tmp_path: Path, number: int, sticky: bool, run: Callable[[VolatileDisk, Path], None]
) -> int:
    """Call *run* with each change failing in turn; how many there are."""
    for at in range(1, 1000):
        directory = tmp_path / str(at)
        directory.mkdir()
        disk = VolatileDisk(directory, [Fault(at, number, sticky=sticky)])
        run(disk, directory)
        if not disk.all_fired:
            return at - 1
    raise AssertionError("no end of faults")


@pytest.mark.parametrize("kept", [packfile.SIDE_KEPT_MAX, RECORD_LENGTH])
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EROFS])
def test_trying_again_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, sticky: bool, kept: int
) -> None:
    # Few records in memory: most of a sidecar is made durable before its pack is sealed.
    monkeypatch.setattr(packfile, "SIDE_KEPT_MAX", kept)

    def run(disk: VolatileDisk, directory: Path) -> None:
        work = Work(disk, directory, patient=disk.heal)
        with closing(work.packs):
            work.run()
        # A sidecar that found no room was tried again later, without a step that failed.
        assert work.faults >= (disk.all_fired and number != errno.ENOSPC)
        assert len(work.durable) == len(work.appended)
        disk.power_loss()
        assert_sidecars(directory, work.durable)
        assert_intact(directory, work.committed, work.durable)

    assert every_fault(tmp_path, number, sticky, run) > 30


@pytest.mark.parametrize("power", [False, True])
def test_stopping_at_any_point_loses_nothing(tmp_path: Path, power: bool) -> None:
    def run(disk: VolatileDisk, directory: Path) -> None:
        work = Work(disk, directory, patient=None)
        with closing(work.packs):
            try:
                work.run()
            except DiskError:
                assert disk.all_fired
        if power:
            disk.power_loss()
        assert_intact(directory, work.committed, work.durable)
        # A sidecar that lost bytes and is not written again is as after a power loss.
        if not power and not any(call.endswith(".side") for call in disk.failed):
            assert_sidecars(directory, work.durable)

    assert every_fault(tmp_path, errno.EIO, True, run) > 30


def test_the_first_start_after_a_stop_can_fail_at_any_point(tmp_path: Path) -> None:
    def run(disk: VolatileDisk, directory: Path) -> None:
        work = Work(Disk(), directory, patient=None)
        with closing(work.packs):
            assert work.packs.recover({}, PackNo(1)) == []
            work._append([stored(1000, seed) for seed in range(6)])
            work._commit()
            work._append([stored(1000, seed) for seed in range(10, 20)])
            work.packs.sync()
        with closing(PackStore(disk, directory, STORE_ID, PACK_SIZE)) as packs:
            try:
                assert packs.recover(work.committed, PackNo(3)) == []
            except DiskError:
                assert disk.all_fired
        assert_intact(directory, work.committed, work.durable)

    assert every_fault(tmp_path, errno.EIO, True, run) == len(
        ["pack 3", "its sidecar", "pack 4", "its sidecar", "cut pack 2", "cut its sidecar"]
    )


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_cutting_a_sidecar_can_fail_at_any_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(packfile, "SIDE_KEPT_MAX", RECORD_LENGTH)

    def run(disk: VolatileDisk, directory: Path) -> None:
        work = Work(disk, directory, patient=disk.heal)
        with closing(work.packs) as packs:
            assert packs.recover({}, PackNo(1)) == []
            for turn in range(3):
                work._try(
                    lambda turn=turn: work._append(  # type: ignore[misc]
                        [stored(200, 10 * turn + n) for n in range(4)]
                    )
                )
                work._try(work._commit)
                first = work.appended[-3][1]
                assert packs.cut(first.pack, first.offset, 1) > 0
                del work.appended[-3:]
            work._try(lambda: work._append([stored(200, 99)]))
            packs.roll()
            work._try(work._commit)
            # A sidecar that found no room keeps its pack from being sealed, not from commits.
            work._try(work._commit)
        disk.power_loss()
        assert_sidecars(directory, work.durable)
        records = list(read_sidecar(directory / f"{work.durable[0][1].pack:08x}.side"))
        assert len(records) == len(work.durable) == 4

    assert every_fault(tmp_path, number, False, run) > 15


def test_a_sync_that_failed_is_not_believed_the_second_time(tmp_path: Path) -> None:
    """What fdatasync lost is written again from memory; a plain second fdatasync succeeds."""
    disk = VolatileDisk(tmp_path, [Fault(2, errno.EIO, call="sync_data")])
    with closing(PackStore(disk, tmp_path, STORE_ID, PACK_SIZE)) as packs:
        packs.recover({}, PackNo(1))
        chunks = [stored(1000, seed) for seed in range(3)]
        extents = packs.append(chunks[:1])
        packs.sync()
        extents += packs.append(chunks[1:2])
        with pytest.raises(DiskError):
            packs.sync()
        assert disk.all_fired
        assert packs.synced() == {1: 1032}
        assert packs.unsynced_bytes == 1000
        # The disk has lost it, and nobody has noticed yet: the checksum will.
        lost = extents[1]
        assert packs.read_stored(lost.pack, lost.offset, 1000) == bytes(1000)
        extents += packs.append(chunks[2:])
        packs.sync()
        assert packs.synced() == {1: 3032}
        for chunk, extent in zip(chunks, extents, strict=True):
            assert packs.read_stored(extent.pack, extent.offset, 1000) == chunk.stored


def test_a_header_that_a_failed_sync_lost_is_written_again(tmp_path: Path) -> None:
    disk = VolatileDisk(tmp_path, [Fault(1, errno.EIO, call="sync_data")])
    with closing(PackStore(disk, tmp_path, STORE_ID, PACK_SIZE)) as packs:
        packs.recover({}, PackNo(1))
        packs.append([stored(1000, 1)])
        with pytest.raises(DiskError):
            packs.sync()
        packs.sync()
        packs.check_header(PackNo(1))


def test_no_room_for_a_sidecar_does_not_stop_a_commit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # The first file that is made is the pack, the second its sidecar.
    disk = FaultyDisk([Fault(2, errno.ENOSPC, call="open", sticky=True)])
    with closing(PackStore(disk, tmp_path, STORE_ID, PACK_SIZE)) as packs:
        packs.recover({}, PackNo(1))
        chunks = [stored(1000, seed) for seed in range(2)]
        extents = packs.append(chunks)
        packs.sync()
        assert disk.failed == [f"open {packs.sidecar_path(PackNo(1))}"]
        assert packs.synced() == {1: 2032}
        packs.roll()
        packs.sync()
        assert packs.sizes() == {1: (2032, False)}, "not sealed without its sidecar"
        disk.heal()
        packs.sync()
        assert packs.sizes() == {1: (2032, True)}
        assert_sidecars(tmp_path, list(zip(chunks, extents, strict=True)))
    assert caplog.text.count("a sidecar waits for room") == 1


def test_a_full_disk_refuses_new_packs_and_goes_on_later(tmp_path: Path) -> None:
    disk = FaultyDisk([Fault(2, errno.ENOSPC, call="open", sticky=True)])
    with closing(PackStore(disk, tmp_path, STORE_ID, PACK_SIZE)) as packs:
        packs.recover({}, PackNo(1))
        [first] = packs.append([stored(4000, 1)])
        for _ in range(2):
            with pytest.raises(DiskFullError):
                packs.append([stored(4000, 2)])
        assert packs.sizes() == {1: (4032, False)}
        disk.heal()
        [second] = packs.append([stored(4000, 2)])
        packs.sync()
        assert second.pack > first.pack
        for extent, seed in ((first, 1), (second, 2)):
            assert packs.read_stored(*extent[:3]) == stored(4000, seed).stored
