"""C of ours as a program of its own, under address and undefined-behaviour sanitizers."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

NATIVE = Path(__file__).parents[2] / "native"
_FLAGS = (
    *("-g", "-O1", "-fno-omit-frame-pointer"),
    *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror"),
)


def build(target: Path, directory: str, sources: Sequence[str], arguments: Sequence[str]) -> Path:
    """Compile *sources* of ``native/DIRECTORY`` into the program *target*.

    *arguments* are the C standard, more directories of headers, and libraries.
    """
    if shutil.which("gcc") is None:
        pytest.skip("gcc is not installed")
    command = ["gcc", *_FLAGS, *[str(NATIVE / directory / name) for name in sources]]
    built = subprocess.run(
        [*command, *arguments, "-o", str(target)], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return target


def run(program: Path, *arguments: object) -> None:
    """Run it to its end; a sanitizer that complains fails the test with what it says."""
    done = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
