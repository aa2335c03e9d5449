"""A mount and a plain directory, driven side by side with the same calls.

Every call is made in both; they must answer the same, errno for errno, and at any moment show
the same tree: names, types, modes, owners, link counts, sizes, content, targets, attributes and
the times that were set.  The plain directory is the oracle, so no rule of POSIX is stated here.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.mount.mounted import Mount, filesystem_type, public_directory
from tests.mount.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2

Outcome = tuple[str, object]

NAMES = st.sampled_from(["a", "b", "c", "d" * 255, "\udcff\udc80", "A"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
OFFSETS = st.one_of(
    st.integers(0, 300), st.integers(0, 200_000), st.sampled_from([4095, 4096, 65_536, 1 << 20])
)
SIZES = st.one_of(st.integers(0, 300), st.integers(0, 150_000), st.just(1 << 20))
MODES = st.sampled_from([0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o000, 0o7777])
TIMES = st.integers(0, 4 * 10**18)
RESTARTS_MAX = 2
"""In one example: each takes as long as a hundred calls."""
ATTRIBUTES = st.sampled_from(["user.a", "user.b", "user." + "x" * 250, "trusted.t", "bogus.x"])


def _data(seed: int, size: int) -> bytes:
    """Bytes that are the same for the same arguments; some compress, some do not."""
    if seed % 3 == 0:
        return bytes([seed % 251]) * size
    unit = bytes((seed * 31 + i * i) % 256 for i in range(1021))
    return (unit * (size // len(unit) + 1))[:size]


class Sides:
    """The mount, the control, and how both are made empty again between examples."""

    def __init__(self, mount: Mount, control: Path) -> None:
        self.mount = mount
        self.control = control
        self._round = 0
        self.roots: tuple[Path, Path] = (control, mount.root)

    def fresh(self) -> None:
        """Two empty directories."""
        self._round += 1
        self.roots = tuple(  # type: ignore[assignment]
            root / f"round{self._round}" for root in (self.control, self.mount.root)
        )
        for root in self.roots:
            root.mkdir()

    def clear(self) -> None:
        """Remove what fresh() made."""
        for root in self.roots:
            shutil.rmtree(root)


_sides: Sides | None = None


class TreeMachine(RuleBasedStateMachine):
    """The calls.  A rule that names a path takes any: most errors are met by chance.

    O_NONBLOCK is for the FIFOs: opening one must not wait for the other end.
    """

    def __init__(self) -> None:
        super().__init__()
        assert _sides is not None
        self.sides = _sides
        self.open: list[tuple[int, int]] = []
        """Descriptors of the same file on both sides."""
        self.checked = True
        self.restarts = 0

    @initialize()
    def begin(self) -> None:
        self.sides.fresh()

    def teardown(self) -> None:
        for pair in self.open:
            for fd in pair:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self.sides.clear()

    def both(self, call: Callable[[Path], object]) -> Outcome:
        """Make a call on both sides; it must end in the same way."""
        self.checked = False
        control, mount = (_outcome(call, root) for root in self.sides.roots)
        assert mount == control
        return control

    # Files

    @rule(path=PATHS, mode=MODES, exclusive=st.booleans())
    def create(self, path: str, mode: int, exclusive: bool) -> None:
        flags = os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK | (os.O_EXCL if exclusive else 0)
        self.both(lambda root: os.close(os.open(root / path, flags, mode)))

    @rule(path=PATHS, offset=OFFSETS, size=SIZES, seed=st.integers(0, 99), create=st.booleans())
    def write(self, path: str, offset: int, size: int, seed: int, create: bool) -> None:
        def call(root: Path) -> int:
            fd = os.open(root / path, os.O_RDWR | (os.O_CREAT if create else 0), 0o644)
            try:
                return os.pwrite(fd, _data(seed, size), offset)
            finally:
                os.close(fd)

        self.both(call)

    @rule(path=PATHS, size=SIZES, seed=st.integers(0, 99))
    def append(self, path: str, size: int, seed: int) -> None:
        def call(root: Path) -> int:
            fd = os.open(root / path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            try:
                return os.write(fd, _data(seed, size))
            finally:
                os.close(fd)

        self.both(call)

    @rule(path=PATHS, size=OFFSETS)
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda root: os.truncate(root / path, size))

    @rule(path=PATHS)
    def empty_by_open(self, path: str) -> None:
        self.both(
            lambda root: os.close(os.open(root / path, os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK))
        )

    @rule(path=PATHS)
    def sync(self, path: str) -> None:
        def call(root: Path) -> None:
            fd = os.open(root / path, os.O_RDONLY | os.O_NONBLOCK)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)

        self.both(call)

    # Files that stay open, whatever becomes of their names

    @precondition(lambda self: len(self.open) < 4)
    @rule(path=PATHS, create=st.booleans())
    def hold(self, path: str, create: bool) -> None:
        flags = os.O_RDWR | (os.O_CREAT if create else 0)
        fds: list[int] = []

        def call(root: Path) -> None:
            fd = os.open(root / path, flags, 0o640)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                fds.append(fd)
            else:
                os.close(fd)

        if self.both(call) == ("ok", None) and fds:
            self.open.append((fds[0], fds[1]))

    @precondition(lambda self: self.open)
    @rule(data=st.data(), offset=OFFSETS, size=SIZES, seed=st.integers(0, 99))
    def write_held(self, data: st.DataObject, offset: int, size: int, seed: int) -> None:
        for fd in data.draw(st.sampled_from(self.open)):
            os.pwrite(fd, _data(seed, size), offset)
        self.checked = False

    @precondition(lambda self: self.open)
    @rule(data=st.data(), size=OFFSETS)
    def truncate_held(self, data: st.DataObject, size: int) -> None:
        for fd in data.draw(st.sampled_from(self.open)):
            os.ftruncate(fd, size)
        self.checked = False

    @precondition(lambda self: self.open)
    @rule(data=st.data(), offset=OFFSETS)
    def read_held(self, data: st.DataObject, offset: int) -> None:
        control, mount = data.draw(st.sampled_from(self.open))
        one, two = os.fstat(control), os.fstat(mount)
        assert (two.st_size, two.st_nlink, two.st_mode) == (one.st_size, one.st_nlink, one.st_mode)
        assert os.pread(mount, 1 << 21, offset) == os.pread(control, 1 << 21, offset)

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def let_go(self, data: st.DataObject) -> None:
        pair = data.draw(st.sampled_from(self.open))
        self.open.remove(pair)
        for fd in pair:
            os.close(fd)

    # Names

    @rule(old=PATHS, new=PATHS)
    def rename(self, old: str, new: str) -> None:
        self.both(lambda root: os.rename(root / old, root / new))

    @rule(old=PATHS, new=PATHS, flag=st.sampled_from([RENAME_EXCHANGE, RENAME_NOREPLACE]))
    def rename_with_flags(self, old: str, new: str, flag: int) -> None:
        self.both(lambda root: renameat2(root / old, root / new, flag))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        self.both(lambda root: os.link(root / old, root / new, follow_symlinks=False))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda root: os.unlink(root / path))

    @rule(path=PATHS, mode=MODES)
    def mkdir(self, path: str, mode: int) -> None:
        self.both(lambda root: os.mkdir(root / path, mode))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda root: os.rmdir(root / path))

    @rule(path=PATHS, to=PATHS)
    def symlink(self, path: str, to: str) -> None:
        self.both(lambda root: os.symlink(to, root / path))

    @rule(path=PATHS, mode=MODES)
    def mkfifo(self, path: str, mode: int) -> None:
        self.both(lambda root: os.mknod(root / path, stat.S_IFIFO | mode))

    # Attributes

    @rule(path=PATHS, mode=MODES)
    def chmod(self, path: str, mode: int) -> None:
        self.both(lambda root: os.chmod(root / path, mode))

    @precondition(lambda _: os.geteuid() == 0)
    @rule(path=PATHS, uid=st.integers(0, 5), gid=st.integers(-1, 5))
    def chown(self, path: str, uid: int, gid: int) -> None:
        self.both(lambda root: os.lchown(root / path, uid, gid))

    @rule(path=PATHS, atime=TIMES, mtime=TIMES)
    def utime(self, path: str, atime: int, mtime: int) -> None:
        def call(root: Path) -> tuple[int, int]:
            os.utime(root / path, ns=(atime, mtime), follow_symlinks=False)
            status = os.lstat(root / path)
            return status.st_atime_ns, status.st_mtime_ns

        self.both(call)

    @rule(path=PATHS, name=ATTRIBUTES, size=st.sampled_from([0, 1, 100, 2000]))
    def setxattr(self, path: str, name: str, size: int) -> None:
        self.both(lambda root: os.setxattr(root / path, name, _data(size, size)))

    @rule(path=PATHS, name=ATTRIBUTES)
    def removexattr(self, path: str, name: str) -> None:
        self.both(lambda root: os.removexattr(root / path, name))

    # The mount itself

    @precondition(lambda self: not self.open and self.restarts < RESTARTS_MAX)
    @rule()
    def restart(self) -> None:
        self.restarts += 1
        self.sides.mount.restart()
        self.checked = False

    @rule()
    def forget(self) -> None:
        """Drop what the kernel knows, so that the next answers are the daemon's own."""
        if os.geteuid() == 0:
            self.sides.mount.forget()
        self.checked = False

    @invariant()
    def same(self) -> None:
        """Compare all there is, after every call that may have changed something."""
        if self.checked:
            return
        control, mount = (dict(_walk(root)) for root in self.sides.roots)
        assert mount == control
        self.checked = True


