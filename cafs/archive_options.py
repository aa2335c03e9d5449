"""Section ``archives`` of the settings: when archives are taken apart, and what that may cost.

Only the table; what becomes of it is in cafs.archives and cafs.operate.  Invariant: as for all
sections, a value that left this module is inside its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from cafs.setting import (
    check_values,
    count_setting,
    duration_setting,
    size_setting,
    yes_no_setting,
)

_KIB: Final = 1 << 10
_MIB: Final = 1 << 20
_GIB: Final = 1 << 30
_TIB: Final = 1 << 40
_DAY: Final = 86400.0


@dataclass(frozen=True)
class ArchiveOptions:
    """Section ``archives``: how a daemon ages what is hardly ever read."""

    enabled: bool = yes_no_setting(True, "Take archives apart in the background.")
    age_after: float = duration_setting(
        _DAY, 0.0, 3650 * _DAY, "What was not used for so long may be taken apart."
    )
    age_interval: float = duration_setting(
        3600.0, 0.1, 30 * _DAY, "How often it is looked for what may be taken apart."
    )
    age_min_size: int = size_setting(
        64 * _KIB, _KIB, _TIB, "Smaller archives are left as they are."
    )
    cache_size: int = size_setting(
        2 * _GIB, 0, 64 * _TIB, "Disk space for archives that were put together again to be read."
    )
    thaw_after: int = count_setting(
        3,
        1,
        1_000_000,
        "What is read so many times in a day is stored plain again.",
    )
    max_inflated: int = size_setting(
        4 * _GIB, _MIB, 64 * _TIB, "An archive with more inside it is left as it is."
    )
    max_ratio: int = count_setting(
        200, 2, 1032, "So is one whose content is so many times larger than itself."
    )

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` when a value is out of bounds."""
        check_values("archives", self)
