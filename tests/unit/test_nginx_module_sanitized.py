"""The parts of the nginx module that know no nginx, under sanitizers and on hostile bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit import sanitized

SOURCES = (
    *("fuzz_main.c", "fuzz_index.c", "fuzz_content.c", "fuzz_cachefile.c"),
    *("lookup.c", "recipe.c", "window.c", "cachefile.c"),
    *("../common/unfold.c", "../common/hash.c", "../common/hash_avx2.c", "link.c"),
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not Path("/usr/include/zstd.h").exists():
        pytest.skip("libzstd-dev is not installed")
    target = tmp_path_factory.mktemp("sanitized") / "fuzz"
    headers = [f"-I{sanitized.NATIVE / directory}" for directory in ("common", "include")]
    return sanitized.build(target, "nginx", SOURCES, ["-std=gnu11", *headers, "-lzstd", "-lcrypto"])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_parsers_keep_their_promises_under_sanitizers(program: Path, seed: int) -> None:
    sanitized.run(program, seed, 2000)