def _outcome(call: Callable[[Path], object], root: Path) -> Outcome:
    try:
        return "ok", call(root)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, "?"), None


def _walk(root: Path) -> Iterator[tuple[str, object]]:
    """Each path below *root* with all of it that can be seen and does not depend on the hour."""
    links: dict[int, str] = {}
    pending = [root]
    while pending:
        directory = pending.pop()
        for name in sorted(os.listdir(directory)):
            path = directory / name
            status = os.lstat(path)
            kind = stat.S_IFMT(status.st_mode)
            key = os.fsdecode(path.relative_to(root))
            content: bytes | str = b""
            if kind == stat.S_IFREG:
                content = path.read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            elif kind == stat.S_IFDIR:
                pending.append(path)
            names = sorted(os.listxattr(path, follow_symlinks=False))
            attributes = {n: os.getxattr(path, n, follow_symlinks=False) for n in names}
            size = 0 if kind == stat.S_IFDIR else status.st_size
            yield (
                key,
                (
                    *(status.st_mode, status.st_nlink, status.st_uid, status.st_gid, size),
                    *(content, attributes, links.setdefault(status.st_ino, key)),
                ),
            )


def compare(examples: int) -> None:
    """Run so many examples in one mount and one directory."""
    global _sides
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    mount = Mount()
    control = public_directory()
    try:
        if filesystem_type(control) != "ext4":
            pytest.skip("the temporary directory is no control")
        mount.start()
        _sides = Sides(mount, control)
        run_state_machine_as_test(
            TreeMachine,
            settings=settings(
                max_examples=examples,
                stateful_step_count=40,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                print_blob=True,
            ),
        )
        mount.unmount()
        mount.run("check", str(mount.store))
        stray = mount.unexpected_log_lines()
    finally:
        _sides = None
        mount.close()
        shutil.rmtree(control, ignore_errors=True)
    assert not stray, "\n".join(stray)


@pytest.mark.timeout(600)
def test_the_mount_behaves_as_a_plain_directory() -> None:
    """About ten seconds; more examples find more, and each run tries others."""
    compare(10)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_mount_behaves_as_a_plain_directory_at_length() -> None:
    compare(250)
