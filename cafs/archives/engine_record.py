"""What the index says of an engine: a small JSON object under ``engine/<number>``.

Knows the value only; the key is :func:`cafs.index.layout.engine_key`, and docs/format.md states
both.  Invariant: a record that was written is never changed but for programs that are added to
it, because parts of recipes refer to it by its number.
"""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.overlay import Overlay

_SHA256 = re.compile(r"[0-9a-f]{64}")


class EngineRecord(NamedTuple):
    """One engine that something stored may need."""

    kind: str
    """Which sort it is; says what parameters mean."""
    version: str
    """What the first program said of itself."""
    programs: tuple[str, ...]
    """SHA-256, in hex, of the files that were proven to make the same; the first is the one
    that the engine was recorded for."""

    def pack(self) -> bytes:
        """The value in the index."""
        return json.dumps(self._asdict(), sort_keys=True, separators=(",", ":")).encode()

    @classmethod
    def unpack(cls, number: int, value: bytes) -> EngineRecord:
        """The record of engine *number*.  Raises :class:`IndexDamagedError`."""
        try:
            raw = json.loads(value)
            record = cls(raw["kind"], raw["version"], tuple(raw["programs"]))
            texts = (record.kind, record.version, *record.programs)
            sound = all(isinstance(text, str) for text in texts) and bool(record.programs)
            if sound and all(_SHA256.fullmatch(program) for program in record.programs):
                return record
        except (ValueError, TypeError, KeyError, RecursionError):
            pass
        raise IndexDamagedError(f"the record of engine {number} cannot be understood")


def records_in(overlay: Overlay) -> dict[int, bytes]:
    """The values of all engines' records by their numbers, which have no gaps."""
    records: dict[int, bytes] = {}
    while value := overlay.get(layout.META, layout.engine_key(len(records) + 1)):
        records[len(records) + 1] = value
    return records
