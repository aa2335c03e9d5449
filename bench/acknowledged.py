"""Writes into a mount and records, outside of it, only what was acknowledged.

Run as ``python -m bench.acknowledged DIRECTORY MANIFEST SEED [PAUSE]``; goes on until the mount
dies or until it is stopped, with PAUSE seconds between two steps.  Each step is put into the
manifest before it begins and again when the filesystem has acknowledged it: by fsync, or by a
rename into place.

Invariant: whatever the manifest says is done must be there after any crash.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from bench.compare import sha256
from bench.sides import sync_directory

_NAMES = 400
_LARGEST = 300_000
_MISSING = ""


class Writer:
    """Takes random steps, one after the other."""

    def __init__(self, directory: Path, manifest: int, seed: int, pause_s: float = 0.0) -> None:
        self._directory = directory
        self._manifest = manifest
        self._random = Random(seed)
        self._seed = seed
        self._pause_s = pause_s

    def go(self, steps: int | None = None) -> None:
        """Take so many steps, or for None until one fails.

        Raises:
            OSError: the mount is gone.
        """
        self._directory.mkdir(exist_ok=True)
        sync_directory(self._directory.parent)
        kinds = (self._create, self._create, self._rename, self._rename, self._append, self._unlink)
        for _ in itertools.count() if steps is None else range(steps):
            path = self._directory / f"{self._seed}-{self._random.randrange(_NAMES):04}"
            self._random.choice(kinds)(path)
            if self._pause_s:
                time.sleep(self._pause_s)

    def _create(self, path: Path) -> None:
        """Write from the start, in pieces, and fsync; not atomic."""
        content = self._content()
        self._say("try", path, _digest(content), atomic=False)
        with path.open("wb") as out:
            half = len(content) // 2
            out.write(content[:half])
            out.write(content[half:])
            out.flush()
            os.fsync(out.fileno())
        # A new name needs no fsync of its directory on ext4 either: the file's own brings it.
        self._say("done", path, _digest(content))

    def _rename(self, path: Path) -> None:
        """Write aside and rename over the name: the old content or the new, never neither."""
        content = self._content()
        aside = path.with_name(path.name + ".new")
        aside.write_bytes(content)
        self._say("try", path, _digest(content), atomic=True)
        aside.replace(path)
        self._say("done", path, _digest(content))

    def _append(self, path: Path) -> None:
        """Append to what is there, with O_SYNC."""
        if not path.exists():
            return
        content = path.read_bytes() + self._content()[:5000]
        self._say("try", path, _digest(content), atomic=False)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_SYNC)
        try:
            os.write(fd, content[os.fstat(fd).st_size :])
        finally:
            os.close(fd)
        self._say("done", path, _digest(content))

    def _unlink(self, path: Path) -> None:
        """Remove and fsync the directory."""
        if not path.exists():
            return
        self._say("try", path, _MISSING, atomic=True)
        path.unlink()
        sync_directory(path.parent)
        self._say("done", path, _MISSING)

    def _content(self) -> bytes:
        # Half of it repeats what others have, so that deduplication takes part.
        size = int(_LARGEST ** self._random.random())
        own = self._random.randbytes(size // 2)
        return own + Random(self._random.randrange(20)).randbytes(size - len(own))

    def _say(self, what: str, path: Path, digest: str, atomic: bool = True) -> None:
        line = {"what": what, "path": str(path), "sha256": digest, "atomic": atomic}
        os.write(self._manifest, json.dumps(line).encode() + b"\n")


@dataclass
class State:
    """What may be found under one path after a crash."""

    allowed: set[str] = field(default_factory=lambda: {_MISSING})
    acknowledged: bool = False
    anything: bool = False
    """A step that is not atomic had begun: the content may be torn, but must be readable, and
    what was there before cannot be gone."""


def expected(manifest: Path) -> dict[Path, State]:
    """What the manifest allows, path by path."""
    states: dict[Path, State] = {}
    for line in _whole_lines(manifest):
        step = json.loads(line)
        state = states.setdefault(Path(step["path"]), State())
        if step["what"] == "done":
            state.allowed = {step["sha256"]}
            state.anything = False
            state.acknowledged = True
        else:
            state.allowed.add(step["sha256"])
            state.anything = not step["atomic"]
    return states


def verify(states: dict[Path, State]) -> list[str]:
    """One line for each path that is not as it must be."""
    said = []
    for path, state in states.items():
        try:
            found = sha256(path)
        except FileNotFoundError:
            found = _MISSING
        except OSError as error:
            said.append(f"{path}: {error.strerror}")
            continue
        if found not in state.allowed and (found == _MISSING or not state.anything):
            said.append(f"{path}: {found or 'missing'}, expected {' or '.join(state.allowed)}")
    return said


def count_done(manifest: Path) -> int:
    """How many steps were acknowledged so far."""
    return sum(b'"done"' in line for line in _whole_lines(manifest))


def _whole_lines(manifest: Path) -> Iterator[bytes]:
    for line in manifest.read_bytes().splitlines(keepends=True):
        if line.endswith(b"\n"):
            yield line


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def main() -> int:
    """Write until the mount dies; 0 when it did, which is what ends a run."""
    directory, manifest, seed, *pause = sys.argv[1:]
    fd = os.open(manifest, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        Writer(Path(directory), fd, int(seed), *map(float, pause)).go()
    except OSError as error:
        print(f"ended: {error}", file=sys.stderr)
    finally:
        os.close(fd)
    return 0


if __name__ == "__main__":
    sys.exit(main())
