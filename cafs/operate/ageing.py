"""Ageing: taking archives apart in the background once nobody uses them any more.

Looks now and then for candidates, takes one after the other apart, and gives way to all who are
served.  What becomes of a single archive is decided in cafs.archives.  Belongs to the event loop.
Invariant: one pass at a time, and it can be stopped at any moment: an archive that is under way
then stays as it was.
"""

from __future__ import annotations

import logging
import resource
from collections import Counter
from typing import Any, Final

import trio

from cafs.archives.kind import GZIP, ZIP
from cafs.archives.take_apart import Outcome
from cafs.errors import (
    CafsError,
    DiskError,
    DiskFullError,
    ReadOnlyError,
    first_foreseen,
    told_as,
)
from cafs.log import RateLimit
from cafs.operate import candidates, engine_proofs
from cafs.operate.ageing_job import Job, Report, count_reason
from cafs.operate.ageing_state import Keeper
from cafs.operate.candidates import Candidate, Found, Rules
from cafs.operate.governor import Governor
from cafs.store import Store
from cafs.types import TIME_MAX_NS, BlobNo
from cafs.units import human_size

log = logging.getLogger(__name__)

START_S: Final = 60.0
"""A daemon that has just started has other things to do."""
RETRY_S: Final = 60.0
"""When the disk was full: what keeps ageing may be over soon."""
SAVE_S: Final = 60.0
ROOM: Final = 256 << 20
"""Bytes that must be free, besides the archive's own size: its content is stored beside it."""
ROOM_FRACTION: Final = 32
"""On a small disk it is only one part in so many."""
MARKS_AT_ONCE: Final = 256
PAUSED: Final = "paused"
ENGINE_OF: Final = {GZIP: "gnu-gzip", ZIP: "zlib"}
"""Without this one archives of the kind wait: what cannot be made again now may be tomorrow."""


