"""The file with the links' secret: what it may hold, and that a change of it counts."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from cafs.errors import ConfigError
from cafs.http.secret import Secret


def test_secrets(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("s3cr3t\n")
    assert Secret(file).now() == b"s3cr3t"
    assert Secret(None).now() == b""
    for content in ("", "\n", "two\nlines\n"):
        file.write_text(content)
        with pytest.raises(ConfigError, match="one line"):
            Secret(file)
    with pytest.raises(ConfigError, match="No such file"):
        Secret(tmp_path / "absent")


def test_a_changed_file_counts_at_once(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("before\n")
    secret = Secret(file)
    assert secret.now() == b"before"
    file.write_text("behind\n")
    os.utime(file, (1, 1))
    assert secret.now() == b"behind"


def test_what_is_no_secret_leaves_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """nginx does not take such a file either, and both must have the same."""
    file = tmp_path / "secret"
    file.write_text("before\n")
    secret = Secret(file)
    file.write_text("two\nlines\n")
    with caplog.at_level(logging.ERROR):
        assert secret.now() == b"before"
    assert f"http.secret_file = {file}: it must have one line" in caplog.text
    file.unlink()
    assert secret.now() == b"before"
    assert "No such file" in caplog.text
    file.write_text("behind\n")
    assert secret.now() == b"behind"
