"""What a start does about damaged pages of the index, before anybody trusts them.

A damaged page is *fenced off*: the link that leads to it is pointed at a page that cannot be, so
that LMDB answers for exactly its keys with an error.  A record whose check is wrong is left:
whoever reads it is told by the check.  But where one flipped bit of its key explains that, the
key is *put right*, because a key that is not found would say that there was never anything.  So
is a meta page of which the other one shows what it must have been.
Invariant: nothing else is ever written here.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from cafs.errors import IndexDamagedError, from_os_error
from cafs.index import meta, unfinished
from cafs.index.pages import ADVICE, CORE, FILE, Audit, Fault, audit

log = logging.getLogger(__name__)

FAULTS_LOGGED: Final = 20


def guard(directory: Path, budget_s: float) -> Audit:
    """Audit, fence off what is damaged, put right what can be, and log it.

    The caller has the lock, and nobody writes.  Raises IndexDamagedError when there is nothing
    to begin with, or a rebuild of it did not come to its end.
    """
    unfinished.refuse(directory)
    mended = meta.mend(directory, lose_commit=False)
    if mended is not None:
        log.error("%s: %s; it is put right", directory, mended)
    found = audit(directory, budget_s)
    for fault in found.faults[:FAULTS_LOGGED]:
        log.error("%s; %s; what to do: %s", fault, fault.effect, ADVICE)
    if len(found.faults) > FAULTS_LOGGED:
        log.error("... and %d more faults of the index", len(found.faults) - FAULTS_LOGGED)
    for fault in found.faults:
        # Without its roots nothing is found, and with a wrong list of free pages the next
        # commit would write over what is in use.
        if fault.page and fault.link is None and fault.database in CORE:
            raise IndexDamagedError(f"{directory}: {fault}", advice=ADVICE)
    fence(directory, found.faults)
    return found


def fence(directory: Path, faults: Sequence[Fault]) -> int:
    """Point the links to damaged pages nowhere, and put keys right; how many that were.

    The caller has the lock.
    """
    links = [fault.link for fault in faults if fault.link is not None]
    if not links:
        return 0
    try:
        fd = os.open(directory / FILE, os.O_WRONLY | os.O_CLOEXEC)
        try:
            for offset, data in links:
                os.pwrite(fd, data, offset)
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        raise from_os_error(error, f"fence off pages of {directory / FILE}") from error
    return len(links)
