"""The mark of an index that ``cafs rebuild`` has made and not yet compared with the packs.

It lies in the index's own directory, so that it comes into place with the index, by one rename.
An index beside the store's own that has it is whole and durable.  Invariant: no daemon starts
with an index that has it: what its records count on may have moved, and a start takes for void
what they do not know.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from cafs.durable import Disk
from cafs.errors import IndexDamagedError, from_os_error

NAME: Final = "unfinished"


def begin(directory: Path, note: dict[str, Any]) -> None:
    """Mark the index at *directory*, durably.  Raises DiskFullError and its kin."""
    Disk().write_file(directory / NAME, json.dumps(note).encode() + b"\n")


def note(directory: Path) -> dict[str, Any] | None:
    """What begin() was told; None of an index without the mark.  Raises DiskError and its kin."""
    path = directory / NAME
    try:
        told = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        # The mark itself is what counts.
        return {}
    except OSError as error:
        raise from_os_error(error, f"read {path}") from error
    return told if isinstance(told, dict) else {}


def end(directory: Path) -> None:
    """Take the mark away, durably."""
    disk = Disk()
    disk.unlink(directory / NAME)
    disk.sync_directory(directory)


def refuse(directory: Path) -> None:
    """Raises IndexDamagedError if the index has the mark."""
    if note(directory) is not None:
        raise IndexDamagedError(
            f"{directory} was made anew by a rebuild that did not come to its end",
            advice="finish it: cafs rebuild STORE",
        )
