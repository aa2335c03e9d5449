"""Every fault a user can meet, and what each means to a system call, an HTTP client and a shell.

One hierarchy, one table.  A class is raised where the fault is found; the number it turns
into is decided here and nowhere else.  Anything that is not a :class:`CafsError` is a defect
of cafs itself: the mount answers EIO, the command line prints a correlation id.
"""

from __future__ import annotations

import errno as _errno
from typing import NamedTuple


class Meaning(NamedTuple):
    """What a class of error means outside the process."""

    errno: int
    """For a system call on the mount."""
    http_status: int
    """For an HTTP client."""
    exit_code: int
    """For a shell; documented in docs/cli.md."""
    advice: str
    """What the operator can do, one sentence; may be empty."""


class CafsError(Exception):
    """A foreseeable fault.  ``str(error)`` says what happened and where, in one sentence."""

    def __init__(self, message: str, *, advice: str | None = None) -> None:
        super().__init__(message)
        self._advice = advice

    @property
    def meaning(self) -> Meaning:
        """The row of :data:`MEANINGS` for the nearest class that has one."""
        for cls in type(self).__mro__:
            if cls in MEANINGS:
                return MEANINGS[cls]
        raise AssertionError(f"no meaning for {type(self).__name__}")

    @property
    def advice(self) -> str:
        """What to do: of this error if it was given, else of its class."""
        return self.meaning.advice if self._advice is None else self._advice


class UsageError(CafsError):
    """A command, flag or setting that makes no sense; nothing was changed."""


class ConfigError(UsageError):
    """A settings file or flag is wrong; names the key, the bounds and the file."""


class NotFoundError(CafsError):
    """A path, a SHA or a store that is not there."""


class AmbiguousError(UsageError):
    """A SHA prefix that several blobs share."""


class StoreError(CafsError):
    """The store as a whole cannot be used."""


class StoreMissingError(StoreError):
    """There is no store in that directory."""


class StoreExistsError(StoreError):
    """There is something in the directory that a store should be made in."""


class StoreBusyError(StoreError):
    """Another process has the store open for writing."""


class StoreVersionError(StoreError):
    """The store was written by a newer cafs, or has a feature that this one does not know."""


class MountError(CafsError):
    """The mount could not be made or removed."""


class MountpointError(MountError):
    """The mountpoint is missing, busy, stale or not a directory."""


class FuseMissingError(MountError):
    """/dev/fuse is missing or may not be opened."""


class DamagedError(CafsError):
    """Bytes on disk are not those that were written."""


class ChunkDamagedError(DamagedError):
    """A chunk's bytes do not match its checksum, or cannot be read."""

    chunk: int = 0
    """The chunk's number, where that is known."""


class RebuildError(DamagedError):
    """The bytes of an archive that was taken apart cannot be made again as they were."""


class IndexDamagedError(DamagedError):
    """A record of the index cannot be understood, or LMDB found a bad page."""


class CheckFailedError(DamagedError):
    """A check or a scrub came to its end and found the store not clean."""


class DiskFullError(CafsError):
    """The backing disk has no room."""


class ReadOnlyError(CafsError):
    """The backing disk, or the mount, is read-only."""


class DiskError(CafsError):
    """The backing disk answered with an I/O error."""


class DaemonError(CafsError):
    """The daemon cannot be reached or did not answer."""


class DaemonAbsentError(DaemonError):
    """No daemon serves the store."""


class AccessError(CafsError):
    """This user may not do that."""


class NginxError(CafsError):
    """nginx is missing, refuses its configuration, or ended."""


class AddressError(CafsError):
    """An address or port that is to be listened on is taken, or may not be used."""


class EngineError(CafsError):
    """What makes archives again (gzip, zlib) is missing, is another, or failed."""


