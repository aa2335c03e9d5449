"""What is wrong with a store, as its daemon knows without looking anywhere.

What keeps changes from being stored comes first; then damage, which keeps nobody from reading and
writing the rest.
"""

from __future__ import annotations

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
    """The section of a status."""
    return {
        "state": "ok" if problem is None else "trouble",
        "problem": str(problem) if problem else "",
        "what_to_do": problem.advice if problem else "",
    }
