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
    hashed: bool = True,
) -> tuple[list[int], bytes]:
    """The ends of all certain slices, and their 32-byte SHA-256 digests joined.

    *data* begins at a cut and has at most 2**31 bytes.  Sizes are in bytes.  With *final* the
    last end is ``len(data)``.  ``hashed=False`` leaves the digests out.  Raises ValueError for
    sizes out of bounds.
    """

def sha256_many(data: ReadableBuffer, ends: Sequence[int], *, kernel: str = "auto") -> bytes:
    """The 32-byte SHA-256 digests, joined, of the slices of *data* that end at *ends*.

    Raises ValueError unless the ends ascend and lie within *data*, and for a kernel that is
    not among :func:`sha256_kernels` or ``auto``.
    """

def sha256_kernels() -> list[str]:
    """The SHA-256 kernels that this machine can run: ``openssl``, ``avx2``, ``avx512``."""
