"""Sizes and durations: what is written can be read, and what is unclear is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.units import (
    duration_text,
    human_count,
    human_duration,
    human_size,
    parse_duration,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("512B", 512),
        ("64KiB", 65536),
        ("64 KiB", 65536),
        ("64kib", 65536),
        ("1.5GiB", 3 << 29),
        ("100MB", 100_000_000),
        ("1kB", 1000),
        (" 2TiB ", 2 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("64", "has no unit"),
        ("64K", "KiB (powers of 1024) or kB"),
        ("1M", "MiB (powers of 1024) or MB"),
        ("12 parsecs", "no unit of size"),
        ("-1KiB", "is not a size"),
        ("", "is not a size"),
        ("1e3KiB", "is not a size"),
        ("0.3B", "whole number of bytes"),
        ("8192PiB", "'8192PiB' is too large: sizes are below 8192PiB"),
        ("1" + "0" * 1_100_000 + "B", "is too large"),
    ],
)
def test_wrong_sizes_say_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_size(text)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("1s", 1),
        ("250ms", 0.25),
        ("1h30min", 5400),
        ("1h 30min", 5400),
        ("2 d", 172800),
        ("1.5s", 1.5),
        ("7us", 7e-6),
        ("3ns", 3e-9),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1", "has no unit"),
        ("5m", "no unit of time"),
        ("1 fortnight", "no unit of time"),
        ("", "not a duration"),
        ("s", "not a duration"),
        ("-1s", "not a duration"),
        ("1s?", "not a duration"),
        ("1" + "0" * 400 + "d", "'10000000000000000000...0000000000000000d' is too long"),
        ("1" + "0" * 1_100_000 + "ns", "is too long"),
        ("100000d 1ns", "is too long: 100000d is the most"),
    ],
)
def test_wrong_durations_say_what_is_wrong(text: str, part: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_duration(text)
    assert part in str(caught.value)


@given(st.integers(0, 1 << 62))
def test_a_size_reads_back_as_it_was(size: int) -> None:
    assert parse_size(size_text(size)) == size


@given(st.floats(0, 1e9).filter(lambda value: value == 0 or value >= 1e-9))
def test_a_duration_reads_back_as_it_was(seconds: float) -> None:
    assert parse_duration(duration_text(seconds)) == seconds


def test_texts_use_the_largest_exact_unit() -> None:
    assert size_text(64 << 10) == "64KiB"
    assert size_text((64 << 10) + 1) == "65537B"
    assert duration_text(0.05) == "50ms"
    assert duration_text(90) == "90s"
    assert duration_text(3600) == "1h"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (1023.6 * 1024, "1.00 MiB"),
        (-2048, "-2.00 KiB"),
        (123 << 20, "123 MiB"),
        (3 << 62, "12288 PiB"),
    ],
)
def test_sizes_for_people(size: float, text: str) -> None:
    assert human_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (1.5e-9, "1.50 ns"),
        (0.25, "250 ms"),
        (0.9999, "1.00 s"),
        (59.99, "1min 00s"),
        (61, "1min 01s"),
        (3600, "1h 00min"),
        (3 * 86400 + 4 * 3600, "3d 4h"),
        (-1, "-1.00 s"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


def test_counts_for_people() -> None:
    assert human_count(1_234_567) == "1,234,567"