class FsError(CafsError):
    """What POSIX has an errno for; carries its own (ENOENT, EEXIST, ENOTEMPTY ...)."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message or _errno.errorcode.get(number, str(number)))
        self.errno = number

    @property
    def meaning(self) -> Meaning:
        """The errno that was raised; HTTP status and exit code of the nearest kind."""
        base = MEANINGS[FsError]
        status = _HTTP_OF_ERRNO.get(self.errno, base.http_status)
        return base._replace(errno=self.errno, http_status=status)


_HTTP_OF_ERRNO = {
    _errno.ENOENT: 404,
    _errno.ENOTDIR: 404,
    _errno.ENAMETOOLONG: 404,
    _errno.EACCES: 403,
    _errno.EPERM: 403,
    _errno.ELOOP: 403,
    _errno.EEXIST: 409,
    _errno.EISDIR: 409,
    _errno.ENOTEMPTY: 409,
    _errno.ENOSPC: 507,
    _errno.EROFS: 503,
}

MEANINGS: dict[type[CafsError], Meaning] = {
    CafsError: Meaning(_errno.EIO, 500, 1, ""),
    UsageError: Meaning(_errno.EINVAL, 400, 2, "see --help"),
    ConfigError: Meaning(_errno.EINVAL, 400, 2, "correct the setting; nothing was changed"),
    NotFoundError: Meaning(_errno.ENOENT, 404, 3, ""),
    AmbiguousError: Meaning(_errno.EINVAL, 400, 2, "give more digits"),
    StoreError: Meaning(_errno.EIO, 500, 4, ""),
    StoreMissingError: Meaning(_errno.ENOENT, 500, 4, "make one with: cafs init STORE"),
    StoreExistsError: Meaning(_errno.EEXIST, 500, 4, "choose an empty directory"),
    StoreBusyError: Meaning(_errno.EBUSY, 503, 5, "see who has it: cafs status STORE"),
    StoreVersionError: Meaning(_errno.EIO, 500, 6, "install the cafs that wrote it, or a newer"),
    MountError: Meaning(_errno.EIO, 500, 7, ""),
    MountpointError: Meaning(_errno.EBUSY, 500, 7, ""),
    FuseMissingError: Meaning(_errno.ENODEV, 500, 7, "load it with: modprobe fuse"),
    DamagedError: Meaning(_errno.EIO, 500, 8, "run: cafs check STORE; then cafs scrub STORE"),
    ChunkDamagedError: Meaning(_errno.EIO, 500, 8, "run: cafs scrub STORE"),
    RebuildError: Meaning(_errno.EIO, 500, 8, "run: cafs check STORE; see the daemon's log"),
    IndexDamagedError: Meaning(_errno.EIO, 500, 8, "run: cafs check STORE"),
    CheckFailedError: Meaning(_errno.EIO, 500, 8, "run: cafs check STORE --repair"),
    DiskFullError: Meaning(_errno.ENOSPC, 507, 9, "delete files or grow the disk"),
    ReadOnlyError: Meaning(_errno.EROFS, 503, 10, "see dmesg, then remount the disk read-write"),
    DiskError: Meaning(_errno.EIO, 500, 11, "see dmesg for the disk's own message"),
    DaemonError: Meaning(_errno.EIO, 503, 12, "see the daemon's log"),
    DaemonAbsentError: Meaning(_errno.EIO, 503, 12, "mount it with: cafs mount STORE MOUNTPOINT"),
    AccessError: Meaning(
        _errno.EACCES,
        403,
        13,
        "run as a user who may do that: in a store only its owner may "
        '(docs/operations.md, "A store has one owner")',
    ),
    NginxError: Meaning(_errno.EIO, 503, 14, "see what nginx itself says in the log"),
    AddressError: Meaning(_errno.EIO, 503, 15, "see who listens there: ss -ltnp"),
    EngineError: Meaning(_errno.EIO, 500, 16, "see which engines are there: cafs status STORE"),
    FsError: Meaning(_errno.EIO, 500, 1, ""),
}


def from_os_error(error: OSError, doing: str) -> CafsError:
    """The error of this hierarchy for an OSError of the backing disk.

    *doing* says what was tried, and on which path, as in ``"append to pack 7"``.
    """
    text = f"{doing}: {error.strerror or error}"
    if error.errno in (_errno.ENOSPC, _errno.EDQUOT, _errno.EFBIG):
        return DiskFullError(text)
    if error.errno == _errno.EROFS:
        return ReadOnlyError(text)
    if error.errno in (_errno.EACCES, _errno.EPERM):
        return AccessError(text)
    return DiskError(text, advice=_NO_FAULT_OF_THE_DISK.get(error.errno or 0))


_LOOK = "see what is there, beginning with the first directory: ls -ld"
_NO_FAULT_OF_THE_DISK = {
    _errno.ENOENT: _LOOK,
    _errno.ENOTDIR: _LOOK,
    _errno.EISDIR: _LOOK,
    _errno.EEXIST: _LOOK,
    _errno.ELOOP: _LOOK,
    _errno.ENAMETOOLONG: "choose a shorter path",
    _errno.ENOTCONN: "it lies in a mount whose daemon died: take that away with cafs umount, "
    "or mount it anew",
    _errno.EMFILE: "raise the limit of open files: ulimit -n",
    _errno.ENFILE: "raise the limit of open files: sysctl fs.file-max",
    _errno.ENOMEM: "free some memory",
}
"""What dmesg says nothing about."""


def told_as(error: CafsError, message: str, advice: str | None = None) -> CafsError:
    """The same error with more said about it."""
    if isinstance(error, FsError):
        return FsError(error.errno, message)
    return type(error)(message, advice=error.advice if advice is None else advice)


def first_foreseen(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """What a user should hear of several errors: a foreseeable one if there is any."""
    foreseen, _ = group.split(CafsError)
    error: BaseException = foreseen or group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
