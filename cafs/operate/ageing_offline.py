"""Ageing of a store that no daemon has: the command opens it itself.

Invariant: nobody is served meanwhile, so it works without giving way.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cafs.archive_options import ArchiveOptions
from cafs.config import MountOptions
from cafs.operate.ageing import Ageing
from cafs.operate.ageing_job import Job, OnProgress
from cafs.store import open_store


async def age_offline(
    path: Path,
    options: MountOptions,
    archives: ArchiveOptions,
    order: Mapping[str, Any],
    on_progress: OnProgress,
) -> dict[str, Any]:
    """A pass over the store at *path*; fields of an answer.  Raises StoreBusyError and more."""
    async with open_store(path, options, archives=archives) as store:
        report = await Ageing(store, alone=True).now(Job(**order, on_progress=on_progress))
        return report.fields()
