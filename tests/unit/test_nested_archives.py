"""Zips and gzip files inside a tar: taken apart with it, made again, shared with plain files."""

from __future__ import annotations

import gzip
import io
import os
import random
import struct
import subprocess
import zipfile
import zlib
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives.engine_run import DEPTH_MAX, EngineRun, NestedRuns
from cafs.archives.inner import InnerWriter
from cafs.archives.inside import Inside, NestedSeen
from cafs.archives.nested import engines_of
from cafs.archives.nested_file import Room
from cafs.archives.nested_zip import LEAST
from cafs.archives.segments import LeftError
from cafs.blobs import recipe
from cafs.errors import RebuildError
from cafs.index.layout import BLOB_NESTED
from cafs.operate.look import look_at_blob, verify
from cafs.operate.paths import attr_of, resolve
from cafs.store import Store
from cafs.types import BlobNo, Ino
from cafs.view import View
from tests.unit.archived import age, blob_of, content, gzipped, opened, put, sources, tar
from tests.unit.small_store import findings, noise

if TYPE_CHECKING:
    from cafs.archives.engine import Engine

pytestmark = pytest.mark.timeout(120)

LIBRARY = sources()
FIXTURES = Path(__file__).parents[1] / "fixtures"


class Unseekable(io.BytesIO):
    """A zip that is written here has its sizes behind each member."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("seek")

    def tell(self) -> int:
        raise io.UnsupportedOperation("tell")


def zipped(
    files: dict[str, bytes],
    method: int = zipfile.ZIP_DEFLATED,
    stream: io.BytesIO | None = None,
    level: int | None = None,
) -> bytes:
    stream = stream or io.BytesIO()
    with zipfile.ZipFile(stream, "w", method, compresslevel=level) as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2024, 1, 1, 0, 0, 0)), data, method)
    return stream.getvalue()


def wheel() -> bytes:
    large = noise(1, 8000) * 340
    return zipped(LIBRARY | {"large.so": large, "empty": b"", "tiny": b"x"})


def worth_it(whole: bytes) -> int:
    """Members that are long enough to be made again."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        return sum(member.compress_size > LEAST for member in archive.infolist())


def inner_of(store: Store, ino: Ino) -> BlobNo:
    return store.blobs.get(blob_of(store, ino)).mate


def made_in(store: Store, blob: BlobNo) -> int:
    """Streams of a recipe that engines make."""
    parts = store.blobs.parts(blob, 0, store.blobs.get(blob).size)
    made = [recipe.made(part) for _, part in parts if part.kind == recipe.MADE]
    return sum(how.position == 0 for how in made)


