"""Tars of every format: the data of each member is found where it is, and any bytes are split."""

from __future__ import annotations

import io
import os
import random
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives.tar_format import BLOCK, PAX_MAX, Kind, Stretch, TarSplitter


def split(data: bytes, cuts: list[int] | None = None) -> list[Stretch]:
    """The stretches, joined where they are of the same kind; they are checked to tile *data*."""
    splitter = TarSplitter()
    found: list[Stretch] = []
    at = 0
    for cut in [*(cuts or []), len(data)]:
        found += splitter.push(data[at : at + cut])
        at = min(len(data), at + cut)
        pending = at - sum(stretch.length for stretch in found)
        assert 0 <= pending < BLOCK
    found += splitter.finish()
    assert sum(stretch.length for stretch in found) == len(data)
    assert all(stretch.length > 0 for stretch in found)
    joined: list[Stretch] = []
    for kind, length in found:
        if joined and joined[-1].kind is kind:
            joined[-1] = Stretch(kind, joined[-1].length + length)
        else:
            joined.append(Stretch(kind, length))
    return joined


def data_of(data: bytes) -> list[tuple[int, int]]:
    """Where the stretches of DATA lie: offset and length."""
    found = []
    at = 0
    for kind, length in split(data):
        if kind is Kind.DATA:
            found.append((at, length))
        at += length
    return found


def told_by_python(data: bytes) -> list[tuple[int, int]]:
    """Where the standard library finds data, sparse files aside."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(each.offset_data, each.size) for each in archive if each.isreg() and each.size]


SIZES = (0, 1, 100, 511, 512, 513, 1024, 10_000, 300_000)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Files of all sizes, long names, links."""
    root = tmp_path / "tree"
    root.mkdir()
    chance = random.Random(3)
    for size in SIZES:
        (root / f"file-{size}").write_bytes(chance.randbytes(size))
    deep = root.joinpath(*["directory-with-a-name" * 2] * 4)
    deep.mkdir(parents=True)
    (deep / ("long" * 30)).write_bytes(b"in the depth")
    (root / "unicode-ü").write_text("text")
    (root / "link").symlink_to("y" * 150)
    os.link(root / "file-10000", root / "hard")
    os.mkfifo(root / "fifo")
    return root


def tar(root: Path, *options: str) -> bytes:
    return subprocess.run(
        ["tar", *options, "-cf", "-", "."], cwd=root, stdout=subprocess.PIPE, check=True
    ).stdout


@pytest.mark.parametrize("form", ["gnu", "oldgnu", "pax"])
def test_what_gnu_tar_writes(tree: Path, form: str) -> None:
    data = tar(tree, f"--format={form}", "--sort=name")
    assert data_of(data) == told_by_python(data)
    assert len(data_of(data)) == len(SIZES) + 1


@pytest.mark.parametrize("form", ["v7", "ustar"])
def test_formats_that_know_no_long_names(tree: Path, form: str) -> None:
    options = ("--exclude=fifo", "--exclude=link", "--exclude=directory*")
    data = tar(tree, f"--format={form}", *options)
    assert data_of(data) == told_by_python(data)
    assert len(data_of(data)) == len(SIZES)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_python_writes(form: int) -> None:
    buffer = io.BytesIO()
    headers = {"comment": "of all"} if form == tarfile.PAX_FORMAT else None
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers) as archive:
        for size in SIZES:
            info = tarfile.TarInfo(f"directory/file-{size}")
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
            archive.addfile(tarfile.TarInfo(f"empty-{size}"))
    data = buffer.getvalue()
    assert data_of(data) == told_by_python(data)


SPARSE = {
    "old GNU": ("--format=gnu",),
    "pax 0.0": ("--format=pax", "--sparse-version=0.0"),
    "pax 0.1": ("--format=pax", "--sparse-version=0.1"),
    "pax 1.0": ("--format=pax", "--sparse-version=1.0"),
}


