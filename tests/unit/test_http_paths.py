"""Paths of requests, the access log's lines, and who a setting names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.errors import ConfigError, UsageError
from cafs.http.accesslog import AccessLog, Line, render
from cafs.http.paths import TreePath, below, escaped, normalized
from cafs.http.site import caller_of
from cafs.http_options import HttpOptions


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        (b"/admin/cc-x/ab/cd/abcd-1", b"/admin/cc-x/ab/cd/abcd-1"),
        (b"/admin//cc-x///ab", b"/admin/cc-x/ab"),
        (b"/admin/%61%2Fb", b"/admin/a/b"),
        (b"/admin/a/./b/../c", b"/admin/a/c"),
        (b"/admin/a/%2e%2E/c", b"/admin/c"),
        (b"/admin/a/..", b"/admin/"),
        (b"/admin/a/.", b"/admin/a/"),
        (b"/admin/a/", b"/admin/a/"),
        (b"/admin/...", b"/admin/..."),
        (b"/admin/.hidden", b"/admin/.hidden"),
        (b"/admin/a+b%20c%25", b"/admin/a+b c%"),
        (b"/admin/%0a%ff", b"/admin/\n\xff"),
        (b"/admin/a%3Fb", b"/admin/a?b"),
        (b"/admin/a?b=/../..", b"/admin/a"),
        (b"/admin/a#b", b"/admin/a"),
        (b"/", b"/"),
        (b"//", b"/"),
        (b"/..a", b"/..a"),
        (b"http://host:80/admin/a", b"/admin/a"),
        (b"HTTPS://host", b"/"),
    ],
)
def test_normalized(raw: bytes, path: bytes) -> None:
    assert normalized(raw) == path


@pytest.mark.parametrize(
    "raw",
    [b"", b"admin", b"*", b"/..", b"/a/../..", b"/%2e%2e", b"/a%", b"/a%2", b"/a%zz", b"/%00"],
)
def test_what_nginx_refuses_with_400(raw: bytes) -> None:
    with pytest.raises(UsageError):
        normalized(raw)


@given(st.lists(st.binary(min_size=1, max_size=8)))
def test_names_round_trip(names: list[bytes]) -> None:
    names = [name for name in names if name not in (b".", b"..") and not set(name) & {0, 47}]
    path = b"/admin/" + b"/".join(names)
    if not names:
        path = b"/admin"
    assert normalized(escaped(path).encode()) == path


@given(st.text("/.%2eEfF5cab?#\\", max_size=20))
def test_no_path_leads_out(text: str) -> None:
    try:
        path = normalized(b"/" + text.encode())
    except UsageError:
        return
    names = path.split(b"/")[1:]
    assert not {b".", b".."} & set(names)
    assert b"" not in names[:-1]


def test_below() -> None:
    assert below(b"/admin/", b"/admin/") == TreePath((), True)
    assert below(b"/admin/a/b", b"/admin/") == TreePath((b"a", b"b"), False)
    assert below(b"/admin/a/", b"/admin/") == TreePath((b"a",), True)


def _line(**changes: object) -> Line:
    line = Line("10.0.0.1", b"cc", b"PUT /admin/x HTTP/1.1", 201, 0, b"", b"HTTPClient", 0.0125)
    return line._replace(**changes)  # type: ignore[arg-type]


def test_lines_of_the_access_log() -> None:
    text = render(_line(), 1700000000.0)
    assert text.startswith(b"10.0.0.1 - cc [")
    assert text.endswith(b'] "PUT /admin/x HTTP/1.1" 201 0 "-" "HTTPClient" 0.013 - .\n') or (
        text.endswith(b'] "PUT /admin/x HTTP/1.1" 201 0 "-" "HTTPClient" 0.012 - .\n')
    )
    text = render(_line(agent=b'a"b\\c\nd\xff', user=b""), 1700000000.0)
    assert rb'"a\x22b\x5Cc\x0Ad\xFF"' in text
    assert text.count(b"\n") == 1
    assert text.startswith(b"10.0.0.1 - - [")


def test_the_access_log_follows_a_rotation(tmp_path: Path) -> None:
    path, moved = tmp_path / "access.log", tmp_path / "access.log.1"
    log = AccessLog(path)
    log.write(_line(), 100.0)
    os.rename(path, moved)
    log.write(_line(), 100.5)
    log.write(_line(), 101.5)
    log.close()
    assert moved.read_bytes().count(b"\n") == 2
    assert path.read_bytes().count(b"\n") == 1


def test_a_log_that_cannot_be_written_fails_nothing(tmp_path: Path) -> None:
    log = AccessLog(tmp_path / "absent" / "access.log")
    log.write(_line(), 100.0)
    log.close()


def test_owners() -> None:
    assert caller_of("0") == (0, 0, frozenset())
    assert caller_of("12:34")[:2] == (12, 34)
    assert caller_of("root").uid == 0
    assert caller_of("root:34").gid == 34
    for wrong in ("no-such-user", "root:no-such-group", ":"):
        with pytest.raises(ConfigError):
            caller_of(wrong)


@pytest.mark.parametrize(
    "listen", ["nowhere", ":80", "127.0.0.1:x", "127.0.0.1:70000", "127.0.0.1:-1"]
)
def test_addresses_that_nobody_can_listen_on(listen: str) -> None:
    with pytest.raises(ConfigError, match=r"http\.listen"):
        HttpOptions(listen=listen)


def test_a_key_without_a_certificate() -> None:
    with pytest.raises(ConfigError, match="certificate_key"):
        HttpOptions(certificate_key=Path("/key"))
