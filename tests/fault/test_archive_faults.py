"""Archives where the disk, an engine or the process fails: never a wrong byte, nothing torn."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cafs.archives.engine import Buffer, Compressor, Engine
from cafs.archives.program import Program
from cafs.blobs import recipe
from cafs.errors import (
    CafsError,
    ChunkDamagedError,
    DiskFullError,
    EngineError,
    ReadOnlyError,
    RebuildError,
)
from cafs.index.layout import BLOB_AGED
from cafs.lock import wait_until_free
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT as TOP
from cafs.types import ChunkNo, Ino
from tests.conftest import ROOT
from tests.fault.faulty import Fault, FaultyDisk
from tests.fault.smalldisk import MIB, SmallDisk
from tests.model.audit import audit
from tests.unit.archived import (
    age,
    blob_of,
    content,
    droplet,
    gzipped,
    opened,
    put,
    sources,
    tar,
)
from tests.unit.small_store import findings, noise

pytestmark = pytest.mark.timeout(120)


def mixed(seed: int = 1) -> bytes:
    """A droplet whose stream has several made parts."""
    return gzipped(tar({"noise": noise(seed, 700_000)} | sources(["json"])))


def sound(store: Path) -> None:
    assert not audit(store)
    assert not findings(store)


# -- the disk


def test_whichever_call_fails_nothing_is_lost(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> int:
        failures = 0
        for at in range(1, 100):
            path = tmp_path / f"{at}"
            number = (errno.ENOSPC, errno.EIO)[at % 2]
            disk = FaultyDisk()
            async with opened(path, disk=disk) as store:
                ino = await put(store, b"archive", data)
                disk._faults.append(Fault(len(disk.calls) + at, number))
                try:
                    await store.archives.take_apart(blob_of(store, ino))
                    await store.commit()
                except CafsError:
                    failures += 1
                fired = disk.all_fired
                disk.heal()
                assert await content(store, ino) == data
                await store.commit()
                await Sweeper(store).once()
                await store.commit()
                assert not store.chunks._pins
            async with opened(path) as store:
                assert await content(store, ino) == data
            sound(path)
            if not fired:
                return failures
        raise AssertionError("it takes too many calls")

    assert trio.run(main) > 0, "no fault was felt"


def test_reading_goes_on_on_a_full_and_on_a_read_only_disk(disk: SmallDisk) -> None:
    data = gzipped(tar({"noise": noise(3, 6 * MIB)} | sources()))
    store_path = disk.path / "store"

    async def main() -> None:
        async with opened(store_path) as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            filler = disk.fill()
            assert await content(store, ino) == data
            assert store.archives.cache.count == 0, "there is no room for it"
            with pytest.raises(DiskFullError):
                await store.archives.thaw(blob_of(store, ino))
            with pytest.raises(DiskFullError):
                store.contents.opened(ino, writable=True)
                await store.contents.write(ino, 5, b"changed", privileged=True)
            store.contents.closed(ino, writable=True)
            assert await content(store, ino) == data
            filler.unlink()
            await store.sync_all()
            disk.go_read_only()
            assert await content(store, ino) == data

    try:
        trio.run(main)
    except* CafsError as group:
        # The last commit of a store on a read-only disk.
        assert all(isinstance(error, ReadOnlyError) for error in group.exceptions)


def test_the_cache_gives_way_when_the_disk_is_full() -> None:
    disk = SmallDisk(256 * MIB)
    data = gzipped(tar({"noise": noise(4, 20 * MIB)}))

    async def main() -> None:
        async with opened(disk.path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            assert await content(store, ino) == data
            assert store.archives.cache.count == 1
            disk.fill(leave=4 * MIB)
            store.space.changed()
            store.space.admit(1000)
            assert store.archives.cache.count == 0

    try:
        trio.run(main)
    finally:
        disk.close()


# -- damage


async def first_bytes(store: Store, ino: Ino, data: bytes) -> tuple[int, CafsError]:
    """How many right bytes come before the error; fails if there is none, or a wrong byte."""
    got = 0
    try:
        while got < len(data):
            piece = await store.contents.read(ino, got, got + 50_000)
            assert piece == data[got : got + len(piece)]
            got += len(piece)
    except CafsError as error:
        return got, error
    raise AssertionError("a clean end in spite of the damage")


def test_a_damaged_chunk_of_the_inside_is_never_read_as_sound(tmp_path: Path) -> None:
    data = gzipped(tar({"noise": noise(8, 4_000_000)}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            inner = store.blobs.get(blob_of(store, ino)).mate
            size = store.blobs.get(inner).size
            chunks = [p for _, p in store.blobs.parts(inner, 0, size) if p.kind == recipe.CHUNK]
            extent = store.chunks.get(ChunkNo(chunks[len(chunks) // 2].ref)).extent
            pack = tmp_path / "store" / "packs" / f"{extent.pack:08x}.pack"
            raw = bytearray(pack.read_bytes())
            raw[extent.offset + 5] ^= 1
            pack.write_bytes(raw)
            got, error = await first_bytes(store, ino, data)
            assert isinstance(error, ChunkDamagedError) and error.chunk
            assert got > 100_000
            store.chunks.condemn([ChunkNo(error.chunk)], damaged=True)
            # The same content, written again, heals it.
            twin = await put(store, b"twin", data)
            assert blob_of(store, twin) == blob_of(store, ino)
            assert await content(store, ino) == data

    trio.run(main)


# -- engines


class Lying:
    """An engine in whose output something goes wrong from some byte on."""

    def __init__(self, engine: Engine, wrong_from: int, how: str, times: int = 99) -> None:
        self._engine = engine
        self.kind = engine.kind
        self.version = engine.version
        self.program: Program = engine.program
        self.wrong_from = wrong_from
        self.how = how
        self.times = times

    def compressor(self, params: int, *, background: bool) -> Compressor:
        compressor = self._engine.compressor(params, background=background)
        if not self.times:
            return compressor
        self.times -= 1
        return LyingCompressor(compressor, self)


class LyingCompressor:
    def __init__(self, compressor: Compressor, liar: Lying) -> None:
        self._compressor = compressor
        self._liar = liar
        self._made = 0

    def _spoil(self, made: bytes) -> bytes:
        before, self._made = self._made, self._made + len(made)
        wrong = self._made > self._liar.wrong_from and bool(made)
        if self._liar.how in ("short", "long") or not wrong:
            return made
        if self._liar.how == "dies":
            raise EngineError("gzip was killed")
        spoilt = bytearray(made)
        spoilt[max(0, self._liar.wrong_from - before)] ^= 1
        return bytes(spoilt)

    def feed(self, data: Buffer) -> bytes:
        return self._spoil(self._compressor.feed(data))

    def finish(self) -> bytes:
        rest = self._compressor.finish()
        if self._liar.how == "short":
            return rest[:-1]
        if self._liar.how == "long":
            return rest + b"x"
        return self._spoil(rest)

    def cpu_s(self) -> float:
        return self._compressor.cpu_s()

    def close(self) -> None:
        self._compressor.close()


@pytest.mark.parametrize("how", ["lies", "short", "long", "dies"])
@pytest.mark.parametrize("wrong_from", [0, 200_000, 650_000])
def test_an_engine_that_is_wrong_costs_no_byte(tmp_path: Path, how: str, wrong_from: int) -> None:
    data = mixed()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            engines = store.archives.engines
            right = engines.rebuilder(1)
            engines._rebuilders[1] = Lying(right, wrong_from, how)
            got, error = await first_bytes(store, ino, data)
            assert isinstance(error, RebuildError) and error.advice
            assert got <= (len(data) if how in ("short", "long") else wrong_from + 20)
            with pytest.raises((RebuildError, EngineError)):
                await store.archives.prove(blob_of(store, ino))
            with pytest.raises(RebuildError):
                await store.archives.thaw(blob_of(store, ino))
            assert store.blobs.get(blob_of(store, ino)).flags & BLOB_AGED
            engines._rebuilders[1] = right
            assert await content(store, ino) == data
            assert store.archives.rebuilds.under_way == 0
            assert not store.chunks._pins

    trio.run(main)
    sound(tmp_path / "store")


def test_an_engine_that_dies_once_is_started_again(tmp_path: Path) -> None:
    data = mixed()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            engines = store.archives.engines
            engines._rebuilders[1] = Lying(engines.rebuilder(1), 400_000, "dies", times=1)
            assert await content(store, ino) == data

    trio.run(main)


def gzip_children() -> list[int]:
    """Engines that this process runs."""
    found = []
    for thread in Path("/proc/self/task").iterdir():
        for word in (thread / "children").read_text().split():
            if Path(f"/proc/{word}/cmdline").read_bytes().startswith(b"gzip\0"):
                found.append(int(word))
    return found


def test_a_program_that_is_killed_is_started_again(tmp_path: Path) -> None:
    data = gzipped(tar({"noise": noise(5, 5_000_000)} | sources(["json"])))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            assert await store.contents.read(ino, 0, 5000) == data[:5000]
            (program,) = gzip_children()
            os.kill(program, signal.SIGKILL)
            assert await content(store, ino) == data
            assert gzip_children() == []

    trio.run(main)


@pytest.mark.parametrize("how", ["lies", "short", "long", "dies"])
def test_an_engine_that_is_wrong_takes_nothing_apart(tmp_path: Path, how: str) -> None:
    data = mixed()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            await store.archives.ready()
            machine = store.archives.engines._machine["gnu-gzip"]
            assert machine.engine is not None
            # Right for as long as the trial looks.
            machine.engine = Lying(machine.engine, 600_000, how)
            ino = await put(store, b"archive", data)
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert not outcome.done
            assert outcome.lasting == (how != "dies")
            assert not store.blobs.get(blob_of(store, ino)).flags & BLOB_AGED
            assert await content(store, ino) == data
            await Sweeper(store).once()
            await store.commit()
            assert not store.chunks._pins

    trio.run(main)
    sound(tmp_path / "store")


# -- the process


@contextmanager
def process(store: Path) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.fault.age_for_ever", str(store)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


def test_sigkill_at_any_moment_leaves_a_store_that_checks_clean(tmp_path: Path) -> None:
    path = tmp_path / "store"
    archives = {b"%d" % n: droplet(1_700_000_000 + n) for n in range(2)}
    archives[b"mixed"] = mixed()

    async def fill() -> None:
        async with opened(path) as store:
            for name, data in archives.items():
                await put(store, name, data)

    async def compare() -> None:
        async with opened(path) as store:
            for name, data in archives.items():
                ino = store.tree.lookup(TOP, name)
                assert ino is not None
                assert await content(store, ino) == data
            await Sweeper(store).once()
            await store.commit()

    trio.run(fill)
    choice = random.Random(4)
    for _ in range(3):
        with process(path) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "begun\n"
            for _ in range(choice.randrange(1, 40)):
                assert child.stdout.readline() == "step\n"
            os.kill(child.pid, signal.SIGKILL)
        assert wait_until_free(path, 30)
        sound(path)
        trio.run(compare)
    sound(path)
