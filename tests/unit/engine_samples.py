"""Raw bytes that are worth compressing, and programs that lie about being gzip."""

from __future__ import annotations

import functools
import hashlib
import random
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from cafs.archives.engine import Buffer, Compressor

MACHINE_GZIP = Path("/usr/bin/gzip")


def text(size: int, seed: int = 1) -> bytes:
    """Words with repetitions, so that levels and engines differ."""
    chance = random.Random(seed)
    words = [hashlib.sha256(b"%d" % n).hexdigest()[: 2 + n % 9] for n in range(400)]
    parts: list[str] = []
    length = 0
    while length < size:
        word = words[min(chance.randrange(400), chance.randrange(400))]
        parts.append(word)
        length += len(word) + 1
    return " ".join(parts).encode()[:size]


def run(compressor: Compressor, data: Buffer, step: int = 256 << 10) -> bytes:
    """The whole stream that holds *data*, fed in pieces of *step* bytes."""
    view = memoryview(data)
    try:
        out = [compressor.feed(view[at : at + step]) for at in range(0, len(view), step)]
        return b"".join((*out, compressor.finish()))
    finally:
        compressor.close()


_STUB = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments)
{
    unsigned long size;
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    off_t end = lseek(self, 0, SEEK_END) - (off_t)sizeof size;
    if (pread(self, &size, sizeof size, end) != (ssize_t)sizeof size)
        return 125;
    char *script = calloc(1, size + 1);
    char **given = calloc((size_t)count + 4, sizeof *given);
    if (!script || !given || pread(self, script, size, end - (off_t)size) != (ssize_t)size)
        return 126;
    given[0] = "sh", given[1] = "-c", given[2] = script, given[3] = "gzip";
    memcpy(given + 4, arguments + 1, (size_t)(count - 1) * sizeof *given);
    execv("/bin/sh", given);
    return 127;
}
"""


@functools.cache
def _stub() -> bytes:
    """A program that runs the shell commands that stand behind it in its own file."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory) / "stub.c"
        source.write_text(_STUB)
        subprocess.run([compiler, "-O1", "-o", source.with_suffix(""), source], check=True)
        return source.with_suffix("").read_bytes()


def binary(path: Path, script: str) -> Path:
    """A program that does what a shell script does, and is none: engines are binaries."""
    path.write_bytes(_stub() + script.encode() + len(script.encode()).to_bytes(8, "little"))
    path.chmod(0o755)
    return path


def liar(directory: Path, body: str, version: str = "gzip 1.12") -> Path:
    """A program that calls itself *version*, and runs shell commands when it should compress."""
    script = f'[ "$1" = --version ] && {{ echo "{version}"; exit; }}\n{body}\n'
    return binary(directory / "gzip", script)
