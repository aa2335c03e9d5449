"""The last commit of a store that is about to be closed, and what is lost if it cannot be made."""

from __future__ import annotations

import logging
import time

from cafs.contents import Contents
from cafs.errors import CafsError, told_as
from cafs.index.committer import Committer
from cafs.index.overlay import Overlay
from cafs.units import human_size, plural

log = logging.getLogger(__name__)


async def last_commit(
    contents: Contents, committer: Committer, overlay: Overlay
) -> CafsError | None:
    """Commit everything.  If the disk does not take it: why, and what is lost with it."""
    while True:
        await contents.settle_all()
        # A commit that had failed is tried again with what it held: the rest takes another.
        all_of_it = not overlay.frozen
        await committer.once()
        problem = committer.error
        if problem is not None:
            break
        # A file that cannot be stored must not cost what the others have waiting.
        problem = contents.first_error()
        if problem is not None and all_of_it:
            break
        if problem is None and not (overlay.dirty or overlay.frozen):
            return None
    since = time.strftime("%FT%TZ", time.gmtime(committer.committed_ns / 1e9))
    then = (
        "mount the store again: what programs had synced is in it, the rest is to be written anew"
    )
    told = told_as(
        problem,
        f"the final commit failed: {problem}; lost is what was changed since {since}: "
        f"{plural(overlay.pending, 'change')} of the index, "
        f"{human_size(contents.pending_bytes)} of content in "
        f"{plural(contents.being_written, 'file')}",
        f"{problem.advice}; {then}" if problem.advice else then,
    )
    log.error("%s", told)
    return told
