"""Signed links: the values that the contract gives, and what must not verify."""

from __future__ import annotations

import pytest

from cafs.http import links
from cafs.http.links import Verdict

SECRET = b"s3cr3t"
PATH = b"cc-droplets/ab/cd/abcd1234-0000/da39a3ee5e6b4b0d3255bfef95601890afd80709"
EXPIRES = b"1700003600"
OBJECT = b"cc-droplets/ab/cd/abcd1234-0000/deadbeef"
HMAC = b"X0fNmzwnl-Xt3ks3IwsWP2gZ1cB9hbaz8dD5nBwnfUs"


@pytest.mark.parametrize(
    ("secret", "path", "expires", "value"),
    [
        (SECRET, b"/read/" + PATH, EXPIRES, b"bGAHpwgqU1if9VyyYLBWog"),
        (SECRET, b"/write/" + PATH, EXPIRES, b"FdpiVmgksjJzFG75nQP-XQ"),
        (b"secret", b"/read/s/link", b"2147483647", b"6lMW7aVzFsz2QK8bdgDVaA"),
        (b"secret", b"/write/s/link", b"2147483647", b"yRH3NcDrFVuFnPrKnhIxyg"),
    ],
)
def test_md5_values_of_the_contract(
    secret: bytes, path: bytes, expires: bytes, value: bytes
) -> None:
    assert links.md5_signature(secret, path, expires) == value
    query = b"md5=" + value + b"&expires=" + expires
    assert links.check_md5(secret, path, query, 1.0) is Verdict.GOOD
    assert links.check_md5(secret, path, query, int(expires)) is Verdict.GOOD
    assert links.check_md5(secret, path, query, int(expires) + 1) is Verdict.EXPIRED
    assert links.check_md5(secret, path + b"x", query, 1.0) is Verdict.BAD
    assert links.check_md5(b"other", path, query, 1.0) is Verdict.BAD
    assert links.check_md5(b"", path, query, 1.0) is Verdict.BAD


@pytest.mark.parametrize("expires", [b"0", b"", b"-5", b"x", b"1e9", b"9" * 30])
def test_md5_links_have_an_end(expires: bytes) -> None:
    value = links.md5_signature(SECRET, b"/read/x", expires)
    query = b"md5=" + value + b"&expires=" + expires
    assert links.check_md5(SECRET, b"/read/x", query, 1.0) is Verdict.BAD


def test_md5_links_without_a_signature() -> None:
    for query in (b"", b"expires=" + EXPIRES, b"md5=&expires=" + EXPIRES, b"md5"):
        assert links.check_md5(SECRET, b"/read/x", query, 1.0) is Verdict.BAD


def _hmac(method: bytes, ts: bytes, lifetime: bytes, path: bytes = OBJECT) -> bytes:
    value = links.hmac_signature(SECRET, method, path, ts, lifetime)
    return b"e=" + lifetime + b"&st=" + value + b"&ts=" + ts


def test_hmac_value_of_the_contract() -> None:
    assert links.hmac_signature(SECRET, b"GET", OBJECT, b"1700000000", b"3600") == HMAC
    query = b"e=3600&st=" + HMAC + b"&ts=1700000000"
    check = links.check_hmac
    assert check(SECRET, b"GET", OBJECT, query, 1700000000) is Verdict.GOOD
    assert check(SECRET, b"GET", OBJECT, query, 1699999000) is Verdict.GOOD, "signed later"
    assert check(SECRET, b"GET", OBJECT, query, 1700003600) is Verdict.GOOD
    assert check(SECRET, b"GET", OBJECT, query, 1700003601) is Verdict.EXPIRED
    assert check(SECRET, b"HEAD", OBJECT, query, 1700000000) is Verdict.BAD
    assert check(SECRET, b"PUT", OBJECT, query, 1700000000) is Verdict.BAD
    assert check(SECRET, b"GET", OBJECT + b"x", query, 1700000000) is Verdict.BAD
    assert check(b"", b"GET", OBJECT, query, 1700000000) is Verdict.BAD


def test_hmac_links_with_odd_arguments() -> None:
    check = links.check_hmac
    assert check(SECRET, b"PUT", OBJECT, _hmac(b"PUT", b"1", b"0"), 2e9) is Verdict.GOOD, "for ever"
    for query in (
        _hmac(b"GET", b"x", b"5"),
        _hmac(b"GET", b"1", b""),
        _hmac(b"GET", b"", b""),
        b"",
    ):
        assert check(SECRET, b"GET", OBJECT, query, 1.0) is Verdict.BAD, query


def test_digits_of_a_hmac_link_cannot_be_moved() -> None:
    link = _hmac(b"GET", b"1700000000", b"900")
    for e, ts in ((b"0", b"170000000090"), (b"00", b"17000000009")):
        moved = link.replace(b"e=900", b"e=" + e).replace(b"ts=1700000000", b"ts=" + ts)
        assert links.check_hmac(SECRET, b"GET", OBJECT, moved, 1700000000) is Verdict.BAD, moved
    of_another = _hmac(b"GET", b"1700000000", b"900", OBJECT + b"1").replace(b"ts=", b"ts=1")
    assert links.check_hmac(SECRET, b"GET", OBJECT, of_another, 1700000000) is Verdict.BAD


def test_arguments_are_taken_as_nginx_takes_them() -> None:
    assert links.argument(b"a=1&B=2&a=3&c", b"a") == b"1"
    assert links.argument(b"a=1&B=2&a=3&c", b"b") == b"2"
    assert links.argument(b"a=1&B=2&c", b"c") == b""
    assert links.argument(b"a=%31", b"a") == b"%31"
    assert links.argument(b"a=x=y", b"a") == b"x=y"
