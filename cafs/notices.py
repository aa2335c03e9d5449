"""Who keeps copies of what the tree says, and hears when it changes beside them; and of damage.

The kernel caches names, attributes and pages of the mount for as long as it likes; what comes
to the store by another door has to be made known to it.  Invariant: when :meth:`Notices.tell`
returns, whoever asks next sees the change.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from cafs.errors import CafsError
from cafs.types import Ino


class EntryChanged(NamedTuple):
    """A name of a directory leads elsewhere now, or nowhere, or is new."""

    parent: Ino
    name: bytes


class InodeChanged(NamedTuple):
    """Attributes of an inode have changed, and its content too if *content* says so."""

    ino: Ino
    content: bool = False


Change = EntryChanged | InodeChanged
Listener = Callable[[Sequence[Change]], Awaitable[None]]
DamageListener = Callable[[str, Ino, CafsError], None]
"""Called with the kind of request, the inode that it was about, and what was found."""


class Notices:
    """Who is to be told.  Belongs to the event loop."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []
        self._damage_listeners: list[DamageListener] = []

    def register(self, listener: Listener) -> None:
        """From now on *listener* is told, and waited for."""
        self._listeners.append(listener)

    def register_for_damage(self, listener: DamageListener) -> None:
        """From now on *listener* hears of damage that a request has found."""
        self._damage_listeners.append(listener)

    def damaged(self, request: str, ino: Ino, error: CafsError) -> None:
        """A request that came by another door than the mount found damage; no checkpoint."""
        for listener in self._damage_listeners:
            listener(request, ino, error)

    async def tell(self, changes: Sequence[Change]) -> None:
        """Tell of changes that the tree shows already; checkpoints."""
        for listener in self._listeners:
            await listener(changes)
