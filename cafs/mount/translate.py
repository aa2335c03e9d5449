"""Between the kernel's structures and ours: attributes in and out, errors out.

The wrapper here is what keeps a defect in one request from ending the mount: pyfuse3 ends its
main loop at any exception that is not FUSEError.
"""

from __future__ import annotations

import errno
import functools
import logging
import stat
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, cast

import pyfuse3

from cafs.blocks import UNIT, blocks
from cafs.errors import CafsError, DamagedError, FsError
from cafs.log import correlation_id, fields
from cafs.tree import permissions
from cafs.types import NO_BLOB, TIME_MAX_NS, Attr, Ino

log = logging.getLogger(__name__)

FOREVER_S = 10 * 365 * 86400
"""How long the kernel may keep what it was told: we are the only writer, and say when it ends."""
BLOCK_SIZE = 4096
PREFERRED_IO = 128 << 10
"""st_blksize: stdio and cp make requests of this size, and each request costs tens of us."""

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[P, Coroutine[Any, Any, T]]


class NoticesDamage(Protocol):
    """What requests are handled by."""

    def noticed_damage(self, request: str, arguments: Sequence[object], error: CafsError) -> None:
        """A request with these arguments found something damaged."""
        ...


defects = 0
"""Exceptions in handlers that were not foreseen, since the start."""


def handler(function: Handler[P, T]) -> Handler[P, T]:
    """Turn any exception of a request handler into an errno."""
    name = function.__name__

    @functools.wraps(function)
    async def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await function(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except FsError as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except CafsError as error:
            number = error.meaning.errno
            if isinstance(error, DamagedError):
                cast(NoticesDamage, args[0]).noticed_damage(name, args[1:], error)
            elif number == errno.EIO:
                log.error("%s%s: %s; what to do: %s", name, args[1:2], error, error.advice)
            raise pyfuse3.FUSEError(number) from None
        except Exception:
            global defects
            defects += 1
            log.exception(
                "defect in %s: the request was answered with EIO",
                name,
                extra=fields(id=correlation_id(), arguments=repr(args[1:])[:200]),
            )
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded


_KEPT_MAX = 65_536
_kept: OrderedDict[Ino, tuple[Attr, pyfuse3.EntryAttributes]] = OrderedDict()
"""What was made of the attributes of inodes, which takes longer than finding them."""


def entry(ino: Ino, attr: Attr) -> pyfuse3.EntryAttributes:
    """An inode's attributes as the kernel wants them.  Not to be changed by the caller.

    Kept, for listings and look-ups that come again.
    """
    kept = _kept.get(ino)
    if kept is not None and kept[0] is attr:
        return kept[1]
    result = entry_once(ino, attr)
    _kept[ino] = attr, result
    if len(_kept) > _KEPT_MAX:
        _kept.popitem(last=False)
    return result


def forget() -> None:
    """Let go of what is kept."""
    _kept.clear()


def entry_once(ino: Ino, attr: Attr) -> pyfuse3.EntryAttributes:
    """As entry(), and not kept: of what has just changed, and may soon change again."""
    result = pyfuse3.EntryAttributes()
    result.st_ino = ino
    result.entry_timeout = FOREVER_S
    result.attr_timeout = FOREVER_S
    result.st_mode = attr.mode
    result.st_nlink = attr.nlink
    result.st_uid = attr.uid
    result.st_gid = attr.gid
    kind = attr.mode & 0o170000
    if kind in (0o020000, 0o060000):
        result.st_rdev = attr.aux
    result.st_size = attr.size
    result.st_blksize = PREFERRED_IO
    result.st_blocks = blocks(attr) if kind == 0o100000 else -(-attr.size // UNIT)
    result.st_atime_ns = attr.atime_ns
    result.st_mtime_ns = attr.mtime_ns
    result.st_ctime_ns = attr.ctime_ns
    return result


def unknown(ino: Ino, kind: int) -> pyfuse3.EntryAttributes:
    """What a listing shows of an inode whose record cannot be read; the kernel asks again."""
    result = entry_once(ino, Attr(kind << 12, 0, 0, 1, 0, 0, 0, 0, NO_BLOB, 0, 0))
    result.entry_timeout = result.attr_timeout = 0
    return result


_NO_ENTRY = pyfuse3.EntryAttributes()
_NO_ENTRY.st_ino = 0
_NO_ENTRY.entry_timeout = FOREVER_S


def no_entry() -> pyfuse3.EntryAttributes:
    """What tells the kernel that there is no such name, so that it need not ask again."""
    return _NO_ENTRY


def wanted(old: Attr, attr: pyfuse3.EntryAttributes, given: pyfuse3.SetattrFields) -> Attr:
    """What setattr makes of an inode's attributes, but for size and ctime."""
    new = old
    times = given.update_atime or given.update_mtime
    owner = given.update_uid or given.update_gid
    if owner or not (given.update_mode or given.update_size or times):
        # Without any field it was chown(-1, -1), which also takes setuid away.
        new = permissions.after_chown(
            new._replace(
                uid=attr.st_uid if given.update_uid else new.uid,
                gid=attr.st_gid if given.update_gid else new.gid,
            )
        )
    if given.update_mode:
        new = new._replace(mode=stat.S_IFMT(new.mode) | attr.st_mode & 0o7777)
    if given.update_atime:
        new = new._replace(atime_ns=_time(attr.st_atime_ns))
    if given.update_mtime:
        new = new._replace(mtime_ns=_time(attr.st_mtime_ns))
    return new


def _time(ns: int) -> int:
    return max(-TIME_MAX_NS, min(ns, TIME_MAX_NS))
