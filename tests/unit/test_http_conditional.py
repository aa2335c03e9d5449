"""Conditions, dates and ranges: nginx's rules."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.http import conditional, httpdate, mime, ranges
from cafs.http.conditional import Outcome, evaluate
from cafs.http.ranges import ByteRange

MTIME = 1700000000
ETAG = '"6553f100-186a0"'
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"
LATER = "Tue, 14 Nov 2023 22:13:21 GMT"
EARLIER = "Tue, 14 Nov 2023 22:13:19 GMT"


def test_etag() -> None:
    assert conditional.etag_of(MTIME, 100000) == ETAG
    assert conditional.etag_of(0, 0) == '"0-0"'


@pytest.mark.parametrize(
    ("headers", "outcome"),
    [
        ({}, 200),
        ({"if-modified-since": DATE}, 304),
        ({"if-modified-since": LATER}, 200),
        ({"if-modified-since": EARLIER}, 200),
        ({"if-modified-since": "yesterday"}, 200),
        ({"if-none-match": ETAG}, 304),
        ({"if-none-match": f"W/{ETAG}"}, 304),
        ({"if-none-match": f'"x", W/"y" ,{ETAG} , "z"'}, 304),
        ({"if-none-match": "*"}, 304),
        ({"if-none-match": '"6553f100-186a"'}, 200),
        ({"if-none-match": f"{ETAG}x"}, 200),
        ({"if-none-match": ""}, 200),
        ({"if-none-match": ETAG, "if-modified-since": DATE}, 304),
        ({"if-none-match": ETAG, "if-modified-since": LATER}, 200),
        ({"if-none-match": '"x"', "if-modified-since": DATE}, 200),
        ({"if-match": ETAG}, 200),
        ({"if-match": "*"}, 200),
        ({"if-match": f"W/{ETAG}"}, 412),
        ({"if-match": '"x"'}, 412),
        ({"if-match": ETAG, "if-none-match": ETAG}, 304),
        ({"if-unmodified-since": DATE}, 200),
        ({"if-unmodified-since": LATER}, 200),
        ({"if-unmodified-since": EARLIER}, 412),
        ({"if-unmodified-since": "never"}, 412),
    ],
)
def test_conditions(headers: dict[str, str], outcome: int) -> None:
    assert evaluate(headers, ETAG, MTIME) is Outcome(outcome)


def test_the_first_second_is_a_date() -> None:
    first, second = "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 01 Jan 1970 00:00:01 GMT"
    for mtime_s, date, outcome in ((0, first, 200), (0, second, 200), (1, first, 412)):
        found = evaluate({"if-unmodified-since": date}, ETAG, mtime_s)
        assert found is Outcome(outcome), (mtime_s, date)
    assert evaluate({"if-unmodified-since": "never"}, ETAG, 0) is Outcome.FAILED


@pytest.mark.parametrize(
    ("value", "applies"),
    [
        (None, True),
        (ETAG, True),
        (f"W/{ETAG}", False),
        ('"x"', False),
        ('"', False),
        (DATE, True),
        (LATER, False),
        ("x", False),
    ],
)
def test_if_range(value: str | None, applies: bool) -> None:
    assert conditional.range_applies(value, ETAG, MTIME) is applies


@pytest.mark.parametrize(
    "text",
    [
        DATE,
        "Tuesday, 14-Nov-23 22:13:20 GMT",
        "Tue Nov 14 22:13:20 2023",
    ],
)
def test_three_forms_of_a_date(text: str) -> None:
    assert httpdate.parse(text) == MTIME


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Tue",
        "Tue, 31 Feb 2023 22:13:20 GMT",
        "Tue, 14 Nov 2023 24:13:20 GMT",
        "Tue, 14 Nox 2023 22:13:20 GMT",
        "Tue, 14 Nov 1969 22:13:20 GMT",
        "1700000000",
    ],
)
def test_what_is_no_date(text: str) -> None:
    assert httpdate.parse(text) is None


@given(st.integers(0, 253402300799))
def test_dates_round_trip(seconds: int) -> None:
    assert httpdate.parse(httpdate.render(seconds)) == seconds


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("bytes=10-19", [(10, 20)]),
        ("BYTES=10-19", [(10, 20)]),
        ("bytes= 10 - 19 ", [(10, 20)]),
        ("bytes=-5", [(95, 100)]),
        ("bytes=-500", [(0, 100)]),
        ("bytes=90-", [(90, 100)]),
        ("bytes=90-1000", [(90, 100)]),
        ("bytes=0-1,5-6", [(0, 2), (5, 7)]),
        ("bytes=200-300,5-6", [(5, 7)]),
        ("bytes=100-", []),
        ("bytes=200-300", []),
        ("bytes=-0", []),
        ("bytes=5-3", []),
        ("bytes=x", []),
        ("bytes=1-2,", []),
        ("bytes=1-2;", []),
        ("bytes=99999999999999999999-", []),
        ("bytes=", None),
        ("lines=1-2", None),
        ("bytes=0-99,0-99", None),
        ("bytes=0-,0-", None),
    ],
)
def test_ranges(value: str, expected: list[tuple[int, int]] | None) -> None:
    found = ranges.parse(value, 100)
    assert found == (None if expected is None else [ByteRange(*pair) for pair in expected])


def test_ranges_of_nothing() -> None:
    assert ranges.parse("bytes=0-", 0) is None
    assert ranges.parse("bytes=-5", 0) is None
    assert ranges.parse("bytes=5-", 0) == []


@pytest.mark.parametrize("text", ["1-{}x", "{}1-x", "1{}x", "1-{}2{}x", "-1{}x"])
def test_blanks_in_a_range_cost_no_time(text: str) -> None:
    """The daemon has one thread: while it looks at one header, nobody else is served."""
    begun = time.thread_time()
    assert ranges.parse("bytes=" + text.replace("{}", " " * 16_000), 100) == []
    assert time.thread_time() - begun < 0.5


@given(st.text("bytes=0123456789-, x", max_size=30), st.integers(0, 10**6))
def test_ranges_lie_within_the_file(tail: str, size: int) -> None:
    for start, end in ranges.parse("bytes=" + tail, size) or []:
        assert 0 <= start < end <= size


def test_multipart() -> None:
    parts = [ByteRange(0, 2), ByteRange(5, 7)]
    found = ranges.multipart(parts, 100, "text/html")
    body = found.heads[0] + b"ab" + found.heads[1] + b"cd" + found.tail
    boundary = found.boundary.encode()
    assert len(body) == found.length and len(boundary) == 20
    assert body == (
        b"\r\n--%b\r\nContent-Type: text/html\r\nContent-Range: bytes 0-1/100\r\n\r\nab"
        b"\r\n--%b\r\nContent-Type: text/html\r\nContent-Range: bytes 5-6/100\r\n\r\ncd"
        b"\r\n--%b--\r\n" % (boundary, boundary, boundary)
    )


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"da39a3ee5e6b4b0d3255bfef95601890afd80709", "text/html"),
        (b"x.zip", "application/zip"),
        (b"x.ZIP", "application/zip"),
        (b"x.tar.gz", "text/html"),
        (b".zip", "text/html"),
        (b"a.zip/x", "text/html"),
        (b"x.", "text/html"),
        (b"x.json", "application/json"),
        (b"x.htm", "text/html"),
        (b"..png", "image/png"),
        (b"x.\xff", "text/html"),
    ],
)
def test_types(name: bytes, kind: str) -> None:
    assert mime.content_type(name) == kind
