"""Passes of ageing over a real store: what they take, leave, count and remember."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from cafs.archive_options import ArchiveOptions
from cafs.archives.archives import Archives
from cafs.archives.kind import GZIP, ZIP
from cafs.archives.take_apart import TakeApart
from cafs.errors import DiskFullError, NotFoundError, RebuildError, StoreBusyError
from cafs.index import layout
from cafs.index.layout import BLOB_AGED, BLOB_LEFT
from cafs.lock import StoreLock
from cafs.operate import ageing, ageing_state, candidates
from cafs.operate.ageing import Ageing
from cafs.operate.ageing_job import REASONS_MAX, Job, Report, count_reason
from cafs.operate.ageing_state import FILE, PRIOR_BYTES, State
from cafs.operate.candidates import GAIN_FIRST, Found, Rules
from cafs.operate.sweep import Sweeper
from cafs.store import Store
from cafs.types import ROOT, BlobNo, Ino
from tests.conftest import RunCafs
from tests.unit.aged_store import hashed
from tests.unit.archived import blob_of, content, droplet, gzipped, opened, put, sources, tar
from tests.unit.engine_samples import binary
from tests.unit.small_store import findings, noise, write

pytestmark = pytest.mark.timeout(60)

DAY_NS = 86400 * 10**9
EVERYTHING = ArchiveOptions(age_after=0.0, age_min_size=1024)
SMALL = gzipped(tar(sources(["json"])))
OTHER = gzipped(tar(sources(["tomllib"])))


@pytest.fixture(autouse=True)
def _in_the_foreground(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has to be given way to here, and other tests may run beside these."""
    monkeypatch.setattr(candidates, "NICENESS", 0)


def alone(store: Store) -> Ageing:
    return Ageing(store, alone=True)


def in_store(
    path: Path, work: Callable[[Store], Awaitable[object]], options: ArchiveOptions = EVERYTHING
) -> Any:
    async def run() -> object:
        async with opened(path / "store", options) as store:
            return await work(store)

    return trio.run(run)


def flags(store: Store, ino: Ino) -> int:
    return store.blobs.get(blob_of(store, ino)).flags


def is_aged(store: Store, ino: Ino) -> bool:
    return bool(flags(store, ino) & BLOB_AGED)


def used(store: Store, ino: Ino, days_ago: float) -> None:
    """Let a file have been last used so long ago."""
    past = store.clock.now_ns() - int(days_ago * DAY_NS)
    attr = store.tree.inodes.get(ino)
    store.tree.inodes.put(ino, attr._replace(atime_ns=past, mtime_ns=past, ctime_ns=past))


