"""Who made a stream is found from its beginning, whatever made it; of others nothing is said."""

from __future__ import annotations

import gzip
import io
import os
import subprocess
import zipfile
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives import trial, zlib_engine
from cafs.archives.engine import Engine, Params
from cafs.archives.gnu_gzip import GnuGzip
from cafs.archives.gzip_format import Begin, GzipReader, Header
from cafs.archives.program import Program
from cafs.archives.trial import RAW_MAX, Guess, Sample, Seen, Trials
from cafs.archives.zlib_engine import ZlibEngine
from cafs.errors import EngineError
from tests.unit.engine_samples import MACHINE_GZIP, liar, run, text
from tests.unit.test_gzip_format import FIXTURES, read
from tests.unit.test_zip_format import inflated, layout


@pytest.fixture(scope="module")
def engines() -> list[Engine]:
    return [
        GnuGzip.identify(Program.read(MACHINE_GZIP)),
        ZlibEngine.identify(Program.read(zlib_engine.machine_library())),
    ]


def sample_of(data: bytes, raw: bytes) -> tuple[Sample, Header]:
    """The sample of the first member of a gzip file that holds *raw*."""
    begin = next(event for event in GzipReader().push(data) if isinstance(event, Begin))
    whole = len(raw) <= RAW_MAX
    stream = data[begin.start : -8]
    return Sample(stream if whole else stream[:-1000], raw[:RAW_MAX], whole), begin.header


def ways(guesses: list[Guess]) -> list[tuple[str, int, int]]:
    found = []
    for guess in guesses:
        level, mem_level, _ = Params.unpack(guess.params)
        found.append((guess.engine.kind, level, mem_level))
    return found


def gnu_file(raw: bytes, level: int, *options: str) -> bytes:
    return subprocess.run(
        [MACHINE_GZIP, f"-{level}", "-c", *options], input=raw, stdout=subprocess.PIPE, check=True
    ).stdout


MIXED = text(300_000, 4) + os.urandom(100_000) + text(700_000, 5)


@pytest.mark.parametrize("level", range(1, 10))
def test_gnu_gzip(engines: list[Engine], level: int) -> None:
    sample, header = sample_of(gnu_file(MIXED, level), MIXED)
    guesses = Trials().guesses(sample, engines, header)
    assert ways(guesses)[0] == ("gnu-gzip", level, 0)
    assert guesses[0].agreed > 10_000


@pytest.mark.parametrize("level", range(1, 10))
def test_python_gzip(engines: list[Engine], level: int) -> None:
    sample, header = sample_of(gzip.compress(MIXED, level), MIXED)
    guesses = Trials().guesses(sample, engines, header)
    # Levels 8 and 9 may make the same; the first is only tried first.
    best = [guess for guess in guesses if guess.agreed == guesses[0].agreed]
    assert ("zlib", level, 8) in ways(best)


@pytest.mark.parametrize("mem_level", [8, 9])
@pytest.mark.parametrize("level", [1, 4, 6, 9])
def test_zlib_in_a_zip(engines: list[Engine], level: int, mem_level: int) -> None:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, mem_level)
    stream = made.compress(MIXED) + made.flush()
    guesses = Trials().guesses(Sample(stream[:-1], MIXED[:RAW_MAX], False), engines)
    assert ways(guesses)[0] == ("zlib", level, mem_level)


def test_small_streams_are_compared_whole(engines: list[Engine]) -> None:
    raw = text(5000)
    for data, kind in ((gnu_file(raw, 6), "gnu-gzip"), (gzip.compress(raw, 1), "zlib")):
        sample, header = sample_of(data, raw)
        assert sample.whole
        guesses = Trials().guesses(sample, engines, header)
        assert ways(guesses)[0][0] == kind
        made = run(guesses[0].engine.compressor(guesses[0].params, background=False), raw)
        assert made == sample.stream


KNOWN = {"gnu-named.tgz": ("gnu-gzip", 9, 0)}


@pytest.mark.parametrize("name", ["gnu-named.tgz", "go.tgz", "npm.tgz", "pigz.gz", "zopfli.tgz"])
def test_gzips_of_other_makers(engines: list[Engine], name: str) -> None:
    found = read((FIXTURES / name).read_bytes())
    sample = Sample(found.streams[0], found.raw[0], True)
    guesses = Trials().guesses(sample, engines, found.headers[0])
    assert ways(guesses) == ([KNOWN[name]] if name in KNOWN else [])


@pytest.mark.parametrize(("name", "known"), [("java.jar", True), ("go.zip", False)])
def test_zips_of_other_makers(engines: list[Engine], name: str, known: bool) -> None:
    data = (FIXTURES / name).read_bytes()
    trials = Trials()
    for member in layout(data).members:
        stream = data[member.offset : member.offset + member.length]
        guesses = trials.guesses(Sample(stream, inflated(data, member), True), engines)
        assert ways(guesses) == ([("zlib", 6, 8)] if known else [])


