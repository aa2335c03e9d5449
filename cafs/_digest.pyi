"""native/digest/module.c: SHA-256 and SHA-1 of one content; XXH3 of many buffers."""

from collections.abc import Sequence
from typing import final

from _typeshed import ReadableBuffer

@final
class Both:
    """SHA-256 and SHA-1 of one content.  One thread at a time."""

    def update(self, pieces: Sequence[ReadableBuffer], idle: bool = False, /) -> None:
        """Hash buffers, one behind the other; the GIL is released once for all of them.

        *idle*: only while a processor has nothing else to do (SCHED_IDLE, sched(7)); see
        may_idle().
        """

    def digests(self) -> tuple[bytes, bytes]:
        """SHA-256 and SHA-1 of what was hashed so far; more may follow."""

def may_idle() -> bool:
    """Whether a thread may leave the idle class again (CAP_SYS_NICE); if not, this one is in it."""

def xxh3_each(buffers: Sequence[ReadableBuffer], /) -> list[int]:
    """XXH3-64 of each, the GIL released once for all of them."""
