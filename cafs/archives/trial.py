"""Which engine made a deflate stream, and how it was told to: found by trying on its beginning.

A wrong engine or level differs within the first block, mostly within its first bytes, because
a block begins with codes that depend on all that is in it.  So the raw bytes at the beginning
are compressed in each way that there is, and the ways are ordered by how far the outcome agrees
with the stream.  Invariant: a guess is a guess; only rebuilding the whole stream proves it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Final, NamedTuple

from cafs.archives import gnu_gzip, zlib_engine
from cafs.archives.engine import Engine, Params
from cafs.archives.gzip_format import Header
from cafs.errors import EngineError

RAW_MAX: Final = 1 << 20
"""Raw bytes at the beginning of a stream that are enough to try on."""
_FIRST_MAX: Final = 256 << 10
"""So many are tried on first, and mostly all but one way is out."""
_CHANCE: Final = 24
"""Bytes in which two streams may agree by chance; the codes of a block are 60 to 100."""
_CLEAR: Final = 4
"""A stream that holds less than this many times its bytes has its first block, of at most
32 Ki symbols, within _FIRST_MAX."""
_DENSE: Final = 20
"""A stream that holds more than this many times its bytes may have blocks longer than RAW_MAX:
then nothing can be seen at its beginning."""
_GUESSES_MAX: Final = 4
_MEMORY: Final = 4
_MISSES_MAX: Final = 8
"""After so many whole streams in a row that nothing made, fewer ways are tried."""
_WAYS_LATER: Final = 2

_XFL_SMALL, _XFL_FAST = 2, 4
_OS_UNIX: Final = 3
_ZLIB_MEM_LEVELS: Final = (8, 9)
_COMMON_FIRST: Final = (6, 9, 1, 5, 7, 8, 4, 3, 2)
"""Levels, as often as they are seen."""


class Sample(NamedTuple):
    """The beginning of a deflate stream."""

    stream: bytes
    """The first bytes of the stream itself; at least as many as hold *raw*, if there are."""
    raw: bytes
    """The first bytes of what is in it, at most RAW_MAX of them."""
    whole: bool
    """Whether both are all there is."""


class Guess(NamedTuple):
    """A way in which the stream may have been made."""

    engine: Engine
    params: int
    """Packed."""
    agreed: int
    """Bytes of the stream that it reproduced from the sample; 0 if nothing could be seen."""


class Seen:
    """Ways that were right, the newest first: archives are mostly made alike.  Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ways: tuple[tuple[str, int], ...] = ()

    def remember(self, guess: Guess) -> None:
        """This guess was proven right."""
        way = (guess.engine.kind, guess.params)
        with self._lock:
            self._ways = (way, *(other for other in self._ways if other != way))[:_MEMORY]

    @property
    def ways(self) -> tuple[tuple[str, int], ...]:
        """Kinds of engines and packed parameters."""
        return self._ways


