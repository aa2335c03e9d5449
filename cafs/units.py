"""Sizes and durations as people write them, both ways.

Settings, flags and output all go through here.  Invariant: ``parse_size(size_text(n)) == n``
and ``parse_duration(duration_text(s)) == s``, so what cafs prints can be pasted back.

A number without a unit is refused (but for 0): 64 could be bytes, KiB or seconds, and a guess
would be wrong by three orders of magnitude.  What is beyond SIZE_END or DURATION_MAX_S is
refused, too: whoever gets a value can hand it to the kernel.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal

BINARY = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40, "PiB": 1 << 50}
"""What cafs prints."""

DECIMAL = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "PB": 10**15}
"""Also understood."""

SECONDS = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
    "d": Decimal(86400),
}

SIZE_END = 1 << 63
"""Sizes are below this: an off_t holds them."""
DURATION_MAX_S = 100_000 * 86400
"""Some 274 years: in ns since 1970 or from now on, 63 bits hold that."""

_SIZE_UNITS = {name.lower(): factor for name, factor in (BINARY | DECIMAL).items()}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)")
_DURATION_TERM = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")


def parse_size(text: str) -> int:
    """Bytes of a size such as ``64KiB``, ``1.5 GiB``, ``100MB``, ``512B`` or ``0``.

    Raises :class:`ValueError` with a sentence that says what is wrong.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; write it as in 64KiB or 1.5GiB")
    number, unit = Decimal(match[1]), match[2]
    if not unit:
        if number == 0:
            return 0
        raise ValueError(f"{text!r} has no unit; write {text.strip()}B, {text.strip()}MiB ...")
    factor = _SIZE_UNITS.get(unit.lower())
    if factor is None:
        letter = unit[0].upper()
        if len(unit) == 1 and letter in "KMGTP":
            raise ValueError(
                f"{text!r} may mean {letter}iB (powers of 1024) or "
                f"{'k' if letter == 'K' else letter}B (powers of 1000); write which"
            )
        known = ", ".join([*BINARY, *DECIMAL])
        raise ValueError(f"{text!r}: {unit} is no unit of size; known are {known}")
    # Compared before it is multiplied: decimal numbers can overflow, too.
    if number >= SIZE_END or number * factor >= SIZE_END:
        raise ValueError(f"{_shortened(text)} is too large: sizes are below {size_text(SIZE_END)}")
    size = number * factor
    if size != int(size):
        raise ValueError(f"{text!r} is not a whole number of bytes")
    return int(size)


def parse_duration(text: str) -> float:
    """Seconds of a duration such as ``1s``, ``250ms``, ``1h30min``, ``2 d`` or ``0``.

    Raises :class:`ValueError` with a sentence that says what is wrong.
    """
    stripped = text.strip()
    if re.fullmatch(r"0+(\.0*)?", stripped):
        return 0.0
    if re.fullmatch(r"\d+(\.\d+)?", stripped):
        raise ValueError(
            f"{text!r} has no unit; write {stripped}s, {stripped}ms, {stripped}min ..."
        )
    total, position = Decimal(0), 0
    while position < len(stripped):
        match = _DURATION_TERM.match(stripped, position)
        if match is None:
            raise ValueError(f"{text!r} is not a duration; write it as in 1s, 250ms or 1h30min")
        if match[2] not in SECONDS:
            known = ", ".join(SECONDS)
            raise ValueError(f"{text!r}: {match[2]} is no unit of time; known are {known}")
        number = Decimal(match[1])
        if number <= DURATION_MAX_S / SECONDS["ns"]:
            total += number * SECONDS[match[2]]
        else:
            total = Decimal("inf")
        position = match.end()
        while position < len(stripped) and stripped[position] == " ":
            position += 1
    if not stripped:
        raise ValueError("an empty text is not a duration; write it as in 1s or 250ms")
    if total > DURATION_MAX_S:
        most = duration_text(DURATION_MAX_S)
        raise ValueError(f"{_shortened(text)} is too long: {most} is the most")
    return float(total)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:20]}...{text[-17:]}")


def size_text(size_bytes: int) -> str:
    """The size exactly, in the largest unit that divides it: ``64KiB``, ``1000B``."""
    if size_bytes == 0:
        return "0"
    for name, factor in reversed(BINARY.items()):
        if size_bytes % factor == 0:
            return f"{size_bytes // factor}{name}"
    raise AssertionError("every whole number of bytes is a multiple of one byte")


def duration_text(seconds: float) -> str:
    """The duration exactly, in the largest unit that leaves a whole number: ``90s``, ``50ms``."""
    exact = Decimal(repr(seconds))
    if exact == 0:
        return "0"
    for name, factor in reversed(SECONDS.items()):
        if exact % factor == 0:
            return f"{int(exact / factor)}{name}"
    return f"{exact:f}s"


def human_size(size_bytes: float) -> str:
    """The size to three digits, for people: ``1.50 GiB``, ``12 B``, ``-3.00 KiB``."""
    sign, size = ("-", -size_bytes) if size_bytes < 0 else ("", size_bytes)
    if size < 1024:
        return f"{sign}{size:.0f} B"
    for name, factor in BINARY.items():
        # 1023.5 KiB would be shown as 1024 KiB: leave it to the next unit.
        if size / factor < 999.5 or name == "PiB":
            return f"{sign}{three_digits(size / factor)} {name}"
    raise AssertionError("the last unit takes everything")


def human_duration(seconds: float) -> str:
    """The duration to about three digits, for people: ``1.23 ms``, ``2h 05min``, ``3d 4h``."""
    if seconds < 0:
        return "-" + human_duration(-seconds)
    if seconds == 0:
        return "0 s"
    for name, unit in (("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3)):
        if seconds < unit * 999.5:
            return f"{three_digits(seconds / unit)} {name}"
    if seconds < 59.95:
        return f"{three_digits(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60}min {whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}min"
    return f"{whole // 86400}d {whole % 86400 // 3600}h"


def human_count(count: int) -> str:
    """A whole number with its thousands apart: ``1,000,000``."""
    return f"{count:,}"


def three_digits(value: float) -> str:
    """*value* (not negative) with three significant digits and never an exponent."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if value < 9.995:
        return f"{value:.2f}"
    if value < 99.95:
        return f"{value:.1f}"
    return f"{value:.0f}"


def plural(count: int, noun: str) -> str:
    """``1 chunk``, ``2,000 chunks``."""
    return f"{human_count(count)} {noun}{'' if count == 1 else 's'}"
