"""Zips inside a tar that were made to do harm: none costs a byte, a pin, memory or patience."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from cafs.archive_options import ArchiveOptions
from cafs.archives import gzip_pass, inner, take_apart
from cafs.archives.engine import Engine
from cafs.archives.inner import InnerWriter
from cafs.archives.nested import Nested
from cafs.archives.rebuild import STEP, STREAM_COST
from cafs.archives.zlib_engine import ZlibCompressor
from cafs.blobs import recipe
from cafs.clock import Clock
from cafs.errors import DiskFullError, EngineError
from cafs.index.layout import BLOB_NESTED
from cafs.store import Store
from cafs.types import BlobNo, Ino
from cafs.view import View
from tests.unit.archived import age, blob_of, content, gzipped, opened, put, sources, tar
from tests.unit.small_store import findings, noise

pytestmark = pytest.mark.timeout(120)

FILES = sources()
TEXT = b"".join(FILES.values())
LONG = TEXT * 3
"""More than is looked at before it is decided who made a member."""


def deflated(raw: bytes, level: int = 6) -> bytes:
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15)
    return compressor.compress(raw) + compressor.flush()


def member(
    raw: bytes,
    *,
    streamed: bool = False,
    stream: bytes | None = None,
    length: int | None = None,
    raw_length: int | None = None,
) -> bytes:
    """One member of a zip; what it says of itself may be something else than what it is."""
    data = deflated(raw) if stream is None else stream
    crc, name = zlib.crc32(raw), b"m"
    if streamed:
        header = struct.pack("<4s5H3L2H", b"PK\3\4", 20, 8, 8, 0, 0, 0, 0, 0, len(name), 0)
        return header + name + data + struct.pack("<4s3L", b"PK\7\x08", crc, len(data), len(raw))
    header = struct.pack(
        "<4s5H3L2H",
        *(b"PK\3\4", 20, 0, 8, 0, 0, crc),
        len(data) if length is None else length,
        len(raw) if raw_length is None else raw_length,
        *(len(name), 0),
    )
    return header + name + data


def inner_of(store: Store, ino: Ino) -> BlobNo:
    return store.blobs.get(blob_of(store, ino)).mate


def is_nested(store: Store, ino: Ino) -> bool:
    return bool(store.blobs.get(inner_of(store, ino)).flags & BLOB_NESTED)


def made_in(store: Store, ino: Ino) -> int:
    inner = inner_of(store, ino)
    parts = store.blobs.parts(inner, 0, store.blobs.get(inner).size)
    return sum(part.kind == recipe.MADE for _, part in parts)


def damaged() -> bytes:
    stream = bytearray(deflated(LONG))
    stream[-40_000:] = noise(5, 40_000)
    return member(LONG, stream=bytes(stream))


COSTLY: dict[str, Callable[[], bytes]] = {
    "a long member that ends early": lambda: member(LONG)[:-5000],
    "one whose length is not told": lambda: member(LONG, streamed=True)[:-5000],
    "a damaged one": damaged,
    "a damaged one behind a sound one": lambda: member(TEXT[:90_000]) + damaged(),
    "longer than it says": lambda: member(LONG + TEXT, length=len(deflated(LONG)) - 7_000),
    "bytes behind its stream": lambda: member(LONG, stream=deflated(LONG) + noise(6, 20_000)),
    "more inside than it says": lambda: member(LONG, raw_length=len(LONG) - 1),
}
BOMB = deflated(TEXT[:2_000] + bytes(64 << 20))


@pytest.mark.parametrize("name", list(COSTLY))
def test_a_bad_member_costs_the_archive_its_zips_and_no_more(tmp_path: Path, name: str) -> None:
    archive = gzipped(tar({"a.jar": COSTLY[name](), **FILES}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            outcome = await age(store, ino)
            assert outcome.done and not is_nested(store, ino)
            assert await content(store, ino) == archive
            assert not store.chunks._pins and not store.blobs.aged._held

    trio.run(main)
    assert not findings(tmp_path / "store")


BOMBS: dict[str, Callable[[], bytes]] = {
    "honest": lambda: member(TEXT[:2_000] + bytes(64 << 20), stream=BOMB),
    "lying": lambda: member(b"", stream=BOMB, raw_length=3_000_000),
    "without a word": lambda: member(b"", stream=BOMB, streamed=True),
    "many small ones": lambda: member(bytes(900_000), raw_length=50_000) * 300,
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_member_of_nearly_nothing_is_not_inflated(tmp_path: Path, name: str) -> None:
    archive = gzipped(tar({"a.jar": BOMBS[name](), "z": noise(3, 150_000)}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            outcome = await age(store, ino)
            assert outcome.done and not is_nested(store, ino)
            assert outcome.inner_size < 2 << 20
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_the_first_members_are_made_and_the_rest_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gzip_pass, "STREAMS_MAX", 7)
    one = b"".join(member(TEXT[at : at + 2_000]) for at in range(0, 10_000, 2_000))
    archive = gzipped(tar({"a.jar": one, "b.jar": one, "c.jar": one}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert made_in(store, ino) == 7
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def stored(raw: bytes) -> bytes:
    """A member that is stored as it is."""
    crc = zlib.crc32(raw)
    fields = (b"PK\3\4", 20, 0, 0, 0, 0, crc, len(raw), len(raw), 1, 0)
    return struct.pack("<4s5H3L2H", *fields) + b"m" + raw


def test_what_waits_for_a_member_to_end_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of very many short files in a zip in a zip is parts of a recipe in the making."""
    monkeypatch.setattr(inner, "WAITING_MAX", 2_000)
    words = [noise(n, 129) for n in range(8)]
    many = b"".join(stored(words[n % 8]) for n in range(5_000))
    archive = gzipped(tar({"a.jar": member(many), "b.jar": member(TEXT[:90_000])}))
    waiting: list[int] = []
    slot = InnerWriter._slot

    def seen(writer: InnerWriter) -> int:
        waiting.append(len(writer._slots))
        return slot(writer)

    monkeypatch.setattr(InnerWriter, "_slot", seen)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert 1_000 < max(waiting) < 3_000
            assert made_in(store, ino) == 2, "the zip is, and its zip lies in it"
            assert await content(store, ino) == archive
            assert not store.chunks._pins

    trio.run(main)
    assert not findings(tmp_path / "store")


