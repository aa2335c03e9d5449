"""Archives taken apart in a real store: they shrink, and every byte of them comes back."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from cafs.archive_options import ArchiveOptions
from cafs.archives import gnu_gzip, take_apart, zlib_engine
from cafs.blobs import recipe
from cafs.errors import IndexDamagedError, RebuildError
from cafs.index.layout import BLOB_AGED, BLOB_LEFT
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, Attr, Ino
from tests.conftest import ROOT as REPOSITORY
from tests.unit.aged_store import hashed
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
from tests.unit.engine_samples import MACHINE_GZIP
from tests.unit.small_store import findings, noise, write

pytestmark = pytest.mark.timeout(60)
FIXTURES = REPOSITORY / "tests" / "fixtures"
TWO_MIB = b"".join(b"line %d of a log\n" % number for number in range(130_000))


def zipped(compress: int = zipfile.ZIP_DEFLATED, level: int | None = 6) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compress, compresslevel=level) as archive:
        for name, data in sources().items():
            archive.writestr(zipfile.ZipInfo(name), data, compress, level)
        archive.writestr("empty", b"")
        archive.writestr("tiny", b"12 bytes....")
        archive.writestr(zipfile.ZipInfo("stored.bin"), noise(1, 50_000), zipfile.ZIP_STORED)
        archive.writestr(zipfile.ZipInfo("big.log"), TWO_MIB, compress, level)
    return stream.getvalue()


ARCHIVES: dict[str, Callable[[], bytes]] = {
    "droplet": droplet,
    "level 1": lambda: gzipped(tar(sources()), "-1"),
    "level 9": lambda: gzipped(tar(sources(["json"])), "-9"),
    "no tar": lambda: gzipped(TWO_MIB),
    "noise": lambda: gzipped(tar({"noise": noise(2, 3_000_000)})),
    "two members": lambda: gzipped(tar(sources(["json"]))) + gzipped(tar(sources(["email"]))),
    "zlib": lambda: gzip.compress(tar(sources()), 6, mtime=0),
    "zlib 9": lambda: gzip.compress(tar(sources(["json"])), 9, mtime=0),
    "trailing zeros": lambda: droplet() + bytes(1000),
    "a few trailing bytes": lambda: droplet() + b"abc",
    "truncated tar": lambda: gzipped(tar(sources())[:-20_000]),
    "odd tar": lambda: gzipped(tar(sources(["json"])) + noise(3, 5000) + tar(sources(["email"]))),
    "zip": zipped,
    "zip, level 9": lambda: zipped(level=9),
    "named": lambda: (FIXTURES / "gnu-named.tgz").read_bytes(),
    "jar": lambda: (FIXTURES / "java.jar").read_bytes(),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_what_was_taken_apart_reads_back_bit_for_bit(tmp_path: Path, kind: str) -> None:
    data = ARCHIVES[kind]()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            outcome = await age(store, ino)
            record = store.blobs.get(blob_of(store, ino))
            assert record.flags & BLOB_AGED
            assert outcome.inner_size == store.blobs.get(record.mate).size
            assert record.sha256 == hashlib.sha256(data).digest()
            assert await content(store, ino) == data
            assert store.archives.cache.count == 1
            assert not store.chunks._pins
        # Another daemon, with nothing in its memory and nothing in the cache.
        for file in (tmp_path / "store" / "cache").iterdir():
            file.unlink()
        async with opened(tmp_path / "store") as store:
            assert await content(store, ino, 100_000) == data
            assert (await store.archives.prove(blob_of(store, ino))).size == len(data)
            await store.archives.thaw(blob_of(store, ino))
            assert not store.blobs.get(blob_of(store, ino)).flags & BLOB_AGED
            assert await content(store, ino) == data
            await store.commit()
            assert not store.chunks._pins

    trio.run(main)
    assert not findings(tmp_path / "store")


LEFT: dict[str, Callable[[], bytes]] = {
    "text": lambda: TWO_MIB,
    "no deflate": lambda: b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03" + noise(4, 100_000),
    "truncated": lambda: droplet()[:-1000],
    "no trailer": lambda: droplet()[:-4],
    "bomb": lambda: gzipped(bytes(40 << 20)),
    "go": lambda: (FIXTURES / "go.tgz").read_bytes(),
    "pigz": lambda: (FIXTURES / "pigz.gz").read_bytes(),
    "zopfli": lambda: (FIXTURES / "zopfli.tgz").read_bytes(),
    "much behind it": lambda: droplet() + noise(5, 200_000),
    "go zip": lambda: (FIXTURES / "go.zip").read_bytes(),
    "stored zip": lambda: zipped(zipfile.ZIP_STORED, None),
    "npm": lambda: (FIXTURES / "npm.tgz").read_bytes(),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_cannot_be_made_again_is_left_alone_for_good(tmp_path: Path, kind: str) -> None:
    data = LEFT[kind]()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            before = store.blobs.get(blob_of(store, ino))
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert outcome.reason and outcome.lasting and not outcome.done
            after = store.blobs.get(blob_of(store, ino))
            assert after == before._replace(flags=before.flags | BLOB_LEFT)
            assert await content(store, ino) == data
            again = await store.archives.take_apart(blob_of(store, ino))
            assert again.reason == "it was looked at before"
            await Sweeper(store).once()
            await store.commit()
            assert not store.chunks._pins

    trio.run(main)
    assert not findings(tmp_path / "store")


def made_by_zlib(level: int, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    """A zip of many members by zlib, with a strategy that no engine here has if one is given."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for name, data in sources().items():
            with archive.open(name, "w") as member:
                made = zlib.compressobj(level, zlib.DEFLATED, -15, 8, strategy)
                setattr(member, "_compressor", made)  # noqa: B010
                member.write(data)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["zlib", "zip"])
