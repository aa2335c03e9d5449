"""What POSIX and acl(5) leave to the filesystem: inherited modes, and bits that a write clears."""

from __future__ import annotations

import errno
import stat

import pytest

from cafs.errors import FsError
from cafs.tree.permissions import (
    Entry,
    acl_after_chmod,
    after_chown,
    after_write,
    format_acl,
    inherited,
    mode_of_acl,
    parse_acl,
)
from cafs.types import NO_BLOB, Attr

NONE = 0xFFFFFFFF
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 1, 2, 4, 8, 16, 32
PLAIN = [Entry(USER_OBJ, 7, NONE), Entry(GROUP_OBJ, 5, NONE), Entry(OTHER, 1, NONE)]
NAMED = [
    Entry(USER_OBJ, 7, NONE),
    Entry(USER, 6, 1000),
    Entry(GROUP_OBJ, 5, NONE),
    Entry(MASK, 7, NONE),
    Entry(OTHER, 5, NONE),
]


def attr(mode: int) -> Attr:
    return Attr(mode, 0, 0, 1, 0, 0, 0, 0, NO_BLOB, 0, 0)


def test_an_acl_comes_back() -> None:
    assert parse_acl(format_acl(NAMED)) == NAMED


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"", errno.EINVAL),
        (b"\2\0\0", errno.EINVAL),
        (b"\2\0\0\0\1", errno.EINVAL),
        (b"\1\0\0\0", errno.EOPNOTSUPP),
    ],
)
def test_what_is_no_acl_is_refused(value: bytes, number: int) -> None:
    with pytest.raises(FsError) as refused:
        parse_acl(value)
    assert refused.value.errno == number


def test_a_plain_acl_is_all_in_the_mode() -> None:
    assert mode_of_acl(PLAIN, 0o100000) == (0o100751, True)


def test_the_group_bits_are_the_masks() -> None:
    assert mode_of_acl(NAMED, 0o100000) == (0o100775, False)


def test_chmod_changes_the_mask_and_not_the_group() -> None:
    changed = parse_acl(acl_after_chmod(format_acl(NAMED), 0o640))
    assert {entry.tag: entry.permissions for entry in changed} == {
        USER_OBJ: 6,
        USER: 6,
        GROUP_OBJ: 5,
        MASK: 4,
        OTHER: 0,
    }


def test_what_is_made_has_no_more_than_was_asked_for() -> None:
    mode, acl = inherited(format_acl(NAMED), 0o100640)
    assert mode == 0o100640
    assert acl is not None
    assert {entry.tag: entry.permissions for entry in parse_acl(acl)}[MASK] == 4
    assert inherited(format_acl(PLAIN), 0o100666) == (0o100640, None)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (0o104755, 0o100755),
        (0o102755, 0o100755),
        (0o106775, 0o100775),
        (0o102745, 0o102745),  # setgid without group execute marks a lock, and stays
        (0o101777, 0o101777),
        (0o100644, 0o100644),
    ],
)
def test_a_write_clears_setuid_and_setgid(before: int, after: int) -> None:
    assert after_write(attr(before)).mode == after


def test_a_directory_keeps_its_setgid_on_chown() -> None:
    mode = stat.S_IFDIR | 0o2755
    assert after_chown(attr(mode)).mode == mode
    assert after_chown(attr(0o104755)).mode == 0o100755
