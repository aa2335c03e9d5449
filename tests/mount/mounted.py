"""One real daemon on one real mountpoint, for tests that need a kernel between them and cafs.

Owns the daemon's process group, its log and the mountpoint.  Invariant: after `close` nothing
is left, however the test ended: no process, no mount, no directory.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cafs import control, storefile
from cafs.config import StoreParams
from cafs.index.pending import default_path
from cafs.newstore import create

ROOT = Path(__file__).parents[2]
"""Of this repository."""
COMMAND = (sys.executable, "-m", "cafs.cli.main")
MOUNT_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
BUSY_TIMEOUT_S = 20.0
_SUSPICIOUS = re.compile(
    rb"^\S+ (warning|error|critical)\b|Traceback|never retrieved|^cafs: ", re.M
)
_MS_REMOUNT = 32
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)

made_directories: list[Path] = []
"""Every directory that :func:`public_directory` made in this process."""


def public_directory() -> Path:
    """A new temporary directory that other users may enter, unlike pytest's own."""
    path = Path(tempfile.mkdtemp(prefix="cafs-mount-"))
    path.chmod(0o755)
    made_directories.append(path)
    return path


def filesystem_type(path: Path) -> str:
    """The type of the filesystem that *path* lies on, as /proc/self/mountinfo names it."""
    device = os.stat(path).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[2] == wanted:
            return right.split()[0]
    return "unknown"


class Mount:
    """A store, a mountpoint and the daemon between them."""

    def __init__(self, *options: str, store: Path | None = None) -> None:
        """Make the directories and the store; *options* go to every ``cafs mount``.

        Where there is a *store* that is not mounted, the new one is a copy of it.
        """
        self.base = public_directory()
        self.store = self.base / "store"
        self.root = self.base / "mnt"
        self.log = self.base / "daemon.log"
        self._options = options
        self._settings: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._announced: list[re.Pattern[bytes]] = []
        self.root.mkdir()
        try:
            if store is not None:
                shutil.copytree(store, self.store)
            else:
                create(self.store, StoreParams())
        except BaseException:
            shutil.rmtree(self.base, ignore_errors=True)
            raise

    def configure(self, settings: Path) -> None:
        """Let every ``cafs mount`` read this settings file, too."""
        self._settings = ("--config", str(settings))

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None, "the daemon is not running"
        return self._process.pid

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run one cafs command to its end and return what it printed; it must end with *code*."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            env=_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=STOP_TIMEOUT_S,
            check=False,
        )
        assert done.returncode == code, (
            f"cafs {arguments}: {done.returncode}: {done.stdout!r} {done.stderr!r}"
        )
        return done.stdout.decode(errors="replace")

    def start(self) -> None:
        """Start the daemon and wait until the kernel shows the mount."""
        assert self._process is None, "the daemon runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    *COMMAND,
                    "mount",
                    str(self.store),
                    str(self.root),
                    *self._settings,
                    *self._options,
                ],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # The kernel reports a change of the mount table as POLLERR on mountinfo, and the
        # daemon's end on its pidfd: nothing has to be polled in a loop with pauses.
        pidfd = os.pidfd_open(self._process.pid)
        try:
            with open("/proc/self/mountinfo", "rb") as table:
                poll = select.poll()
                poll.register(table, select.POLLERR | select.POLLPRI)
                poll.register(pidfd, select.POLLIN)
                while not self.is_mounted():
                    ready = poll.poll(MOUNT_TIMEOUT_S * 1000)
                    ended = self._process.poll() is not None
                    if ended or not ready:
                        raise AssertionError(f"no mount: {self.log.read_text(errors='replace')}")
                    table.seek(0)
                    table.read()
        finally:
            os.close(pidfd)
        assert (self.store / control.NAME).is_socket(), "who sees the mount may ask the daemon"
        os.listdir(self.root)  # answered by the daemon, so it serves from here on

    def is_mounted(self) -> bool:
        """Whether the mount table has the mountpoint."""
        want = str(self.root)
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            return any(line.split()[4] == want for line in table)

    def forget(self) -> None:
        """Make the kernel forget every inode of this mount that nobody holds open.

        A remount shrinks the dentry cache of this one filesystem; writing to
        /proc/sys/vm/drop_caches would do it to the whole machine.
        """
        if _libc.mount(None, os.fsencode(self.root), None, _MS_REMOUNT, None):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "remount")

    def announce(self, pattern: str) -> None:
        """Expect log lines that match *pattern*; without this a warning fails the module."""
        self._announced.append(re.compile(pattern.encode()))

    def unexpected_log_lines(self) -> list[str]:
        """Warnings, errors and tracebacks of the daemon that no test announced, with what follows.

        A line that begins with blanks belongs to the one before it.
        """
        entries: list[list[bytes]] = []
        for line in self.log.read_bytes().splitlines() if self.log.exists() else []:
            if entries and line[:1].isspace():
                entries[-1].append(line)
            else:
                entries.append([line])
        texts = [b"\n".join(entry) for entry in entries]
        return [
            text.decode(errors="replace")
            for text in texts
            if _SUSPICIOUS.search(text) and not any(p.search(text) for p in self._announced)
        ]

    def unmount(self) -> None:
        """Unmount as umount(8) does and wait for the daemon's own end, which must be clean."""
        assert self._process is not None
        deadline = time.monotonic() + BUSY_TIMEOUT_S
        while _libc.umount2(os.fsencode(self.root), 0):
            number = ctypes.get_errno()
            # A df of somebody else holds a mount for a moment.
            if number != errno.EBUSY or time.monotonic() > deadline:
                raise OSError(number, os.strerror(number), str(self.root))
            time.sleep(0.005)
        code = self._process.wait(STOP_TIMEOUT_S)
        self._process = None
        assert code == 0, f"the daemon ended with {code}: {self.log.read_text(errors='replace')}"

    def kill(self, *, detach: bool = True) -> None:
        """SIGKILL the daemon and take its dead mount away, unless that is left to others."""
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(STOP_TIMEOUT_S)
        self._process = None
        if detach:
            self._detach()

    def restart(self) -> None:
        """Unmount cleanly and mount again."""
        self.unmount()
        self.start()

    def close(self) -> None:
        """Remove everything, by force where it must be."""
        try:
            if self._process is not None and self._process.poll() is None and self.is_mounted():
                self.unmount()
        except (OSError, subprocess.TimeoutExpired):
            pass  # somebody still holds the mount; what follows does not ask
        finally:
            # First the daemon, then the mount: it could still be about to make one.
            if self._process is not None:
                try:
                    os.killpg(self._process.pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
                self._process.wait(STOP_TIMEOUT_S)
                self._process = None
            self._detach()
            if storefile.is_store(self.store):
                pending = default_path(storefile.read(self.store).id)
                for left in pending.parent.glob(pending.name + "*"):
                    left.unlink(missing_ok=True)
            shutil.rmtree(self.base, ignore_errors=True)

    def _detach(self) -> None:
        while self.is_mounted():
            if _libc.umount2(os.fsencode(self.root), _MNT_DETACH):
                return


def _environment() -> dict[str, str]:
    """The environment without settings of the person who runs the tests."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("CAFS_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
