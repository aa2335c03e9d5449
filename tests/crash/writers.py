"""Programs that write to a mount and keep a manifest, outside of it, of what was acknowledged.

Each writer works in a thread of the test, in files of its own, until the mount is gone.  The
manifest says of each file what it may be after a crash: the content that was acknowledged last,
or the one whose acknowledgement was awaited when the daemon died.  Nothing else.
"""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

Sha = str


def sha(data: bytes) -> Sha:
    return hashlib.sha256(data).hexdigest()


class Manifest:
    """What must be there.  Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._acknowledged: dict[str, Sha] = {}
        self._awaited: dict[str, Sha] = {}
        self.count = 0
        """Acknowledgements so far."""

    def awaits(self, name: str, data: bytes) -> None:
        """*data* is on its way into file *name*."""
        with self._changed:
            self._awaited[name] = sha(data)

    def acknowledged(self, name: str) -> None:
        """What was awaited for *name* is on disk, the system says."""
        with self._changed:
            self._acknowledged[name] = self._awaited.pop(name)
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int, timeout_s: float = 60.0) -> None:
        """Until there were so many acknowledgements."""
        with self._changed:
            reached = self._changed.wait_for(lambda: self.count >= count, timeout_s)
        assert reached, f"only {self.count} of {count} were acknowledged in {timeout_s} s"

    def check(self, root: Path) -> int:
        """Compare with the files below *root*; how many there are.  Then start anew from them."""
        faults = []
        for name, wanted in self._acknowledged.items():
            try:
                found = sha((root / name).read_bytes())
            except OSError as error:
                faults.append(f"{name}: {error}")
                continue
            if found not in (wanted, self._awaited.get(name)):
                faults.append(f"{name}: has {found[:12]}, not {wanted[:12]}")
            # Whichever it is, it is committed now, and what was awaited is over.
            self._acknowledged[name] = found
        self._awaited.clear()
        assert not faults, "\n".join(faults)
        return len(self._acknowledged)


class Writers:
    """One thread for each way to be told that something is on disk."""

    def __init__(self, root: Path, manifest: Manifest, seed: int) -> None:
        # Through a descriptor of the mount: once it is gone, its path would lead to the directory
        # below, and that disk acknowledges, too.
        self._directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        self._root = Path(f"/proc/self/fd/{self._directory}")
        self._manifest = manifest
        self._stop = threading.Event()
        self.errors: list[OSError] = []
        ways = (self._by_fsync, self._by_o_sync, self._by_rename, self._by_patch)
        self._threads = [
            threading.Thread(
                target=self._until_stopped,
                args=(way, f"{seed}-{way.__name__[4:]}", random.Random(seed * 100 + number)),
                daemon=True,
            )
            for number, way in enumerate(ways)
        ]
        for thread in self._threads:
            thread.start()

    def _until_stopped(
        self, way: Callable[[str, random.Random], None], name: str, choice: random.Random
    ) -> None:
        try:
            while not self._stop.is_set():
                way(name, choice)
        except OSError as error:
            # The mount is gone: the file is the one whose acknowledgement never came.
            self.errors.append(error)

    def stop(self) -> None:
        """Let each finish what it does and wait for it."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer hangs"
        os.close(self._directory)

    def _data(self, choice: random.Random) -> bytes:
        size = choice.choice([0, 10, 3000, 60_000, 400_000])
        # Half of it repeats, so that chunks are shared with what was there before the crash.
        return b"shared" * (size // 12) + choice.randbytes(size // 2)

    def _new_name(self, name: str, choice: random.Random) -> str:
        return f"{name}-{choice.randrange(1 << 40):x}"

    def _by_fsync(self, name: str, choice: random.Random) -> None:
        self._write_new(self._new_name(name, choice), self._data(choice), 0)

    def _by_o_sync(self, name: str, choice: random.Random) -> None:
        self._write_new(self._new_name(name, choice), self._data(choice)[:100_000], os.O_SYNC)

    def _write_new(self, name: str, data: bytes, flags: int) -> None:
        self._manifest.awaits(name, data)
        fd = os.open(self._root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | flags)
        try:
            os.write(fd, data)
            if not flags:
                os.fsync(fd)
        finally:
            os.close(fd)
        if data or not flags:  # an O_SYNC write of no bytes acknowledges nothing
            self._manifest.acknowledged(name)

    def _by_rename(self, name: str, choice: random.Random) -> None:
        """Replace one of a few files, as careful programs do, but without an fsync."""
        target = f"{name}-{choice.randrange(5)}"
        temporary = f"{target}.new"
        data = self._data(choice)
        (self._root / temporary).write_bytes(data)
        self._manifest.awaits(target, data)
        os.rename(self._root / temporary, self._root / target)
        self._manifest.acknowledged(target)

    def _by_patch(self, name: str, choice: random.Random) -> None:
        """Change one file in place, a little at a time."""
        path = self._root / name
        content = bytearray(path.read_bytes() if path.exists() else b"")
        patch = choice.randbytes(choice.choice([1, 500, 20_000]))
        offset = choice.randrange(0, 200_000)
        content += bytes(max(0, offset + len(patch) - len(content)))
        content[offset : offset + len(patch)] = patch
        self._manifest.awaits(name, bytes(content))
        fd = os.open(path, os.O_WRONLY | os.O_CREAT)
        try:
            os.pwrite(fd, patch, offset)
            os.fdatasync(fd)
        finally:
            os.close(fd)
        self._manifest.acknowledged(name)
