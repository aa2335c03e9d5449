"""The rules of resource matching: which app files Cloud Controller ever asks about, and where
one lies.

Pure.  The one place that has the bounds; docs of Cloud Controller call them ``minimum_size`` and
``maximum_size`` of its resource pool.
"""

from __future__ import annotations

from typing import Final

SIZE_LOW: Final = 65_536
SIZE_HIGH: Final = 536_870_912
"""Only files between these sizes are matched: the bounds themselves are out."""
MODE_LOW: Final = 0o600
"""Permissions are compared with this as numbers."""


def is_eligible(size: int, mode: int | None) -> bool:
    """Whether files of this size and these permissions are ever matched; None: not told."""
    return mode is not None and SIZE_LOW < size < SIZE_HIGH and mode >= MODE_LOW


def partitioned(sha1: str) -> str:
    """Where a resource lies below the resource directory."""
    key = sha1.lower()
    return f"{key[:2]}/{key[2:4]}/{key}"
