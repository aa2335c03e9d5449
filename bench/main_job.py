"""The whole job, once, on real input: ``python -m bench main-job``.

A real tree of more than 50,000 files is copied into a new mount and compared; then the daemon
is killed, several times, in the middle of further writes; and after each restart everything
that was acknowledged must be there and the store must check clean.

Invariant: a run that proved nothing fails.
"""

from __future__ import annotations

import argparse
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

from bench import acknowledged, corpus
from bench.compare import Entry, differences, snapshot
from bench.fetch import CorpusError
from bench.sides import SideError, cafs_command, drop_caches, run_cafs, sync_directory

LEAST_FILES = 50_000
_PATIENCE_S = 120.0
_ACKNOWLEDGED = (150, 500)
"""Between how many acknowledgements the daemon is killed, drawn from the seed."""


class MainJobError(Exception):
    """The job failed: says at which step, and what was found."""


def add_arguments(parser: argparse.ArgumentParser, directory: Path) -> None:
    """What the command line takes."""
    parser.add_argument("--at", type=Path, default=directory, metavar="DIR", help="where to work")
    parser.add_argument("--kills", type=int, default=3, help="how often (default: %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the store for a closer look")


def main(given: argparse.Namespace) -> int:
    """Do the job; 0 when all of it held.

    Raises:
        MainJobError: something did not.
    """
    if os.geteuid() != 0:
        raise MainJobError("dropping the kernel's caches needs root: run the main job as root")
    home: Path = given.at / "main-job"
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    job = Job(home, _tree(given.at / "corpus"), given.seed)
    try:
        job.copy_and_compare()
        for round_number in range(given.kills):
            job.kill_and_verify(round_number)
        job.compare("tree", "after all kills")
    except SideError as error:
        raise MainJobError(str(error)) from None
    finally:
        job.clear()
    if not given.keep:
        shutil.rmtree(home)
    print(f"main job: all held, {job.acknowledged:,} acknowledged steps, {given.kills} kills")
    return 0


def _tree(directory: Path) -> Path:
    try:
        corpus.load(directory)
    except CorpusError:
        corpus.build(directory)
    return directory / "tree"


class Job:
    """One store, its mount, and what must be in it."""

    def __init__(self, home: Path, tree: Path, seed: int) -> None:
        self.store = home / "store"
        self.mount = home / "mount"
        self.acknowledged = 0
        self._manifest = home / "manifest"
        self._log = home / "log"
        self._tree = tree
        self._seed = seed
        self._source: dict[str, Entry] = {}

    def copy_and_compare(self) -> None:
        """``cafs up``, ``cp -a``, ``diff -r``, SHA-256."""
        self._source = snapshot(self._tree)
        if len(self._source) < LEAST_FILES:
            raise MainJobError(f"{self._tree} has only {len(self._source):,} files")
        self.mount.mkdir()
        with step("cafs up"):
            self._up()
        with step(f"cp -a of {len(self._source):,} entries, synced"):
            _run("cp", "-a", str(self._tree), str(self.mount / "tree"))
            sync_directory(self.mount)
        drop_caches()
        with step("diff -r"):
            _run("diff", "-r", "--no-dereference", str(self._tree), str(self.mount / "tree"))
        self.compare("tree", "after the copy")

    def compare(self, name: str, when: str) -> None:
        """Compare modes, owners, times and SHA-256 of everything."""
        with step(f"SHA-256 and attributes, {when}"):
            unlike = differences(self._source, snapshot(self.mount / name))
        if unlike:
            raise MainJobError(_listed(f"{when}, {len(unlike)} entries differ", unlike))

    def kill_and_verify(self, round_number: int) -> None:
        """SIGKILL in the middle of writes; restart; check; verify what was acknowledged."""
        before = acknowledged.count_done(self._manifest) if self._manifest.exists() else 0
        with step("writing, then SIGKILL"):
            self._write_until_killed(round_number, before)
        done = acknowledged.count_done(self._manifest) - before
        if done == 0:
            raise MainJobError("nothing was acknowledged before the kill: this proved nothing")
        self.acknowledged += done
        subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)
        with step(f"restart after {done:,} more acknowledged steps"):
            self._up()
        with step("cafs check"):
            run_cafs("check", str(self.store))
        with step("every acknowledged step"):
            lost = acknowledged.verify(acknowledged.expected(self._manifest))
        if lost:
            raise MainJobError(_listed(f"{len(lost)} acknowledged paths are not as written", lost))
        with step("reading what the killed copies left"):
            for copied in sorted(self.mount.glob("copy-*")):
                _readable(copied)

    def clear(self) -> None:
        """Unmount and let the daemon end, however far the job came."""
        if os.path.ismount(self.mount):
            subprocess.run([*cafs_command(), "umount", str(self.mount)], check=False)
        subprocess.run(["umount", "-l", str(self.mount)], check=False, capture_output=True)

    def _write_until_killed(self, round_number: int, before: int) -> None:
        random = Random(f"{self._seed} {round_number}")
        wanted = before + random.randint(*_ACKNOWLEDGED)
        source = sorted(self._tree.iterdir())[round_number % 3]
        command = [sys.executable, "-m", "bench.acknowledged", str(self.mount / "further")]
        self._manifest.touch()
        with self._log.open("ab") as log:
            writer = subprocess.Popen(
                [*command, str(self._manifest), str(self._seed + round_number)],
                stdout=log,
                stderr=log,
            )
            # A copy runs beside it, so that the kill finds the whole pipeline busy.
            copier = subprocess.Popen(
                ["cp", "-a", str(source), str(self.mount / f"copy-{round_number}")],
                stdout=log,
                stderr=log,
            )
        try:
            end = time.monotonic() + _PATIENCE_S
            while acknowledged.count_done(self._manifest) < wanted:
                if _ended(writer) or time.monotonic() > end:
                    raise MainJobError(f"the writer ended or came to a halt; see {self._log}")
            for pid in self._daemons():
                os.kill(pid, signal.SIGKILL)
            writer.wait(_PATIENCE_S)
            copier.wait(_PATIENCE_S)
        finally:
            writer.kill()
            copier.kill()
            writer.wait()
            copier.wait()

    def _up(self) -> None:
        run_cafs("up", str(self.store), str(self.mount))
        if not os.path.ismount(self.mount):
            raise MainJobError(f"cafs up ended well, but nothing is mounted on {self.mount}")

    def _daemons(self) -> list[int]:
        """The daemon alone: its children must notice by themselves that it is gone."""
        named = {
            pid: _parent(pid)
            for pid in map(int, filter(str.isdigit, os.listdir("/proc")))
            if os.fsencode(self.store) in _cmdline(pid) and b"cafs" in _cmdline(pid)
        }
        found = [pid for pid, parent in named.items() if parent not in named]
        if not found:
            raise MainJobError("there is no daemon to be killed")
        return found


@contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is done, and how long it took."""
    start = time.monotonic()
    print(f"{title} ...", end="", flush=True)
    try:
        yield
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {time.monotonic() - start:.1f} s", flush=True)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stdout + done.stderr).splitlines()
        raise MainJobError(_listed(f"{command[0]} ended with {done.returncode}", said))


def _listed(title: str, lines: list[str]) -> str:
    shown = "\n  ".join(lines[:20])
    more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
    return f"{title}:\n  {shown}{more}"


def _readable(root: Path) -> None:
    try:
        snapshot(root)
    except OSError as error:
        raise MainJobError(f"a file that the kill interrupted cannot be read: {error}") from None


def _ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        process.wait(0.01)
    except subprocess.TimeoutExpired:
        return False
    return True


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0
