"""Secrets that every user of the machine could read are named, with the command that helps."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs.http_options import HttpOptions
from cafs.secrecy import exposed
from cafs.serve_options import ServeOptions
from tests.mount.mounted import public_directory


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter, with all above it."""
    directory = public_directory()
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def _file(path: Path, mode: int) -> Path:
    path.write_text("secret")
    path.chmod(mode)
    return path


@pytest.mark.parametrize(
    ("mode", "how"), [(0o644, "read"), (0o604, "read"), (0o602, "change"), (0o640, ""), (0o600, "")]
)
def test_permissions_of_others_count(place: Path, mode: int, how: str) -> None:
    secret = _file(place / "a secret", mode)
    said = exposed(HttpOptions(secret_file=secret), ServeOptions())
    if how:
        assert said == [
            f"http.secret_file = {secret}: every user of this machine can {how} it; "
            f"keep them out with: chmod o-rwx '{secret}'"
        ]
    else:
        assert said == []


def test_all_files_with_secrets_are_looked_at(place: Path) -> None:
    names = ("certificate", "key", "users", "secret", "public", "public-key")
    certificate, key, users, secret, public, public_key = (
        _file(place / name, 0o644) for name in names
    )
    http = HttpOptions(
        certificate=certificate, certificate_key=key, users_file=users, secret_file=secret
    )
    serve = ServeOptions(public_certificate=public, public_certificate_key=public_key)
    settings = [text.partition(" = ")[0] for text in exposed(http, serve)]
    assert settings == [
        "http.certificate_key",
        "serve.public_certificate_key",
        "http.users_file",
        "http.secret_file",
    ]
    # Without a key of its own a certificate has it.
    (said,) = exposed(HttpOptions(certificate=certificate), ServeOptions())
    assert said.startswith("http.certificate = ")


def test_a_directory_that_nobody_may_enter_protects(place: Path) -> None:
    secret = _file(place / "secret", 0o644)
    link = place / "link"
    link.symlink_to(secret)
    http = HttpOptions(secret_file=link)
    assert len(exposed(http, ServeOptions())) == 1
    place.chmod(0o700)
    assert exposed(http, ServeOptions()) == []
    assert exposed(HttpOptions(secret_file=place / "missing"), ServeOptions()) == []
