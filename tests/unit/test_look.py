"""What looking inside rests on, without a store: digests as typed, counts, rows of recipes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.blobs import recipe
from cafs.cli import looking
from cafs.cli.frame import Frame
from cafs.config import StoreParams
from cafs.errors import IndexDamagedError, UsageError
from cafs.index import layout
from cafs.index.layout import FORMAT_VERSION
from cafs.mount import mountpoint as where
from cafs.operate import digests
from cafs.operate.numbers import Counts
from cafs.storefile import NAME, StoreFile, render
from cafs.types import Attr, BlobNo, ChunkNo, Extent, PackNo

SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
SHA1 = "a9993e364706816aba3e25717850c26c9cd0d89d"


@pytest.mark.parametrize(
    ("text", "kinds", "digits"),
    [
        ("ba78", ("sha256", "sha1"), "ba78"),
        (" BA781 ", ("sha256", "sha1"), "ba781"),
        (SHA1, ("sha256", "sha1"), SHA1),
        (SHA1 + "0", ("sha256",), SHA1 + "0"),
        (SHA256, ("sha256",), SHA256),
        ("sha1:A999", ("sha1",), "a999"),
        ("sha256:ba78", ("sha256",), "ba78"),
    ],
)
def test_a_digest_as_it_is_typed(text: str, kinds: tuple[str, ...], digits: str) -> None:
    assert digests.parse(text) == (kinds, digits)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no SHA-256 or SHA-1"),
        ("ba7", "is too short"),
        ("sha1:ba7", "is too short"),
        ("xyz12", "is no SHA-256 or SHA-1"),
        ("md5:ba78", "is no SHA-256 or SHA-1"),
        (SHA256 + "0", "is too long for a SHA-256"),
        ("sha1:" + SHA256, "is too long for a sha1"),
        ("../etc", "is no SHA-256 or SHA-1"),
    ],
)
def test_what_is_no_digest(text: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        digests.parse(text)


_parts = st.one_of(
    st.builds(
        recipe.chunk,
        st.integers(1, (1 << 48) - 1).map(ChunkNo),
        st.integers(1, (1 << 32) - 1),
    ),
    st.builds(recipe.literal, st.binary(min_size=1, max_size=40)),
    st.builds(recipe.hole, st.integers(1, 1 << 40)),
)


@given(st.lists(_parts, max_size=12))
def test_a_row_has_the_chunks_of_its_parts(parts: list[recipe.Part]) -> None:
    assert list(recipe.row_refs(recipe.encode(parts))) == list(recipe.chunk_refs(parts))


def test_a_damaged_row_is_no_row_of_chunks() -> None:
    row = recipe.encode([recipe.chunk(ChunkNo(1), 5), recipe.hole(3)])
    with pytest.raises(IndexDamagedError):
        recipe.row_refs(row[:-1])


@given(st.lists(st.integers(0, 999)))
def test_counts_are_those_of_a_list(numbers: list[int]) -> None:
    counts = Counts(1000)
    for position, number in enumerate(numbers):
        assert counts.add(number) == numbers[:position].count(number)
    assert sorted(counts.met) == sorted(set(numbers))
    assert len(counts) == len(set(numbers))
    assert all(counts[number] == numbers.count(number) for number in range(1000))


def test_a_number_that_was_never_given_out() -> None:
    with pytest.raises(IndexDamagedError, match="never given out"):
        Counts(10).add(5000)


_u32 = st.integers(0, (1 << 32) - 1)
_u64 = st.integers(0, (1 << 64) - 1)


@given(st.tuples(_u32, _u32, _u32, _u64, _u64))
def test_quick_looks_at_records_agree_with_the_whole(
    numbers: tuple[int, int, int, int, int],
) -> None:
    a, b, c, d, e = numbers
    attr = Attr(a, 1, 2, b, d, -3, -4, -5, BlobNo(e), 6, c)
    assert layout.inode_content(layout.pack_inode(attr)) == (a, b, d, e)
    blob = layout.BlobRecord(d, a, b, b"s" * 32, b"t" * 20, b"parts")
    assert layout.blob_use(layout.pack_blob(blob)) == (a, b)
    extent = Extent(PackNo(b), c, a & 0xFFFFFF, a >> 24, b, d)
    chunk = layout.ChunkRecord(b"u" * 32, extent, c)
    assert layout.chunk_use(layout.pack_chunk(chunk)) == (a & 0xFFFFFF, b, c)


@pytest.mark.parametrize("look", [layout.inode_content, layout.blob_use, layout.chunk_use])
def test_a_record_that_is_cut_off(look: Callable[[bytes], object]) -> None:
    with pytest.raises(IndexDamagedError, match="record has 7 bytes"):
        look(b"1234567")


# -- which store and which paths are meant -------------------------------------------------------


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A mountpoint; its store is beside it, in ``store``, and another one in ``other``."""
    mountpoint = tmp_path / "mnt"
    (mountpoint / "d").mkdir(parents=True)
    for name in ("store", "other"):
        (tmp_path / name).mkdir()
        content = StoreFile(bytes(16), FORMAT_VERSION, StoreParams())
        (tmp_path / name / NAME).write_bytes(render(content))
    table = [where.Mount(mountpoint, where.FSTYPE, str(tmp_path / "store"), "0:99")]
    monkeypatch.setattr(where, "mounts", lambda: table)
    monkeypatch.chdir("/")
    return mountpoint


