"""Passwords in nginx's formats, and the file that has them."""

from __future__ import annotations

import base64
import hashlib
import os
import subprocess
from pathlib import Path

import pytest
import trio

from cafs.http import auth
from cafs.http.auth import Credentials
from cafs.http.users import Users

PASSWORDS = [b"", b"x", b"secret", b"a longer one, of 34 bytes, with \xe4\xff", b"y" * 60]


def _openssl(kind: str, password: bytes) -> bytes:
    done = subprocess.run(
        ["openssl", "passwd", kind, "-salt", "abcdefgh", "-stdin"],
        input=password + b"\n",
        capture_output=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize("password", PASSWORDS)
def test_apaches_md5_is_what_openssl_makes(password: bytes) -> None:
    stored = _openssl("-apr1", password)
    assert auth.apr1(password, stored) == stored
    assert auth.matches(stored, password)
    assert not auth.matches(stored, password + b"x")


@pytest.mark.parametrize("kind", ["-5", "-6", "-1"])
def test_crypt(kind: str) -> None:
    stored = _openssl(kind, b"secret")
    assert auth.matches(stored, b"secret")
    assert not auth.matches(stored, b"Secret")
    assert not auth.matches(stored, b"sec\0ret")


def test_plain_and_sha() -> None:
    digest = base64.b64encode(hashlib.sha1(b"secret").digest())
    salted = base64.b64encode(hashlib.sha1(b"secretsalt").digest() + b"salt")
    for stored in (b"{PLAIN}secret", b"{SHA}" + digest, b"{SSHA}" + salted):
        assert auth.matches(stored, b"secret")
        assert not auth.matches(stored, b"secre")
        assert not auth.matches(stored, b"")
    for broken in (b"{SHA}?", b"{SSHA}", b"", b"*", b"!", b"$9$nothing$like", b"secret"):
        assert not auth.matches(broken, b"secret"), broken


def test_users_file() -> None:
    users = auth.parse_users(
        b"# who writes\n\nblobstore:{PLAIN}pw:of CC\n\nother:$apr1$x$y\nblobstore:{PLAIN}second\n"
        b"no colon\n:nobody\n"
    )
    assert users == {b"blobstore": b"{PLAIN}pw", b"other": b"$apr1$x$y"}
    assert auth.find(users, b"blobstore") == b"{PLAIN}pw"
    assert auth.find(users, b"blob") is None


def test_header() -> None:
    encoded = base64.b64encode(b"user:pass:word").decode()
    assert auth.parse_header(f"Basic {encoded}") == Credentials(b"user", b"pass:word")
    assert auth.parse_header(f"bAsIc  {encoded} ") == Credentials(b"user", b"pass:word")
    for padded in ("dTpw", "dTpw==", "dTpw=======", "dTpw=?", "dTpw= dTpw"):
        assert auth.parse_header(f"Basic {padded}") == Credentials(b"u", b"p")
    for shorter in ("dTpwcA", "dTpwcA=", "dTpwcA====="):
        assert auth.parse_header(f"Basic {shorter}") == Credentials(b"u", b"pp")
    for wrong in (None, "", "Basic", "Basic %%%", f"Bearer {encoded}", "Basic dXNlcg=="):
        assert auth.parse_header(wrong) is None
    for wrong in ("dTpwA", "=dTpw", "==", "dT pw", "dTpw x", "dTp-", "dT\xe9w"):
        assert auth.parse_header(f"Basic {wrong}") is None


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    file = tmp_path / "users"
    slow = _openssl("-6", b"slow")

    async def main() -> None:
        users = Users(file)
        assert await users.knows(Credentials(b"a", b"one")) is None
        file.write_bytes(b"a:{PLAIN}one\nb:" + slow + b"\n")
        assert await users.knows(Credentials(b"a", b"one")) is True
        assert await users.knows(Credentials(b"b", b"wrong")) is False
        for _ in range(3):
            assert await users.knows(Credentials(b"b", b"slow")) is True
        file.write_bytes(b"a:{PLAIN}two\nb:{PLAIN}quick\n")
        os.utime(file, (1, 1))
        assert await users.knows(Credentials(b"a", b"one")) is False
        assert await users.knows(Credentials(b"b", b"slow")) is False
        assert await users.knows(Credentials(b"a", b"two")) is True
        file.unlink()
        assert await users.knows(Credentials(b"a", b"two")) is None
        assert await Users(None).knows(Credentials(b"a", b"two")) is None

    trio.run(main)


def test_an_unknown_user_is_compared_with_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the time that a refusal takes says which users there are."""
    file = tmp_path / "users"
    file.write_bytes(b"a:" + auth.apr1(b"one", b"$apr1$salt$") + b"\n")
    compared: list[bytes] = []

    def matches(stored: bytes, password: bytes) -> bool:
        compared.append(password)
        return password == b"one"

    monkeypatch.setattr(auth, "matches", matches)

    async def main() -> None:
        users = Users(file)
        assert await users.knows(Credentials(b"a", b"one")) is True
        assert await users.knows(Credentials(b"b", b"one")) is False
        assert await users.knows(Credentials(b"b", b"two")) is False
        assert await users.knows(Credentials(b"a", b"one")) is True

    trio.run(main)
    assert compared == [b"one", b"one", b"two"]
