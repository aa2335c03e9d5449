"""Declares the C extension; everything else about the package is in pyproject.toml."""

from pathlib import Path

from setuptools import Extension, setup

SOURCE_DIR = Path("native/chunker")
SOURCES = ("module.c", "cut.c", "sha256.c", "sha256_lanes.c", "split.c", "zip_marks.c")

setup(
    ext_modules=[
        Extension(
            "cafs._chunker",
            sources=[str(SOURCE_DIR / name) for name in SOURCES],
            depends=[str(path) for path in sorted(SOURCE_DIR.glob("*.h"))],
            include_dirs=[str(SOURCE_DIR)],
            libraries=["crypto"],
            extra_compile_args=[
                "-std=c11",
                "-O3",
                "-Wall",
                "-Wextra",
                "-Wconversion",
                "-Wshadow",
            ],
        )
    ]
)
