"""native/chunker/module.c: cutting and hashing with the GIL released once per call."""

from collections.abc import Sequence

from _typeshed import ReadableBuffer

def split(
    data: ReadableBuffer,
    min_size: int,
    avg_size: int,
    max_size: int,
    final: bool,
    zip_members: bool,
    *,
    left: ReadableBuffer = b"",
) -> list[int]:
    """The ends of all certain slices.

    *left*, which begins at a cut, comes before *data*; ends count from its first byte.  Both
    have at most 2**31 bytes.  Sizes are in bytes.  With *final* the last end is that of *data*.
    Raises ValueError for sizes out of bounds.
    """

def sha256_each(buffers: Sequence[ReadableBuffer], *, kernel: str = "auto") -> bytes:
    """The 32-byte SHA-256 digests, joined, of some buffers.

    Raises ValueError for a kernel that is not among :func:`sha256_kernels` or ``auto``.
    """

def sha256_kernels() -> list[str]:
    """The SHA-256 kernels that this machine can run.

    Among ``openssl``, ``avx2``, ``avx512`` (eight lanes each) and ``avx512-wide`` (sixteen).
    """