async def until(holds: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not holds():
            await trio.sleep(0.01)


# -- what is taken -----------------------------------------------------------------------------


def test_what_nobody_used_for_long_is_taken_apart(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        old, recent = await put(store, b"old", SMALL), await put(store, b"recent", OTHER)
        used(store, old, 2)
        before = store.tree.inodes.get(old)
        report = await alone(store).now(Job())
        assert is_aged(store, old) and not is_aged(store, recent)
        assert (report.taken_apart_count, report.taken_apart_bytes) == (1, len(SMALL))
        assert report.in_use_count == 1
        assert (report.left, report.stopped, report.exit_code) == ({}, "", 0)
        # Nothing that a client of the store could see has changed.
        assert store.tree.inodes.get(old) == before
        assert await content(store, old) == SMALL
        again = await alone(store).now(Job())
        assert again.taken_apart_count == 0

    in_store(tmp_path, work, ArchiveOptions(age_min_size=1024, age_after=86400.0))
    assert not findings(tmp_path / "store")


def test_a_read_that_no_access_time_shows_counts(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        ino = await put(store, b"f", SMALL)
        store.accesses.note(ino)
        # Within a day relatime leaves the access time as it is: here it seems to be long ago.
        used(store, ino, 2)
        report = await alone(store).now(Job())
        assert report.in_use_count == 1
        assert not is_aged(store, ino)
        await alone(store).now(Job(used_too=True))
        assert is_aged(store, ino)

    in_store(tmp_path, work, ArchiveOptions(age_min_size=1024, age_after=86400.0))


@pytest.mark.parametrize("since", ["nothing", "read", "read by another name", "written again"])
def test_what_is_used_after_the_search_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    """A pass may take hours, and content may have any number of files."""
    right = candidates.search

    async def work(store: Store) -> None:
        one = await put(store, b"one", SMALL)
        above = store.tree.create(ROOT, b"d", stat.S_IFDIR | 0o755, 0, 0)
        two = await write(store, above, b"two", SMALL)
        await store.contents.finished(two)
        assert blob_of(store, one) == blob_of(store, two)
        used(store, one, 2)
        used(store, two, 3)

        async def and_then(path: Path, rules: Rules) -> Found:
            found = await right(path, rules)
            assert len(found.candidates) == 1
            if since == "read":
                store.accesses.note(one)
            elif since == "read by another name":
                attr = store.tree.inodes.get(two)
                store.tree.inodes.put(two, attr._replace(atime_ns=store.clock.now_ns()))
            elif since == "written again":
                await put(store, b"three", SMALL)
            return found

        monkeypatch.setattr(candidates, "search", and_then)
        report = await alone(store).now(Job())
        assert is_aged(store, one) == (since == "nothing")
        assert report.in_use_count == (since != "nothing")

    in_store(tmp_path, work, ArchiveOptions(age_min_size=1024, age_after=86400.0))


def test_what_is_no_archive_is_looked_at_once(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        broken, text = await put(store, b"b", SMALL[:-99]), await put(store, b"t", b"words " * 1000)
        age = alone(store)
        report = await age.now(Job())
        assert flags(store, text) & flags(store, broken) & BLOB_LEFT
        assert report.left.total() == 1, "the text was never tried"
        assert (await age.now(Job())).left.total() == 0
        # By its name it is tried all the same.
        assert (await age.now(Job(below="/b"))).left.total() == 1

    in_store(tmp_path, work)


def test_a_path_is_all_that_is_below_it(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        above = store.tree.create(ROOT, b"above", stat.S_IFDIR | 0o755, 0, 0)
        inside = store.tree.create(above, b"\xff inside", stat.S_IFDIR | 0o755, 0, 0)
        one = await write(store, above, b"one", SMALL)
        two = await write(store, inside, b"two", OTHER)
        outside = await put(store, b"outside", droplet())
        await store.contents.finished(two)
        age = alone(store)
        # In one directory: the newest would stay, but who names it wants it.
        assert (await age.now(Job(below=os.fsdecode(b"/above/\xff inside")))).taken_apart_count == 1
        assert is_aged(store, two) and not is_aged(store, one)
        assert (await age.now(Job(below="/above"))).taken_apart_count == 1
        assert is_aged(store, one) and not is_aged(store, outside)
        with pytest.raises(NotFoundError, match="/nowhere"):
            await age.now(Job(below="/nowhere"))

    in_store(tmp_path, work, ArchiveOptions(age_min_size=1024))


def test_who_names_a_path_hears_of_every_file(tmp_path: Path) -> None:
    """Nothing is passed over in silence, and how small an archive is does not matter."""

    async def work(store: Store) -> None:
        ino = await put(store, b"small", SMALL)
        await put(store, b"words", b"words " * 1000)
        await put(store, b"none", b"")
        age = alone(store)
        assert (await age.now(Job(used_too=True))).passed == {}
        report = await age.now(Job(below="/"))
        assert (report.taken_apart_count, report.left) == (1, {})
        assert report.passed == {"it is no archive": 1, "it is empty": 1}
        assert is_aged(store, ino)
        report = await age.now(Job(below="/small"))
        assert report.passed == {"it is taken apart already": 1}
        report = await age.now(Job(below="/", thaw=True))
        assert report.thawed_count == 1
        assert report.passed == {"it is stored plain": 1, "it is empty": 1}
        assert report.fields()["passed"] == report.passed

    in_store(tmp_path, work, ArchiveOptions(age_min_size=1 << 30))


@pytest.mark.timeout(30)
def test_an_order_by_path_comes_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is more than is told at once, and most of it cannot be taken apart."""
    rules = Ageing._rules
    monkeypatch.setattr(Ageing, "_rules", lambda self, job: rules(self, job)._replace(limit=2))

    async def work(store: Store) -> None:
        for number in range(3):
            await put(store, b"broken %d" % number, SMALL[: -99 - number])
        good = await put(store, b"good", gzipped(b"words " * 100))
        also = await put(store, b"also good", gzipped(b"other words " * 100))
        await put(store, b"text", b"words")
        age = alone(store)
        report = await age.now(Job(below="/"))
        assert (report.taken_apart_count, report.left.total()) == (2, 3)
        assert report.passed == {"it is no archive": 1}
        assert is_aged(store, good) and is_aged(store, also)
        report = await age.now(Job(below="/", thaw=True))
        assert (report.thawed_count, report.passed) == (2, {"it is stored plain": 4})

    in_store(tmp_path, work)


def test_what_has_to_wait_does_not_keep_the_rest_from_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search tells of the largest first: also where each of these waits, and will again."""
    rules = Ageing._rules
    monkeypatch.setattr(Ageing, "_rules", lambda self, job: rules(self, job)._replace(limit=2))
    right = TakeApart.take_apart

    async def wrong(self: TakeApart, blob: BlobNo) -> Any:
        if self._around.blobs.get(blob).size > len(OTHER):
            raise RebuildError("as if")
        return await right(self, blob)

    async def work(store: Store) -> None:
        for number in range(5):
            above = store.tree.create(ROOT, b"%d" % number, stat.S_IFDIR | 0o755, 0, 0)
            data = gzipped(tar(sources(["json"]), number))
            await store.contents.finished(await write(store, above, b"file", data))
        ino = await put(store, b"small", OTHER)
        monkeypatch.setattr(TakeApart, "take_apart", wrong)
        age = alone(store)
        for left in (5, 0):
            job = Job(background=True)
            report = await age._pass(job, 0)
            assert (report.left.total(), report.taken_apart_count) == (left, left // 5)
            assert is_aged(store, ino)

    assert len(SMALL) > len(OTHER)
    in_store(tmp_path, work)


def test_the_command_says_why_it_does_nothing(tmp_path: Path, run_cafs: RunCafs) -> None:
    async def fill(store: Store) -> None:
        await put(store, b"small", SMALL)
        await put(store, b"words", b"words " * 1000)

    in_store(tmp_path, fill)
    order = ["age", tmp_path / "store", "--path", "/"]
    assert len(SMALL) < ArchiveOptions().age_min_size
    said = run_cafs(*order, "--dry-run").stdout
    assert "1 archive " in said and "1 file passed over: it is no archive" in said
    assert "1 archive " in run_cafs(*order).stdout
    for again in (run_cafs(*order), run_cafs(*order, "--dry-run")):
        assert "0 archives" in again.stdout
        assert "1 file passed over: it is taken apart already" in again.stdout
    said = run_cafs("age", tmp_path / "store", "--thaw", "--path", "/words").stdout
    assert "1 file passed over: it is stored plain" in said


def test_what_was_made_plain_by_an_order_stays_plain(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        one, two = await put(store, b"one", SMALL), await put(store, b"two", OTHER)
        age = alone(store)
        assert (await age.now(Job(used_too=True))).taken_apart_count == 1, "the newest stays"
        await age.now(Job(below="/"))
        assert is_aged(store, one) and is_aged(store, two)
        report = await age.now(Job(below="/", thaw=True))
        assert (report.thawed_count, report.thawed_bytes) == (2, len(SMALL) + len(OTHER))
        assert (await age.now(Job(used_too=True))).taken_apart_count == 0
        assert not is_aged(store, one) and not is_aged(store, two)
        assert await content(store, two) == OTHER
        assert (await age.now(Job(below="/two"))).taken_apart_count == 1

    in_store(tmp_path, work)
    assert not findings(tmp_path / "store")


# -- in the background -------------------------------------------------------------------------


async def running(store: Store, work: Callable[[Ageing], Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        age = alone(store)
        nursery.start_soon(age.run)
        await work(age)
        nursery.cancel_scope.cancel()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ageing, "START_S", 0.0)
    monkeypatch.setattr(ageing, "RETRY_S", 0.05)


OFTEN = ArchiveOptions(age_after=0.0, age_min_size=1024, age_interval=0.1)


@pytest.mark.usefixtures("at_once")
def test_it_goes_on_by_itself(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        one = await put(store, b"one", SMALL)

        async def meanwhile(age: Ageing) -> None:
            await until(lambda: is_aged(store, one))
            two = await put(store, b"two", OTHER)
            # The newest of its directory: it has to be the only one.
            store.tree.rename(ROOT, b"one", ROOT, b"two", 0)
            three = await put(store, b"three", OTHER)
            store.tree.unlink(ROOT, b"two")
            await store.commit()
            assert blob_of(store, three) == blob_of(store, two)
            await until(lambda: is_aged(store, three))
            assert age.status()["taken_apart_count"] == 2

        await running(store, meanwhile)

    in_store(tmp_path, work, OFTEN)


@pytest.mark.usefixtures("at_once")
def test_paused_it_does_nothing_also_after_a_restart(tmp_path: Path) -> None:
    async def first(store: Store) -> None:
        await put(store, b"one", SMALL)
        age = alone(store)
        await age.pause(paused=True)
        assert age.doing == "paused"

    async def second(store: Store) -> None:
        ino = store.tree.lookup(ROOT, b"one")
        assert ino is not None

        async def meanwhile(age: Ageing) -> None:
            assert age.doing == "paused"
            await trio.sleep(0.5)
            assert not is_aged(store, ino)
            await age.pause(paused=False)
            await until(lambda: is_aged(store, ino))

        await running(store, meanwhile)

    in_store(tmp_path, first, OFTEN)
    in_store(tmp_path, second, OFTEN)


@pytest.mark.usefixtures("at_once")
def test_turned_off_it_does_nothing_but_what_it_is_told(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        ino = await put(store, b"one", SMALL)

        async def meanwhile(age: Ageing) -> None:
            assert age.doing == "off"
            await trio.sleep(0.5)
            assert not is_aged(store, ino)
            await age.now(Job())
            assert is_aged(store, ino)

        await running(store, meanwhile)

    options = ArchiveOptions(enabled=False, age_after=0.0, age_min_size=1024, age_interval=0.1)
    in_store(tmp_path, work, options)


def held_up(monkeypatch: pytest.MonkeyPatch) -> trio.Event:
    """From now on the first archive is stuck between two steps; the event: it is there."""
    there = trio.Event()
    pause = TakeApart._pause

    async def stuck(self: TakeApart) -> None:
        if not there.is_set():
            there.set()
            await trio.sleep_forever()
        await pause(self)

    monkeypatch.setattr(TakeApart, "_pause", stuck)
    return there


def test_a_pause_stops_the_archive_that_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: Store) -> None:
        ino = await put(store, b"one", SMALL)
        there = held_up(monkeypatch)
        age = alone(store)
        reports: list[Report] = []

        async def order() -> None:
            reports.append(await age.now(Job()))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(order)
            await there.wait()
            assert age.doing == "working"
            assert age.status()["queue_bytes"] == len(SMALL)
            await age.pause(paused=True)
        assert (reports[0].stopped, reports[0].exit_code) == ("paused", 1)
        assert reports[0].taken_apart_count == 0
        assert not flags(store, ino)
        await store.commit()
        await age.now(Job())
        assert is_aged(store, ino)

    in_store(tmp_path, work)
    assert not findings(tmp_path / "store")


@pytest.mark.parametrize("where", ["it waits for digests", "it waits for its turn"])
def test_a_pause_stops_what_has_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def work(store: Store) -> None:
        ino = await put(store, b"one", SMALL)
        age = alone(store)
        there, go_on = trio.Event(), trio.Event()
        reports: list[Report] = []

        async def slow() -> None:
            there.set()
            await go_on.wait()

        async def order() -> None:
            reports.append(await age.now(Job()))

        if where == "it waits for digests":
            monkeypatch.setattr(store.hasher, "catch_up", slow)
        else:
            await age._turn.acquire()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(order)
            if where == "it waits for digests":
                await there.wait()
            else:
                await until(lambda: age._turn.statistics().tasks_waiting == 1)
            await age.pause(paused=True)
            go_on.set()
            if age._turn.locked():
                age._turn.release()
        assert (reports[0].stopped, reports[0].exit_code) == ("paused", 1)
        assert not is_aged(store, ino)

    in_store(tmp_path, work)


@pytest.mark.usefixtures("at_once")
def test_who_asks_does_not_wait_for_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(store: Store) -> None:
        one = await put(store, b"one", SMALL)
        there = held_up(monkeypatch)

        async def meanwhile(age: Ageing) -> None:
            await there.wait()
            report = await age.now(Job())
            assert report.taken_apart_count == 1
            assert is_aged(store, one)

        await running(store, meanwhile)

    in_store(tmp_path, work, OFTEN)


def test_killed_in_the_middle_it_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store is closed over a half-stored archive, and what was stored is the sweep's."""

    async def first(store: Store) -> None:
        await put(store, b"one", droplet())
        there = held_up(monkeypatch)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alone(store).now, Job())
            await there.wait()
            await store.commit()
            nursery.cancel_scope.cancel()

    async def second(store: Store) -> None:
        ino = store.tree.lookup(ROOT, b"one")
        assert ino is not None
        assert not is_aged(store, ino)
        await alone(store).now(Job())
        assert is_aged(store, ino)

    in_store(tmp_path, first)
    assert not findings(tmp_path / "store")
    in_store(tmp_path, second)
    assert not findings(tmp_path / "store")


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [RebuildError("as if"), ZeroDivisionError("a defect")])
def test_a_fault_in_one_archive_spares_the_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    fault: Exception,
) -> None:
    async def work(store: Store) -> None:
        larger = await put(store, b"larger", SMALL)
        above = store.tree.create(ROOT, b"d", stat.S_IFDIR | 0o755, 0, 0)
        smaller = await write(store, above, b"smaller", OTHER)
        await store.contents.finished(smaller)
        right = TakeApart.take_apart

        async def wrong(self: TakeApart, blob: Any) -> Any:
            if blob == blob_of(store, larger):
                raise fault
            return await right(self, blob)

        monkeypatch.setattr(TakeApart, "take_apart", wrong)
        age = alone(store)
        report = await age.now(Job())
        assert (report.taken_apart_count, report.left.total()) == (1, 1)
        assert is_aged(store, smaller)
        # Not again and again.
        assert (await age.now(Job())).left.total() == 0

    in_store(tmp_path, work)
    assert str(fault) in caplog.text


async def delete(store: Store, name: bytes) -> None:
    """Delete a file, and let the sweep take what it had."""
    store.nameless.forget(store.tree.unlink(ROOT, name)[0])
    await store.commit()
    await Sweeper(store).once()
    await store.commit()


@pytest.mark.parametrize("thaw", [False, True])
def test_a_file_that_is_deleted_while_it_waits_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, thaw: bool
) -> None:
    name = "thaw" if thaw else "take_apart"
    right = getattr(Archives, name)

    async def work(store: Store) -> None:
        content = [gzipped(tar(sources(["json"]), mtime)) for mtime in range(3)]
        for number, data in enumerate(content):
            await put(store, b"%d" % number, data)
        age = alone(store)
        if thaw:
            await age.now(Job(below="/"))
        seen: list[int] = []

        async def and_delete_the_others(self: Archives, blob: BlobNo) -> Any:
            result = await right(self, blob)
            seen.append(blob)
            for number in range(3):
                ino = store.tree.lookup(ROOT, b"%d" % number)
                if ino is not None and blob_of(store, ino) != blob:
                    await delete(store, b"%d" % number)
            return result

        monkeypatch.setattr(Archives, name, and_delete_the_others)
        report = await age.now(Job(below="/", thaw=thaw))
        assert len(seen) == 1
        assert (report.taken_apart_count, report.thawed_count) == ((0, 1) if thaw else (1, 0))
        assert (report.left, report.stopped, report.exit_code) == ({}, "", 0)

    in_store(tmp_path, work)
    assert not [record for record in caplog.records if record.levelname != "INFO"]
    assert not findings(tmp_path / "store")


def test_a_file_that_is_deleted_while_it_is_made_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Archives.thaw

    async def work(store: Store) -> None:
        await put(store, b"one", SMALL)
        age = alone(store)
        await age.now(Job(below="/"))

        async def and_delete(self: Archives, blob: BlobNo) -> bool:
            result = await right(self, blob)
            await delete(store, b"one")
            assert store.overlay.get(layout.BLOBS, layout.u48(blob)) is None
            return result

        monkeypatch.setattr(Archives, "thaw", and_delete)
        report = await age.now(Job(below="/", thaw=True))
        assert (report.thawed_count, report.exit_code) == (1, 0)

    in_store(tmp_path, work)
    assert not findings(tmp_path / "store")


def program(directory: Path, script: str) -> str:
    """A PATH that begins with a gzip of our own."""
    directory.mkdir()
    binary(directory / "gzip", script)
    return f"{directory}:{os.environ['PATH']}"


SAME = 'exec /bin/gzip "$@"'
LIAR = 'test "$1" = --version && exec /bin/gzip --version\nshift 2\nexec /bin/gzip -n -5 "$@"'


@pytest.mark.parametrize(("script", "state"), [(SAME, "ready"), (LIAR, "refused")])
def test_another_gzip_has_to_prove_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, state: str
) -> None:
    """After an upgrade of the machine; what is stored is read with the one that made it."""
    data = droplet()

    async def first(store: Store) -> None:
        await put(store, b"one", SMALL)
        assert (await alone(store).now(Job())).taken_apart_count == 1

    async def second(store: Store) -> None:
        one = store.tree.lookup(ROOT, b"one")
        assert one is not None
        two = await put(store, b"two", data)
        age = alone(store)
        report = await age.now(Job(below="/two"))
        machine = next(each for each in age.status()["engines"] if each["kind"] == "gnu-gzip")
        assert machine["state"] == state
        assert is_aged(store, two) == (state == "ready")
        if state == "refused":
            (reason,) = report.left
            assert "gnu-gzip" in reason
            # Not for ever: with the right program it is tried again.
            assert not flags(store, two) & BLOB_LEFT
        assert await content(store, one) == SMALL
        assert await content(store, two) == data

    async def third(store: Store) -> None:
        two = store.tree.lookup(ROOT, b"two")
        assert two is not None
        await alone(store).now(Job(below="/two"))
        assert is_aged(store, two)

    in_store(tmp_path, first)
    with monkeypatch.context() as upgrade:
        upgrade.setenv("PATH", program(tmp_path / "bin", script))
        in_store(tmp_path, second)
    in_store(tmp_path, third)
    assert not findings(tmp_path / "store")


def test_without_gzip_droplets_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(store: Store) -> None:
        ino = await put(store, b"one", SMALL)
        report = await alone(store).now(Job())
        assert report.taken_apart_count == 0
        assert not flags(store, ino)

    with monkeypatch.context() as upgrade:
        upgrade.setenv("PATH", program(tmp_path / "bin", "exit 1"))
        in_store(tmp_path, work)


def test_the_cache_gives_way_to_ageing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a full cache of a nearly full disk would keep what ageing gains from being gained."""
    file = tmp_path / "store" / "cache" / f"{7:012x}"

    async def fill(store: Store) -> None:
        await put(store, b"one", SMALL)
        file.write_bytes(bytes(1 << 20))

    async def work(store: Store) -> None:
        ino = store.tree.lookup(ROOT, b"one")
        assert ino is not None
        enough = ageing.ROOM + len(SMALL)
        monkeypatch.setattr(store.space, "free", lambda: enough - file.exists())
        report = await alone(store).now(Job())
        assert (report.taken_apart_count, report.stopped) == (1, "")
        assert is_aged(store, ino)
        assert not file.exists()

    in_store(tmp_path, fill)
    in_store(tmp_path, work)


# -- what is remembered ------------------------------------------------------------------------


def test_expected_gain_is_what_was_measured() -> None:
    state = State()
    assert state.gains() == GAIN_FIRST
    state.count(GZIP, PRIOR_BYTES, 0)
    assert state.gain(GZIP) == pytest.approx(GAIN_FIRST[GZIP] / 2)
    assert state.gain(ZIP) == GAIN_FIRST[ZIP]
    state.count(ZIP, 100 * PRIOR_BYTES, -100 * PRIOR_BYTES)
    assert state.gain(ZIP) == 0.0
    assert (state.taken_apart_count, state.gained_bytes) == (2, -100 * PRIOR_BYTES)


def test_a_file_from_before_archives_made_plain_were_counted(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("taken_apart_bytes = 1000\ngained_bytes = 600\n")
    state = State.load(tmp_path)
    state.count_gone(500)
    assert (state.gained_bytes, state.aged_bytes) == (300, 500)
    state.count_gone(700)
    assert (state.gained_bytes, state.aged_bytes) == (0, 0)


def test_what_is_made_plain_again_is_not_saved(tmp_path: Path) -> None:
    """Taken apart any number of times, an archive saves what it saves once."""
    data, like = droplet(), droplet(1_700_000_777)

    async def work(store: Store) -> None:
        await put(store, b"one", data)
        await put(store, b"two", like)
        age = alone(store)
        await age.now(Job(below="/"))
        once = age.status()["gained_bytes"]
        assert once > 0
        for _ in range(2):
            await Sweeper(store).once()
            await age.now(Job(below="/", thaw=True))
            assert age.status()["gained_bytes"] == 0
            await Sweeper(store).once()
            await age.now(Job(below="/"))
            assert age.status()["gained_bytes"] == pytest.approx(once, abs=1000)
        # By itself, too, because somebody reads it or writes to it.
        ino = store.tree.lookup(ROOT, b"two")
        assert ino is not None
        await store.archives.thaw(blob_of(store, ino))
        half = age.status()["gained_bytes"]
        assert 0 < half < 0.6 * once
        await age.pause(paused=True)
        assert State.load(store.path).gained_bytes == half

    in_store(tmp_path, work)


@pytest.mark.parametrize("how", ["deleted", "written again", "written again, hashed later"])
def test_what_is_not_taken_apart_any_more_saves_nothing(tmp_path: Path, how: str) -> None:
    data = droplet()

    async def work(store: Store) -> None:
        await put(store, b"one", data)
        age = alone(store)
        await age.now(Job(below="/"))
        assert age.status()["gained_bytes"] != 0
        if how == "deleted":
            await delete(store, b"one")
        elif how == "written again":
            await put(store, b"two", data)
        else:
            ino = store.tree.create(ROOT, b"two", stat.S_IFREG | 0o644, 0, 0)
            store.contents.opened(ino, writable=True)
            # Not from its start on, so its digests are known only when it is read back.
            await store.contents.write(ino, 1000, data[1000:], privileged=True)
            await store.contents.settle(ino)
            await store.contents.write(ino, 0, data[:1000], privileged=True)
            await store.contents.settle(ino)
            store.contents.closed(ino, writable=True)
            await hashed(store, ino)
        one = store.tree.lookup(ROOT, b"one")
        assert one is None or not is_aged(store, one)
        status = age.status()
        assert (status["gained_bytes"], status["taken_apart_count"]) == (0, 1)

    in_store(tmp_path, work)


def test_it_is_written_down(tmp_path: Path) -> None:
    state = State(paused=True, worked_s=1.5)
    state.count(ZIP, 100, -7)
    state.write(tmp_path)
    assert State.load(tmp_path) == state


@pytest.mark.parametrize(
    "text", ["", "paused = 1\n", "no toml", 'worked_s = "x"\n', "\xff", "paused = 0.5\n"]
)
def test_whatever_is_in_its_file_does_no_harm(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE).write_text(text, encoding="latin-1")
    assert State.load(tmp_path) == State()


def test_a_whole_number_is_one_with_a_point(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("worked_s = 3\n")
    assert State.load(tmp_path) == State(worked_s=3.0)


def broken_disk(monkeypatch: pytest.MonkeyPatch, calls: list[str]) -> None:
    """Ageing cannot be remembered; *calls* get a line for each try."""

    def write(_self: State, _store: Path) -> None:
        calls.append("write")
        raise DiskFullError("write ageing.toml: no space left on device", advice="free space")

    monkeypatch.setattr(State, "write", write)


def test_a_pause_that_cannot_be_written_down_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a full disk, for which the manual advises it: else a restart would go on ageing."""

    async def work(store: Store) -> None:
        age = alone(store)
        calls: list[str] = []
        with monkeypatch.context() as full:
            broken_disk(full, calls)
            with pytest.raises(DiskFullError, match="paused, but only until the daemon ends"):
                await age.pause(paused=True)
            assert age.doing == "paused" and len(calls) == 1
        await age.pause(paused=True)
        assert State.load(store.path).paused

    in_store(tmp_path, work)


def test_sums_that_cannot_be_written_down_are_logged_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(store: Store) -> None:
        await put(store, b"one", SMALL)
        age = alone(store)
        with monkeypatch.context() as full:
            broken_disk(full, [])
            assert (await age.now(Job())).taken_apart_count == 1
        assert "not written down: write ageing.toml: no space" in caplog.text
        await age.now(Job())
        assert State.load(store.path).taken_apart_count == 1

    in_store(tmp_path, work)


def test_two_who_write_it_down_do_so_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass that a pause has stopped, and the pause: there is one file for both."""
    writing: list[State] = []
    go_on = threading.Event()
    right = State.write

    async def work(store: Store) -> None:
        await put(store, b"one", SMALL)
        there = held_up(monkeypatch)
        age = alone(store)

        def write(self: State, path: Path) -> None:
            writing.append(self)
            # There is more to write down for who comes next.
            age.state.worked_s += 1.0
            assert go_on.wait(30)
            right(self, path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(age.now, Job())
            await there.wait()
            monkeypatch.setattr(State, "write", write)
            nursery.start_soon(partial(age.pause, paused=True))
            await until(lambda: bool(writing) and age._job is None)
            await trio.testing.wait_all_tasks_blocked()
            assert len(writing) == 1
            go_on.set()
        assert State.load(store.path).paused and len(writing) == 2

    in_store(tmp_path, work)


def test_pausing_without_a_daemon(tmp_path: Path) -> None:
    ageing_state.set_paused(tmp_path, paused=True)
    assert State.load(tmp_path).paused
    lock = StoreLock(tmp_path)
    try:
        with pytest.raises(StoreBusyError):
            ageing_state.set_paused(tmp_path, paused=False)
    finally:
        lock.release()


def test_reasons_are_bounded() -> None:
    report = Report()
    for number in range(2 * REASONS_MAX):
        count_reason(report.left, f"reason {number}")
    assert len(report.left) == REASONS_MAX + 1
    assert report.left.total() == 2 * REASONS_MAX


def test_a_larger_gain_first(tmp_path: Path) -> None:
    async def work(store: Store) -> list[tuple[int, int]]:
        above = store.tree.create(ROOT, b"d", stat.S_IFDIR | 0o755, 0, 0)
        await write(store, above, b"small", SMALL)
        await put(store, b"large", gzipped(tar({"noise": noise(1, 300_000)})))
        seen: list[tuple[int, int]] = []
        await alone(store).now(Job(on_progress=lambda done, total: seen.append((done, total))))
        return seen

    seen = in_store(tmp_path, work)
    total = seen[0][1]
    assert [done for done, _ in seen] == [0, total - len(SMALL), total]


def test_a_disk_that_stays_full_is_told_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "cafs.operate.ageing")

    async def work(store: Store) -> None:
        await put(store, b"one", SMALL)
        age = alone(store)
        for left in (3, 2, 1):
            store.space.failed(DiskFullError(f"the disk is full: {left} MiB are left"))
            # No look at the disk in between, which is not full at all.
            store.space.look = lambda: None  # type: ignore[method-assign]
            job = Job(background=True)
            await age._pass(job, 0)
            assert job.report.exit_code == 9
        assert caplog.text.count("is full") == 1

    in_store(tmp_path, work)
