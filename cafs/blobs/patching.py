"""Bringing patches into a blob: only what lies around a changed range is cut anew.

Cutting begins at the border before a range and ends at the first old border behind it, where
the cuts of old and new content agree again; all other parts stay as they are.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from cafs.blobs import recipe
from cafs.blobs.base import Base
from cafs.blobs.recipe import Part
from cafs.blobs.spool import Spool

WINDOW_MAX = 4 << 20
"""Bytes that are cut at once, at most."""
LOOKAHEAD = 64
"""Bytes behind a border that may be needed to tell that it is one (the header of a zip)."""

Read = Callable[[int, int], Awaitable[bytes]]


async def settle(base: Base, spool: Spool, size: int, read: Read) -> None:
    """Make *base* hold what *read* (base and spool merged) gives, *size* bytes of it.

    Nobody else may change the content meanwhile.  Raises DiskFullError and its kin; then some
    ranges may be in place and the spool still has them all.
    """
    if base.cut_short:
        await base.shorten()
    await base.own_in_steps()
    done = 0
    for start, end in list(spool.ranges):
        if end > done:
            done = await _settle_range(base, spool, read, max(start, done), end)
    if size > base.covered:
        base.extend(size)
    spool.reset()


async def _settle_range(base: Base, spool: Spool, read: Read, start: int, end: int) -> int:
    """Cut anew from the border before *start* to a border at or behind *end*; where that is."""
    gap = max(0, start - base.covered)
    first = start if gap else base.border(start)
    parts: list[Part] = []
    try:
        stop = await _cut_anew(base, spool, read, first, end, parts)
    except BaseException:
        base.unpin(parts)
        raise
    # With the hole before it in one step: a commit has all of a write, or nothing.
    hole = [recipe.hole(gap)] if gap else []
    base.replace(first - gap, min(stop, base.covered), hole + parts, max(stop, base.covered))
    return stop


async def _cut_anew(
    base: Base, spool: Spool, read: Read, first: int, end: int, parts: list[Part]
) -> int:
    """Fill *parts* with those from *first* to a border at or behind *end*; where that is."""
    position = first
    rest = b""
    # After a small change the old border behind it nearly always is one again, and what is cut
    # beyond is thrown away.
    behind = max(end, base.border_behind(min(end, base.covered)))
    window = min(WINDOW_MAX, behind - first + LOOKAHEAD)
    while True:
        stop = _data_end(base, spool, max(end, position + 1))
        upto = min(position + window, stop)
        window = min(WINDOW_MAX, 2 * window)
        data = rest + await read(position, upto)
        cut = await base.cut(data, final=upto == stop)
        at = position - len(rest)
        for index, part in enumerate(cut.parts):
            parts.append(part)
            at += part.length
            # Another changed range may have been reached: then its end is the one to reach.
            end = max(end, spool.ranges.end_around(at))
            if at >= end and (at >= base.covered or base.border(at) == at):
                base.unpin(cut.parts[index + 1 :])
                return at
        rest = data[cut.length :]
        position = upto


def _data_end(base: Base, spool: Spool, offset: int) -> int:
    """Where the data around *offset* ends: at a hole of base behind it, or at its end."""
    hole = base.hole_behind(offset, min(base.covered, offset + WINDOW_MAX))
    if hole is not None:
        return hole
    return max(base.covered, min(offset, spool.ranges.end_around(offset)))
