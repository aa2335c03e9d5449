"""Compares two trees by everything that ``cp -a`` keeps, with each file's SHA-256.

Only reads.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """What is compared of one path."""

    mode: int
    uid: int
    gid: int
    nlink: int
    """0 for directories, whose count is the filesystem's own business."""
    size: int
    """0 for directories."""
    mtime_ns: int
    content: str
    """SHA-256 of a regular file, target of a symbolic link."""


def snapshot(root: Path) -> dict[str, Entry]:
    """Everything below *root*, by relative path.

    Raises:
        OSError: something cannot be read.
    """
    found: dict[str, Entry] = {}
    for directory, names, files in os.walk(root, onerror=_raise):
        for name in names + files:
            path = Path(directory, name)
            found[str(path.relative_to(root))] = _entry(path)
    return found


def differences(expected: dict[str, Entry], got: dict[str, Entry]) -> list[str]:
    """One line for each path that is not the same on both sides."""
    said = [f"missing: {path}" for path in sorted(expected.keys() - got.keys())]
    said += [f"not expected: {path}" for path in sorted(got.keys() - expected.keys())]
    for path in sorted(expected.keys() & got.keys()):
        if expected[path] != got[path]:
            pairs = zip(Entry._fields, expected[path], got[path], strict=True)
            unlike = ", ".join(f"{name} {a} is {b}" for name, a, b in pairs if a != b)
            said.append(f"differs: {path}: {unlike}")
    return said


def sha256(path: Path) -> str:
    """Of a file's content."""
    with path.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _entry(path: Path) -> Entry:
    st = path.lstat()
    directory = stat.S_ISDIR(st.st_mode)
    content = ""
    if stat.S_ISREG(st.st_mode):
        content = sha256(path)
    elif stat.S_ISLNK(st.st_mode):
        content = os.readlink(path)
    return Entry(
        mode=st.st_mode,
        uid=st.st_uid,
        gid=st.st_gid,
        nlink=0 if directory else st.st_nlink,
        size=0 if directory else st.st_size,
        mtime_ns=st.st_mtime_ns,
        content=content,
    )


def _raise(error: OSError) -> None:
    raise error
