"""Gzip files, and what is inside them, that were made to take memory or time: none gets them."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from cafs.archives import nested_gzip
from cafs.archives.deflated import BEGUN_MAX, DeflatedStream
from cafs.archives.gzip_format import header_length
from tests.unit.archived import age, blob_of, content, gzipped, opened, put, sources, tar
from tests.unit.small_store import findings
from tests.unit.test_hostile_zips import is_nested

pytestmark = pytest.mark.timeout(120)

HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\x03"
EMPTY_BLOCK = b"\0\0\0\xff\xff"
"""A stored block of no bytes."""


def test_a_stream_that_holds_nothing_is_not_held_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = HEADER + EMPTY_BLOCK * (4 * BEGUN_MAX // len(EMPTY_BLOCK))
    held: list[int] = []
    feed = DeflatedStream.feed

    def seen(stream: DeflatedStream, data: bytes | memoryview) -> None:
        feed(stream, data)
        held.append(len(stream._bytes))

    monkeypatch.setattr(DeflatedStream, "feed", seen)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", archive)
            outcome = await store.archives.take_apart(blob_of(store, ino))
            assert outcome.reason == "no engine makes this stream" and outcome.lasting
            assert BEGUN_MAX < max(held) < 2 * BEGUN_MAX
            assert await content(store, ino) == archive

    trio.run(main)


def named(data: bytes, length: int) -> bytes:
    """A gzip file by GNU gzip, with a name of so many bytes put into it."""
    plain = gzipped(data, "-n")
    return plain[:3] + b"\x08" + plain[4:10] + b"n" * length + b"\0" + plain[10:]


@pytest.mark.parametrize(("length", "taken"), [(3_000, True), (120 << 10, False)])
def test_a_long_name_is_not_looked_through_for_each_of_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int, taken: bool
) -> None:
    text = b"".join(sources().values())
    archive = gzipped(tar({"a.gz": named(text, length)}))
    looked: list[int] = []

    def seen(data: bytes) -> int:
        looked.append(len(data))
        return header_length(data)

    monkeypatch.setattr(nested_gzip, "header_length", seen)

    async def main() -> None:
        async with opened(tmp_path / "store") as store:
            ino = await put(store, b"archive", archive)
            await age(store, ino)
            assert is_nested(store, ino) == taken
            assert 0 < sum(looked) < 40_000
            assert await content(store, ino) == archive

    trio.run(main)
    assert not findings(tmp_path / "store")
