"""The C kernels under address and undefined-behaviour sanitizers, on adversarial content."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE_DIR = Path(__file__).parents[2] / "native" / "chunker"
SOURCES = (
    *("fuzz_main.c", "fuzz.c", "cut.c", "split.c"),
    *("zip_marks.c", "sha256.c", "sha256_lanes.c"),
)
FLAGS = (
    *("-std=c11", "-g", "-O1", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
)


# The portable build is what processors other than x86-64 get.
@pytest.fixture(scope="module", params=[(), ("-DCAFS_PORTABLE",)], ids=["native", "portable"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    target = tmp_path_factory.mktemp("sanitized") / "fuzz"
    sources = [str(SOURCE_DIR / name) for name in SOURCES]
    built = subprocess.run(
        ["gcc", *FLAGS, *request.param, *sources, "-lcrypto", "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return target


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kernels_keep_their_promises_under_sanitizers(program: Path, seed: int) -> None:
    done = subprocess.run(
        [str(program), str(seed), "300"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
