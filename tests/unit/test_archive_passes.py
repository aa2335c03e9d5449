"""What goes into an inner blob comes out of it, whatever the archive; and is cut as files are."""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import threading
import zipfile
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives import zip_format
from cafs.archives.deflated import PIECE_MAX, RAW_PIECE_MAX
from cafs.archives.inner import GATHERED, InnerWriter
from cafs.archives.uses import Uses
from cafs.blobs import recipe
from cafs.blobs.reader import verified
from cafs.blobs.recipe import Part
from cafs.clock import SystemClock
from cafs.store import Store
from cafs.types import BlobNo, ChunkNo
from tests.unit.archived import blob_of, content, gzipped, opened, put, sources, tar
from tests.unit.small_store import findings, noise

pytestmark = pytest.mark.timeout(60)

STRETCHES = st.lists(
    st.tuples(st.booleans(), st.sampled_from([1, 100, 128, 129, 512, 5000, 40_000, 70_000])),
    max_size=12,
)


def read(store: Store, parts: list[Part]) -> bytes:
    """The bytes of parts that no blob has, which are let go of."""
    pieces = []
    for part in parts:
        if part.kind == recipe.LITERAL:
            pieces.append(part.data)
            continue
        number = ChunkNo(part.ref)
        extent = store.chunks.extent_of(number)
        stored = store.packs.read_stored(extent.pack, extent.offset, extent.stored_length)
        raw = verified(number, extent, stored)
        start = recipe.slice_offset(part) if part.kind == recipe.SLICE else 0
        pieces.append(raw[start : start + part.length])
    store.chunks.unpin(recipe.chunk_refs(parts))
    return b"".join(pieces)


def test_parts_are_the_bytes_that_came_in(tmp_path: Path) -> None:
    def one(store: Store, stretches: list[tuple[bool, int]], cuts: int) -> None:
        choice = random.Random(cuts)
        writer = InnerWriter(store.contents.ingest)
        whole = bytearray()
        parts: list[Part] = []
        for number, (header, length) in enumerate(stretches):
            data = noise(number, length)
            whole += data
            if header:
                writer.header(data)
                continue
            at = 0
            while at < length:
                step = choice.randrange(1, length + 1)
                writer.data(data[at : at + step], final=at + step >= length)
                at += step
            parts += writer.take(2)
        assert writer.finish() == hashlib.sha256(whole).digest()
        parts += writer.take_all()
        assert writer.size == len(whole)
        assert read(store, parts) == whole
        assert not store.chunks._pins

    async def main() -> None:
        async with opened(tmp_path / "store") as store:

            @settings(max_examples=40, deadline=None)
            @given(STRETCHES, st.integers(0, 1000))
            def examples(stretches: list[tuple[bool, int]], cuts: int) -> None:
                one(store, stretches, cuts)

            examples()

    trio.run(main)


def test_what_is_abandoned_is_let_go_of(tmp_path: Path) -> None:
    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            writer = InnerWriter(store.contents.ingest)
            writer.header(noise(1, 2 * GATHERED))
            writer.data(noise(2, 3_000_000), final=True)
            taken = writer.take(10)
            assert len(taken) == 10
            writer.abandon()
            store.chunks.unpin(recipe.chunk_refs(taken))
            assert not store.chunks._pins

    trio.run(main)


