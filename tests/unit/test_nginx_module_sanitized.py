"""The parts of the nginx module that know no nginx, under sanitizers and on hostile bytes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE_DIR = ROOT / "native" / "nginx"
SOURCES = (
    *("fuzz_main.c", "fuzz_index.c", "fuzz_content.c", "lookup.c", "recipe.c", "window.c"),
    *("../common/unfold.c", "../common/hash.c", "../common/hash_avx2.c", "link.c"),
)
FLAGS = (
    *("-std=gnu11", "-g", "-O1", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None or not Path("/usr/include/zstd.h").exists():
        pytest.skip("gcc or libzstd-dev is not installed")
    target = tmp_path_factory.mktemp("sanitized") / "fuzz"
    command = ["gcc", *FLAGS]
    for directory in ("common", "include"):
        command += ["-I", str(ROOT / "native" / directory)]
    command += [str(SOURCE_DIR / name) for name in SOURCES]
    built = subprocess.run(
        [*command, "-lzstd", "-lcrypto", "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_parsers_keep_their_promises_under_sanitizers(program: Path, seed: int) -> None:
    done = subprocess.run(
        [str(program), str(seed), "2000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
