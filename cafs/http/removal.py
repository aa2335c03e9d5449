"""Whether the caller may take a name out of a directory, or replace what has it: path rules that
unlink(2) and rename(2) have beyond those of looking a path up.
"""

from __future__ import annotations

import errno
import stat

from cafs.errors import FsError
from cafs.http.site import Site
from cafs.tree import walk
from cafs.types import Ino


def require_change(site: Site, directory: Ino, ino: Ino | None) -> None:
    """Raise FsError(EACCES) unless names of *directory* may be made or changed, and what one of
    them leads to (*ino*, if there is one) may lose it.
    """
    site.require(directory, walk.WRITE | walk.SEARCH)
    above = site.tree.inodes.get(directory)
    caller = site.caller
    if not above.mode & stat.S_ISVTX or ino is None or caller.uid in (0, above.uid):
        return
    if site.tree.inodes.get(ino).uid != caller.uid:
        raise FsError(errno.EACCES, "the directory has the sticky bit, and it is another user's")
