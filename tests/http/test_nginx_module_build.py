"""The one command that builds the module: what it refuses, it refuses with a reason."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.http.nginx import SOURCES, module_path, need_sources


def build(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SOURCES / "build.sh"), *arguments], capture_output=True, text=True, check=False
    )


def test_a_source_of_another_version_is_refused(tmp_path: Path) -> None:
    need_sources()
    header = tmp_path / "src" / "core" / "nginx.h"
    header.parent.mkdir(parents=True)
    header.write_text('#define NGINX_VERSION      "1.2.3"\n')
    done = build("--nginx-source", str(tmp_path), "--install", str(tmp_path))
    assert done.returncode == 1
    assert "is 1.2.3: they must be the same" in done.stderr
    assert not list(tmp_path.glob("*.so"))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--nginx-source", "/nowhere"), "no nginx source in /nowhere"),
        (("--nginx", "no-such-nginx"), "there is no no-such-nginx"),
        (("--fast", "yes"), "unknown option --fast"),
        (("--install",), "what to do with"),
    ],
)
def test_what_is_missing_is_named(arguments: tuple[str, ...], reason: str) -> None:
    need_sources()
    done = build(*arguments)
    assert (done.returncode, reason in done.stderr) == (1, True), done.stderr


def test_a_module_that_nginx_does_not_take_is_told_by_nginx(tmp_path: Path) -> None:
    """The signature in the module is what nginx compares; any other is refused at its start."""
    need_sources()
    other = tmp_path / "other.so"
    other.write_bytes(module_path().read_bytes().replace(b"8,4,8,", b"8,4,9,"))
    configuration = tmp_path / "nginx.conf"
    configuration.write_text(
        f"load_module {other};\npid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\n"
    )
    done = subprocess.run(
        ["nginx", "-t", "-p", str(tmp_path), "-c", str(configuration)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "not binary compatible" in done.stderr