class Trials:
    """Guesses for the streams of one archive, in one thread at a time.

    What was right for other archives says what is tried first, and never what is tried at all:
    what becomes of an archive must not depend on what came before it.
    """

    def __init__(self, seen: Seen | None = None) -> None:
        self._seen = seen or Seen()
        self._own = Seen()
        self._misses = 0

    def remember(self, guess: Guess) -> None:
        """This guess was proven right: it is tried first from now on."""
        self._misses = 0
        self._own.remember(guess)
        self._seen.remember(guess)

    def guesses(
        self, sample: Sample, engines: Iterable[Engine], header: Header | None = None
    ) -> list[Guess]:
        """The ways that may be right, the likeliest first; mostly one or none.

        *header* is that of the gzip member; None for a stream that lies in a zip.  Blocks, for
        up to a second in which every engine is run.  Raises :class:`EngineError` when one of
        them fails and none makes the whole stream: it may have been the one.
        """
        engines = list(engines)
        if sample.whole:
            found = _whole(sample, self._ways(engines, header))
            if found:
                self.remember(found[0])
            else:
                self._misses += 1
            return found
        ways = _ways(engines, header, self._seen.ways)
        first = sample._replace(raw=sample.raw[:_FIRST_MAX])
        agreed = _agreeing(first, [Guess(engine, params, 0) for engine, params in ways])
        dense = len(sample.raw) > _CLEAR * len(sample.stream)
        if len(agreed) != 1 and (agreed or dense) and len(first.raw) < len(sample.raw):
            # None: the first block may be longer.  Several: they may part in a later one.
            again = agreed or [Guess(engine, params, 0) for engine, params in ways]
            agreed = _agreeing(sample, again)
        if not agreed and len(sample.raw) > _DENSE * len(sample.stream):
            likeliest = _ways(engines, header, self._own.ways)[:_GUESSES_MAX]
            return [Guess(engine, params, 0) for engine, params in likeliest]
        return agreed[:_GUESSES_MAX]

    def _ways(self, engines: Sequence[Engine], header: Header | None) -> list[tuple[Engine, int]]:
        """In which ways a whole stream is tried."""
        if self._misses < _MISSES_MAX:
            return _ways(engines, header, self._seen.ways)
        # An archive of an unknown maker has thousands of streams: not all ways for each of them,
        # but of each engine the likeliest.
        ways = _ways(engines, header, self._own.ways)
        likeliest = {engine.kind: (engine, params) for engine, params in reversed(ways)}
        fewer = ways[:_WAYS_LATER]
        return [*fewer, *(way for way in likeliest.values() if way not in fewer)]


def _ways(
    engines: Sequence[Engine], header: Header | None, right: Sequence[tuple[str, int]]
) -> list[tuple[Engine, int]]:
    """Engines and packed parameters in the order in which they are tried."""
    levels: Sequence[int] = _COMMON_FIRST
    known: Sequence[int] = levels
    gnu = header is not None and header.os == _OS_UNIX
    if header is not None:
        # What zlib says of level 1 changed with its versions, so a hint is an order for it; GNU
        # gzip has always said 2 at level 9, 4 at level 1, and nothing at the others.
        hinted = {_XFL_SMALL: (9,), _XFL_FAST: (1,)}.get(header.xfl, levels)
        known = [*hinted, *(level for level in levels if level not in hinted)]
        levels = hinted if hinted is not levels else [n for n in levels if n not in (1, 9)]
    ways: list[tuple[Engine, int]] = []
    for engine in engines:
        if engine.kind == gnu_gzip.KIND and gnu:
            ways += [(engine, Params(level).pack()) for level in levels]
    for engine in engines:
        if engine.kind == zlib_engine.KIND:
            ways += [
                (engine, Params(level, mem_level).pack())
                for mem_level in _ZLIB_MEM_LEVELS
                for level in known
            ]
    order = {way: number for number, way in enumerate(right)}
    ways.sort(key=lambda way: order.get((way[0].kind, way[1]), len(order)))
    return ways


def _whole(sample: Sample, ways: Sequence[tuple[Engine, int]]) -> list[Guess]:
    """The first way that makes the whole stream."""
    failure = None
    for engine, params in ways:
        try:
            if compress(engine, params, sample.raw) == sample.stream:
                return [Guess(engine, params, len(sample.stream))]
        except EngineError as error:
            failure = error
    if failure is not None:
        raise failure
    return []


def _agreeing(sample: Sample, guesses: Sequence[Guess]) -> list[Guess]:
    """Those that agree with the stream in more than chance could, the furthest first."""
    found = []
    for guess in guesses:
        agreed = _common(compress(guess.engine, guess.params, sample.raw), sample.stream)
        if agreed > _CHANCE:
            found.append(guess._replace(agreed=agreed))
    # The sort keeps the order of those that are alike.
    found.sort(key=lambda guess: -guess.agreed)
    return [guess for guess in found if guess.agreed >= found[0].agreed // 2]


def compress(engine: Engine, params: int, raw: bytes, *, background: bool = True) -> bytes:
    """A stream of its own that holds *raw*.  Raises :class:`EngineError`."""
    with closing(engine.compressor(params, background=background)) as compressor:
        return compressor.feed(raw) + compressor.finish()


def _common(one: bytes, other: bytes) -> int:
    """In how many first bytes they agree."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
