"""native/receive/module.c: what a fast sender has for us, the GIL released once."""

def many(fd: int, size: int, patience_ms: int, most_ms: int, /) -> bytes:
    """Up to *size* bytes from a socket, as long as more come within *patience_ms*.

    Fewer, perhaps none: nothing came for so long, *most_ms* were over, or that was the end;
    asking again tells.
    Raises OSError for a connection that is broken, ValueError for a size that is not above 0.
    """
