"""What the handlers of all requests share: the store, whose permissions count, and the settings.

Belongs to the event loop.  Invariant: a handler reaches the tree only through the rules here, so
that a client may do over HTTP what nginx could do for it as the configured owner, and no more.
"""

from __future__ import annotations

import grp
import ipaddress
import os
import pwd
from collections.abc import Sequence

import trio
from starlette.requests import Request

from cafs.errors import CafsError, ConfigError, DamagedError
from cafs.http.counting import Requests
from cafs.http.paths import TreePath
from cafs.http.pruning import Pruner
from cafs.http.secret import Secret
from cafs.http.users import Users
from cafs.http_options import HttpOptions
from cafs.notices import Change
from cafs.store import Store
from cafs.tree import walk
from cafs.tree.bulk import Subdirectories
from cafs.tree.walk import Caller, Place
from cafs.types import ROOT, Attr, Ino


class Site:
    """One store as HTTP sees it."""

    def __init__(self, store: Store, options: HttpOptions) -> None:
        """Raises ConfigError for an owner or a secret file that is not there."""
        self.store = store
        self.tree = store.tree
        self.contents = store.contents
        self.options = options
        self.pruner = Pruner(store)
        """Removes the directories that deletes have emptied; its run() is a background task."""
        self.partitions = Subdirectories(store.tree)
        """Partition directories that requests have met."""
        self._owner = caller_of(options.owner) if options.owner is not None else None
        self._secret = Secret(options.secret_file)
        self.users = Users(options.users_file)
        self.requests = Requests(store)
        self.networks = [ipaddress.ip_network(text) for text in options.access]

    @property
    def secret(self) -> bytes:
        """What links are signed with; empty: there are none."""
        return self._secret.now()

    @property
    def caller(self) -> Caller:
        """Whose permissions count, and whom new files belong to."""
        if self._owner is not None:
            return self._owner
        root = self.tree.inodes.get(ROOT)
        return Caller(root.uid, root.gid)

    def find(self, path: TreePath) -> Ino:
        """What a path leads to, symbolic links followed; see cafs.tree.walk.find()."""
        return walk.find(self.tree, path.names, self.caller)

    def locate(self, path: TreePath) -> Place:
        """Where a path leads, a symbolic link as its last name not followed; see walk.locate()."""
        return walk.locate(self.tree, path.names, self.caller, follow=False)

    def may(self, ino: Ino, wanted: int) -> bool:
        """Whether the caller may walk.READ, WRITE or SEARCH it."""
        return walk.may(self.tree, ino, self.tree.inodes.get(ino), self.caller, wanted)

    def require(self, ino: Ino, wanted: int) -> None:
        """Raise FsError(EACCES) unless the caller may."""
        walk.require(self.tree, ino, self.tree.inodes.get(ino), self.caller, wanted)

    def attr(self, ino: Ino) -> Attr:
        """Attributes as readers of the mount see them."""
        return self.contents.attr(ino)

    def remove_if_unused(self, ino: Ino | None) -> None:
        """An inode may have lost its last name: it goes, once nobody has it open.

        The mount's kernel may know it still; it is told that its name is gone, and asks anew.
        """
        if ino is not None:
            self.store.nameless.forget(ino)

    def found_damage(self, ino: Ino, error: DamagedError) -> None:
        """Content that a client asked for is damaged: let it be marked, so that it can heal."""
        self.store.damaged_reads += 1
        self.store.notices.damaged("GET", ino, error)

    async def changed(self, changes: Sequence[Change]) -> None:
        """Make changes of the tree known to the mount, and put them on disk.

        Raises DiskFullError and its kin when they are not on disk; visible they are.
        """
        problem: CafsError | None = None
        # Side by side: a commit waits for the disk, and telling for the kernel.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.store.notices.tell, changes)
            try:
                await self.store.commit()
            except CafsError as error:
                # Not from here: telling goes on to its end.
                problem = error
        if problem is not None:
            raise problem


def origin(request: Request) -> str:
    """Scheme and host that the client used, ``https://host:port``: for absolute URLs.

    nginx tells over the trusted socket what it was asked by.
    """
    headers = request.headers
    scheme = request.scope["scheme"]
    if is_trusted(request):
        scheme = headers.get("x-forwarded-proto", scheme)
    return f"{scheme}://{headers.get('host', '')}"


def is_trusted(request: Request) -> bool:
    """Whether nginx, which has checked password and address, asks through the unix socket."""
    return bool(request.scope["state"]["connection"].trusted)


def caller_of(text: str) -> Caller:
    """The user in ``user`` or ``user:group``, names or numbers.  Raises ConfigError."""
    user, _, group = text.partition(":")
    try:
        if user.isdecimal():
            uid, gid, groups = int(user), int(user), frozenset[int]()
        else:
            entry = pwd.getpwnam(user)
            uid, gid = entry.pw_uid, entry.pw_gid
            groups = frozenset(os.getgrouplist(user, gid))
        if group:
            gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except (KeyError, OverflowError):
        raise ConfigError(f"http.owner = {text}: there is no such user or group") from None
    return Caller(uid, gid, groups)


def describe(request: Request) -> str:
    """The request, for a log line."""
    return f"{request.method} {request.scope['raw_path'].decode('latin-1')}"
