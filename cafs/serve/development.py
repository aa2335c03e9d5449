"""What one needs to try a blobstore without a deployment: certificate, user, secret.

Owns ``STORE/dev``.  Invariant: what is there is never overwritten, so that clients that were
set up once go on working; and nobody but the store's owner may read it.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Final

from cafs.durable import Disk
from cafs.errors import AccessError, NginxError, from_os_error
from cafs.http_options import HttpOptions

DIRECTORY: Final = "dev"
USER: Final = "blobstore"
VALID_DAYS: Final = 825
"""The longest that common clients accept."""


def fill_in(http: HttpOptions, store: Path) -> HttpOptions:
    """*http* with files of ``STORE/dev`` for what it does not name; they are made if need be.

    Raises :class:`NginxError` when there is no openssl(1), and what the disk answers.
    """
    directory = store / DIRECTORY
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        filled = http
        if http.certificate is None:
            certificate, key = directory / "certificate.pem", directory / "key.pem"
            if not (certificate.exists() and key.exists()):
                _make_certificate(certificate, key, http.link_host)
            filled = dataclasses.replace(filled, certificate=certificate, certificate_key=key)
        if http.users_file is None:
            filled = dataclasses.replace(filled, users_file=_users(directory, filled))
        if http.secret_file is None:
            secret = directory / "secret"
            _once(secret, secrets.token_urlsafe(32) + "\n")
            filled = dataclasses.replace(filled, secret_file=secret)
    except OSError as error:
        raise from_os_error(error, f"make development files in {directory}") from error
    return filled


def curl_file(store: Path) -> Path:
    """What ``curl -K`` takes to trust the certificate and to name the user."""
    return store / DIRECTORY / "curl"


def _users(directory: Path, http: HttpOptions) -> Path:
    users = directory / "users"
    if not users.exists():
        password = secrets.token_urlsafe(18)
        # A password on curl's command line could be seen by every user of the machine.
        told = f'user = "{USER}:{password}"\ncacert = "{http.certificate}"\n'
        (directory / "curl").unlink(missing_ok=True)
        _once(directory / "curl", told)
        _once(users, f"{USER}:{{PLAIN}}{password}\n")
    return users


def _once(path: Path, text: str) -> None:
    if not path.exists():
        Disk().write_file(path, text.encode(), 0o600)


def _make_certificate(certificate: Path, key: Path, host: str) -> None:
    """An ECDSA P-256 certificate for *host* and localhost.

    ECDSA because the handshake dominates a client that opens a connection per request.
    """
    openssl = shutil.which("openssl")
    if openssl is None:
        raise NginxError(
            "openssl(1) is missing, which makes the development certificate",
            advice="install it with: apt-get install openssl, or name http.certificate",
        )
    names = f"subjectAltName=DNS:{host},DNS:localhost,IP:127.0.0.1,IP:::1"
    temporary = key.with_suffix(".new")
    command = [
        *(openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
        *("-nodes", "-sha256", "-days", str(VALID_DAYS), "-subj", f"/CN={host}"),
        *("-addext", names, "-keyout", str(temporary), "-out", str(certificate)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, umask=0o077)
    if done.returncode != 0:
        raise AccessError(f"openssl made no certificate: {done.stderr.strip()[-300:]}", advice="")
    os.replace(temporary, key)