def pieces(whole: bytes, size: int, *arguments: str) -> bytes:
    return b"".join(gzipped(whole[at : at + size], *arguments) for at in range(0, len(whole), size))


def odd_tar() -> bytes:
    jar = member(LONG) + member(TEXT[:90_000], streamed=True) + member(b"", streamed=True) * 9
    return tar({"a.jar": jar + member(TEXT[500:70_000]), "b.jar": member(TEXT[:501]), **FILES})


SHAPES: dict[str, Callable[[], bytes]] = {
    "borders of gzip members inside zips": lambda: pieces(odd_tar(), 90_001),
    "a zip and no tar": lambda: gzipped(member(LONG) + member(TEXT[:501]) + b"PK\1\2" + bytes(99)),
    "it ends within a zip": lambda: gzipped(odd_tar()[: len(LONG) // 2]),
    "it ends behind a member": lambda: gzipped(odd_tar()[: 512 + len(member(LONG))]),
    "no header behind a zip": lambda: gzipped(
        tar({"a.jar": member(TEXT[:50_000])})[: 512 + 20_480] + noise(1, 9_000)
    ),
    "a zip behind what is no tar": lambda: gzipped(
        tar({"a": b"x" * 512})[:1024] + member(TEXT[:9_000]) + TEXT[:20_000]
    ),
}


@pytest.mark.parametrize("name", list(SHAPES))
def test_whatever_is_around_the_zips_it_comes_back(tmp_path: Path, name: str) -> None:
    archive = SHAPES[name]()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            outcome = await age(store, ino)
            assert outcome.done
            assert await content(store, ino, 70_001) == archive
            blob = blob_of(store, ino)
        with View(tmp_path / "store") as view:
            assert b"".join(view.content(blob)) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_what_a_stream_is_made_of_is_whole_parts_right_behind_it(tmp_path: Path) -> None:
    """As the format has it; small ones are gathered with the headers around them."""
    few = b"".join(member(TEXT[at : at + 40], streamed=True) for at in range(0, 4_000, 100))
    archive = gzipped(tar({"a.jar": few + member(TEXT[:300]) + few, "b.jar": member(LONG)}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            inner = inner_of(store, ino)
            input_end = streams = 0
            for begin, part in store.blobs.parts(inner, 0, store.blobs.get(inner).size):
                if part.kind == recipe.MADE:
                    how = recipe.made(part)
                    assert begin >= input_end
                    if begin + part.length == how.start:
                        input_end = how.start + how.raw_length
                        streams += 1
                elif begin < input_end:
                    assert begin + part.length <= input_end
            assert streams == 82
            assert await content(store, ino) == archive
            blob = blob_of(store, ino)
        with View(tmp_path / "store") as view:
            assert b"".join(view.content(blob)) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_a_step_of_taking_apart_is_short_however_much_a_few_bytes_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two deep, the ratios multiply: thousands of streams come out of a few kilobytes."""
    tiny = b"".join(member(noise(n % 90, 150)) for n in range(1_500))
    archive = gzipped(tar({"a.jar": member(tiny), "b.gz": gzipped(tiny)}))
    filled: list[int] = []
    visited: list[int] = []
    fill = InnerWriter.fill
    steps: list[int] = []

    def counted(writer: InnerWriter, place: int, parts: list[recipe.Part]) -> None:
        filled.append(place)
        visited.append(writer._taken + len(writer._slots) - 1 - place)
        fill(writer, place, parts)

    def counting(steps_of: Iterator[None], clock: Clock) -> bool:
        before = len(filled)
        more = next(steps_of, "over") != "over"
        steps.append(len(filled) - before)
        return more

    monkeypatch.setattr(InnerWriter, "fill", counted)
    monkeypatch.setattr(take_apart, "_go_on", counting)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert len(filled) > 3_000
            assert max(steps) <= 2
            assert sum(visited) < 10 * len(filled), "not all that is inside, for each of them"
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def nested_archive() -> bytes:
    jar = b"".join(member(TEXT[at : at + 30_000]) for at in range(0, 900_000, 30_000))
    return gzipped(tar({"a.jar": jar + member(LONG), **FILES, "late.jar": damaged()}))


def test_stopped_anywhere_it_is_as_it_was(tmp_path: Path) -> None:
    archive = nested_archive()

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            stop_at = caught = 0
            while stop_at == 0 or caught:
                stop_at += 9
                steps = 0

                async def pace() -> None:
                    nonlocal steps
                    steps += 1
                    if steps >= stop_at:  # noqa: B023
                        scope.cancel()
                    await trio.lowlevel.checkpoint()

                store.archives.pace = pace
                with trio.CancelScope() as scope:
                    await store.archives.take_apart(blob_of(store, ino))
                caught = scope.cancelled_caught
                assert not store.chunks._pins and not store.blobs.aged._held
            assert stop_at > 10, "both tries were stopped"
            assert await content(store, ino) == archive
            await store.commit()

    trio.run(main)
    assert not findings(tmp_path / "store")


@pytest.mark.parametrize("error", [EngineError("it fails"), DiskFullError("no room")])
def test_a_fault_in_the_middle_leaves_no_mark(
    tmp_path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = gzipped(tar({"a.jar": member(LONG) + member(TEXT[:90_000]), **FILES}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)

            def keep(_engine: Engine) -> None:
                raise error

            with monkeypatch.context() as patch:
                patch.setattr(store.archives.engines, "keep", keep)
                if isinstance(error, EngineError):
                    outcome = await store.archives.take_apart(blob_of(store, ino))
                    assert not outcome.done and not outcome.lasting
                else:
                    with pytest.raises(DiskFullError):
                        await store.archives.take_apart(blob_of(store, ino))
            assert not store.chunks._pins and not store.blobs.aged._held
            await age(store, ino)
            assert is_nested(store, ino)
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_an_engine_that_fails_once_inside_is_begun_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = gzipped(tar({"a.jar": member(LONG), **FILES}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            whole = ZlibCompressor.finish
            failures = [EngineError("it was killed")]

            def finish(compressor: ZlibCompressor) -> bytes:
                if failures:
                    raise failures.pop()
                return whole(compressor)

            monkeypatch.setattr(ZlibCompressor, "finish", finish)
            assert await content(store, ino, 70_001) == archive
            assert not failures

    trio.run(main)


def test_a_reader_that_goes_away_costs_the_next_one_nothing(tmp_path: Path) -> None:
    archive = gzipped(tar({"a.jar": member(LONG), "b.jar": member(TEXT), **FILES}))

    async def main() -> None:
        async with opened(tmp_path / "store", ArchiveOptions(thaw_after=1000)) as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            for deadline in (0.0, 0.01, 0.05, 0.1):
                with trio.move_on_after(deadline):
                    await store.contents.read(ino, 0, len(archive))
            whole: list[bytes] = []

            async def read(piece: int) -> None:
                whole.append(await content(store, ino, piece))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read, 50_000)
                nursery.start_soon(read, 1 << 20)
            assert whole == [archive] * 2
            await store.archives.rebuilds.close()
            assert not store.blobs.aged._held and not store.chunks._pins

    trio.run(main)


def test_a_step_is_short_and_little_waits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members that hold much for their size, and thousands that hold next to nothing."""
    dense = b"".join(member(noise(n, 4_000) * 200) for n in range(12))
    tiny = b"".join(member(noise(n, 150)) for n in range(3_000)) + member(b"", streamed=True) * 3000
    archive = gzipped(tar({"a.jar": dense, "b.jar": tiny}))
    fed: list[int] = []
    in_step: list[int] = []
    ready = Nested.ready
    run = ZlibCompressor.finish

    def finish(compressor: ZlibCompressor) -> bytes:
        fed.append(compressor._stream.total_in)
        return run(compressor)

    async def counted(source: Nested, end: int) -> bool:
        before = len(fed)
        there = await ready(source, end)
        in_step.append(len(fed) - before)
        assert len(source._ready) <= 4 * STEP
        assert len(source._parts) <= 2048
        return there

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert made_in(store, ino) == 6_012
            monkeypatch.setattr(Nested, "ready", counted)
            monkeypatch.setattr(ZlibCompressor, "finish", finish)
            assert await content(store, ino) == archive
            assert sum(in_step) > 6_000
            assert max(in_step) <= STEP // STREAM_COST + 1

    trio.run(main)
