"""After an upgrade of the machine: whether its gzip or zlib still makes the same bytes.

Takes a few archives that the old program made again, and makes them with the new one.  Invariant:
nothing is taken apart with a program that was not compared; what is stored needs no proof,
because its own program is kept in the store.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import trio

from cafs.archives.archives import Archives
from cafs.archives.engines import PendingProof
from cafs.errors import CafsError, EngineError, RebuildError
from cafs.operate import candidates
from cafs.operate.candidates import Rules
from cafs.types import BlobNo

log = logging.getLogger(__name__)


async def settle(archives: Archives, store: Path, rules: Rules, begin: Callable[[], None]) -> None:
    """Find out which programs may be used; *begin* is called before the first is tried.

    Raises DaemonError; DiskFullError and its kin.
    """
    await archives.ready()
    proofs = archives.engines.pending_proof()
    if not proofs:
        return
    rules = rules._replace(samples=[proof.number for proof in proofs], limit=1)
    found = await candidates.search(store, rules)
    begin()
    for proof in proofs:
        await prove(archives, proof, found.samples[proof.number])


async def prove(archives: Archives, proof: PendingProof, samples: Sequence[BlobNo]) -> None:
    """Make *samples* again with the program in question; the engines hear of the result.

    Raises DiskFullError and its kin when the program cannot be kept.
    """
    engines = archives.engines
    proven = 0
    for blob in samples:
        try:
            await archives.prove(blob, proof.engine)
        except (RebuildError, EngineError) as error:
            if await _is_sound(archives, blob):
                engines.refused(proof, str(error))
                return
        except CafsError as error:
            # The sample itself cannot be read: it proves nothing.
            log.warning("blob %d is no proof: %s", blob, error)
        else:
            proven += 1
    if proven:
        await trio.to_thread.run_sync(partial(engines.keep, proof.engine))
        engines.proven(proof)
    elif not samples:
        engines.unneeded(proof)


async def _is_sound(archives: Archives, blob: BlobNo) -> bool:
    """Whether the blob's own engine makes it: else the blob is at fault, not the new program."""
    try:
        await archives.prove(blob)
    except CafsError as error:
        log.error("blob %d cannot be rebuilt: %s; what to do: %s", blob, error, error.advice)
        return False
    return True


def shown(archives: Archives) -> list[dict[str, Any]]:
    """The engines as a status shows them; none while nothing needs them."""
    if not archives.opened:
        return []
    return [
        {name: value for name, value in line._asdict().items() if value not in ("", 0)}
        for line in archives.engines.status()
    ]