def odd_zips() -> dict[str, bytes]:
    """Zips with something in them that is not as it says."""
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in sources().items():
            archive.writestr(name, data)
    whole = good.getvalue()
    choice = random.Random(3)
    flipped = bytearray(whole)
    for _ in range(40):
        flipped[choice.randrange(len(flipped) // 2)] ^= 1 << choice.randrange(8)
    return {
        "flipped": bytes(flipped),
        "prefixed": b"#!/bin/sh\n" * 100 + whole,
        "cut short": whole[:-5000],
        "with a comment": whole[:-2] + b"\x05\0hello",
        "twice": whole + whole,
    }


def odd_gzips() -> dict[str, bytes]:
    whole = gzipped(tar(sources(["json", "email"])))
    plain = tar(sources(["json"]))
    choice = random.Random(4)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    stored = zlib.compressobj(0, zlib.DEFLATED, -15)
    raw = stored.compress(plain) + stored.flush()
    head = b"\x1f\x8b\x08\x00" + bytes(4) + b"\x00\x03"
    tail = zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    return {
        "flipped": bytes(flipped),
        "wrong trailer": whole[:-8] + b"\0" * 8,
        "stored blocks": head + raw + tail,
        "empty": gzip.compress(b"", mtime=0),
        "many empty members": gzip.compress(b"", mtime=0) * 50,
        "a name, a comment": whole[:3] + b"\x18" + whole[4:10] + b"name\0comment\0" + whole[10:],
        "levels in turn": b"".join(gzipped(plain, f"-{level}") for level in (1, 6, 9)),
        "random": b"\x1f\x8b\x08" + choice.randbytes(50_000),
    }


@pytest.mark.parametrize("kind", ["zip", "gzip"])
def test_odd_archives_are_right_or_left_alone(tmp_path: Path, kind: str) -> None:
    archives = odd_zips() if kind == "zip" else odd_gzips()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            inos = {name: await put(store, name.encode(), data) for name, data in archives.items()}
            outcomes = {
                n: await store.archives.take_apart(blob_of(store, i)) for n, i in inos.items()
            }
            for name, data in archives.items():
                assert await content(store, inos[name]) == data, name
            done = {name for name, outcome in outcomes.items() if outcome.done}
            assert all(outcome.done or outcome.lasting for outcome in outcomes.values())
            await store.commit()
            if kind == "gzip":
                assert {"wrong trailer", "a name, a comment", "levels in turn"} <= done
                assert not done & {"flipped", "random"}

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_a_zip_of_many_members_is_scanned_beside_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3_000):
            archive.writestr(f"{number}", b"line %d\n" % number * 5)
    data = stream.getvalue()
    threads: set[int] = set()
    reads: list[int] = []
    scan = zip_format.scan

    def seen(size: int) -> Generator[zip_format.Wanted, bytes, zip_format.ZipLayout]:
        scanning = scan(size)
        wanted = next(scanning)
        while True:
            got = yield wanted
            threads.add(threading.get_ident())
            try:
                wanted = scanning.send(got)
            except StopIteration as stop:
                found: zip_format.ZipLayout = stop.value
                assert len(found.members) == 3_000
                return found

    monkeypatch.setattr(zip_format, "scan", seen)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            blob = blob_of(store, await put(store, b"archive", data))
            await store.archives.ready()

            async def read(start: int, end: int) -> bytes | memoryview:
                reads.append(end - start)
                return await store.reader.read(blob, start, end)

            writers = [InnerWriter(store.contents.ingest) for _ in range(2)]
            await store.archives._apart._passes.of_zip(writers[0], writers[1], len(data), read)
            assert threads and threading.get_ident() not in threads
            assert len(reads) < 20 and max(reads) <= 256 << 10

    trio.run(main)


DENSE = b"".join(b"ab" * 50 + b"%06d" % (number * 7919 % 1_000_000) for number in range(100_000))


def jar(members: int) -> bytes:
    """A zip whose members hold much more than it has bytes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for number in range(members):
            archive.writestr(f"{number}.log", DENSE)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("files", "inside"),
    [
        ({"noise": noise(5, 3_000_000)}, 0),
        ({"dense": DENSE}, 0),
        ({"dense.jar": jar(4)}, 4 * len(DENSE)),
    ],
    ids=["noise", "dense", "jar"],
)
def test_no_part_takes_long_to_be_made(
    tmp_path: Path, files: dict[str, bytes], inside: int
) -> None:
    data = gzipped(tar(files))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            blob = blob_of(store, await put(store, b"archive", data))
            assert (await store.archives.take_apart(blob)).done
            parts = [
                part
                for _, part in store.blobs.parts(blob, 0, len(data))
                if part.kind == recipe.MADE
            ]
            inflater = zlib.decompressobj(-zlib.MAX_WBITS)
            at = 10
            for part in parts:
                raw = len(inflater.decompress(data[at : at + part.length]))
                at += part.length
                assert part.length <= PIECE_MAX
                assert raw <= 2 * RAW_PIECE_MAX
            assert len(parts) >= inside // (2 * RAW_PIECE_MAX)

    trio.run(main)


def test_uses_are_counted_by_the_day() -> None:
    clock = Hands()
    uses = Uses(clock, thaw_after=3)
    night = 86_400.0
    for _ in range(10):
        uses.read(BlobNo(1), 0)
        uses.read(BlobNo(1), 1 << 20)
        clock.now += night + 60
    assert uses.next_to_thaw() is None
    for count in range(1, 4):
        uses.read(BlobNo(1), 0)
        assert uses.count(BlobNo(1)) == count
    assert uses.next_to_thaw() == BlobNo(1)
    assert uses.next_to_thaw() is None
    uses.read(BlobNo(2), 5)
    uses.read(BlobNo(2), 70_000)
    assert uses.count(BlobNo(2)) == 1, "one reader who reads on"
    clock.now += 61
    uses.read(BlobNo(2), 140_000)
    assert uses.count(BlobNo(2)) == 2
    assert uses.idle_s(BlobNo(2)) == 0.0
    uses.forget(BlobNo(2))
    assert uses.count(BlobNo(2)) == 0


class Hands(SystemClock):
    """A clock that stands still unless it is moved."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now
