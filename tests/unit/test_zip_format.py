"""Zips of many makers: every deflate stream is found; from odd ones none is, or not that one."""

from __future__ import annotations

import io
import random
import struct
import zipfile
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives import zip_format
from cafs.archives.zip_format import Member, ZipLayout, scan
from tests.conftest import ROOT
from tests.unit.engine_samples import text
from tests.unit.test_chunker_zips import Unseekable

FIXTURES = ROOT / "tests" / "fixtures"


def layout(data: bytes) -> ZipLayout:
    """What is found, with everything checked that always has to be true."""
    scanning = scan(len(data))
    asked = 0
    try:
        offset, length = next(scanning)
        while True:
            assert offset >= 0 and length >= 0 and offset + length <= len(data)
            asked += length
            offset, length = scanning.send(data[offset : offset + length])
    except StopIteration as stop:
        found: ZipLayout = stop.value
    assert asked < 3 * len(data) + 100_000
    at = 0
    for member in found.members:
        assert member.offset >= at and member.length > 0
        at = member.offset + member.length
    assert at <= len(data)
    return found


def inflated(data: bytes, member: Member) -> bytes:
    return zlib.decompress(data[member.offset : member.offset + member.length], -15)


CONTENTS = {
    "one.txt": text(20_000, 1),
    "two.txt": text(300, 2),
    "empty": b"",
    "three.bin": random.Random(3).randbytes(5_000),
    "directory/": b"",
}


def python_zip(
    method: int = zipfile.ZIP_DEFLATED,
    streamed: bool = False,
    comment: bytes = b"",
    zip64: bool = False,
    level: int = 6,
) -> bytes:
    seekable, pipe = io.BytesIO(), Unseekable()
    with zipfile.ZipFile(pipe if streamed else seekable, "w", method) as archive:
        archive.comment = comment
        for name, content in CONTENTS.items():
            info = zipfile.ZipInfo(name, (2024, 1, 2, 3, 4, 6))
            info.compress_type = method
            info._compresslevel = level  # type: ignore[attr-defined]
            with archive.open(info, "w", force_zip64=zip64) as member:
                member.write(content)
    return bytes(pipe.content) if streamed else seekable.getvalue()


FORMS: dict[str, Callable[[], bytes]] = {
    "plain": python_zip,
    "streamed": lambda: python_zip(streamed=True),
    "comment": lambda: python_zip(comment=b"c" * 65535),
    "comment with an end record": lambda: python_zip(comment=b"PK\x05\x06" + bytes(30)),
    "zip64": lambda: python_zip(zip64=True),
    "zip64 streamed": lambda: python_zip(zip64=True, streamed=True),
}


@pytest.mark.parametrize("form", FORMS)
def test_python_zips(form: str) -> None:
    data = FORMS[form]()
    found = layout(data)
    assert found.reason == ""
    assert [inflated(data, each) for each in found.members] == list(CONTENTS.values())
    assert [each.raw_length for each in found.members] == [len(c) for c in CONTENTS.values()]
    assert [each.crc for each in found.members] == [zlib.crc32(c) for c in CONTENTS.values()]
    assert found.others == 0


@pytest.mark.parametrize("name", ["java.jar", "go.zip", "info.zip"])
def test_zips_of_other_makers(name: str) -> None:
    data = (FIXTURES / name).read_bytes()
    found = layout(data)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        infos = archive.infolist()
        deflated = [i for i in infos if i.compress_type == 8 and i.compress_size]
        expected = [archive.read(i) for i in sorted(deflated, key=lambda i: i.header_offset)]
    assert [inflated(data, each) for each in found.members] == expected
    assert found.others == len(infos) - len(expected)
    assert len(expected) >= 3


def test_stored_members_are_left_out() -> None:
    found = layout(python_zip(zipfile.ZIP_STORED))
    assert found == ZipLayout([], len(CONTENTS), "")


def test_other_methods_are_left_out() -> None:
    assert layout(python_zip(zipfile.ZIP_BZIP2)).members == []


def records(data: bytes) -> list[int]:
    """Offsets of the records in the central directory."""
    found, at = [], data.find(b"PK\x01\x02")
    while at >= 0:
        found.append(at)
        at = data.find(b"PK\x01\x02", at + 4)
    return found


def changed(data: bytes, offset: int, form: str, value: int) -> bytes:
    whole = bytearray(data)
    struct.pack_into(form, whole, offset, value)
    return bytes(whole)


@pytest.mark.parametrize("flag", [0x1, 0x41, 0x2000])
def test_encrypted_members_are_left_out(flag: int) -> None:
    data = python_zip()
    found = layout(changed(data, records(data)[0] + 8, "<H", flag))
    assert len(found.members) == len(CONTENTS) - 1
    assert found.others == 1


