"""Modes and POSIX ACLs: the rules that the kernel leaves to the filesystem.

Pure functions over modes and the bytes of ``system.posix_acl_*`` attributes (acl(5);
include/uapi/linux/posix_acl_xattr.h): version 2, then entries of tag, permissions and id.
"""

from __future__ import annotations

import errno
import stat
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from cafs.errors import FsError
from cafs.types import Attr

ACCESS: Final = b"system.posix_acl_access"
DEFAULT: Final = b"system.posix_acl_default"

_HEADER = struct.Struct("<I")
_ENTRY = struct.Struct("<HHI")
_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20


class Entry(NamedTuple):
    """One entry of an ACL."""

    tag: int
    permissions: int
    id: int


def parse_acl(value: bytes) -> list[Entry]:
    """The entries of an ACL.  Raises FsError(EINVAL) for what is none."""
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise FsError(errno.EINVAL)
    if _HEADER.unpack_from(value)[0] != _VERSION:
        raise FsError(errno.EOPNOTSUPP)
    return [Entry._make(fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :])]


def format_acl(entries: list[Entry]) -> bytes:
    """The bytes of an ACL."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in entries)


def _group_class(entries: list[Entry]) -> int:
    """The entry that the mode's group bits stand for: the mask if there is one."""
    return _MASK if any(entry.tag == _MASK for entry in entries) else _GROUP_OBJ


def mode_of_acl(entries: list[Entry], mode: int) -> tuple[int, bool]:
    """The mode that an access ACL implies, and whether the mode says all of it."""
    group = _group_class(entries)
    bits = 0
    for entry in entries:
        if entry.tag == _USER_OBJ:
            bits |= entry.permissions << 6
        elif entry.tag == group:
            bits |= entry.permissions << 3
        elif entry.tag == _OTHER:
            bits |= entry.permissions
    plain = all(entry.tag in (_USER_OBJ, _GROUP_OBJ, _OTHER) for entry in entries)
    return mode & ~0o777 | bits, plain


def acl_after_chmod(value: bytes, mode: int) -> bytes:
    """An access ACL whose owner, group class and other permissions are those of *mode*."""
    entries = parse_acl(value)
    bits = {_USER_OBJ: mode >> 6 & 7, _group_class(entries): mode >> 3 & 7, _OTHER: mode & 7}
    return format_acl(
        [entry._replace(permissions=bits.get(entry.tag, entry.permissions)) for entry in entries]
    )


def inherited(default: bytes, mode: int) -> tuple[int, bytes | None]:
    """Mode and access ACL (None if the mode says it all) of what is made below a default ACL.

    acl(5), "OBJECT CREATION AND DEFAULT ACLs": permissions that are not in *mode* are taken
    from the owner, group class and other entries.
    """
    entries = parse_acl(default)
    limits = {_USER_OBJ: mode >> 6 & 7, _group_class(entries): mode >> 3 & 7, _OTHER: mode & 7}
    entries = [
        entry._replace(permissions=entry.permissions & limits.get(entry.tag, 7))
        for entry in entries
    ]
    mode, plain = mode_of_acl(entries, mode)
    return mode, None if plain else format_acl(entries)


def acl_allows(
    entries: list[Entry], gid: int, uid: int, in_group: Callable[[int], bool], wanted: int
) -> bool:
    """Whether an access ACL gives *wanted* (bits of 7) to a user who is not the owner.

    acl(5), "ACCESS CHECK ALGORITHM"; *gid* is the inode's group, *in_group* knows the user's.
    """
    mask = next((entry.permissions for entry in entries if entry.tag == _MASK), 7)
    for entry in entries:
        if entry.tag == _USER and entry.id == uid:
            return entry.permissions & mask & wanted == wanted
    groups = [
        entry.permissions & mask
        for entry in entries
        if (entry.tag == _GROUP_OBJ and in_group(gid))
        or (entry.tag == _GROUP and in_group(entry.id))
    ]
    if groups:
        return any(bits & wanted == wanted for bits in groups)
    return any(entry.tag == _OTHER and entry.permissions & wanted == wanted for entry in entries)


def after_write(attr: Attr) -> Attr:
    """What a write or truncate by an unprivileged process leaves of setuid and setgid.

    setgid without group execute is mandatory locking's mark and stays (inode(7)).
    """
    mode = attr.mode
    if not stat.S_ISREG(mode) or not mode & (stat.S_ISUID | stat.S_ISGID):
        return attr
    mode &= ~stat.S_ISUID
    if mode & stat.S_IXGRP:
        mode &= ~stat.S_ISGID
    return attr._replace(mode=mode)


def after_chown(attr: Attr) -> Attr:
    """What a change of owner or group leaves of setuid and setgid: chown(2), root included."""
    return attr if stat.S_ISDIR(attr.mode) else after_write(attr)