@pytest.mark.parametrize("how", SPARSE)
@pytest.mark.parametrize("pieces", [1, 4, 5, 30, 120])
def test_sparse_files(tmp_path: Path, how: str, pieces: int) -> None:
    """With 4 pieces the old header is full; with more it has further blocks."""
    root = tmp_path / "tree"
    root.mkdir()
    with (root / "sparse").open("wb") as file:
        for number in range(pieces):
            file.seek(number * 200_000)
            file.write(b"%05d" % number * 800)
        file.truncate(pieces * 200_000 + 99)
    (root / "z-behind").write_bytes(b"behind" * 1000)
    data = tar(root, "--sparse", "--sort=name", *SPARSE[how])
    assert len(data) < pieces * 10_000 + 40_000, "tar did not find it sparse"
    found = data_of(data)
    # All that is behind it is found where it is, so the sparse one was passed over rightly.
    assert len(found) == 2
    offset, length = found[1]
    assert data[offset : offset + length] == b"behind" * 1000
    offset, length = found[0]
    assert data[offset : offset + length].count(b"00000" * 100) == 8
    assert length >= pieces * 4000


def test_a_volume_name_and_a_dump_directory(tree: Path, tmp_path: Path) -> None:
    data = tar(tree, "--format=gnu", "--label=volume", f"--listed-incremental={tmp_path}/list")
    found = data_of(data)
    # The lists of names in the directories of an incremental archive are data, too.
    assert set(told_by_python(data)) <= set(found)
    assert len(found) > len(SIZES) + 1


def header(name: bytes, size: bytes, type_flag: bytes = b"0") -> bytes:
    block = bytearray(BLOCK)
    block[: len(name)] = name
    block[124:136] = size
    block[156:157] = type_flag
    block[257:265] = b"ustar  \0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


END = bytes(2 * BLOCK)


def test_sizes_in_base_256() -> None:
    size = b"\x80" + (1500).to_bytes(11, "big")
    data = header(b"file", size) + b"d" * 1500 + bytes(36) + header(b"next", b"00000000001\0")
    assert data_of(data + b"n" + bytes(511) + END) == [(512, 1500), (512 + 1536 + 512, 1)]


@pytest.mark.parametrize(
    ("size", "understood"),
    [
        (b"00000001000\0", True),
        (b"       1000 ", True),
        (b"000000001000", True),
        (b"1000\0\0\0\0\0\0\0\0", True),
        (b"\0" * 12, True),
        (b" " * 12, True),
        (b"00000000009\0", False),
        (b"-0000000001\0", False),
        (b"\xff" * 12, False),
        (b"\x80" + b"\xff" * 11, False),
        (b"1000\0text\0\0\0", False),
    ],
)
def test_how_sizes_are_written(size: bytes, understood: bool) -> None:
    data = header(b"file", size) + b"d" * 512 + END
    assert (data_of(data) == [(0, len(data))]) is not understood


def test_a_size_that_no_disk_has_ends_with_the_input() -> None:
    data = header(b"file", b"\x80" + bytes(3) + (1 << 62).to_bytes(8, "big")) + b"d" * 5000
    assert data_of(data) == [(512, 5000)]


def test_links_have_no_data_whatever_they_say() -> None:
    data = header(b"link", b"00000001000\0", b"1") + header(b"file", b"00000000001\0") + b"d"
    assert data_of(data) == [(1024, 1)]


def test_checksums_of_signed_bytes() -> None:
    block = bytearray(header("fähnchen".encode(), b"00000000001\0"))
    block[148:156] = b" " * 8
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    block[148:156] = b"%06o\0 " % signed
    assert data_of(bytes(block) + b"d" + bytes(511) + END) == [(512, 1)]


def pax(records: bytes) -> bytes:
    return header(b"pax", b"%011o\0" % len(records), b"x") + records + bytes(-len(records) % BLOCK)