def count_trials(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parameters that are tried from now on."""
    tried: list[int] = []
    compress = trial.compress

    def counting(engine: Engine, params: int, raw: bytes) -> bytes:
        tried.append(params)
        return compress(engine, params, raw)

    monkeypatch.setattr(trial, "compress", counting)
    return tried


def test_a_wheel_is_found_at_once(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=4) as archive:
        for number in range(30):
            archive.writestr(f"{number}", text(3000, number))
    data = buffer.getvalue()
    tried = count_trials(monkeypatch)
    trials = Trials()
    members = layout(data).members
    for member in members:
        stream = data[member.offset : member.offset + member.length]
        (guess,) = trials.guesses(Sample(stream, inflated(data, member), True), engines)
        trials.remember(guess)
    assert len(tried) < len(members) + 18


def test_a_zip_of_an_unknown_maker_is_soon_given_up(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = count_trials(monkeypatch)
    trials = Trials()
    for number in range(40):
        raw = text(2000, number)
        assert trials.guesses(Sample(b"\3\0" * 500, raw, True), engines) == []
    assert len(tried) < 8 * 18 + 32 * 2 + 1
    # And a stream that was made by something known is still found.
    made = zlib.compressobj(6, zlib.DEFLATED, -15)
    stream = made.compress(raw) + made.flush()
    assert ways(trials.guesses(Sample(stream, raw, True), engines)) == [("zlib", 6, 8)]


def test_what_other_archives_were_made_with_decides_nothing(engines: list[Engine]) -> None:
    """It is a matter of what is tried first, and never of what is tried."""
    seen = Seen()
    for level in (9, 6, 1, 5):
        seen.remember(Guess(engines[1], Params(level, 8).pack(), 1))
    before = Trials(seen)
    for number in range(40):
        assert before.guesses(Sample(b"\3\0" * 500, text(2000, number), True), engines) == []
    for level in (6, 9):
        raw = text(300_000)
        sample, header = sample_of(gnu_file(raw, level), raw)
        assert ways(Trials(seen).guesses(sample, engines, header))[0] == ("gnu-gzip", level, 0)
    # Where nothing can be seen, the likeliest by itself is among those that are tried.
    raw = bytes(30 << 20)
    sample, header = sample_of(gnu_file(raw, 6), raw)
    blind = sample._replace(whole=False, stream=b"\3\0" * 5000)
    assert ("gnu-gzip", 6, 0) in ways(Trials(seen).guesses(blind, engines, header))


def test_gnu_gzip_is_tried_however_many_members_were_made_by_others(engines: list[Engine]) -> None:
    seen, trials = Seen(), Trials()
    for level in (6, 9):
        seen.remember(Guess(engines[1], Params(level, 8).pack(), 1))
    raw = text(5000)
    sample, header = sample_of(gnu_file(raw, 6), raw)
    trials = Trials(seen)
    for number in range(40):
        other = Sample(b"\3\0" * 500, text(2000, number), True)
        assert trials.guesses(other, engines, header) == []
    assert ways(trials.guesses(sample, engines, header)) == [("gnu-gzip", 6, 0)]


def test_streams_with_blocks_that_are_too_long_to_see(engines: list[Engine]) -> None:
    raw = bytes(30 << 20)
    sample, header = sample_of(gnu_file(raw, 6), raw)
    guesses = Trials().guesses(sample._replace(whole=False), engines, header)
    # Nothing is to be seen, or it is right: the likeliest is among the first.
    assert ("gnu-gzip", 6, 0) in ways(guesses)


def test_bytes_that_are_no_stream_of_that(engines: list[Engine]) -> None:
    stream = os.urandom(600_000)
    assert Trials().guesses(Sample(stream, MIXED[:RAW_MAX], False), engines) == []


def test_without_an_engine_there_is_no_guess() -> None:
    assert Trials().guesses(Sample(b"\3\0", b"", True), []) == []


def test_an_engine_that_fails_is_no_verdict(engines: list[Engine], tmp_path: Path) -> None:
    broken = GnuGzip.identify(Program.read(liar(tmp_path, "exit 1")))
    both = [broken, engines[1]]
    sample, header = sample_of(gnu_file(MIXED, 6), MIXED)
    for given_sample in (sample, Sample(b"no such stream", MIXED[:5000], True)):
        with pytest.raises(EngineError):
            Trials().guesses(given_sample, both, header)
    # What the other engine makes is found though, if it is seen as a whole.
    sample, _ = sample_of(gzip.compress(MIXED[:50_000]), MIXED[:50_000])
    assert ways(Trials().guesses(sample, both, Header(0, 3, 0, False)))[0][0] == "zlib"


def test_an_engine_that_makes_other_bytes_is_not_guessed(tmp_path: Path) -> None:
    lying = GnuGzip.identify(Program.read(liar(tmp_path, "exec /usr/bin/gzip -nc1")))
    sample, header = sample_of(gnu_file(MIXED, 6), MIXED)
    assert Trials().guesses(sample, [lying], header) == []


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=2000), st.integers(1, 9), st.sampled_from([8, 9]))
def test_what_zlib_made_is_made_again(
    engines: list[Engine], raw: bytes, level: int, mem_level: int
) -> None:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, mem_level)
    stream = made.compress(raw) + made.flush()
    (guess,) = Trials().guesses(Sample(stream, raw, True), engines)
    assert run(guess.engine.compressor(guess.params, background=False), raw) == stream


def test_how_far_two_streams_agree() -> None:
    for length in (0, 1, 2, 3, 100, 4097):
        one = os.urandom(length)
        assert trial._common(one + b"a", one + b"b") == length
        assert trial._common(one, one + b"b") == length
