"""The cache of rebuilt content: what it gives is right or nothing, and it keeps to its bound."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from cafs.archives import cachefile
from cafs.archives.cache import SPARE, Cache
from cafs.archives.cachefile import BLOCK, Identity
from cafs.archives.growing import BehindError, Growing, LostError
from cafs.durable import Disk
from cafs.types import BlobNo
from tests.fault.faulty import Fault, FaultyDisk
from tests.unit.small_store import noise
from tests.unit.test_format_doc import STORE_ID as EXAMPLE_ID
from tests.unit.test_format_doc import example, rows, section

STORE_ID = bytes(range(16))
LIMIT = 16 << 20


def identity(data: bytes) -> Identity:
    return Identity(STORE_ID, hashlib.sha256(data).digest(), len(data))


def cache_in(path: Path, limit: int = LIMIT, disk: Disk | None = None) -> Cache:
    path.mkdir(exist_ok=True)
    cache = Cache(disk or Disk(), path, STORE_ID, limit)
    cache.open()
    return cache


def fill(cache: Cache, blob: int, data: bytes, disk: Disk | None = None) -> Growing:
    growing = Growing(disk or Disk(), cache, BlobNo(blob), identity(data))
    for start in range(0, len(data), 100_000):
        growing.append(data[start : start + 100_000])
    growing.finish()
    return growing


@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 77])
def test_what_was_put_is_read_back_in_any_range(tmp_path: Path, size: int) -> None:
    data = noise(1, size)
    cache = cache_in(tmp_path)
    growing = Growing(Disk(), cache, BlobNo(7), identity(data))
    for start in range(0, size, 50_000):
        growing.append(data[start : start + 50_000])
        assert growing.read(0, growing.position) == data[: growing.position]
    assert not cache.has(BlobNo(7)), "half a file is none"
    growing.finish()
    assert sorted(os.listdir(tmp_path / "cache")) == ["000000000007"]
    for start in (0, 1, size // 2, max(0, size - 5)):
        for end in {min(start + 1, size), (start + size + 1) // 2, size}:
            if start < end:
                found = cache.read(BlobNo(7), identity(data), start, end)
                assert found is not None and bytes(found) == data[start:end]
    assert cache.used == os.path.getsize(tmp_path / "cache" / "000000000007")
    assert cache.used == cachefile.file_size(size)


def test_another_run_finds_the_files_and_removes_halves(tmp_path: Path) -> None:
    data = noise(2, 300_000)
    fill(cache_in(tmp_path), 1, data)
    (tmp_path / "cache" / "000000000002.new").write_bytes(b"half")
    (tmp_path / "cache" / "notes").write_bytes(b"not ours by its name: void all the same")
    again = cache_in(tmp_path)
    assert os.listdir(tmp_path / "cache") == ["000000000001"]
    found = again.read(BlobNo(1), identity(data), 5, 200_000)
    assert found is not None and bytes(found) == data[5:200_000]


def test_every_flipped_byte_is_found_out(tmp_path: Path) -> None:
    data = noise(3, 2 * BLOCK + 10)
    path = tmp_path / "cache" / "000000000001"
    whole = cachefile.file_size(len(data))
    places = [0, BLOCK, len(data) - 1, len(data), whole - 65, *range(whole - 64, whole)]
    for place in places:
        cache = cache_in(tmp_path)
        fill(cache, 1, data)
        raw = bytearray(path.read_bytes())
        raw[place] ^= 1
        path.write_bytes(raw)
        assert cache.read(BlobNo(1), identity(data), 0, len(data)) is None
        assert not path.exists(), "what is wrong is not tried again"
        assert cache.used == 0
        assert cache.damaged == 1


def test_a_file_that_was_cut_is_found_out(tmp_path: Path) -> None:
    data = noise(4, BLOCK + 10)
    cache = cache_in(tmp_path)
    fill(cache, 1, data)
    os.truncate(tmp_path / "cache" / "000000000001", 1000)
    assert cache.read(BlobNo(1), identity(data), 0, 10) is None


def test_content_of_another_blob_or_store_is_not_believed(tmp_path: Path) -> None:
    data = noise(5, 1000)
    for wrong in (
        identity(noise(6, 1000)),
        identity(data)._replace(store_id=bytes(16)),
        identity(data)._replace(size=999),
    ):
        cache = cache_in(tmp_path)
        fill(cache, 1, data)
        assert cache.read(BlobNo(1), wrong, 0, 10) is None


def test_files_removed_by_somebody_are_only_missed(tmp_path: Path) -> None:
    data = noise(7, 1000)
    cache = cache_in(tmp_path)
    fill(cache, 1, data)
    os.unlink(tmp_path / "cache" / "000000000001")
    assert cache.read(BlobNo(1), identity(data), 0, 10) is None
    assert (cache.used, cache.count, cache.damaged) == (0, 0, 0)


@pytest.mark.parametrize("directory", [False, True])
def test_a_file_removed_before_it_is_whole_is_read_to_its_end(
    tmp_path: Path, directory: bool
) -> None:
    data = noise(7, 300_000)
    cache = cache_in(tmp_path)
    growing = Growing(Disk(), cache, BlobNo(1), identity(data))
    growing.append(data[:200_000])
    if directory:
        shutil.rmtree(tmp_path / "cache")
    else:
        next((tmp_path / "cache").iterdir()).unlink()
    growing.append(data[200_000:])
    growing.finish()
    assert not cache.has(BlobNo(1))
    assert growing.has(0, len(data)) and growing.read(0, len(data)) == data
    growing.close()
    fill(cache, 1, data)
    found = cache.read(BlobNo(1), identity(data), 0, len(data))
    assert found is not None and bytes(found) == data, "the next one is kept"


def test_a_half_file_that_was_changed_is_not_waited_for(tmp_path: Path) -> None:
    data = noise(8, 4 * BLOCK)
    growing = Growing(Disk(), cache_in(tmp_path), BlobNo(1), identity(data))
    growing.append(data[: 2 * BLOCK])
    os.truncate(next((tmp_path / "cache").iterdir()), 100)
    with pytest.raises(LostError):
        growing.read(0, BLOCK)


def test_what_the_cache_has_is_not_waited_for_elsewhere(tmp_path: Path) -> None:
    data = noise(8, 2 * BLOCK)
    cache = cache_in(tmp_path)
    growing = fill(cache, 1, data)
    cache.make_room()
    with pytest.raises(LostError):
        growing.read(0, BLOCK)


def test_two_who_make_the_same_do_not_take_each_others_file(tmp_path: Path) -> None:
    data = noise(8, 3 * BLOCK)
    cache = cache_in(tmp_path)
    one, other = (Growing(Disk(), cache, BlobNo(1), identity(data)) for _ in range(2))
    one.append(data[:BLOCK])
    other.append(data[: 2 * BLOCK])
    assert one.read(0, BLOCK) == data[:BLOCK]
    one.close()
    other.append(data[2 * BLOCK :])
    other.finish()
    assert cache.has(BlobNo(1))


def test_what_was_removed_is_no_longer_counted_from_the_next_file_on(tmp_path: Path) -> None:
    cache = cache_in(tmp_path)
    for number in range(3):
        fill(cache, number, noise(number, 100_000))
    shutil.rmtree(tmp_path / "cache")
    fill(cache, 4, noise(4, 100_000))
    assert (cache.used, cache.count) == (cachefile.file_size(100_000), 1)
    os.unlink(tmp_path / "cache" / "000000000004")
    fill(cache, 5, noise(5, 100_000))
    assert (cache.used, cache.count) == (cachefile.file_size(100_000), 1)


def test_the_least_recently_used_go_first_and_the_limit_holds(tmp_path: Path) -> None:
    data = [noise(10 + n, 300_000) for n in range(5)]
    cache = cache_in(tmp_path, limit=3 * cachefile.file_size(300_000))
    for number in range(3):
        fill(cache, number, data[number])
    assert cache.read(BlobNo(0), identity(data[0]), 0, 1) is not None
    fill(cache, 3, data[3])
    assert [cache.has(BlobNo(n)) for n in range(4)] == [True, False, True, True]
    assert cache.make_room(1) == cachefile.file_size(300_000)
    assert [cache.has(BlobNo(n)) for n in range(4)] == [True, False, False, True]
    # What nginx has read, it has used.
    cache.use(BlobNo(0))
    cache.use(BlobNo(1))
    assert cache.make_room(1) == cachefile.file_size(300_000)
    assert [cache.has(BlobNo(n)) for n in range(4)] == [True, False, False, False]
    cache.make_room()
    assert cache.used == 0 and os.listdir(tmp_path / "cache") == []


def test_files_that_grow_at_the_same_time_keep_to_the_limit_together(tmp_path: Path) -> None:
    data = noise(8, 3 * BLOCK)
    limit = 2 * cachefile.file_size(len(data)) + BLOCK
    cache = cache_in(tmp_path, limit=limit)
    fill(cache, 9, data)
    several = [Growing(Disk(), cache, BlobNo(n), identity(data)) for n in range(4)]
    for growing in several:
        growing.append(data[:BLOCK])
    assert len(os.listdir(tmp_path / "cache")) == 2
    for growing in several:
        growing.append(data[BLOCK:])
        growing.finish()
    assert [cache.has(BlobNo(n)) for n in range(4)] == [True, True, False, False]
    assert not cache.has(BlobNo(9))
    assert cache.used <= limit
    for growing in several[2:]:
        assert growing.read(0, len(data)) == data
        growing.close()
    # What was given up makes room for the next.
    fill(cache, 3, data)
    assert cache.has(BlobNo(3))
    assert cache.used <= limit


class Scarce(Disk):
    """A disk with room for one file and a half."""

    left = SPARE + cachefile.file_size(300_000) * 3 // 2

    def free_bytes(self, path: Any) -> int:
        written = sum(entry.stat().st_size for entry in os.scandir(path))
        return self.left - written


def test_room_that_was_promised_is_not_promised_again(tmp_path: Path) -> None:
    data = noise(1, 300_000)
    disk = Scarce()
    cache = cache_in(tmp_path, disk=disk)
    one, other, third = (Growing(disk, cache, BlobNo(n), identity(data)) for n in range(3))
    one.append(data[:BLOCK])
    other.append(data[:BLOCK])
    assert (one.filed, other.filed) == (True, False)
    # What was written meanwhile counts once.
    disk.left += cachefile.file_size(300_000) // 2
    one.append(data[BLOCK : 2 * BLOCK])
    third.append(data[:BLOCK])
    assert third.filed
    for growing in (one, other, third):
        growing.append(data[growing.position :])
        growing.finish()
    assert [cache.has(BlobNo(n)) for n in range(3)] == [True, False, True]


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_file_that_grows_gives_way_to_what_is_stored(tmp_path: Path, in_memory: bool) -> None:
    data = noise(1, 10 * BLOCK)
    disk = FaultyDisk([Fault(5, errno.ENOSPC, "pwrite_all")] if in_memory else [])
    cache = cache_in(tmp_path, disk=disk)
    growing = Growing(disk, cache, BlobNo(1), identity(data), window=3 * BLOCK)
    for number in range(6):
        growing.append(data[number * BLOCK : (number + 1) * BLOCK])
    cache.make_room()
    assert growing.read(0, 6 * BLOCK) == data[: 6 * BLOCK], "with the next bytes, not before"
    growing.append(data[6 * BLOCK : 7 * BLOCK])
    assert os.listdir(tmp_path / "cache") == []
    first = 4 if in_memory else 6
    assert growing.read(first * BLOCK, 7 * BLOCK) == data[first * BLOCK : 7 * BLOCK]
    assert growing.has(first * BLOCK, len(data)) and not growing.has(first * BLOCK - 1, len(data))
    with pytest.raises(BehindError) as caught:
        growing.read(first * BLOCK - 1, 7 * BLOCK)
    assert not isinstance(caught.value, LostError), "who is at its end goes on"
    growing.append(data[7 * BLOCK :])
    growing.finish()
    assert growing.read(8 * BLOCK, 10 * BLOCK) == data[8 * BLOCK :]
    assert not growing.has(first * BLOCK, 7 * BLOCK) and growing.has(7 * BLOCK, 10 * BLOCK)
    assert not cache.has(BlobNo(1))
    growing.close()
    # Nothing of it counts any more.
    fill(cache, 2, noise(2, LIMIT - 2 * BLOCK))
    assert cache.has(BlobNo(2))


def test_one_that_is_to_give_way_when_it_is_whole_is_not_kept(tmp_path: Path) -> None:
    data = noise(1, 2 * BLOCK)
    cache = cache_in(tmp_path)
    growing = Growing(Disk(), cache, BlobNo(1), identity(data))
    growing.append(data)
    cache.make_room()
    growing.finish()
    assert not cache.has(BlobNo(1))
    assert growing.read(0, len(data)) == data
    growing.close()
    assert os.listdir(tmp_path / "cache") == []


class Changing(dict[int, bytes]):
    """As if another thread put something in whenever somebody goes through it."""

    def __iter__(self) -> Any:
        raise RuntimeError("dictionary changed size during iteration")


def test_who_asks_what_is_there_does_not_meet_who_puts_it_there(tmp_path: Path) -> None:
    growing = Growing(Disk(), cache_in(tmp_path, limit=0), BlobNo(1), identity(noise(1, 3 * BLOCK)))
    growing.append(noise(1, 2 * BLOCK))
    growing._memory = Changing(growing._memory)
    assert growing.has(0, BLOCK)


def test_what_is_larger_than_the_cache_is_read_from_memory_behind_a_window(tmp_path: Path) -> None:
    data = noise(8, 10 * BLOCK + 5)
    cache = cache_in(tmp_path, limit=BLOCK)
    growing = Growing(Disk(), cache, BlobNo(1), identity(data), window=4 * BLOCK)
    for start in range(0, len(data), 70_000):
        growing.append(data[start : start + 70_000])
        low = max(0, growing.position - 3 * BLOCK)
        assert growing.has(low, growing.position)
        assert growing.read(low, growing.position) == data[low : growing.position]
    assert not growing.has(0, 1)
    with pytest.raises(BehindError):
        growing.read(0, 10)
    growing.finish()
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("call", ["open", "pwrite_all", "rename"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EIO])
def test_a_disk_that_fails_costs_no_reader_its_bytes(
    tmp_path: Path, call: str, number: int
) -> None:
    data = noise(9, 6 * BLOCK + 5)
    for at in range(1, 8 if call == "pwrite_all" else 2):
        disk = FaultyDisk([Fault(at, number, call)])
        cache = cache_in(tmp_path / f"{at}{call}", disk=disk)
        growing = Growing(disk, cache, BlobNo(1), identity(data))
        for start in range(0, len(data), BLOCK):
            growing.append(data[start : start + BLOCK])
            assert growing.read(0, growing.position) == data[: growing.position]
        assert growing.everything
        growing.finish()
        if not cache.has(BlobNo(1)):
            assert growing.read(0, len(data)) == data
        growing.close()
        assert cache.read(BlobNo(1), identity(data), 0, 9) in (None, data[:9])
        assert len(os.listdir(cache.directory)) == cache.count


def test_without_a_directory_there_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(b"in the way")
    cache = cache_in(tmp_path)
    growing = fill(cache, 1, b"some bytes")
    assert growing.read(0, 10) == b"some bytes"
    assert not cache.has(BlobNo(1))


def test_the_document_says_what_a_file_is(tmp_path: Path) -> None:
    fields = [(row[0], int(row[1]), row[3]) for row in rows("Footer of a cache file")]
    places = [sum(size for _, size, _ in fields[:number]) for number in range(len(fields))]
    assert [place for place, _, _ in fields] == [str(place) for place in places]
    assert sum(size for _, size, _ in fields) == cachefile.FOOTER_SIZE
    assert f"`{cachefile.MAGIC.decode()}`" in section("Footer of a cache file")
    assert f"{BLOCK:,}" in section("Cache file")
    content = b"Hello, chunk!\n"
    cache = Cache(Disk(), tmp_path, EXAMPLE_ID, LIMIT)
    cache.open()
    named = Identity(EXAMPLE_ID, hashlib.sha256(content).digest(), len(content))
    growing = Growing(Disk(), cache, BlobNo(1), named)
    growing.append(content)
    growing.finish()
    assert (tmp_path / "cache" / "000000000001").read_bytes() == example("cache")
    found = cache.read(BlobNo(1), named, 0, 14)
    assert found is not None and bytes(found) == content