LOCAL_FIELDS = {"magic": (0, "<L"), "method": (8, "<H"), "crc": (14, "<L"), "length": (18, "<L")}


@pytest.mark.parametrize("field", LOCAL_FIELDS)
def test_a_local_header_that_says_something_else(field: str) -> None:
    data = python_zip()
    offset, form = LOCAL_FIELDS[field]
    found = layout(changed(data, offset, form, 77))
    assert len(found.members) == len(CONTENTS) - 1
    assert (found.others, found.reason) == (1, "")


def test_a_local_name_that_reaches_over_the_data() -> None:
    data = python_zip()
    assert len(layout(changed(data, 26, "<H", 60_000)).members) == len(CONTENTS) - 1


ODD: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "no zip": lambda data: b"text" * 1000,
    "cut off": lambda data: data[:-1],
    "trailing bytes": lambda data: data + b"x",
    "bytes in front": lambda data: b"#!/bin/sh\n" * 9000 + data,
    "two disks": lambda data: changed(data, len(data) - 18, "<H", 1),
    "more entries than there are": lambda data: changed(
        changed(data, len(data) - 12, "<H", 60), len(data) - 14, "<H", 60
    ),
    "directory too long": lambda data: changed(data, len(data) - 10, "<L", 1 << 31),
    "directory too short": lambda data: changed(data, len(data) - 10, "<L", 50),
    "directory elsewhere": lambda data: changed(data, len(data) - 6, "<L", 3),
    "zip64 without a record": lambda data: changed(data, len(data) - 6, "<L", 0xFFFFFFFF),
    "member outside": lambda data: changed(data, records(data)[0] + 42, "<L", 1 << 30),
    "member too long": lambda data: changed(data, records(data)[0] + 20, "<L", 1 << 30),
    "two members at one place": lambda data: changed(data, records(data)[1] + 42, "<L", 0),
    "a member in another": lambda data: changed(data, records(data)[1] + 42, "<L", 20),
}


@pytest.mark.parametrize("how", ODD)
def test_an_odd_zip_has_no_members(how: str) -> None:
    found = layout(ODD[how](python_zip()))
    assert found.members == []
    assert found.reason


def test_members_that_overlap_by_their_length() -> None:
    data = python_zip()
    first = records(data)[0]
    length = struct.unpack_from("<L", data, first + 20)[0]
    longer = changed(changed(data, first + 20, "<L", length + 50), 18, "<L", length + 50)
    found = layout(longer)
    assert len(found.members) == len(CONTENTS) - 1


def test_too_many_members(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_format, "MEMBERS_MAX", 3)
    assert layout(python_zip()).reason == "too many members"


def test_more_members_than_are_taken_are_not_read_first() -> None:
    count = zip_format.MEMBERS_MAX + 1
    length = 46 * count
    scanning = scan(length + 22)
    _, tail_size = next(scanning)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, length, 0, 0)
    with pytest.raises(StopIteration) as stop:
        scanning.send(bytes(tail_size - len(end)) + end)
    assert stop.value.value == ZipLayout([], 0, "too many members")


def test_an_empty_zip() -> None:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    assert layout(buffer.getvalue()) == ZipLayout([], 0, "")


def test_more_members_than_16_bits_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zip_format, "MEMBERS_MAX", 70_000)
    count = 66_000
    local = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, 0, 2, 0, 0, 0) + b"\3\0"
    members = local * count
    directory = b"".join(
        struct.pack(
            "<4s6H3L5H2L",
            b"PK\x01\x02",
            *(20, 20, 0, 8, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, number * len(local)),
        )
        for number in range(count)
    )
    at = len(members) + len(directory)
    end64 = struct.pack(
        "<4sQ2H2L4Q",
        b"PK\x06\x06",
        *(44, 45, 45, 0, 0, count, count, len(directory), len(members)),
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, at, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, *(0xFFFF,) * 2, *(0xFFFFFFFF,) * 2, 0)
    found = layout(members + directory + end64 + locator + end)
    assert (len(found.members), found.others, found.reason) == (count, 0, "")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_changed_bytes_are_read_without_an_error(form: str, drawn: st.DataObject) -> None:
    data = bytearray(FORMS[form]())
    # Where the records are is where it hurts.
    places = [*records(bytes(data)), 0, len(data) - 22]
    for _ in range(drawn.draw(st.integers(1, 4))):
        place = drawn.draw(st.sampled_from(places)) + drawn.draw(st.integers(0, 60))
        data[place % len(data)] = drawn.draw(st.sampled_from([0, 1, 8, 127, 128, 255]))
    layout(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_are_read_without_an_error(data: bytes) -> None:
    layout(data)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, min(len(data), 92), 0, 0)
    layout(data + end)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    layout(data + locator + end.replace(b"\2\0\2\0", b"\xff\xff\xff\xff"))
