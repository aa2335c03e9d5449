"""Fixtures of the conformance tests: one test, two directories.

Invariant: a test that takes `place` runs on a plain directory first, so that each expectation
is proven on the filesystem that cafs stands in for before cafs is held to it.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.mount.mounted import Mount, filesystem_type, public_directory

_numbers = itertools.count()


@dataclass(frozen=True)
class Place:
    """A fresh directory to work in, and what kind of filesystem it lies on."""

    path: Path
    kind: str
    """``ext4`` (the control) or ``cafs``."""

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_cafs(self) -> bool:
        """Whether this is the mount under test."""
        return self.kind == "cafs"


@pytest.fixture(scope="session", autouse=True)
def _open_umask() -> Iterator[None]:
    """Run with the usual umask whatever the caller's is."""
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture(scope="module")
def cafs_mount() -> Iterator[Mount]:
    """A daemon of this module's own.

    At the end its log must be free of unannounced warnings, and a check that counts every
    reference of the store anew must find it clean.
    """
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    mount = Mount()
    try:
        mount.start()
        yield mount
        mount.unmount()
        mount.run("check", str(mount.store))
        stray = mount.unexpected_log_lines()
    finally:
        mount.close()
    assert not stray, "\n".join(stray)


@pytest.fixture(scope="session")
def control_root() -> Iterator[Path]:
    """A plain directory of the machine's own filesystem."""
    path = public_directory()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(params=["ext4", "cafs"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """A fresh directory, once on the control and once in the mount."""
    kind: str = request.param
    if kind == "cafs":
        root = request.getfixturevalue("cafs_mount").root
    else:
        root = request.getfixturevalue("control_root")
        found = filesystem_type(root)
        if found != "ext4":
            pytest.skip(f"the temporary directory is on {found}, which is no control")
    path = Path(root) / f"place{next(_numbers)}"
    path.mkdir()
    yield Place(path, kind)
    _remove(path)


@pytest.fixture
def cafs_place(cafs_mount: Mount) -> Iterator[Place]:
    """A fresh directory in the mount, for what a plain directory has no counterpart of."""
    path = cafs_mount.root / f"place{next(_numbers)}"
    path.mkdir()
    yield Place(path, "cafs")
    if cafs_mount.is_mounted():
        _remove(path)


def _remove(path: Path) -> None:
    """Remove a tree that may hold directories nobody may enter."""
    for directory, _, _ in os.walk(path):
        if os.geteuid() != 0:
            os.chmod(directory, 0o700)
    shutil.rmtree(path)