def _places(*given: str | os.PathLike[str], store: Path | None = None) -> tuple[str, list[str]]:
    found, places = looking.places_of(Frame(), [os.fspath(each) for each in given], store)
    return found.name, [os.fsdecode(place.inside) for place in places]


def test_what_the_arguments_mean(mounted: Path) -> None:
    beside = mounted.parent
    store, other = beside / "store", beside / "other"
    assert _places() == ("store", ["/"])
    assert _places(mounted) == ("store", ["/"])
    assert _places(mounted / "d") == ("store", ["/d"])
    assert _places(mounted / "d", mounted) == ("store", ["/d", "/"])
    # A mountpoint in the place of the store, or one path of several.
    assert _places(mounted, "/d", "e/../f") == ("store", ["/d", "/f"])
    assert _places(mounted, mounted / "d") == ("store", ["/", "/d"])
    assert _places(store) == ("store", ["/"])
    assert _places(other) == ("other", ["/"])
    assert _places(other, "/d") == ("other", ["/d"])
    assert _places(other, "d", "/e/") == ("other", ["/d", "/e"])
    assert _places("/d", store=other) == ("other", ["/d"])
    assert _places(store=mounted) == ("store", ["/"])


def test_the_current_directory_counts(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(mounted / "d")
    assert _places() == ("store", ["/d"])
    assert _places("x", ".") == ("store", ["/d/x", "/d"])
    assert looking.the_store(Frame(), None).name == "store"
    # Unless somebody said that another store is meant.
    monkeypatch.setenv("CAFS_STORE", str(mounted.parent / "other"))
    assert _places() == ("other", ["/"])
    assert looking.the_store(Frame(), None).name == "other"
    monkeypatch.setenv("CAFS_STORE", str(mounted.parent / "store"))
    assert _places() == ("store", ["/d"])


def test_paths_of_two_stores_are_refused(mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = mounted.parent / "mnt2"
    second.mkdir()
    table = [
        where.Mount(mounted, where.FSTYPE, str(mounted.parent / "store"), "0:99"),
        where.Mount(second, where.FSTYPE, str(mounted.parent / "other"), "0:98"),
    ]
    monkeypatch.setattr(where, "mounts", lambda: table)
    with pytest.raises(UsageError, match="different stores"):
        _places(mounted / "d", second / "e")


def test_times_are_exact_and_never_fail() -> None:
    assert looking.time_text(1_234_567_890)[19:29] == ".234567890"
    assert looking.time_text(-1)[19:29] == ".999999999"
    assert looking.time_text(10**27 + 5) == "1000000000000000000.000000005 s since 1970"