def test_what_an_engine_makes_that_is_missing_is_not_left_for_good(
    tmp_path: Path, kind: str
) -> None:
    data = ARCHIVES[kind]()
    gzip_only = {gnu_gzip.KIND: MACHINE_GZIP}

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            store.archives.engines._programs = gzip_only
            ino = await put(store, b"archive", data)
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert outcome.reason.startswith("no engine makes") and not outcome.lasting
            assert not store.blobs.get(blob_of(store, ino)).flags & BLOB_LEFT
            await store.commit()
        async with opened(tmp_path / "store") as store:
            await age(store, ino)

    trio.run(main)


def test_a_zip_that_zlib_does_not_make_is_left_for_good_also_without_gzip(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            store.archives.engines._programs = {zlib_engine.KIND: zlib_engine.machine_library()}
            ino = await put(store, b"archive", made_by_zlib(6, zlib.Z_FIXED))
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert outcome.reason == "no engine makes most of its members" and outcome.lasting

    trio.run(main)


def test_what_came_before_decides_nothing(tmp_path: Path) -> None:
    """Small droplets are taken by the same daemon that met many zips, some of unknown makers."""
    before = [made_by_zlib(6), made_by_zlib(9), made_by_zlib(6, zlib.Z_FIXED)]
    small = [gzipped(tar(sources(["json"])), f"-{level}") for level in (6, 9)]

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            reasons = []
            for number, data in enumerate([*before, *small]):
                ino = await put(store, b"%d" % number, data)
                outcome = await store.archives.take_apart(blob_of(store, ino))
                reasons.append(outcome.reason)
            assert reasons == ["", "", "no engine makes most of its members", "", ""]

    trio.run(main)


@pytest.mark.parametrize("kind", ["droplet", "zlib", "zip", "two members"])
def test_what_an_engine_is_too_slow_with_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    data, other = ARCHIVES[kind](), droplet(mtime=1)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            before = await put(store, b"before", other)
            await age(store, before)
            # Shorter than any part takes, with each engine.
            monkeypatch.setattr(take_apart, "PATIENCE_S", 0.0)
            ino = await put(store, b"archive", data)
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert "too long" in outcome.reason and outcome.lasting
            assert store.blobs.get(blob_of(store, ino)).flags & BLOB_LEFT
            assert await content(store, ino) == data
            # What is stored is read and proven, however long that takes.
            assert (await store.archives.prove(blob_of(store, before))).size == len(other)
            assert await content(store, before) == other

    trio.run(main)


def test_bounds_of_the_settings_hold(tmp_path: Path) -> None:
    options = ArchiveOptions(max_inflated=1 << 20)

    async def main() -> None:
        async with opened(tmp_path / "store", options) as store:
            ino = await put(store, b"archive", gzipped(TWO_MIB))
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert "max_inflated" in outcome.reason

    trio.run(main)


async def swept(store: Store) -> int:
    """Stored bytes when everything that nobody needs is gone."""
    await Sweeper(store).once()
    await store.commit()
    return store.counters.stored_bytes


def test_successive_releases_share_what_is_the_same_in_them(tmp_path: Path) -> None:
    releases = [droplet(mtime=1_700_000_000 + 86400 * n, more={"version": b"%d" % n * 300})
                for n in range(4)]  # fmt: skip

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            inos = [await put(store, b"%d" % n, data) for n, data in enumerate(releases)]
            plain = await swept(store)
            outcomes = [await age(store, ino) for ino in inos]
            # Headers of a release differ from those of another, in their times.
            for outcome in outcomes[1:]:
                assert outcome.added_bytes < outcomes[0].added_bytes / 8
                assert outcome.gained_bytes > 0.9 * outcome.plain_bytes * 0.8
            shrunk = await swept(store)
            assert shrunk < 0.45 * plain
            for ino, data in zip(inos, releases, strict=True):
                assert await content(store, ino) == data

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_members_meet_the_same_files_elsewhere(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            for number, data in enumerate(sources().values()):
                await write(store, ROOT, b"%d" % number, data)
            ino = await put(store, b"droplet", droplet())
            outcome = await age(store, ino)
            # Only headers, and files too small for a chunk of their own, are new.
            assert outcome.added_bytes < 20_000
            inner = store.blobs.get(blob_of(store, ino)).mate
            size = store.blobs.get(inner).size
            kinds = [part.kind for _, part in store.blobs.parts(inner, 0, size)]
            assert set(kinds) == {recipe.CHUNK, recipe.SLICE}

    trio.run(main)


def test_several_readers_share_one_rebuild(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            wrong = []

            async def reader(piece: int) -> None:
                if await content(store, ino, piece) != data:
                    wrong.append(piece)

            async def tail() -> None:
                if await store.contents.read(ino, len(data) - 10, len(data)) != data[-10:]:
                    wrong.append(0)

            async with trio.open_nursery() as nursery:
                for piece in (5_000, 70_000, 200_000, 1 << 20):
                    nursery.start_soon(reader, piece)
                nursery.start_soon(tail)
            assert not wrong
            assert store.archives.rebuilds.begun == 1
            assert store.archives.rebuilds.under_way == 0

    trio.run(main)


def children() -> set[int]:
    """Processes of this one."""
    found = set()
    for thread in Path("/proc/self/task").iterdir():
        found |= {int(word) for word in (thread / "children").read_text().split()}
    return found


def test_a_reader_that_goes_away_leaves_nothing_behind(tmp_path: Path) -> None:
    data = gzipped(tar({"noise": noise(6, 8_000_000)} | sources()))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            idle = children()
            descriptors = set(os.listdir("/proc/self/fd"))
            with trio.move_on_after(0.05) as scope:
                await content(store, ino)
            if scope.cancelled_caught:
                # A first read decides nothing; the rest may well have been quicker than that.
                assert store.archives.rebuilds.under_way == 1
            await store.contents.read(ino, 0, 100_000)
            assert store.archives.rebuilds.under_way == 1
            assert len(children()) == len(idle) + 1
            store.archives.rebuilds.idle_max_s = 0.0
            await store.archives.rebuilds.look_after()
            assert store.archives.rebuilds.under_way == 0
            assert children() == idle
            assert len(set(os.listdir("/proc/self/fd"))) <= len(descriptors)
            assert not list((tmp_path / "store" / "cache").glob("*.new"))
            assert await content(store, ino) == data

    trio.run(main)


def test_who_reads_from_the_cache_does_not_wait_for_those_who_make_archives(
    tmp_path: Path,
) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            assert await content(store, ino) == data
            assert store.archives.cache.count == 1
            # As if each thread were in a long step.
            async with store.archives._foreground.parked():
                with trio.fail_after(10):
                    assert await content(store, ino) == data

    trio.run(main)


def test_bytes_flipped_in_the_cache_are_made_again(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            assert await content(store, ino) == data
            (file,) = (tmp_path / "store" / "cache").iterdir()
            raw = bytearray(file.read_bytes())
            for place in range(100, len(raw), 50_000):
                raw[place] ^= 0x40
            file.write_bytes(raw)
            assert await content(store, ino) == data
            assert store.archives.rebuilds.begun == 2
            assert store.archives.cache.damaged == 1

    trio.run(main)


@pytest.mark.parametrize("how", ["removed", "cut"])
def test_a_cache_that_is_deleted_while_an_archive_is_read_costs_nobody_a_byte(
    tmp_path: Path, how: str
) -> None:
    data = gzipped(tar({"noise": noise(6, 3_000_000)} | sources()))
    cache = tmp_path / "store" / "cache"

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            got = await store.contents.read(ino, 0, 100_000)
            for file in cache.iterdir():
                os.truncate(file, 10) if how == "cut" else file.unlink()
            while len(got) < len(data):
                got += await store.contents.read(ino, len(got), len(got) + 100_000)
            assert got == data
            assert await content(store, ino) == data
            assert store.archives.rebuilds.failed == 0
            # One whose file has no name is there as long as somebody reads from it.
            store.archives.rebuilds.idle_max_s = 0.0
            await store.archives.rebuilds.look_after()
            assert await content(store, ino) == data
            assert store.archives.cache.count == 1
            assert store.archives.rebuilds.under_way == 0

    trio.run(main)


@pytest.mark.parametrize("cache_size", [0, 200_000])
def test_without_room_in_the_cache_reading_goes_on(tmp_path: Path, cache_size: int) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store", ArchiveOptions(cache_size=cache_size)) as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            for piece in (30_000, 1 << 20):
                assert await content(store, ino, piece) == data
            assert not list((tmp_path / "store" / "cache").iterdir())

    trio.run(main)


def test_one_that_is_read_again_and_again_is_thawed(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store", ArchiveOptions(thaw_after=3)) as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            for _ in range(2):
                assert await content(store, ino) == data
            await trio.testing.wait_all_tasks_blocked()
            assert store.blobs.get(blob_of(store, ino)).flags & BLOB_AGED
            assert await content(store, ino) == data
            with trio.fail_after(20):
                while store.blobs.get(blob_of(store, ino)).flags & BLOB_AGED:
                    await trio.sleep(0.01)
            assert await content(store, ino) == data
            with trio.fail_after(20):
                while store.archives.cache.count:
                    await trio.sleep(0.01)
            await store.commit()

    trio.run(main)
    assert not findings(tmp_path / "store")


CHANGES: dict[str, Callable[[bytearray], tuple[int, bytes]]] = {
    "in the middle": lambda data: (len(data) // 2, b"changed"),
    "at the end": lambda data: (len(data), b"appended"),
    "at the start": lambda data: (0, b"not a gzip any more"),
    "far behind": lambda data: (len(data) + 100_000, b"far"),
}


@pytest.mark.parametrize("where", CHANGES)
def test_writing_to_an_aged_file_works(tmp_path: Path, where: str) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            twin = await put(store, b"twin", data)
            assert blob_of(store, ino) == blob_of(store, twin)
            await age(store, ino)
            model = bytearray(data)
            offset, change = CHANGES[where](model)
            if offset > len(model):
                model += bytes(offset - len(model))
            model[offset : offset + len(change)] = change
            store.contents.opened(ino, writable=True)
            await store.contents.write(ino, offset, change, privileged=True)
            store.contents.closed(ino, writable=True)
            await store.sync_all()
            assert await content(store, ino) == model
            assert await content(store, twin) == data

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_an_archive_with_a_hole_is_left_before_any_work(tmp_path: Path) -> None:
    """Files remember how much of them is holes, which what engines make never is."""

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", gzipped(TWO_MIB))
            size = store.contents.attr(ino).size
            await store.contents.truncate(ino, size + 16384, privileged=True)
            blob = await hashed(store, ino)
            assert store.blobs.hole_bytes(blob)
            stored = store.counters.chunks
            outcome = await store.archives.take_apart(blob)
            assert (outcome.reason, outcome.lasting) == ("it has holes", True)
            assert store.blobs.get(blob).flags & BLOB_LEFT
            assert store.counters.chunks == stored

    trio.run(main)
    assert not findings(tmp_path / "store")


@pytest.mark.parametrize("size", [0, 1000, 400_000])
def test_truncating_an_aged_file_works(tmp_path: Path, size: int) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            await store.contents.truncate(ino, size, privileged=True)
            await store.sync_all()
            assert await content(store, ino) == (data + bytes(400_000))[:size]
            # To throw it all away nothing needs to be rebuilt.
            assert bool(store.archives.rebuilds.begun) == bool(size)

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_the_same_content_written_again_is_plain_again(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            twin = await put(store, b"twin", data)
            assert blob_of(store, twin) == blob_of(store, ino)
            assert await content(store, ino) == data
            assert await content(store, twin) == data

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_nothing_is_taken_apart_under_somebody_who_writes(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await put(store, b"twin", data)
            blob = blob_of(store, ino)
            store.contents.opened(ino, writable=True)
            await store.contents.write(ino, 5, b"more", privileged=True)
            outcome = await store.archives.take_apart(blob)
            assert not outcome.done and not outcome.lasting
            store.contents.closed(ino, writable=True)
            await store.sync_all()
            assert await content(store, ino) == data[:5] + b"more" + data[9:]

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_a_writer_who_comes_while_it_is_taken_apart_wins(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            twin = await put(store, b"twin", data)
            steps = 0

            async def pace() -> None:
                nonlocal steps
                steps += 1
                if steps == 3:
                    store.contents.opened(ino, writable=True)
                    await store.contents.write(ino, 0, b"changed", privileged=True)

            store.archives.pace = pace
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert steps >= 3
            assert not outcome.done and not outcome.lasting
            store.contents.closed(ino, writable=True)
            await store.sync_all()
            assert await content(store, ino) == b"changed" + data[7:]
            assert await content(store, twin) == data
            await swept(store)
            assert not store.chunks._pins

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_a_damaged_file_that_is_open_keeps_no_other_from_being_taken_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", droplet())
            other = await put(store, b"other", b"something else")
            store.contents.opened(other, writable=False)
            find = store.tree.inodes.find

            def damaged(asked: Ino) -> Attr | None:
                if asked == other:
                    raise IndexDamagedError("as if its record had a flipped bit")
                return find(asked)

            with monkeypatch.context() as patch:
                patch.setattr(store.tree.inodes, "find", damaged)
                assert (await store.archives.take_apart(blob_of(store, ino))).done
            store.contents.closed(other, writable=False)

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_removed_while_it_is_read_or_taken_apart(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            blob = blob_of(store, ino)

            async def pace() -> None:
                if store.tree.lookup(ROOT, b"archive") is not None:
                    store.tree.unlink(ROOT, b"archive")
                    store.nameless.forget(ino)
                    await Sweeper(store).once()

            store.archives.pace = pace
            outcome = await store.archives.take_apart(blob)
            assert not outcome.done and not outcome.lasting
            await swept(store)
            assert store.counters.chunks == 0
            assert not store.chunks._pins

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_an_interrupted_one_leaves_what_was_there(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        for stop_at in range(1, 12):
            async with opened(tmp_path / "store") as store:
                ino = store.tree.lookup(ROOT, b"archive") or await put(store, b"archive", data)
                steps = 0

                async def pace() -> None:
                    nonlocal steps
                    steps += 1
                    if steps == stop_at:  # noqa: B023
                        scope.cancel()
                    await trio.lowlevel.checkpoint()

                store.archives.pace = pace
                with trio.CancelScope() as scope:
                    await store.archives.take_apart(blob_of(store, ino))
                assert scope.cancelled_caught == (steps == stop_at)
                assert not store.chunks._pins
                assert await content(store, ino) == data
                await swept(store)
            assert not findings(tmp_path / "store")

    trio.run(main)


def test_a_recipe_that_lies_never_ends_well(tmp_path: Path) -> None:
    data = droplet()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", data)
            await age(store, ino)
            blob = blob_of(store, ino)
            record = store.blobs.get(blob)
            store.blobs.put(blob, record._replace(sha256=bytes(32)))
            got = b""
            with pytest.raises(RebuildError) as caught:
                while True:
                    got += await store.contents.read(ino, len(got), len(got) + 10_000)
                    assert data.startswith(got)
            assert caught.value.advice
            assert len(got) < len(data), "the end is never given out"
            assert store.archives.rebuilds.failed == 1
            store.blobs.put(blob, record)
            assert await content(store, ino) == data

    trio.run(main)
