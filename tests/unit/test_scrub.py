"""A scrub finds each damaged chunk, goes on where it stopped, and what is written again heals."""

from __future__ import annotations

import json
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
import trio

from cafs.cli import scrubbing
from cafs.errors import ChunkDamagedError, first_foreseen
from cafs.index import layout
from cafs.operate import scrub
from cafs.operate.condemn import condemn, condemn_in
from cafs.store import open_store
from cafs.types import ROOT, ChunkNo
from cafs.view import View
from tests.conftest import ROOT as ROOT_DIRECTORY
from tests.conftest import RunCafs
from tests.unit.damaged_index import break_leaf, flip
from tests.unit.small_store import OPTIONS, findings, lookup, make, noise, write


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pristine") / "store")


@pytest.fixture
def store(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(_pristine, copy)
    return copy


def _flip(store: Path, path: bytes) -> ChunkNo:
    """Flip a bit in the first chunk of a file; its number."""
    blob = lookup(store, path)[1].blob
    with View(store) as view:
        number = ChunkNo(next(iter(view.blobs.parts(blob, 0, 1)))[1].ref)
    _flip_in(store, number)
    return number


def _flip_first(store: Path) -> ChunkNo:
    """Flip a bit in the chunk that is read first; its number."""
    with View(store) as view:
        scan = view.overlay.scan(layout.CHUNKS, b"", b"")
        places = {layout.unpack_chunk(value).extent: key for key, value in scan}
    number = ChunkNo(layout.from_u48(places[min(places)]))
    _flip_in(store, number)
    return number


def _flip_in(store: Path, number: ChunkNo) -> None:
    with View(store) as view:
        extent = view.chunks.get(number).extent
        name = view.packs.pack_path(extent.pack)
    with open(name, "r+b") as file:
        file.seek(extent.offset + extent.stored_length // 2)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 8]))


def _scrub(store: Path, state: scrub.State | None = None) -> list[scrub.Damage]:
    with View(store) as view:
        work = scrub.Scrub(view, None, lambda _s: None)
        return list(work.run(state, lambda _n: None, lambda _s: None))


def test_sound_content_is_read_whole(store: Path) -> None:
    with View(store) as view:
        work = scrub.Scrub(view, None, lambda _s: None)
        assert not list(work.run(None, lambda _n: None, lambda _s: None))
        assert work.read_bytes == work.total_bytes == view.counters.stored_bytes
        assert work.read_chunks == view.counters.chunks


def test_a_flipped_bit_is_named_with_all_its_files(store: Path, run_cafs: RunCafs) -> None:
    number = _flip(store, b"a/b/large")
    done = run_cafs("scrub", store, "--json")
    assert done.returncode == 8, done.stderr
    report = json.loads(done.stdout)
    assert [each["chunk"] for each in report["damaged"]] == [number]
    blobs = report["damaged"][0]["blobs"]
    paths = sorted(each["path"] for blob in blobs for each in blob["paths"])
    assert paths == ["/a/b/again", "/a/b/large"]
    text = run_cafs("scrub", store).stdout
    assert "/a/b/large" in text
    assert "what to do" in text


def test_what_is_damaged_is_marked_and_what_is_sound_again_is_not(
    store: Path, run_cafs: RunCafs
) -> None:
    before = (store / "packs" / "00000001.pack").read_bytes()
    number = _flip(store, b"a/middle")
    assert run_cafs("scrub", store).returncode == 8
    assert findings(store) == {"damaged-chunk": 1}
    (store / "packs" / "00000001.pack").write_bytes(before)
    assert run_cafs("scrub", store).returncode == 0
    assert not findings(store)
    assert number


def test_a_scrub_goes_on_where_it_stopped(store: Path) -> None:
    with View(store) as view:
        packs = [number for number, _ in view.pack_table.items()]
    _flip(store, b"a/middle")
    state = scrub.State(1, packs[-1] + 1, 10, [])
    assert not _scrub(store, state)
    assert len(_scrub(store, state._replace(pack=0))) == 1


def test_a_scrub_goes_on_within_a_pack_and_reads_each_chunk_once(store: Path) -> None:
    with View(store) as view:
        whole = scrub.Scrub(view, None, lambda _s: None)
        list(whole.run(None, lambda _n: None, lambda _s: None))
        # Of all the places at which it can be stopped, those at the ends and some between.
        stops = {1, 2, whole.read_chunks // 2, whole.read_chunks - 1, whole.read_chunks}
    for stop in sorted(stops):
        with View(store) as view:
            work = scrub.Scrub(view, None, lambda _s: None)

            def interrupt(_read: int, work: scrub.Scrub = work, stop: int = stop) -> None:
                if work.read_chunks == stop:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                list(work.run(None, interrupt, lambda _s: None))
            assert work.reached is not None
            scrub.save_state(store, work.reached)
        with View(store) as view:
            rest = scrub.Scrub(view, None, lambda _s: None)
            assert not list(rest.run(scrub.load_state(store), lambda _n: None, lambda _s: None))
            assert rest.read_chunks == whole.read_chunks - stop
            assert rest.read_bytes == rest.total_bytes


def test_damage_found_before_an_interruption_is_in_the_end_s_report(
    store: Path, run_cafs: RunCafs
) -> None:
    number = _flip(store, b"a/middle")
    with View(store) as view:
        work = scrub.Scrub(view, None, lambda _s: None)
        assert next(work.run(None, lambda _n: None, lambda _s: None)).chunk == number
        assert work.reached is not None
        scrub.save_state(store, work.reached)
    done = run_cafs("scrub", store, "--resume", "--json")
    assert done.returncode == 8, done.stderr
    assert [each["chunk"] for each in json.loads(done.stdout)["damaged"]] == [number]


def _interrupted(store: Path, number: signal.Signals) -> None:
    """A scrub that gets a signal when it has read a part."""
    command = ["scrub", str(store), "--rate", "1MiB/s", "--progress", "json"]
    with subprocess.Popen(
        [sys.executable, "-m", "cafs.cli.main", *command],
        cwd=ROOT_DIRECTORY,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    ) as stopped:
        assert stopped.stderr is not None
        for line in stopped.stderr:
            if json.loads(line)["done"] > 300_000:
                break
        stopped.send_signal(number)
        rest = stopped.stderr.read()
        assert stopped.wait(60) == 130
    assert "interrupted" in rest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_scrub_that_is_stopped_goes_on_where_it_was(
    store: Path, run_cafs: RunCafs, number: signal.Signals
) -> None:
    whole = json.loads(run_cafs("scrub", store, "--json").stdout)
    _interrupted(store, number)
    state = scrub.load_state(store)
    assert state is not None
    assert state.read_bytes > 300_000
    assert state.offset > 0
    done = run_cafs("scrub", store, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["resumed"]
    assert 0 < report["read_chunks_count"] < whole["read_chunks_count"]
    assert report["read_bytes"] == whole["read_bytes"]
    assert scrub.load_state(store) is None


def test_a_note_of_an_older_scrub_is_understood(store: Path) -> None:
    text = "started_ns = 1\npack = 2\nread_bytes = 3\ndamaged = [4]\n"
    (store / scrub.STATE).write_text(text)
    assert scrub.load_state(store) == scrub.State(1, 2, 3, [4], 0)


def test_the_state_survives_and_goes(store: Path) -> None:
    state = scrub.State(123, 4, 567, [8, 9], 10)
    scrub.save_state(store, state)
    assert scrub.load_state(store) == state
    scrub.save_state(store, None)
    assert scrub.load_state(store) is None
    (store / scrub.STATE).write_text("not toml [")
    assert scrub.load_state(store) is None


@pytest.mark.parametrize(
    "wrong", ["damaged = 3", "damaged = ['a']", "pack = 'x'", "started_ns = 1.5", "sound = 1"]
)
def test_a_note_that_makes_no_sense_is_none(store: Path, run_cafs: RunCafs, wrong: str) -> None:
    lines = ["started_ns = 1", "pack = 2", "read_bytes = 3", "damaged = [4]"]
    key = wrong.split(" ")[0]
    kept = [line for line in lines if not line.startswith(key)]
    (store / scrub.STATE).write_text("\n".join([*kept, wrong]))
    assert scrub.load_state(store) is None
    assert run_cafs("scrub", store).returncode == 0


@pytest.mark.parametrize("days", [31, -1])
def test_what_was_read_long_ago_is_read_again(store: Path, run_cafs: RunCafs, days: int) -> None:
    _flip(store, b"a/middle")
    state = scrub.State(time.time_ns() - days * 86400 * 10**9, 1000, 10, [])
    scrub.save_state(store, state)
    done = run_cafs("scrub", store, "--resume")
    assert done.returncode == 2
    assert "began on" in done.stderr
    done = run_cafs("scrub", store, "--json")
    assert done.returncode == 8
    report = json.loads(done.stdout)
    assert not report["resumed"]
    assert report["damaged_chunks_count"] == 1


def test_a_report_says_since_when(store: Path, run_cafs: RunCafs) -> None:
    started_ns = time.time_ns() - 3 * 86400 * 10**9
    scrub.save_state(store, scrub.State(started_ns, 1000, 10, []))
    done = run_cafs("scrub", store)
    assert done.returncode == 0
    assert f"begun on {datetime.fromtimestamp(started_ns / 1e9):%Y-%m-%d}" in done.stdout
    scrub.save_state(store, scrub.State(started_ns, 1000, 10, []))
    assert json.loads(run_cafs("scrub", store, "--json").stdout)["started_ns"] == started_ns


def test_what_was_found_before_an_interruption_is_not_forgotten(
    store: Path, run_cafs: RunCafs
) -> None:
    """Neither what is damaged nor what is sound again."""
    before = (store / "packs" / "00000001.pack").read_bytes()
    well = _flip(store, b"a/middle")
    assert condemn(store, [well]) == 1
    (store / "packs" / "00000001.pack").write_bytes(before)
    ill = _flip(store, b"a/b/large")
    state = scrub.State(time.time_ns(), 1000, 10, [ill], 0, (well,))
    scrub.save_state(store, state)
    assert scrub.load_state(store) == state
    done = run_cafs("scrub", store, "--resume", "--json")
    assert [each["chunk"] for each in json.loads(done.stdout)["damaged"]] == [ill]
    with View(store) as view:
        assert view.chunks.get(ill).extent.damaged
        assert not view.chunks.get(well).extent.damaged


def test_what_an_interrupted_scrub_found_is_marked(store: Path) -> None:
    ill = _flip_first(store)
    _interrupted(store, signal.SIGTERM)
    with View(store) as view:
        assert view.chunks.get(ill).extent.damaged
    state = scrub.load_state(store)
    assert state is not None
    assert state.damaged == [ill]


def test_a_daemon_marks_only_what_it_finds_damaged_itself(store: Path) -> None:
    """What a scrub has seen may be long gone when the daemon hears of it."""
    ill = _flip_first(store)

    async def work() -> None:
        async with open_store(store, OPTIONS) as opened:
            scan = opened.overlay.scan(layout.CHUNKS, b"", b"")
            everything = [layout.from_u48(key) for key, _ in scan]
            assert len(everything) > 10
            assert await condemn_in(opened, [*everything, 10**9], damaged=True) == 1
            assert await condemn_in(opened, everything, damaged=False) == 0
            assert opened.chunks.get(ill).extent.damaged

    trio.run(work)
    assert findings(store) == {"damaged-chunk": 1}


def test_only_one_scrub_at_a_time(store: Path, run_cafs: RunCafs) -> None:
    with scrub.alone(store):
        done = run_cafs("scrub", store)
        assert done.returncode == 5
        assert "another scrub" in done.stderr
        assert "what to do" in done.stderr
    assert run_cafs("scrub", store).returncode == 0


_DELETE = """
import sys, trio
from pathlib import Path
from cafs.store import open_store
from cafs.types import ROOT
from tests.unit.small_store import OPTIONS

async def main():
    async with open_store(Path(sys.argv[1]), OPTIONS) as store:
        store.nameless.forget(store.tree.unlink(ROOT, sys.argv[2].encode())[0])
        await store.sync_all()

trio.run(main)
"""


def test_what_was_moved_meanwhile_is_not_damaged(
    store: Path, run_cafs: RunCafs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scrub has the index open that `cafs compact` has put another one in place of."""

    async def fill() -> None:
        async with open_store(store, OPTIONS) as opened:
            for number in range(1500):
                opened.tree.create(ROOT, b"n%d" % number, stat.S_IFREG | 0o600, 0, 0)
            await write(opened, ROOT, b"dead", noise(7, 500_000))
            await opened.sync_all()
            for number in range(1500):
                opened.nameless.forget(opened.tree.unlink(ROOT, b"n%d" % number)[0])
            await opened.sync_all()

    trio.run(fill)
    index = (store / "index" / "data.mdb").stat().st_ino
    run = scrub.Scrub.run

    def run_late(self: scrub.Scrub, *args: object) -> Iterator[scrub.Damage]:
        # The first one moves nothing, but gives the index another file, of whose commits this view
        # sees none.
        for name in ("", "dead"):
            if name:
                delete = [sys.executable, "-c", _DELETE, str(store), name]
                subprocess.run(delete, cwd=ROOT_DIRECTORY, check=True)
            done = run_cafs("compact", store)
            assert done.returncode == 0, done.stderr
        found = list(run(self, *args))  # type: ignore[arg-type]
        assert found, "by what it can see"
        yield from found

    monkeypatch.setattr(scrub.Scrub, "run", run_late)
    report = scrubbing.run(store, None, resume=False, restart=False, mode="none")
    assert (store / "index" / "data.mdb").stat().st_ino != index
    assert report["damaged_chunks_count"] == 0
    assert not findings(store)


def test_damage_is_told_and_marked_though_a_record_of_the_index_is_bad(
    store: Path, run_cafs: RunCafs
) -> None:
    ill = _flip(store, b"a/b/large")
    blob = lookup(store, b"a/small")[1].blob
    flip(store / "index", "blobs", layout.u48(blob))
    done = run_cafs("scrub", store, "--json")
    assert done.returncode == 8, done.stderr
    report = json.loads(done.stdout)
    assert [each["chunk"] for each in report["damaged"]] == [ill]
    blobs = report["damaged"][0]["blobs"]
    paths = sorted(each["path"] for each_blob in blobs for each in each_blob["paths"])
    assert paths == ["/a/b/again", "/a/b/large"]
    assert report["unreadable_records_count"] == 1
    with View(store) as view:
        assert view.chunks.get(ill).extent.damaged
    text = run_cafs("scrub", store).stdout
    assert "1 records of the index cannot be read" in text
    assert "/a/b/large" in text
    assert f"cafs check {store}" in text


def test_damage_is_told_and_marked_though_no_path_can_be(store: Path, run_cafs: RunCafs) -> None:
    ill = _flip(store, b"a/b/large")
    break_leaf(store / "index", "entries")
    done = run_cafs("scrub", store, "--json")
    assert done.returncode == 8, done.stderr
    report = json.loads(done.stdout)
    assert [each["chunk"] for each in report["damaged"]] == [ill]
    assert report["unclear_count"] == 1
    assert "entries" in report["unclear"][0]


def test_a_bad_record_of_a_chunk_does_not_keep_the_others_from_being_read(
    store: Path, run_cafs: RunCafs
) -> None:
    ill = _flip(store, b"a/b/large")
    with View(store) as view:
        other = next(n for n in range(ill + 1, ill + 100) if n < view.counters.next_chunk)
        count = view.counters.chunks
    flip(store / "index", "chunks", layout.u48(other))
    done = run_cafs("scrub", store, "--json")
    assert done.returncode == 8, done.stderr
    report = json.loads(done.stdout)
    assert [each["chunk"] for each in report["damaged"]] == [ill]
    assert report["unreadable_records_count"] >= 1
    assert report["read_chunks_count"] == count - 1


def test_the_rate_is_kept(store: Path) -> None:
    slept: list[float] = []

    class Still:
        def now_ns(self) -> int:
            return 0

        def monotonic(self) -> float:
            return sum(slept)

    with View(store) as view:
        work = scrub.Scrub(view, 1e6, slept.append, Still())
        list(work.run(None, lambda _n: None, lambda _s: None))
        assert sum(slept) == pytest.approx(work.total_bytes / 1e6, rel=0.05)


async def _read(path: Path, name: bytes) -> bytes:
    async with open_store(path, OPTIONS) as store:
        ino = ROOT
        for part in name.split(b"/"):
            found = store.tree.lookup(ino, part)
            assert found is not None
            ino = found
        return await store.contents.read(ino, 0, 1 << 30)


def test_content_that_is_written_again_heals_every_file_that_had_it(store: Path) -> None:
    number = _flip(store, b"a/b/large")
    with pytest.raises(BaseExceptionGroup) as raised:
        trio.run(_read, store, b"a/b/large")
    assert isinstance(first_foreseen(raised.value), ChunkDamagedError)
    assert condemn(store, [number]) == 1

    async def again() -> None:
        async with open_store(store, OPTIONS) as opened:
            await write(opened, ROOT, b"restored", noise(1, 3_000_000))
            await opened.sync_all()

    trio.run(again)
    assert not findings(store)
    assert trio.run(_read, store, b"a/b/large") == noise(1, 3_000_000)
    assert trio.run(_read, store, b"restored") == noise(1, 3_000_000)


def test_a_damaged_chunk_that_is_not_known_yet_is_not_shared_once_it_is(store: Path) -> None:
    before = (store / "packs" / "00000001.pack").read_bytes()
    number = _flip(store, b"a/middle")
    assert condemn(store, [number]) == 1
    assert condemn(store, [number]) == 0
    assert condemn(store, [number], damaged=False) == 0, "it is damaged"
    (store / "packs" / "00000001.pack").write_bytes(before)
    assert condemn(store, [number], damaged=False) == 1
    assert condemn(store, [number]) == 0, "it is sound"
