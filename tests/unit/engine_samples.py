"""Raw bytes that are worth compressing, and programs that lie about being gzip."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

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


def liar(directory: Path, body: str, version: str = "gzip 1.12") -> Path:
    """A program that calls itself *version*, and runs shell commands when it should compress."""
    path = directory / "gzip"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && {{ echo "{version}"; exit; }}\n{body}\n')
    path.chmod(0o755)
    return path
