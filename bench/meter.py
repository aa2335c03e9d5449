"""What processes and directories take: memory, CPU time and allocated bytes, from /proc and stat.

Only reads; a process that ends while it is looked at counts as nothing.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Usage(NamedTuple):
    """What a process and all its descendants take together."""

    cpu_s: float
    """User and system time since they started, children that ended included."""
    rss_bytes: int
    """Sum of VmRSS: pages shared between them count once for each."""
    pss_bytes: int
    """Sum of proportional set sizes: shared pages count once."""
    anonymous_bytes: int
    """Of these what belongs to no file: the rest is page cache, which the kernel can take back."""
    processes: int


class Footprint(NamedTuple):
    """What a directory tree takes."""

    files: int
    logical_bytes: int
    """Sum of the sizes of regular files."""
    allocated_bytes: int
    """Sum of st_blocks of everything, directories included, each inode once."""


def descendants(pid: int) -> list[int]:
    """*pid* and all processes below it."""
    found = [pid]
    for parent in found:
        for task in _read(f"/proc/{parent}/task", listing=True).split():
            found += map(int, _read(f"/proc/{parent}/task/{task}/children").split())
    return found


def usage(pid: int) -> Usage:
    """Memory and CPU time of *pid* and everything below it."""
    cpu = 0.0
    rss = pss = anonymous = processes = 0
    for one in descendants(pid):
        line = _read(f"/proc/{one}/stat")
        if not line:
            continue
        # The name, in parentheses, may hold spaces; utime is the 14th field of the line.
        fields = line.rpartition(")")[2].split()
        cpu += sum(map(int, fields[11:15])) / _TICKS_PER_S
        rss += _kib(_read(f"/proc/{one}/status"), "VmRSS:")
        rollup = _read(f"/proc/{one}/smaps_rollup")
        pss += _kib(rollup, "Pss:")
        anonymous += _kib(rollup, "Pss_Anon:") + _kib(rollup, "Pss_Shmem:")
        processes += 1
    return Usage(cpu, rss, pss, anonymous, processes)


def footprint(root: Path) -> Footprint:
    """Count *root* and everything below it."""
    files = logical = allocated = 0
    seen: set[tuple[int, int]] = set()
    pending = [root]
    while pending:
        path = pending.pop()
        with os.scandir(path) as entries:
            for entry in entries:
                st = entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    pending.append(Path(entry.path))
                    continue
                files += 1
                if (st.st_dev, st.st_ino) not in seen:
                    seen.add((st.st_dev, st.st_ino))
                    logical += st.st_size if entry.is_file(follow_symlinks=False) else 0
                    allocated += st.st_blocks * 512
        allocated += path.stat().st_blocks * 512
    return Footprint(files, logical, allocated)


def _kib(text: str, label: str) -> int:
    for line in text.splitlines():
        if line.startswith(label):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: str, listing: bool = False) -> str:
    try:
        if listing:
            return " ".join(os.listdir(path))
        return Path(path).read_text()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return ""
