"""native/fetch/module.c: reading, checking and unfolding stored chunks, the GIL released once."""

from collections.abc import Sequence

class BadChunk(Exception):
    """A chunk is not what was stored; *args* are its place among all chunks of the call, and
    what its bytes do wrong."""

def read_run(
    fd: int, offset: int, chunks: Sequence[tuple[int, int, int, int]], nowait: bool
) -> bytes | None:
    """The raw bytes of chunks that lie side by side in a pack from *offset* on.

    Each is given by its stored length, codec, raw length and the XXH3-64 of its stored bytes.
    With *nowait* None instead of waiting for the disk.  Raises BadChunk for the first one that
    is not what was stored, OSError when it cannot be read, ValueError for runs above 2**31
    bytes.
    """

def read_pieces(
    pieces: Sequence[bytes | tuple[int, int, Sequence[tuple[int, int, int, int]]]], nowait: bool
) -> bytes | None:
    """One behind the other: bytes as they are, and runs of chunks as read_run() reads them.

    A run is given by descriptor, offset and chunks.  With *nowait* None instead of waiting for
    the disk.  Raises what read_run() raises.
    """