class Ageing:
    """The ageing of one store."""

    def __init__(self, store: Store, *, alone: bool = False) -> None:
        """*alone*: nobody is served, so nobody has to be given way to."""
        self._store = store
        self._archives = store.archives
        self._options = store.archives.options
        self.governor = Governor(store.latency, store.clock, alone=alone)
        self._keeper = Keeper(store.path)
        self.state = self._keeper.state
        self._archives.raw_rate = self.state.rebuild_bytes_per_s
        self._turn = trio.Lock()
        self._pauses = 0
        """How often a pause was asked for: it stops also what has not come to its turn."""
        self._scope: trio.CancelScope | None = None
        self._job: Job | None = None
        self._kick = trio.Event()
        self._doing = "idle"
        self._queue_count = self._queue_bytes = self._gone_bytes = 0
        self._left: Counter[str] = Counter()
        self._given_up: set[BlobNo] = set()
        self._saved = store.clock.monotonic()
        self._limit = RateLimit()
        self._told = ""
        store.reports["archives"] = self.status

    # -- background --------------------------------------------------------------------------

    async def run(self) -> None:
        """Age what is unused, for ever."""
        await self._sleep(min(START_S, self._options.age_interval))
        while True:
            wait = self._options.age_interval
            if self._options.enabled and not self.state.paused:
                job = Job(background=True)
                try:
                    await self._pass(job, self._pauses)
                except CafsError as error:
                    self._limit.log(log, logging.WARNING, "pass", f"ageing stopped: {error}")
                except Exception:
                    # It must not end the mount: what is not taken apart is read as ever.
                    log.exception("defect in ageing: it begins anew")
                if job.report.stopped:
                    wait = min(wait, RETRY_S)
            await self._sleep(wait)

    async def _sleep(self, seconds: float) -> None:
        self._kick = trio.Event()
        with trio.move_on_after(seconds):
            await self._kick.wait()

    # -- orders ------------------------------------------------------------------------------

    async def now(self, job: Job) -> Report:
        """Make a pass now; one in the background gives way, and goes on afterwards.

        Raises NotFoundError, UsageError, DaemonError, IndexDamagedError.
        """
        pauses = self._pauses
        preempted = self._job is not None and self._job.background
        if preempted:
            self._stop("another pass was asked for")
        # Who asks now means what he has just copied in, too.
        await self._store.hasher.catch_up()
        await self._store.sync_all()
        report = await self._pass(job, pauses)
        await self._store.commit()
        if preempted:
            self._kick.set()
        return report

    async def pause(self, *, paused: bool) -> None:
        """Stop, and begin no pass in the background until told otherwise; or go on.

        Raises DiskFullError and its kin if only this daemon will know.
        """
        self.state.paused = paused
        if paused:
            self._pauses += 1
            self._stop(PAUSED)
        else:
            self._kick.set()
        said = "ageing is paused" if paused else "ageing goes on"
        log.info("%s", said)
        self._gather()
        try:
            await self._keeper.write()
        except CafsError as error:
            text = f"{said}, but only until the daemon ends, because that was not stored: {error}"
            raise told_as(error, text, f"{error.advice}; then the same once more") from error

    def _stop(self, why: str) -> None:
        if self._scope is not None and self._job is not None:
            self._job.report.stop(why)
            self._scope.cancel()

    # -- a pass ------------------------------------------------------------------------------

    async def _pass(self, job: Job, pauses: int) -> Report:
        """*pauses*: how many there had been when it was wanted."""
        async with self._turn:
            if pauses != self._pauses:
                job.report.stop(PAUSED)
                return job.report
            self.governor.begin()
            self._archives.pace = self.governor.pace
            try:
                with trio.CancelScope() as self._scope:
                    self._job = job
                    async with trio.open_nursery() as nursery:
                        nursery.start_soon(self.governor.probe)
                        try:
                            await self._work(job)
                        except (DiskFullError, ReadOnlyError, DiskError) as error:
                            job.report.stopped = str(error)
                            job.report.exit_code = error.meaning.exit_code
                        nursery.cancel_scope.cancel()
            except BaseExceptionGroup as group:
                raise first_foreseen(group) from group
            finally:
                self._scope = self._job = None
                self._archives.pace = None
                self.governor.end()
                self._take_work()
                self._doing, self._queue_count, self._queue_bytes = "idle", 0, 0
        await self._save()
        self._say(job)
        return job.report

    async def _work(self, job: Job) -> None:
        behind = None
        while True:
            self._doing = "looking"
            self._may_go_on(0)
            rules = self._rules(job)._replace(behind=behind)
            found = await candidates.search(self._store.path, rules)
            if found.candidates and not job.thaw:
                await self._have_engines(job)
            job.report.in_use_count = found.in_use
            job.report.kept_newest_count += found.kept_newest
            job.report.passed.update(found.passed)
            await self._mark(found)
            await self._all(job, found)
            if not found.more:
                return
            # Each has one turn: what is as it was is a candidate again, and may be all of them.
            behind = found.reached
            # What was changed has to be in the index before it is looked at again.
            await self._store.commit()

    async def _have_engines(self, job: Job) -> None:
        """Find out which programs may be used; not before there is something to do for them."""

        def begin() -> None:
            self._doing = "proving"
            self.governor.resume()

        await engine_proofs.settle(self._archives, self._store.path, self._rules(job), begin)

    def _rules(self, job: Job) -> Rules:
        ripe = self._store.clock.now_ns() - int(self._options.age_after * 1e9)
        return Rules(
            used_before_ns=TIME_MAX_NS + 1 if job.used_too else ripe + 1,
            min_size=1 if job.thaw else self._options.age_min_size,
            gains=self.state.gains(),
            below=job.below,
            aged=job.thaw,
        )

    async def _mark(self, found: Found) -> None:
        """What is no archive is not looked at again."""
        aged = self._store.blobs.aged
        for start in range(0, len(found.strangers), MARKS_AT_ONCE):
            await self._store.make_room()
            for blob in found.strangers[start : start + MARKS_AT_ONCE]:
                if aged.may_swap(blob):
                    aged.leave(blob)

    async def _all(self, job: Job, found: Found) -> None:
        """Work the candidates off."""
        queue = found.candidates
        total = sum(each.size for each in queue)
        done = 0
        if queue:
            await self.governor.listen()
        for number, each in enumerate(queue):
            self._doing = "working"
            self._queue_count, self._queue_bytes = len(queue) - number, total - done
            job.on_progress(done, total)
            self._may_go_on(each.size)
            self.governor.resume()
            # The queue is as old as the pass: meanwhile its files may have been deleted.
            if self._store.blobs.aged.wanted(each.blob):
                if job.thaw:
                    await self._thaw(job, each)
                elif self._is_wanted(job, each):
                    await self._one(job, each)
            await self.governor.pace()
            done += each.size
        job.on_progress(total, total)

    def _may_go_on(self, size: int) -> None:
        """Raises DiskFullError and its kin."""
        space = self._store.space
        space.look()
        if space.problem is not None:
            raise space.problem
        if size and not space.find_room(min(ROOM, space.total // ROOM_FRACTION) + size):
            raise DiskFullError(
                f"the disk has no room to store an archive of {human_size(size)} a second time"
            )

    def _is_wanted(self, job: Job, each: Candidate) -> bool:
        if each.blob in self._given_up and job.below is None:
            return False
        engine = ENGINE_OF[each.kind]
        if all(ready.kind != engine for ready in self._archives.engines.anew()):
            self._leave(job, f"{engine} is not there, or may not be used")
            return False
        if job.used_too or job.below is not None:
            return True
        if self._is_used(each):
            job.report.in_use_count += 1
            return False
        return True

    def _is_used(self, each: Candidate) -> bool:
        """Whether somebody has used it meanwhile: access times are a day behind, and the search
        was a while ago."""
        store = self._store
        ripe = store.clock.now_ns() - int(self._options.age_after * 1e9)
        there = 0
        try:
            for ino in each.inos:
                attr = store.tree.inodes.find(ino)
                if attr is None or attr.blob != each.blob:
                    continue
                there += 1
                last = max(attr.atime_ns, attr.mtime_ns, attr.ctime_ns)
                if max(last, store.accesses.last_seen(ino)) > ripe:
                    return True
            # Else another file has come to have it: a copy, or an upload of the same.
            return store.blobs.get(each.blob).refs > there + each.nameless
        except CafsError:
            # What is damaged has its turn when it is whole again.
            return True

    async def _one(self, job: Job, each: Candidate) -> None:
        """Try one archive."""
        aged = self._store.blobs.aged
        if job.below is not None and aged.may_swap(each.blob):
            aged.leave(each.blob, left=False)
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        try:
            outcome = await self._archives.take_apart(each.blob)
        except (DiskFullError, ReadOnlyError, DiskError):
            raise
        except CafsError as error:
            self._given_up.add(each.blob)
            self._leave(job, type(error).__name__)
            text = f"blob {each.blob} stays as it is: {error}; what to do: {error.advice}"
            self._limit.log(log, logging.WARNING, "fault", text)
            return
        except Exception:
            self._given_up.add(each.blob)
            self._leave(job, "a defect of cafs")
            log.exception("defect: blob %d could not be taken apart", each.blob)
            return
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.state.engines_cpu_s += (
            after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        )
        self._count(job, outcome)
        if self._store.clock.monotonic() - self._saved > SAVE_S:
            await self._save()

    def _count(self, job: Job, outcome: Outcome) -> None:
        if not outcome.done:
            self._leave(job, outcome.reason.partition(":")[0])
            log.debug("blob %d stays as it is: %s", outcome.blob, outcome.reason)
            return
        job.report.taken_apart_count += 1
        job.report.taken_apart_bytes += outcome.size
        job.report.gained_bytes += outcome.gained_bytes
        self.state.count(outcome.kind, outcome.size, outcome.gained_bytes)

    def _leave(self, job: Job, reason: str) -> None:
        count_reason(job.report.left, reason)
        count_reason(self._left, reason)

    async def _thaw(self, job: Job, each: Candidate) -> None:
        try:
            thawed = await self._archives.thaw(each.blob)
        except (DiskFullError, ReadOnlyError, DiskError):
            raise
        except CafsError as error:
            self._leave(job, type(error).__name__)
            text = f"blob {each.blob} stays taken apart: {error}; what to do: {error.advice}"
            self._limit.log(log, logging.ERROR, "thaw", text)
            return
        if thawed:
            job.report.thawed_count += 1
            job.report.thawed_bytes += each.size
        aged = self._store.blobs.aged
        if aged.may_swap(each.blob):
            # Else the next pass would take it apart again.
            aged.leave(each.blob)

    # -- sums --------------------------------------------------------------------------------

    def _take_work(self) -> None:
        gone, self._gone_bytes = self._gone_bytes, self._store.blobs.aged.gone_bytes
        self.state.count_gone(self._gone_bytes - gone)
        self.state.worked_s += self.governor.worked_s
        self.governor.worked_s = 0.0

    def _gather(self) -> None:
        self._take_work()
        self._saved = self._store.clock.monotonic()
        self.state.rebuild_bytes_per_s = round(self._archives.raw_rate)

    async def _save(self) -> None:
        """Write down what there is to remember; if that cannot be, it is tried again later."""
        self._gather()
        try:
            await self._keeper.write()
        except CafsError as error:
            log.warning("what ageing has done is not written down: %s", error)

    def _say(self, job: Job) -> None:
        report = job.report
        why = report.stopped.partition(":")[0]
        # A disk that stays full is not told of again and again.
        news = why != self._told if job.background else bool(why)
        self._told = why
        if report.taken_apart_count or report.thawed_count or (why and news):
            log.info(
                "ageing: %d archives (%s) taken apart, %s gained, %d made plain again, %d left%s",
                report.taken_apart_count,
                human_size(report.taken_apart_bytes),
                human_size(report.gained_bytes),
                report.thawed_count,
                report.left.total(),
                f"; stopped: {report.stopped}" if report.stopped else "",
            )

    @property
    def doing(self) -> str:
        """In one word: off, paused, idle, looking, proving or working."""
        if self._job is not None:
            return self._doing
        if self.state.paused:
            return "paused"
        return "idle" if self._options.enabled else "off"

    def status(self) -> dict[str, Any]:
        """The section ``archives`` of a status."""
        self._take_work()
        state, archives, rebuilds = self.state, self._archives, self._archives.rebuilds
        return {
            "state": self.doing,
            "queue_count": self._queue_count,
            "queue_bytes": self._queue_bytes,
            "taken_apart_count": state.taken_apart_count,
            "taken_apart_bytes": state.taken_apart_bytes,
            "gained_bytes": state.gained_bytes,
            "worked_s": round(state.worked_s, 3),
            "engines_cpu_s": round(state.engines_cpu_s, 3),
            "share_percent": round(100 * self.governor.share),
            "yields_count": self.governor.yields,
            "left": dict(self._left.most_common()),
            "reads_count": archives.uses.reads,
            "rebuilds_count": rebuilds.begun,
            "rebuilds_failed_count": rebuilds.failed,
            "rebuilt_bytes": rebuilds.made_bytes,
            "thawed_count": archives.thawed,
            "cache_bytes": archives.cache.used,
            "cache_hits_count": archives.cache.hits,
            "engines": engine_proofs.shown(archives),
        }
