"""What people are told of engines: a line about each, and what is wrong with the worst of them.

Invariant: what is said to be wrong says what to do, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from cafs.errors import EngineError

LOST: Final = "lost"
REFUSED: Final = "refused"
LOST_ADVICE: Final = (
    "put its program file back into STORE/engines from a backup of the store, or install that "
    "version, and restart the daemon; cafs check STORE says whether anything needs it"
)


class EngineStatus(NamedTuple):
    """One line about an engine, for people and for JSON."""

    kind: str
    state: str
    """Of the machine's program of this kind; ``kept`` for a copy in the store that is used in
    its place, ``lost`` for what is stored and cannot be rebuilt by anything here."""
    version: str
    program: str
    """Path."""
    sha256: str
    number: int
    """Of the record in the index; 0 while nothing stored needs it."""
    why: str


def worst(lines: Iterable[EngineStatus], unkept: Iterable[EngineStatus]) -> EngineError | None:
    """What an operator has to see to first; *unkept*: those that the store has no copy of."""
    by_state = {line.state: line for line in lines}
    if line := by_state.get(LOST):
        return EngineError(
            f"{line.version} (engine {line.number}) is lost: {line.why}", advice=LOST_ADVICE
        )
    for line in unkept:
        return EngineError(
            f"{line.version} (engine {line.number}) is on this machine, and has no copy in the "
            "store: an upgrade would take away what archives are made with",
            advice="see the log for why it could not be kept, and restart the daemon",
        )
    if line := by_state.get(REFUSED):
        return EngineError(
            f"{line.version} ({line.program}) makes other bytes than what is stored was made "
            "with: nothing more is taken apart with it",
            advice="what is stored is safe; to go on, install the version from before",
        )
    return None