@pytest.mark.parametrize(
    ("records", "size"),
    [
        (b"12 size=600\n", 600),
        (b"12 size=600\n12 size=601\n", 601),
        (b"19 path=size=12345\n", 513),
        (b"11 size=60x\n", 513),
        (b"12 size=600", 513),
        (b"0 size=600\n", 513),
        (b"99999999 size=600\n", 513),
        (b"30 size=1234567890123456789012\n", 513),
        (b"", 513),
    ],
)
def test_the_size_in_a_pax_header(records: bytes, size: int) -> None:
    data = pax(records) + header(b"file", b"%011o\0" % 513) + b"d" * 2048
    start = data.index(b"dddd")
    assert data_of(data)[0] == (start, size)


def test_a_pax_header_that_is_too_long_to_read() -> None:
    records = b"%d comment=" % (PAX_MAX + 5)
    records += b"c" * (PAX_MAX + 4 - len(records)) + b"\n" + b"12 size=600\n"
    data = pax(records) + header(b"file", b"00000000001\0") + b"d" + bytes(511) + END
    assert len(data_of(data)) == 1
    assert data_of(data)[0][1] == 1


def test_archives_joined_together(tree: Path) -> None:
    one = tar(tree, "--format=gnu")
    assert len(data_of(one + one)) == 2 * len(data_of(one))


def test_trailing_bytes_are_data(tree: Path) -> None:
    data = tar(tree, "--format=gnu")
    assert data_of(data + b"something else" * 50)[-1] == (len(data), 700)
    assert data_of(data + b"short")[-1] == (len(data), 5)


def test_what_is_no_tar_is_data() -> None:
    for data in (b"text" * 1000, os.urandom(5000), b"x"):
        assert split(data) == [Stretch(Kind.DATA, len(data))]
    assert split(b"") == []


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_tar_that_is_cut_off_anywhere(tree: Path, form: str) -> None:
    data = tar(tree, f"--format={form}")
    whole = split(data)
    for length in [*range(1, 6000, 37), *range(6000, len(data), 9973)]:
        # Half a header block is data; all that comes before is as it was.
        known = split(data[: length // BLOCK * BLOCK])[:-1]
        assert known == whole[: len(known)]
        assert split(data[:length])[: len(known)] == known


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.data())
def test_any_cut_gives_the_same(seed: int, drawn: st.DataObject) -> None:
    data = synthetic(seed)
    cuts = drawn.draw(st.lists(st.integers(0, 1500), max_size=30))
    assert split(data, cuts) == split(data)


def test_byte_for_byte() -> None:
    data = synthetic(1)
    assert split(data, [1] * len(data)) == split(data)


def synthetic(seed: int) -> bytes:
    """A small tar with something of everything; some are damaged."""
    chance = random.Random(seed)
    parts = []
    for number in range(chance.randrange(1, 8)):
        size = chance.choice((0, 1, 200, 512, 1300))
        content = chance.randbytes(size) + bytes(-size % BLOCK)
        match chance.randrange(6):
            case 0:
                parts.append(header(b"L", b"%011o\0" % 200, b"L") + bytes(512))
            case 1:
                parts.append(pax(b"12 size=%03d\n" % size))
                parts.append(header(b"f", b"%011o\0" % 7) + content)
            case 2:
                sparse = bytearray(header(b"s", b"%011o\0" % size, b"S"))
                sparse[482] = 1
                sparse[148:156] = b" " * 8
                sparse[148:156] = b"%06o\0 " % sum(sparse)
                more = bytearray(BLOCK)
                more[504] = 1
                parts.append(bytes(sparse) + bytes(more) + bytes(BLOCK) + content)
            case 3:
                parts.append(bytes(BLOCK * chance.randrange(3)))
            case _:
                parts.append(header(b"f%d" % number, b"%011o\0" % size) + content)
    data = bytearray(b"".join(parts) + END)
    if chance.randrange(3) == 0:
        data[chance.randrange(len(data))] ^= 0xFF
    return bytes(data[: chance.randrange(len(data)) if chance.randrange(3) == 0 else None])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=1500), st.lists(st.integers(0, 700), max_size=6))
def test_any_bytes_are_split_without_an_error(data: bytes, cuts: list[int]) -> None:
    for start in (b"", header(b"x", b"00000000200\0", b"x"), header(b"S", b"1           ", b"S")):
        assert split(start + data, cuts) == split(start + data)
