"""Cuts at the members of real zips: the same file gives the same slices in every zip."""

from __future__ import annotations

import hashlib
import io
import itertools
import zipfile
from typing import NamedTuple

import pytest

from cafs.blobs.chunker import ChunkParams, split

PARAMS = ChunkParams(min_size=1024, avg_size=4096, max_size=16_384)


class Unseekable(io.RawIOBase):
    """What Go's writer and zip to a pipe write to: sizes go into a data descriptor."""

    def __init__(self) -> None:
        self.content = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.content += data
        return len(data)


def words(seed: str, size: int) -> bytes:
    """Text that deflates about 2 : 1."""
    return hashlib.shake_128(seed.encode()).hexdigest(size // 2).encode()


MEMBERS = {
    "app/one.py": words("one", 90_000),
    "app/two.py": words("two", 700),
    "app/empty": b"",
    "app/three.bin": hashlib.shake_128(b"three").digest(40_000),
    "app/tiny": b"x",
}


class Writing(NamedTuple):
    """How a zip is written."""

    method: int
    streamed: bool
    year: int
    zip64: bool = False


def make_zip(names: list[str], how: Writing) -> bytes:
    seekable = io.BytesIO()
    pipe = Unseekable()
    with zipfile.ZipFile(pipe if how.streamed else seekable, "w", how.method) as archive:
        for name in names:
            info = zipfile.ZipInfo(name, (how.year, 2, 3, 4, 5, 6))
            info.compress_type = how.method
            with archive.open(info, "w", force_zip64=how.zip64) as member:
                member.write(MEMBERS[name])
    return bytes(pipe.content) if how.streamed else seekable.getvalue()


class Cut(NamedTuple):
    """A zip's content and where it was cut."""

    content: bytes
    slices: list[tuple[int, int]]

    def between(self, start: int, end: int) -> list[bytes]:
        """The slices of a range that must begin and end at cuts."""
        bounds = {0, *(stop for _, stop in self.slices)}
        assert start in bounds
        assert end in bounds
        return [self.content[a:b] for a, b in self.slices if start <= a and b <= end and a < b]

    def member_range(self, info: zipfile.ZipInfo) -> tuple[int, int]:
        """Where the member's data lie."""
        at = info.header_offset
        sizes = self.content[at + 26 : at + 30]
        start = at + 30 + int.from_bytes(sizes[:2], "little") + int.from_bytes(sizes[2:], "little")
        return start, start + info.compress_size

    def members(self) -> dict[str, list[bytes]]:
        """Each member's data, in slices."""
        with zipfile.ZipFile(io.BytesIO(self.content)) as archive:
            return {
                info.filename: self.between(*self.member_range(info)) for info in archive.infolist()
            }


def cut(content: bytes, params: ChunkParams = PARAMS) -> Cut:
    ends = split(content, params, final=True)
    return Cut(content, list(itertools.pairwise([0, *ends])))


ORDERS = [list(MEMBERS), list(reversed(MEMBERS)), ["app/tiny", "app/three.bin", "app/one.py"]]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_same_file_gives_same_slices_in_any_zip(method: int) -> None:
    ways = [
        Writing(method, streamed, year, zip64)
        for streamed in (False, True)
        for year, zip64 in ((1990, False), (2020, True))
    ]
    seen: dict[str, list[bytes]] = {}
    for how, names in itertools.product(ways, ORDERS):
        for name, slices in cut(make_zip(names, how)).members().items():
            assert slices == seen.setdefault(name, slices), (how, name)
    assert set(seen) == set(MEMBERS)
    # No bytes of another member, of a header or of a descriptor got in.
    if method == zipfile.ZIP_STORED:
        assert {name: b"".join(parts) for name, parts in seen.items()} == MEMBERS
    assert len(seen["app/three.bin"]) > 4


@pytest.mark.parametrize("streamed", [False, True])
def test_headers_and_descriptors_are_slices_of_their_own(streamed: bool) -> None:
    names = list(MEMBERS)
    done = cut(make_zip(names, Writing(zipfile.ZIP_DEFLATED, streamed, 2000)))
    scraps = [done.content[a:b] for a, b in done.slices if done.content[a : a + 2] == b"PK"]
    kinds = [scrap[2:4] for scrap in scraps]
    assert kinds.count(b"\x03\x04") == len(names)
    assert kinds.count(b"\x07\x08") == (len(names) if streamed else 0)
    assert kinds.count(b"\x01\x02") == 1
    for scrap in scraps:
        if scrap[2:4] == b"\x03\x04":
            assert 30 < len(scrap) < 60
        if scrap[2:4] == b"\x07\x08":
            assert len(scrap) == 16


def test_central_directory_is_one_stream() -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writer:
        for number in range(400):
            writer.writestr(zipfile.ZipInfo(f"file-{number}"), b"same")
    content = archive.getvalue()
    start = content.index(b"PK\x01\x02")
    directory = [pair for pair in cut(content, ChunkParams()).slices if pair[1] > start]
    # 23 KB: cut by content at most once or twice, not at each of its 400 entries.
    assert directory[0][0] == start
    assert len(directory) <= 3


def test_zip_in_a_stored_zip_is_cut_too() -> None:
    names = list(MEMBERS)
    inner = make_zip(names, Writing(zipfile.ZIP_DEFLATED, False, 2000))
    outer = io.BytesIO()
    with zipfile.ZipFile(outer, "w") as writer:
        writer.writestr("first", b"something before")
        writer.writestr("lib/inner.jar", inner)
    whole = cut(outer.getvalue())
    at = whole.content.index(inner)
    assert whole.between(at, at + inner.index(b"PK\x01\x02")) == [
        inner[a:b] for a, b in cut(inner).slices if b <= inner.index(b"PK\x01\x02")
    ]


def test_cutting_at_members_can_be_left_off() -> None:
    content = make_zip(list(MEMBERS), Writing(zipfile.ZIP_DEFLATED, False, 2000))
    params = ChunkParams(1024, 4096, 16_384, zip_members=False)
    slices = cut(content, params).slices
    assert all(b - a >= params.min_size for a, b in slices[:-1])


def header(**fields: int) -> bytes:
    values = {"version": 20, "flags": 0, "method": 8, "name": 5, "extra": 0, **fields}
    return b"".join(
        (
            b"PK\x03\x04",
            values["version"].to_bytes(2, "little"),
            values["flags"].to_bytes(2, "little"),
            values["method"].to_bytes(2, "little"),
            bytes(16),
            values["name"].to_bytes(2, "little"),
            values["extra"].to_bytes(2, "little"),
        )
    )


def ends_after_header(head: bytes) -> list[int]:
    """The ends when *head* stands 300 bytes into content that has no cut otherwise."""
    return split(bytes(300) + head + bytes(20_000), ChunkParams(), final=True)


@pytest.mark.parametrize(
    "head",
    [
        header(),
        header(version=63, flags=0x0808, method=0, name=4095),
        header(version=0x0314, method=99, name=1, extra=9000),
        header(version=0, method=93),
        header(method=12),
    ],
)
def test_plausible_headers_are_cut_off(head: bytes) -> None:
    size = 30 + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    assert ends_after_header(head) == [300, 300 + size, 20_330]


@pytest.mark.parametrize(
    "head",
    [
        header(version=64),
        header(flags=0x4000),
        header(flags=0x8000),
        header(method=7),
        header(method=21),
        header(method=92),
        header(method=100),
        header(method=0x0108),
        header(name=0),
        header(name=4096),
        b"PK\x03\x05" + header()[4:],
    ],
)
def test_implausible_headers_are_content(head: bytes) -> None:
    assert ends_after_header(head) == [20_330]


def test_header_that_does_not_fit_a_slice_is_content() -> None:
    params = ChunkParams(64, 4096, 4096)
    longest = bytes(100) + header(name=5, extra=4096 - 35) + bytes(9000)
    assert split(longest, params, final=True)[:2] == [100, 4196]
    longer = bytes(100) + header(name=5, extra=4096 - 34) + bytes(9000)
    assert split(longer, params, final=True)[0] == 4096


def test_nothing_is_said_about_a_header_that_has_not_come_whole() -> None:
    head = header(name=40)
    content = bytes(100) + head + bytes(40)
    for size in range(101, 130):
        assert split(content[:size], PARAMS, final=False) == []
        assert split(content[:size], PARAMS, final=True) == [size]
    for size in range(130, 170):
        assert split(content[:size], PARAMS, final=False) == [100]
        assert split(content[:size], PARAMS, final=True) == [100, size]
    assert split(content, PARAMS, final=False) == [100, 170]


def test_a_mark_that_has_not_come_whole_holds_back_the_cut_behind_it() -> None:
    params = ChunkParams(64, 4096, 4096)
    for mark in (header(), b"PK\x01\x02", b"PK\x07\x08"):
        for before in range(4097 - len(mark), 4096):
            content = bytes(before) + mark
            for size in range(4096, before + len(mark)):
                assert split(content[:size], params, final=False) == []
            assert split(content, params, final=False)[0] == before


def test_a_mark_at_a_cut_does_not_hold_it_back() -> None:
    params = ChunkParams(64, 4096, 4096)
    for mark in (b"P", b"PK\x03", header()[:29]):
        assert split(bytes(4096) + mark, params, final=False) == [4096]


def test_a_mark_at_the_very_beginning_makes_no_empty_slice() -> None:
    for mark in (b"PK\x01\x02", b"PK\x07\x08", b"PK\x03\x04"):
        assert split(mark + bytes(50), PARAMS, final=True) == [54]
        assert split(mark, PARAMS, final=True) == [4]
