"""Declares the C extensions; everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("native")
WARNINGS = ["-Wall", "-Wextra", "-Wconversion", "-Wshadow"]


def extension(name: str, directory: str, sources: tuple[str, ...], *libraries: str) -> Extension:
    """One extension from the sources of one directory below native/."""
    includes = [NATIVE / each for each in (directory, "common", "include")]
    headers = [path for include in includes for path in include.glob("*.h")]
    return Extension(
        name,
        sources=[str(NATIVE / directory / source) for source in sources],
        depends=[str(path) for path in sorted(headers)],
        include_dirs=[str(include) for include in includes],
        libraries=list(libraries),
        extra_compile_args=["-std=c11", "-O3", *WARNINGS],
    )


setup(
    ext_modules=[
        extension(
            "cafs._chunker",
            "chunker",
            ("module.c", "cut.c", "sha256.c", "sha256_lanes.c", "split.c", "zip_marks.c"),
            "crypto",
        ),
        extension(
            "cafs._fetch",
            "fetch",
            ("module.c", "../common/hash.c", "../common/hash_avx2.c", "../common/unfold.c"),
            "zstd",
        ),
        extension("cafs._index", "index", ("module.c",)),
        extension("cafs._bulk", "bulk", ("module.c",)),
        extension("cafs._receive", "receive", ("module.c",)),
        extension(
            "cafs._digest",
            "digest",
            ("module.c", "../common/hash.c", "../common/hash_avx2.c"),
            "crypto",
        ),
    ]
)
