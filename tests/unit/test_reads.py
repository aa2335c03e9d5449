"""The reads file: what other processes note arrives, once, and nothing in it can do harm."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cafs.accesses import DAY_NS, SEEN_MAX
from cafs.index import pending, reads
from cafs.index.reads import HEADER, Reads, path_beside
from cafs.notices import Change
from cafs.store import Store, open_store
from cafs.types import ROOT, Ino
from tests.unit import aged_store
from tests.unit.aged_store import noise
from tests.unit.site_client import Client, ask
from tests.unit.small_store import OPTIONS, make, write
from tests.unit.test_format_header import FLAGS

Note = Callable[..., bool]


@pytest.fixture(scope="module")
def note(tmp_path_factory: pytest.TempPathFactory) -> Note:
    """What a worker of nginx does, by the header that it is compiled with."""
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    target = tmp_path_factory.mktemp("probe") / "probe.so"
    source = Path(__file__).parent / "reads_probe.c"
    subprocess.run(["gcc", *FLAGS, str(source), "-o", str(target)], check=True)
    function = ctypes.CDLL(str(target)).probe_note
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint64, ctypes.c_int]

    def call(where: mmap.mmap, ino: int, way: int = reads.PACKS) -> bool:
        window = ctypes.c_char.from_buffer(where)
        return bool(function(ctypes.addressof(window), len(where), ino, way))

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "lock.mdb"
    path.touch(0o640)
    path.chmod(0o640)
    return path


def mapped(file: Reads) -> mmap.mmap:
    """The file as another process has it."""
    fd = os.open(file.path, os.O_RDWR)
    try:
        return mmap.mmap(fd, 0)
    finally:
        os.close(fd)


@pytest.fixture
def file(tmp_path: Path, model: Path) -> Iterator[Reads]:
    with closing(Reads(tmp_path / "f.reads", model, bits=4)) as made:
        yield made


def test_what_is_noted_arrives_once(file: Reads, note: Note) -> None:
    other = mapped(file)
    assert file.drain().inos == set()
    for ino in (5, 7, 5):
        assert note(other, ino)
    assert file.drain().inos == {5, 7}
    assert file.drain().inos == set()
    # Around the end of the places.
    for ino in range(100, 115):
        note(other, ino)
    assert file.drain().inos == set(range(100, 115))
    assert file.lost == 0


def test_what_came_from_the_cache_is_told_apart(file: Reads, note: Note) -> None:
    other = mapped(file)
    note(other, 5)
    for way in (reads.CACHED, reads.CACHED_INSIDE, reads.CACHED, reads.PACKS):
        note(other, 6, way)
    note(other, 7, reads.CACHED_INSIDE)
    # Of a later version, as far as it can be told.
    note(other, 8, 3)
    assert file.drain() == ({5, 6, 7}, {6: 2, 7: 0})
    assert file.drain() == (set(), {})


def test_too_many_lose_the_oldest(file: Reads, note: Note) -> None:
    other = mapped(file)
    for ino in range(1, 41):
        note(other, ino)
    assert file.drain().inos == set(range(25, 41))
    assert file.lost == 24


def test_a_place_that_is_not_written_yet_counts_for_nobody(file: Reads, note: Note) -> None:
    other = mapped(file)
    for ino in range(1, 17):
        note(other, ino)
    file.drain()
    # A worker has taken a place and was interrupted before it wrote.
    HEADER.pack_into(other, 0, reads.MAGIC, reads.VERSION, 4, 17)
    assert file.drain().inos == set()


@given(st.binary(min_size=8 * 17, max_size=8 * 17))
def test_whatever_stands_in_it_is_harmless(noise: bytes) -> None:
    path = Path(f"/dev/shm/cafs-test-{os.getpid()}.reads")
    with closing(Reads(path, Path("/dev/null"), bits=4)) as file:
        other = mapped(file)
        other[16:24] = noise[:8]
        other[64:] = noise[8:]
        assert all(0 < ino < 1 << 48 for ino in file.drain().inos)
        assert file.drain().inos == set()
        other.close()


def test_another_version_is_not_written_to(file: Reads, note: Note) -> None:
    other = mapped(file)
    other[8] = 2
    before = bytes(other)
    assert not note(other, 5)
    assert bytes(other) == before
    other[8], other[12] = 1, 5
    assert not note(other, 5), "the file is shorter than it says"


def test_many_writers_at_once(tmp_path: Path, model: Path, note: Note) -> None:
    with closing(Reads(tmp_path / "many.reads", model)) as file:
        other = mapped(file)

        def work(first: int) -> None:
            for ino in range(first, first + 2000):
                note(other, ino)

        threads = [threading.Thread(target=work, args=(1 + n * 2000,)) for n in range(4)]
        for thread in threads:
            thread.start()
        found: set[Ino] = set()
        while any(thread.is_alive() for thread in threads):
            found |= file.drain().inos
        for thread in threads:
            thread.join()
        found |= file.drain().inos
        assert found <= set(range(1, 8001))
        # One read a drain and writer may fall between its two steps.
        assert len(found) > 7000


def test_it_belongs_to_those_who_may_read_the_index(file: Reads, model: Path) -> None:
    status = file.path.stat()
    assert stat.S_IMODE(status.st_mode) == 0o640
    assert (status.st_uid, status.st_gid) == (model.stat().st_uid, model.stat().st_gid)


def test_without_a_place_there_is_none(model: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert Reads.publish(Path("/proc/self/nowhere.reads"), model) is None
    assert "nowhere.reads" in caplog.text


def test_it_goes_with_the_pending_file(tmp_path: Path, model: Path) -> None:
    where = tmp_path / "store.pending"
    killed = pending.Pending(where)
    left = Reads(path_beside(where), model)
    path_beside(where).with_name(f"{path_beside(where).name}.new").touch()
    pending.withdraw(where)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lock.mdb"]
    killed.close()
    left.close()


def in_store(tmp_path: Path, work: Callable[[Store], object]) -> None:
    path = make(tmp_path / "store")

    async def run() -> None:
        options = replace(OPTIONS, pending_file=tmp_path / "pending")
        async with open_store(path, options) as store:
            await work(store)  # type: ignore[misc]

    trio.run(run)
    assert not path_beside(tmp_path / "pending").exists()


def test_a_daemon_applies_relatime(tmp_path: Path, note: Note) -> None:
    async def work(store: Store) -> None:
        told: list[Change] = []

        async def listen(changes: object) -> None:
            told.extend(changes)  # type: ignore[arg-type]

        store.notices.register(listen)
        assert store.reads is not None
        other = mapped(store.reads)
        inodes = store.tree.inodes
        fresh = await write(store, ROOT, b"fresh", b"x" * 100)
        old = await write(store, ROOT, b"old", b"x" * 100)
        now = store.clock.now_ns()
        for ino, age in ((fresh, DAY_NS // 2), (old, 2 * DAY_NS)):
            past = now - 30 * DAY_NS
            attr = inodes.get(ino)
            inodes.put(ino, attr._replace(atime_ns=now - age, mtime_ns=past, ctime_ns=past))
        before = inodes.get(fresh)
        # One that is not there, too: it was removed meanwhile.
        for number in (fresh, old, 123_456):
            note(other, number)
        await store.accesses.drain(store.reads)
        assert inodes.get(fresh) == before
        assert inodes.get(old).atime_ns >= now
        assert inodes.get(old).mtime_ns < now - 29 * DAY_NS
        assert [change.ino for change in told] == [old]  # type: ignore[union-attr]
        # Both are known to have been read, which the access time alone does not tell.
        assert store.accesses.last_seen(fresh) >= now
        assert store.accesses.last_seen(old) >= now
        assert store.accesses.last_seen(Ino(123_456)) == 0

    in_store(tmp_path, work)


def test_what_is_sent_from_the_cache_is_a_use_of_an_archive(tmp_path: Path, note: Note) -> None:
    async def work(store: Store) -> None:
        assert store.reads is not None
        other = mapped(store.reads)
        contents = [noise(6, 50_001), noise(7, 50_000)]
        names = (b"aged", b"plain")
        inos = [await write(store, ROOT, n, data) for n, data in zip(names, contents, strict=True)]
        aged, plain = [await aged_store.hashed(store, ino) for ino in inos]
        await aged_store.age(store, aged, contents[0], 5)
        uses = store.archives.uses
        for ino in (*inos, Ino(123_456)):
            note(other, ino, reads.CACHED)
            note(other, ino, reads.PACKS)
            note(other, ino, reads.CACHED_INSIDE)
            note(other, ino, reads.CACHED)
        await store.accesses.drain(store.reads)
        assert (uses.count(aged), uses.count(plain), uses.reads) == (2, 0, 2)
        assert all(store.accesses.last_seen(ino) for ino in inos)
        # What goes on somewhere is the same use; what begins anew is another.
        note(other, inos[0], reads.CACHED_INSIDE)
        await store.accesses.drain(store.reads)
        assert uses.count(aged) == 2
        note(other, inos[0], reads.CACHED)
        await store.accesses.drain(store.reads)
        assert uses.count(aged) == 3
        assert uses.next_to_thaw() == aged

    in_store(tmp_path, work)


def test_what_is_remembered_is_bounded(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        ino = await write(store, ROOT, b"f", b"x")
        seen = store.accesses._seen
        seen.update({Ino(10**6 + number): 1 for number in range(SEEN_MAX)})
        store.accesses.note(ino)
        assert len(seen) == SEEN_MAX
        assert store.accesses.last_seen(ino)

    in_store(tmp_path, work)


def test_what_the_daemon_sends_counts_too(tmp_path: Path) -> None:
    async def work(ask: Client) -> None:
        store = ask.store
        assert (await ask("PUT", "/admin/f", b"x" * 100)).status == 201
        ino = store.tree.lookup(ROOT, b"f")
        assert ino is not None
        inodes = store.tree.inodes
        past = store.clock.now_ns() - 30 * DAY_NS
        inodes.put(ino, inodes.get(ino)._replace(atime_ns=past, mtime_ns=past, ctime_ns=past))
        etag = (await ask("HEAD", "/admin/f")).headers["etag"]
        assert (await ask("GET", "/admin/f", if_none_match=etag)).status == 304
        assert (await ask("GET", "/admin/f", range="bytes=1000-")).status == 416
        assert inodes.get(ino).atime_ns == past
        assert (await ask("GET", "/admin/f", range="bytes=1-2")).status == 206
        assert inodes.get(ino).atime_ns > past
        assert store.accesses.last_seen(ino) > past

    ask(tmp_path / "store", work)
