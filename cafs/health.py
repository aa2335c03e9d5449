"""What is wrong with a store, as its daemon knows without looking anywhere.

What keeps changes from being stored comes first; then damage, which keeps nobody from reading and
writing the rest.  Of a store without a daemon only that is known.
"""

from __future__ import annotations

from pathlib import Path
from shlex import quote

from cafs.blobs.chunks import Chunks
from cafs.errors import CafsError, ChunkDamagedError, IndexDamagedError
from cafs.index import pages
from cafs.units import plural


def damage(chunks: Chunks, index_faults: int) -> CafsError | None:
    """The damage that was found since the start, at the start included; None if there is none."""
    if index_faults:
        return IndexDamagedError(
            f"the index is damaged in {plural(index_faults, 'place')}: what lay there answers EIO",
            advice=pages.ADVICE,
        )
    if count := len(chunks.damaged):
        return ChunkDamagedError(
            f"damaged or lost: {plural(count, 'chunk')}; files that need them answer EIO there",
            advice="copy the files that the log names in again; cafs scrub STORE names all of them",
        )
    return None


def answer(problem: CafsError | None) -> dict[str, str]:
    """The section of a daemon's status: its state is ``ok`` or ``trouble``."""
    return {
        "state": "ok" if problem is None else "trouble",
        "problem": str(problem) if problem else "",
        "what_to_do": problem.advice if problem else "",
    }


def without_daemon(store: Path, left_behind: Path | None) -> dict[str, str]:
    """The same of a store that no daemon has: ``stopped``, or ``trouble`` if the daemon died.

    *left_behind* is the mountpoint of its dead mount, if that is still there.
    """
    where = "MOUNTPOINT" if left_behind is None else quote(str(left_behind))
    state, problem = "stopped", "no daemon serves the store"
    if left_behind is not None:
        state, problem = "trouble", f"the daemon died: its mount on {left_behind} is dead"
    advice = f"mount it with: cafs mount {quote(str(store))} {where} --daemon"
    return {"state": state, "problem": problem, "what_to_do": advice}
