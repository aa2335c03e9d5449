"""Which kinds of engines there are, how the machine's program of each is found, and how known.

Invariant: what identify() gives has made a stream that holds what it should.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from cafs.archives import gnu_gzip, zlib_engine
from cafs.archives.engine import Engine, Params
from cafs.archives.gnu_gzip import GnuGzip
from cafs.archives.program import Program
from cafs.archives.trial import compress
from cafs.archives.zlib_engine import ZlibEngine
from cafs.errors import EngineError

_IDENTIFY: Final[Mapping[str, Callable[[Program], Engine]]] = {
    gnu_gzip.KIND: GnuGzip.identify,
    zlib_engine.KIND: ZlibEngine.identify,
}
KINDS: Final = tuple(_IDENTIFY)
TRY_PARAMS: Final = {gnu_gzip.KIND: Params(6).pack(), zlib_engine.KIND: Params(6, 8).pack()}
_TRY_BYTES: Final = hashlib.shake_128(b"cafs").hexdigest(40_000).encode() * 2


def find_program(kind: str) -> Path | None:
    """The file of the machine's program of a kind; None if there is none.

    Raises :class:`EngineError` when the loader has no zlib.
    """
    if kind == zlib_engine.KIND:
        return zlib_engine.machine_library()
    # A daemon may be started with no PATH at all.
    found = shutil.which("gzip") or shutil.which("gzip", path=os.defpath)
    return Path(found) if found else None


def identify(kind: str, program: Program) -> Engine:
    """The engine that a program is.  Raises :class:`EngineError` if it is none of this kind."""
    engine = _IDENTIFY[kind](program)
    made = compress(engine, TRY_PARAMS[kind], _TRY_BYTES, background=False)
    try:
        sound = zlib.decompress(made, -zlib.MAX_WBITS) == _TRY_BYTES
    except zlib.error:
        sound = False
    if not sound:
        raise EngineError(f"{program.path} ({engine.version}) makes no sound streams")
    return engine