def test_a_wheel_in_a_cache_shares_its_files(tmp_path: Path) -> None:
    one = wheel()
    archive = gzipped(tar({"pip/http-v2/a.body": one, "pip/http-v2/a": b"head", "b.txt": b"z" * 9}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            plain = await put(store, b"droplet", gzipped(tar(LIBRARY)))
            await age(store, plain)
            ino = await put(store, b"cache", archive)
            outcome = await age(store, ino)
            inner = inner_of(store, ino)
            assert store.blobs.get(inner).flags & BLOB_NESTED
            assert made_in(store, inner) == worth_it(one) > 40
            assert outcome.added_bytes < len(archive) / 4, "its files are those of the droplet"
            assert len(engines_of(store.blobs, blob_of(store, ino))) == 2
            assert await content(store, ino) == archive
            assert await content(store, ino, 70_001) == archive, "from the cache"
            store.archives.cache.drop(blob_of(store, ino))
            await store.archives.prove(blob_of(store, ino))
            await store.commit()

    trio.run(main)
    assert not findings(tmp_path / "store")
    with View(tmp_path / "store") as view:
        for name in ("droplet", "cache"):
            blob = attr_of(view, resolve(view, name.encode()).ino).blob
            look = look_at_blob(view, blob)
            assert look.aged is not None
            assert len(look.aged.engines) == 1 + (name == "cache")
            made_twice = view.blobs.get(look.aged.inner).size - look.aged.size
            assert (0.9 * len(one) < made_twice < len(one)) if name == "cache" else not made_twice
            assert not verify(view, blob).damages
        assert b"".join(view.content(blob)) == archive


def test_two_releases_of_zipped_data_share_it(tmp_path: Path) -> None:
    """As botocore's: each release packs the same descriptions anew, at another time."""
    data = {f"data/{n}.json": json_like(n, 150_000) for n in range(6)}

    def release(mtime: int) -> bytes:
        packed = {}
        for name, described in data.items():
            file = tmp_path / "service-2.json"
            file.write_bytes(described)
            os.utime(file, (mtime, mtime))
            packed[name] = subprocess.run(
                ["gzip", "-c", file], capture_output=True, check=True
            ).stdout
        return gzipped(tar(packed, mtime))

    first, second = release(1_700_000_000), release(1_700_600_000)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            one, two = await put(store, b"one", first), await put(store, b"two", second)
            await age(store, one)
            outcome = await age(store, two)
            assert outcome.added_bytes < len(second) / 20
            assert await content(store, one) == first
            assert await content(store, two) == second

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_it_is_thawed_and_taken_apart_again(tmp_path: Path) -> None:
    archive = gzipped(tar({"one.jar": wheel(), "two.jar": zipped(LIBRARY)}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert await store.archives.thaw(blob_of(store, ino))
            assert await content(store, ino) == archive
            await store.commit()
            await age(store, ino)
        async with opened(tmp_path / "store") as store:
            ino = Ino(2)
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def descriptors_without_signature(files: dict[str, bytes]) -> bytes:
    """What an old writer makes: nothing tells where the next member begins."""
    whole = zipped(files, stream=Unseekable())
    return whole.replace(b"PK\x07\x08", b"", 1)


def lying(files: dict[str, bytes], by: int) -> bytes:
    """A zip whose first member says that it has another length."""
    whole = bytearray(zipped(files))
    (length,) = struct.unpack_from("<L", whole, 18)
    struct.pack_into("<L", whole, 18, length + by)
    return bytes(whole)


def cut_where_its_stream_ends() -> bytes:
    """A zip whose only member says that it is longer, and ends there."""
    whole = lying({"a": LIBRARY["json/decoder.py"]}, 100)
    (length,) = struct.unpack_from("<L", whole, 18)
    return whole[: 30 + len("a") + length - 100]


def flipped(files: dict[str, bytes], seed: int) -> bytes:
    whole = bytearray(zipped(files))
    choice = random.Random(seed)
    for _ in range(20):
        whole[choice.randrange(len(whole))] ^= 1 << choice.randrange(8)
    return bytes(whole)


def late(files: dict[str, bytes]) -> bytes:
    """A long member that another compressor goes on with: only the whole tells."""
    head, tail = noise(3, 700) * 2500, noise(4, 900) * 900
    one = zlib.compressobj(6, zlib.DEFLATED, -15)
    raw = one.compress(head) + one.flush(zlib.Z_FULL_FLUSH)
    two = zlib.compressobj(1, zlib.DEFLATED, -15)
    raw += two.compress(tail) + two.flush()
    data = head + tail
    crc = zlib.crc32(data)
    name = b"late"
    header = b"PK\x03\x04" + struct.pack(
        "<5H3L2H", 20, 0, 8, 0, 0, crc, len(raw), len(data), len(name), 0
    )
    return header + name + raw + zipped(files)


def python_gzip(data: bytes, level: int = 9) -> bytes:
    """What Python's gzip writes: zlib, and a header that does not name the system."""
    stream = io.BytesIO()
    with gzip.GzipFile("data.json", "wb", level, stream, mtime=1_700_000_000) as writer:
        writer.write(data)
    return stream.getvalue()


def json_like(seed: int, size: int) -> bytes:
    choice = random.Random(seed)
    words = [f'"{choice.randrange(1 << 40):x}": [{n}, true],\n' for n in range(500)]
    return "".join(choice.choices(words, k=size // 20)).encode()[:size]


SMALL = dict(list(LIBRARY.items())[:6])
ODD: dict[str, Callable[[], bytes]] = {
    "sizes behind": lambda: zipped(SMALL, stream=Unseekable()),
    "sizes behind, unmarked": lambda: descriptors_without_signature(SMALL),
    "stored": lambda: zipped(SMALL, zipfile.ZIP_STORED),
    "other methods": lambda: zipped(SMALL, zipfile.ZIP_BZIP2) + zipped(SMALL),
    "level 9": lambda: zipped(SMALL, level=9),
    "too long": lambda: lying(SMALL, 100),
    "too short": lambda: lying(SMALL, -100),
    "far too long": lambda: lying(SMALL, 1 << 30),
    "no length": lambda: lying(SMALL, 0xFFFFFFFF - struct.unpack_from("<L", zipped(SMALL), 18)[0]),
    "cut short": lambda: zipped(SMALL)[:-3_000],
    "cut where its stream ends": cut_where_its_stream_ends,
    "cut in a header": lambda: zipped(SMALL)[:20],
    "flipped": lambda: flipped(SMALL, 1),
    "flipped otherwise": lambda: flipped(SMALL, 2),
    "only its magic": lambda: b"PK\x03\x04",
    "twice": lambda: zipped(SMALL) * 2,
    "nested twice": lambda: zipped({"a.jar": zipped(SMALL)}, zipfile.ZIP_STORED),
    "made by two": lambda: late(SMALL),
    "gzip": lambda: gzipped(json_like(1, 200_000)),
    "a long gzip": lambda: gzipped(json_like(2, 3_000_000)),
    "a small gzip": lambda: gzipped(json_like(3, 3_000)),
    "gzip by Python": lambda: python_gzip(json_like(4, 200_000)),
    "gzip by Go": lambda: (FIXTURES / "go.tgz").read_bytes(),
    "gzips": lambda: gzipped(json_like(5, 70_000)) + python_gzip(json_like(6, 70_000), 6),
    "a tar in gzip": lambda: gzipped(tar(SMALL)),
    "gzip, cut short": lambda: gzipped(json_like(7, 2_000_000))[:-1000],
    "gzip, cut in its trailer": lambda: gzipped(json_like(7, 90_000))[:-3],
    "gzip and more": lambda: gzipped(json_like(8, 90_000)) + b"more" * 100,
    "gzip, damaged": lambda: gzipped(json_like(9, 90_000)).replace(b"\x05", b"\x15"),
    "gzip, a wrong trailer": lambda: gzipped(json_like(9, 90_000))[:-8] + bytes(8),
    "only a gzip header": lambda: gzipped(b"x" * 100)[:10],
    "gzip, a bomb": lambda: gzipped(bytes(30_000_000)),
    "empty members": lambda: zipped({str(n): b"" for n in range(50)}),
}


MADE = {
    *("sizes behind", "level 9", "twice", "gzip", "a long gzip", "a small gzip"),
    *("gzip by Python", "gzips", "a tar in gzip", "gzip and more", "gzip, a wrong trailer"),
    "gzip, cut in its trailer",
}
"""Those of which at least one stream is made again."""


@pytest.mark.parametrize("name", list(ODD))
def test_odd_archives_inside_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    archive = gzipped(tar({"a": b"first", "odd": ODD[name](), "z.py": LIBRARY["json/decoder.py"]}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert outcome.done, outcome.reason
            assert await content(store, ino) == archive
            nested = store.blobs.get(inner_of(store, ino)).flags & BLOB_NESTED
            assert bool(nested) == (made_in(store, inner_of(store, ino)) > 0)
            if name in MADE:
                assert nested
            if name == "gzips":
                assert made_in(store, inner_of(store, ino)) == 2
            if name == "made by two":
                assert not nested, "it was tried, failed, and was left as it lies"
            await store.commit()
            assert not store.chunks._pins

    trio.run(main)
    assert not findings(tmp_path / "store")


AROUND: dict[str, Callable[[bytes], bytes]] = {
    "zip": lambda odd: zipped(
        {"a.py": LIBRARY["json/decoder.py"], "odd": odd, "z.txt": b"z" * 900}
    ),
    "streamed zip": lambda odd: zipped({"odd": odd, "z": b"z" * 900}, stream=Unseekable()),
    "gzip": lambda odd: python_gzip(odd, 6),
    "program": gzipped,
}


@pytest.mark.parametrize("around", list(AROUND))
def test_odd_archives_two_deep_come_back_as_they_were(tmp_path: Path, around: str) -> None:
    """Each in an archive of its own: what one of them costs is not the others' loss."""
    archives = {}
    for name, make in ODD.items():
        archives[name] = gzipped(tar({"a": b"first", "b": AROUND[around](make()), "c": make()}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            for name, archive in archives.items():
                ino = await put(store, name.encode(), archive)
                outcome = await age(store, ino)
                assert outcome.done, outcome.reason
                assert await content(store, ino) == archive, name
                deepest = depth(store, inner_of(store, ino))
                if name in MADE:
                    assert deepest == 2, name
                assert deepest <= 2
                await store.archives.prove(blob_of(store, ino))
            await store.commit()
            assert not store.chunks._pins and not store.blobs.aged._held

    trio.run(main)
    assert not findings(tmp_path / "store")
    with View(tmp_path / "store") as view:
        for name, archive in archives.items():
            blob = attr_of(view, resolve(view, name.encode()).ino).blob
            assert b"".join(view.content(blob)) == archive, name


def depth(store: Store, blob: BlobNo) -> int:
    """How many streams of a nested blob are inside each other."""
    parts = store.blobs.parts(blob, 0, store.blobs.get(blob).size)
    return unfolded([part for _, part in parts])[1]


def unfolded(parts: list[recipe.Part]) -> tuple[int, int]:
    """How many bytes a nested recipe hands on, and how many streams are inside each other.

    All is where it belongs: what an engine takes in is whole parts right behind it.
    """
    wanted: list[int] = []
    handed_on = deepest = at = 0

    def count(length: int) -> None:
        nonlocal handed_on
        if wanted:
            wanted[-1] -= length
            assert wanted[-1] >= 0
        else:
            handed_on += length

    for index, part in enumerate(parts):
        while wanted and not wanted[-1]:
            wanted.pop()
        # A stream counts for what is around it; what it is made of comes behind that.
        count(part.length)
        at += part.length
        following = parts[index + 1] if index + 1 < len(parts) else None
        if part.kind != recipe.MADE:
            continue
        how = recipe.made(part)
        goes_on = following is not None and following.kind == recipe.MADE
        if following is None or not goes_on or not recipe.made(following).position:
            assert how.start == at
            wanted.append(how.raw_length)
            deepest = max(deepest, len(wanted))
    assert not any(wanted)
    return handed_on, deepest


FIXTURES_OF_TESTS: dict[str, Callable[[], bytes]] = {
    "nearly all zeros": lambda: python_gzip(noise(1, 400) + noise(2, 16) * 9 + bytes(12_000_000)),
    "cut short": lambda: python_gzip(json_like(7, 2_000_000))[:-1000],
    "no gzip file from the second megabyte on": lambda: (
        python_gzip(json_like(8, 2_000_000))[:-9_000] + noise(5, 9_000)
    ),
}


@pytest.mark.parametrize("name", list(FIXTURES_OF_TESTS))
def test_an_odd_file_in_a_wheel_does_not_cost_the_wheels(tmp_path: Path, name: str) -> None:
    with_it = zipped({"a.py": LIBRARY["json/decoder.py"], "x.gz": FIXTURES_OF_TESTS[name]()})
    archive = gzipped(tar({"one.whl": wheel(), "two.whl": with_it}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert made_in(store, inner_of(store, ino)) >= worth_it(wheel()) + worth_it(with_it)
            assert depth(store, inner_of(store, ino)) == 1
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_a_stream_is_where_it_says(tmp_path: Path) -> None:
    """A recipe whose parts were exchanged or moved makes nothing."""
    archive = gzipped(tar({"a.whl": zipped({"b.gz": python_gzip(json_like(2, 90_000))})}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            inner = inner_of(store, ino)
            parts = [p for _, p in store.blobs.parts(inner, 0, store.blobs.get(inner).size)]
            engine = store.archives.engines.rebuilder(1)
            for shift in (0, 1, -1):
                runs = NestedRuns(lambda _: None)
                try:
                    for part in parts:
                        if part.kind == recipe.MADE:
                            how = recipe.made(part)
                            run = EngineRun(how._replace(start=how.start + shift), engine, True)
                            run.take(deque([recipe.made_part(part.length, run.how)]))
                            with unless(shift == 0):
                                runs.begin(run)
                            break
                        runs.data(bytes(part.length))
                finally:
                    runs.close()

    trio.run(main)


def unless(right: bool) -> AbstractContextManager[object]:
    return nullcontext() if right else pytest.raises(RebuildError, match="is not followed by")


def test_deeper_than_the_format_has_it_nothing_is_made() -> None:
    class Never:
        def compressor(self, _params: int, *, background: bool) -> None:
            raise AssertionError("an engine was started")

    runs = NestedRuns(lambda _: None)
    at = 0
    for level in range(DEPTH_MAX + 1):
        at += 10
        run = EngineRun(recipe.Made(0, 1, 6, at, 100, 0), cast("Engine", Never()), True)
        run.take(deque([recipe.made_part(10, run.how)]))
        with nullcontext() if level < DEPTH_MAX else pytest.raises(RebuildError, match="too deep"):
            runs.begin(run)
    with pytest.raises(RebuildError, match="is not followed by"):
        runs.end()


def test_three_deep_is_left_as_it_lies(tmp_path: Path) -> None:
    innermost = zipped(SMALL)
    archive = gzipped(tar({"a": zipped({"b": python_gzip(python_gzip(innermost, 1), 6)})}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"cache", archive)
            await age(store, ino)
            assert depth(store, inner_of(store, ino)) == 2
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_data_packed_in_a_wheel_meets_what_was_installed_of_it(tmp_path: Path) -> None:
    """A droplet has botocore's files as they are; pip's cache has them in a wheel."""
    packed = {f"data/{n}.json.gz": python_gzip(json_like(n, 150_000)) for n in range(8)}
    droplet = gzipped(tar(packed | {"app.py": b"print()\n" * 40}))
    cache = gzipped(tar({"http/a.body": zipped(packed), "http/a": b"head"}))

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            one, two = await put(store, b"droplet", droplet), await put(store, b"cache", cache)
            await age(store, one)
            outcome = await age(store, two)
            assert outcome.added_bytes < len(cache) / 20
            assert made_in(store, inner_of(store, two)) == 16
            assert await content(store, one) == droplet
            assert await content(store, two, 70_001) == cache

    trio.run(main)
    assert not findings(tmp_path / "store")


def test_a_pass_gives_the_zip_back_however_it_is_cut(tmp_path: Path) -> None:
    zips = [around(make()) for make in ODD.values() for around in (bytes, AROUND["zip"])]

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            await store.archives.ready()
            passes = store.archives._apart._passes
            inside = Inside(passes._ready(), NestedSeen(), DEPTH_MAX)

            @settings(max_examples=60, deadline=None)
            @given(st.sampled_from(zips), st.integers(0, 10_000))
            def example(whole: bytes, cuts: int) -> None:
                one(store, inside, whole, cuts)

            example()

    trio.run(main)


def one(store: Store, inside: Inside, whole: bytes, cuts: int) -> None:
    writer = InnerWriter(store.contents.ingest)
    choice = random.Random(cuts)
    through = inside.takes(whole[:8], writer, Room(lambda _: None, 1000))
    assert through is not None
    at = 0
    parts = []
    try:
        while at < len(whole):
            step = choice.choice((1, 7, 30, 1000, 20_000, len(whole)))
            deque(through.push(whole[at : at + step]), maxlen=0)
            at += step
        deque(through.end(), maxlen=0)
        writer.finish()
        parts = writer.take_all()
    except LeftError:
        writer.abandon()
        assert not store.chunks._pins
        return
    assert unfolded(parts)[0] == len(whole)
    store.chunks.unpin(recipe.chunk_refs(parts))
    assert not store.chunks._pins
