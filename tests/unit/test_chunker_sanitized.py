"""The C kernels under address and undefined-behaviour sanitizers, on adversarial content."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import sanitized

SOURCES = (
    *("fuzz_main.c", "fuzz.c", "cut.c", "split.c"),
    *("zip_marks.c", "sha256.c", "sha256_lanes.c"),
)


# The portable build is what processors other than x86-64 get.
@pytest.fixture(scope="module", params=[(), ("-DCAFS_PORTABLE",)], ids=["native", "portable"])
def program(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("sanitized") / "fuzz"
    return sanitized.build(target, "chunker", SOURCES, ["-std=c11", *request.param, "-lcrypto"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_kernels_keep_their_promises_under_sanitizers(program: Path, seed: int) -> None:
    sanitized.run(program, seed, 300)
