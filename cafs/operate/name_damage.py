"""Names the files that have the content of given inodes: ``STORE INODE...``.

A child of the daemon, which passes over the index here without holding the daemon up.  Prints
one JSON object a line: ``inode`` (as given), ``sha256`` of its content, ``path``.
"""

from __future__ import annotations

import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from cafs.errors import CafsError
from cafs.index import layout
from cafs.operate.paths import attr_of, directories, paths_of_blobs
from cafs.types import BlobNo, Ino
from cafs.view import View

PATHS_MAX = 50
"""Paths that are named for one inode."""


def main(store: str, numbers: Sequence[str]) -> int:
    """Print the lines; 1 and a message when the index cannot tell."""
    os.nice(10)
    try:
        with View(Path(store)) as view:
            _print(view, [Ino(int(number)) for number in numbers])
    except CafsError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _print(view: View, inos: Sequence[Ino]) -> None:
    blobs: dict[Ino, BlobNo] = {}
    paths_of: dict[Ino, list[bytes]] = {}
    unread: set[Ino] = set()
    for ino in inos:
        try:
            attr = attr_of(view, ino)
        except CafsError:
            # Its record is what is damaged.
            unread.add(ino)
            continue
        if stat.S_ISREG(attr.mode) and attr.blob:
            blobs[ino] = attr.blob
        elif stat.S_ISDIR(attr.mode):
            # Upwards from it, because a directory is named for what is damaged in itself.
            paths_of[ino] = [
                path or b"/" for path in (directories(view, [ino]).get(ino),) if path is not None
            ]
    of_blobs = paths_of_blobs(view, set(blobs.values()))
    for ino, path in _by_name(view, unread):
        paths_of.setdefault(ino, []).append(path)
    said: set[BlobNo] = set()
    for ino in inos:
        sha256 = ""
        if ino in blobs:
            if blobs[ino] in said:
                continue
            said.add(blobs[ino])
            digest = view.blobs.get(blobs[ino]).sha256
            sha256 = digest.hex() if any(digest) else ""
            paths_of[ino] = of_blobs[blobs[ino]]
        for path in paths_of.get(ino, [])[:PATHS_MAX]:
            line = {"inode": ino, "sha256": sha256, "path": os.fsdecode(path)}
            sys.stdout.write(json.dumps(line) + "\n")


def _by_name(view: View, inos: set[Ino]) -> Iterator[tuple[Ino, bytes]]:
    """Paths of inodes that have no record which can be read, as far as their names can be."""
    if not inos:
        return
    found: list[tuple[Ino, Ino, bytes]] = []
    try:
        for key, value in view.overlay.scan(layout.ENTRIES, b"", b""):
            ino, _, name = layout.split_entry(value)
            if ino in inos:
                found.append((ino, Ino(layout.from_u48(key)), name))
    except CafsError:
        # Names are damaged, too: what was found so far is better than nothing.
        pass
    for ino, parent, name in found:
        try:
            above = directories(view, [parent]).get(parent)
        except CafsError:
            continue
        if above is not None:
            yield ino, above + b"/" + name


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
