"""Content for single large files: incompressible, or like the source text of the corpus.

Invariant: the same seed gives the same bytes, and different repetitions share no chunk.
"""

from __future__ import annotations

from pathlib import Path

from bench.work.base import Context

KINDS = ("random", "text")
_BLOCK_LINES = 40
_PIECE = 1 << 20


def write_source(context: Context, kind: str, size: int, repetition: int) -> Path:
    """Write *size* bytes of *kind* into the scratch directory and return the path."""
    path = context.scratch / f"{kind}-{repetition}"
    random = context.random(kind, repetition)
    with path.open("wb") as out:
        if kind == "random":
            for _ in range(0, size, _PIECE):
                out.write(random.randbytes(_PIECE))
        else:
            blocks = _text_blocks(context.corpus)
            while out.tell() < size:
                # Blocks of lines in a new order: compresses like source, repeats no chunk.
                out.write(b"".join(random.choices(blocks, k=256)))
        out.truncate(size)
    return path


def _text_blocks(corpus: Path) -> list[bytes]:
    lines: list[bytes] = []
    for path in sorted((corpus / "releases" / "Django").glob("*/django/**/*.py")):
        lines += path.read_bytes().splitlines(keepends=True)
        if len(lines) > 150_000:
            break
    step = _BLOCK_LINES
    return [b"".join(lines[at : at + step]) for at in range(0, len(lines), step)]
