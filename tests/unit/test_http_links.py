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
    for_ever = _hmac(b"PUT", b"1000000000", b"0")
    assert check(SECRET, b"PUT", OBJECT, for_ever, 2e9) is Verdict.GOOD
    for query in (
        _hmac(b"GET", b"xxxxxxxxxx", b"5"),
        _hmac(b"GET", b"1000000000", b""),
        _hmac(b"GET", b"1000000000", b"05"),
        _hmac(b"GET", b"0000000001", b"5"),
        _hmac(b"GET", b"1", b"5"),
        _hmac(b"GET", b"", b""),
        b"",
    ):
        assert check(SECRET, b"GET", OBJECT, query, 1.0) is Verdict.BAD, query


def test_digits_of_a_hmac_link_cannot_be_moved() -> None:
    # All that has the same signature as an expired link to a blob whose name ends in digits.
    ts, e = b"1700000000", b"86400"
    signature = links.argument(_hmac(b"GET", ts, e, OBJECT + b"19"), b"st")
    digits = b"19" + ts + e
    for low in range(3):
        for high in range(low + 1, len(digits)):
            link = b"ts=%s&e=%s&st=%s" % (digits[low:high], digits[high:], signature)
            path = OBJECT + digits[:low]
            verdict = links.check_hmac(SECRET, b"GET", path, link, 1700086401)
            assert verdict is not Verdict.GOOD, link


def test_arguments_are_taken_as_nginx_takes_them() -> None:
    assert links.argument(b"a=1&B=2&a=3&c", b"a") == b"1"
    assert links.argument(b"a=1&B=2&a=3&c", b"b") == b"2"
    assert links.argument(b"a=1&B=2&c", b"c") == b""
    assert links.argument(b"a=%31", b"a") == b"%31"
    assert links.argument(b"a=x=y", b"a") == b"x=y"
