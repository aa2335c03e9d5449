"""The proof that archives taken apart lose nothing: ``python -m bench archives --main-job``.

Real droplets and buildpack caches are put into a new store, half over HTTP and half through the
mount, and aged while readers and a writer are at work.  The daemon, and then everything, is
killed in the middle, several times; each time the store must check clean, everything
acknowledged must be there and the archives must read back bit for bit.  At the end everything is
aged, given back to the disk, counted, and read twice more with nothing cached.

Invariant: a run that proved nothing fails.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

from bench import acknowledged
from bench.archives import corpus
from bench.archives.blobs import UnlikeError, allocated, copy_in, verify
from bench.archives.corpus import Blob
from bench.archives.load import Readers
from bench.archives.service import AgedServer
from bench.http.load import Ask, Load
from bench.http.servers import nginx_module
from bench.main_job import MainJobError, step
from bench.meter import descendants
from bench.sides import SideError, drop_caches, run_cafs

RATIO = 0.30
"""Of the space that ext4 takes, at most."""
_FIRST_BYTE_S, _STALL_S = 10.0, 10.0
"""A Diego cell gives up when no byte came for so long."""
_PORT = 24_460
_PATIENCE_S = 300.0
_ENDING_S = 30.0
_BESIDE_S = 300.0
_PAUSE_S = 0.05
"""Between two steps of the writer: one without any leaves no time to ageing."""
_UNDER_WAY_S = 120.0
_TYPES = ("droplets", "buildpack caches")


def run(directory: Path, *, quick: bool, kills: int, seed: int, keep: bool) -> None:
    """Do the job below *directory*.

    Raises:
        MainJobError: something did not hold; says at which step, and what was found.
    """
    if os.geteuid() != 0:
        raise MainJobError("mounting and dropping caches needs root: run the main job as root")
    root = directory / "archives"
    blobs = [blob for blob in corpus.build(root, quick=quick) if blob.type in _TYPES]
    home = directory / "archives-main-job"
    load, module = Load(directory / "bin"), nginx_module(directory / "bin")
    job = Job(root, blobs, AgedServer(home, load, module, _PORT), seed)
    start = time.monotonic()
    try:
        job.put()
        with Readers(root, blobs, job.server, seed) as readers:
            for number in range(kills):
                job.kill_and_verify(number, readers)
            job.age_for_a_while()
        job.judge(readers)
        job.age_the_rest()
        ratio = job.prove()
    except (SideError, UnlikeError, OSError) as error:
        raise MainJobError(str(error)) from None
    finally:
        job.server.stop()
    if not keep:
        shutil.rmtree(home)
    total = sum(blob.size for blob in blobs)
    print(
        f"main job: all held, {len(blobs)} archives of {total / 1e6:,.0f} MB, {kills} kills, "
        f"{job.acknowledged:,} acknowledged steps beside it, {time.monotonic() - start:,.0f} s; "
        f"the store takes {ratio:.3f} of ext4's bytes"
    )
    if ratio > RATIO and not quick:
        raise MainJobError(f"the store takes {ratio:.3f} of ext4's bytes, more than {RATIO}")


class Job:
    """One store, its service, and what must be in it."""

    def __init__(self, root: Path, blobs: list[Blob], server: AgedServer, seed: int) -> None:
        self.server = server
        self.acknowledged = 0
        self._root = root
        self._blobs = blobs
        self._seed = seed
        self._manifest = server.home / "manifest"
        self._log = server.home / "writer.log"

    def put(self) -> None:
        """Half of the archives over HTTP, half through the mount; the first of them are aged."""
        with step("a new store, served"):
            self.server.prepare()
            self.server.start()
        self._manifest.touch()
        first = len(self._blobs) // 3
        self._put(self._blobs[:first])
        with step(f"taking {first} archives apart, so that there is something to be read"):
            self.server.age_offline()
            self.server.start()
        if not self.server.held().aged:
            raise MainJobError("nothing was taken apart: this proves nothing")
        self._put(self._blobs[first:])

    def _put(self, blobs: list[Blob]) -> None:
        mounted, sent = blobs[::2], blobs[1::2]
        with step(f"{len(mounted)} archives through the mount"):
            copy_in(self._root, mounted, self.server.root)
        asks = [Ask("PUT", b.path, 201, corpus.source(self._root, b)) for b in sent]
        with step(f"{len(sent)} archives over HTTP"):
            self.server.ask(asks)
        with step("waiting for their digests"):
            self.server.wait_until_hashed()

    def kill_and_verify(self, number: int, readers: Readers) -> None:
        """SIGKILL while archives are taken apart; restart, check, verify."""
        random = Random(f"{self._seed} kill {number}")
        everything = number % 2 == 1
        what = "everything" if everything else "the daemon"
        before = self.server.held().aged
        done_before = acknowledged.count_done(self._manifest)
        with (
            step(f"taking apart and writing, then SIGKILL of {what}"),
            self._writer(number) as writer,
        ):
            ageing = self.server.age_now()
            try:
                self._wait_for(ageing, before + random.randint(1, 3))
                time.sleep(random.uniform(0, 3))
                with readers.down():
                    self._kill_and_restart(everything)
                    ageing.communicate(timeout=_PATIENCE_S)
                    # Gone with its mount, or still writing into the new one.
                    writer.kill()
            finally:
                ageing.kill()
                ageing.communicate()
        done = acknowledged.count_done(self._manifest) - done_before
        if done == 0:
            raise MainJobError("nothing was acknowledged before the kill: this proved nothing")
        self.acknowledged += done
        with step("cafs check"):
            run_cafs("check", str(self.server.store))
        with step(f"{done:,} more acknowledged steps"):
            lost = acknowledged.verify(acknowledged.expected(self._manifest))
        if lost:
            raise MainJobError(f"{len(lost)} acknowledged paths are not as written: {lost[:5]}")
        aged = self.server.held().aged
        if aged < before:
            raise MainJobError(f"{before} archives were aged before the kill, {aged} are now")
        with step(f"a third of the archives, {aged} of all aged"):
            self._read_back(random.sample(self._blobs, len(self._blobs) // 3))

    def age_for_a_while(self) -> None:
        """Go on while readers are at work; ageing stands back for them."""
        shutil.rmtree(self.server.root / "further", ignore_errors=True)
        before = self.server.held().aged
        with step("taking apart beside the readers"):
            ageing = self.server.age_now()
            end = time.monotonic() + _BESIDE_S
            while ageing.poll() is None and time.monotonic() < end:
                time.sleep(0.5)
            self.server.stop_ageing(ageing)
        print(f"  {self.server.held().aged - before} archives", flush=True)

    def age_the_rest(self) -> None:
        """What is left, with the service stopped."""
        with step("taking the rest apart, with nobody to give way to"):
            spent = self.server.age_offline()
        aged = self.server.held().aged
        print(f"  {aged} archives are aged now, {spent.cpu_s:,.0f} s of processor time", flush=True)
        if aged == 0:
            raise MainJobError("nothing was taken apart: this proved nothing")

    def judge(self, readers: Readers) -> None:
        """What the readers saw all the time."""
        seen = readers.seen
        print(
            f"  meanwhile {seen.reads:,} reads of {seen.bytes / 1e9:,.1f} GB, {seen.cut_off} cut "
            f"off by kills; longest wait for a first byte {seen.first_byte_s:.2f} s, for the next "
            f"{seen.stall_s:.2f} s ({seen.stall_where})",
            flush=True,
        )
        if seen.failures:
            raise MainJobError(f"{len(seen.failures)} reads failed: {seen.failures[:5]}")
        if seen.reads == 0:
            raise MainJobError("nothing was read meanwhile: this proved nothing")
        if seen.first_byte_s > _FIRST_BYTE_S or seen.stall_s > _STALL_S:
            raise MainJobError("a reader waited longer than a Diego cell does")

    def prove(self) -> float:
        """Everything twice with nothing cached, and the bytes that it takes by ext4's."""
        with step("giving space back, cafs check, cafs scrub"):
            self.server.give_back()
            run_cafs("check", str(self.server.store))
            stored = self.server.stored_bytes()
            run_cafs("scrub", str(self.server.store))
        for how in ("through the mount", "over HTTP"):
            with step(f"every archive {how}, nothing cached"):
                self.server.forget()
                self._read_back(self._blobs, how)
        self.server.stop()
        drop_caches()
        return stored / allocated(self._root, self._blobs)

    def _read_back(self, blobs: list[Blob], how: str = "") -> None:
        for number, blob in enumerate(blobs):
            mounted = how == "through the mount" or (not how and number % 2 == 0)
            like = corpus.source(self._root, blob)
            read = (self.server.read if mounted else self.server.get)(blob, like)
            verify(blob, read, "through the mount" if mounted else "over HTTP")

    def _wait_for(self, ageing: subprocess.Popen[str], wanted: int) -> None:
        """Wait for so many aged archives; ageing that stands back a lot is killed in its first."""
        end = time.monotonic() + _UNDER_WAY_S
        while self.server.held().aged < wanted and ageing.poll() is None:
            if time.monotonic() > end and self.server.is_ageing():
                return
            time.sleep(0.1)

    def _kill_and_restart(self, everything: bool) -> None:
        """SIGKILL, see that what belonged to it ends by itself, and wait for the service."""
        top, daemon = self.server.pid, self.server.daemon()
        killed = descendants(top) if everything else [daemon]
        below = descendants(daemon)
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        if everything:
            self.server.kill()
        end = time.monotonic() + _ENDING_S
        while left := [pid for pid in below if _runs(pid)]:
            if time.monotonic() > end:
                raise MainJobError(f"processes {left} outlived the daemon that started them")
            time.sleep(0.01)
        if everything:
            self.server.start()
        else:
            self.server.wait_for_daemon(daemon)

    @contextmanager
    def _writer(self, number: int) -> Iterator[subprocess.Popen[bytes]]:
        command = [sys.executable, "-m", "bench.acknowledged", str(self.server.root / "further")]
        with self._log.open("ab") as log:
            writer = subprocess.Popen(
                [*command, str(self._manifest), str(self._seed + number), str(_PAUSE_S)],
                stdout=log,
                stderr=log,
            )
        try:
            yield writer
        finally:
            writer.kill()
            writer.wait()


def _runs(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"
