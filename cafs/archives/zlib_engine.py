"""The engine of wheels, jars and most other zips: zlib, as a library that is loaded by file.

Not Python's zlib module: which library that is linked to cannot be chosen, so a copy kept from
before an upgrade could not be used.  Invariant: deflate() is always called with the same pieces
of the stream, whole multiples of one size, and with a fresh buffer of one size, so that what
comes out is a function of the content alone, even for a zlib whose output depends on either.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
import time
from pathlib import Path
from typing import Final

from cafs.archives.engine import Buffer, Params
from cafs.archives.program import Program
from cafs.errors import EngineError

KIND: Final = "zlib"
STEP: Final = 256 << 10
"""Raw bytes that one call of deflate() is given, but for the last."""
_OUT_SIZE: Final = STEP + (16 << 10)

_Z_NO_FLUSH, _Z_FINISH = 0, 4
_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR = 0, 1, -5
_Z_DEFLATED: Final = 8
_RAW_WINDOW: Final = -15
"""windowBits of deflateInit2: a window of 32 KiB, and neither header nor trailer."""


class _ZStream(ctypes.Structure):
    """z_stream of zlib.h."""

    _fields_ = (
        ("next_in", ctypes.c_char_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


class _DlInfo(ctypes.Structure):
    """Dl_info of dlfcn.h."""

    _fields_ = (
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    )


_loading: Final = threading.Lock()
_loaded: Final[dict[str, ctypes.CDLL]] = {}
_loads: Final = itertools.count()


class ZlibEngine:
    """One libz.  Any thread; the interpreter lock is let go of while it compresses."""

    kind: Final = KIND

    def __init__(self, program: Program, library: ctypes.CDLL, version: bytes) -> None:
        """Use :meth:`identify`."""
        self.program = program
        self.version = f"zlib {version.decode(errors='replace')}"
        self.library = library
        self.raw_version = version
        """What deflateInit2_ wants to hear: it compares the first character with its own."""

    @classmethod
    def identify(cls, program: Program) -> ZlibEngine:
        """The engine that a library is.

        Raises :class:`EngineError` when it cannot be loaded or is no zlib.  It stays loaded as
        long as the process lives.
        """
        try:
            library = _load(program)
            version = library.zlibVersion()
        except (OSError, AttributeError) as error:
            raise EngineError(f"{program.path} is not zlib: {error}") from error
        return cls(program, library, version or b"")

    def compressor(self, params: int, *, background: bool) -> ZlibCompressor:
        """Begin a stream; *background* is the calling thread's business here."""
        level, mem_level, strategy = Params.unpack(params)
        # Level 0 only copies, and where it cuts depends on how it is called.
        if not 1 <= level <= 9 or not 1 <= mem_level <= 9 or strategy > 4:
            raise EngineError(f"zlib knows no parameters {params:#06x}")
        return ZlibCompressor(self, level, mem_level, strategy)


def _load(program: Program) -> ctypes.CDLL:
    """The library with those bytes; loaded once in a process, and then for good."""
    with _loading:
        library = _loaded.get(program.sha256)
        if library is not None:
            return library
        with program.image() as fd:
            # The loader knows a library by the path it was loaded from, so none may come twice:
            # descriptors do, but not with that many slashes in front.
            path = f"/proc/self/{'/' * next(_loads)}fd/{fd}"
            # DEEPBIND: its calls of its own functions must not end in the zlib that Python
            # itself is linked to.
            mode = os.RTLD_NOW | os.RTLD_LOCAL | os.RTLD_DEEPBIND
            library = ctypes.CDLL(path, mode=mode)
        library.zlibVersion.restype = ctypes.c_char_p
        pointer = ctypes.POINTER(_ZStream)
        library.deflateInit2_.argtypes = (
            pointer,
            *(ctypes.c_int,) * 5,
            ctypes.c_char_p,
            ctypes.c_int,
        )
        library.deflate.argtypes = (pointer, ctypes.c_int)
        library.deflateEnd.argtypes = (pointer,)
        _loaded[program.sha256] = library
        return library


class ZlibCompressor:
    """A z_stream; see :class:`cafs.archives.engine.Compressor`."""

    def __init__(self, engine: ZlibEngine, level: int, mem_level: int, strategy: int) -> None:
        self._library = engine.library
        self._stream = _ZStream()
        self._pointer = ctypes.pointer(self._stream)
        self._open = False
        self._waiting = bytearray()
        """What does not fill a step yet."""
        self._cpu_s = 0.0
        status = engine.library.deflateInit2_(
            self._pointer,
            level,
            _Z_DEFLATED,
            _RAW_WINDOW,
            mem_level,
            strategy,
            engine.raw_version,
            ctypes.sizeof(_ZStream),
        )
        if status != _Z_OK:
            raise EngineError(f"{engine.version}: deflateInit2 says {status}")
        self._open = True
        self._out = ctypes.create_string_buffer(_OUT_SIZE)
        self._out_address = ctypes.addressof(self._out)

    def feed(self, data: Buffer) -> bytes:
        """Compress the steps that are full now."""
        waiting = self._waiting
        if not waiting and len(data) == STEP:
            return b"".join(self._deflate(data, _Z_NO_FLUSH))
        got: list[bytes] = []
        view = memoryview(data)
        while len(waiting) + len(view) >= STEP:
            missing = STEP - len(waiting)
            if waiting:
                waiting += view[:missing]
                got += self._deflate(waiting, _Z_NO_FLUSH)
                waiting.clear()
            else:
                got += self._deflate(view[:missing], _Z_NO_FLUSH)
            view = view[missing:]
        waiting += view
        return b"".join(got)

    def finish(self) -> bytes:
        """Compress the rest, and end the stream."""
        stream = b"".join(self._deflate(self._waiting, _Z_FINISH))
        self._waiting = bytearray()
        return stream

    def cpu_s(self) -> float:
        """Seconds of a processor that it has taken so far."""
        return self._cpu_s

    def close(self) -> None:
        """Give zlib's memory back."""
        if self._open:
            self._open = False
            self._library.deflateEnd(self._pointer)

    def __del__(self) -> None:
        self.close()

    def _deflate(self, data: Buffer, flush: int) -> list[bytes]:
        """deflate() until it wants more, or is at its end."""
        if not self._open:
            raise EngineError("zlib was fed after its end")
        stream = self._stream
        # Held by this name until the last call: zlib has its address.
        held = data if isinstance(data, bytes) else bytes(data)
        stream.next_in = held
        stream.avail_in = len(held)
        got = []
        began = time.thread_time()
        while True:
            stream.next_out = self._out_address
            stream.avail_out = _OUT_SIZE
            status = self._library.deflate(self._pointer, flush)
            if status not in (_Z_OK, _Z_STREAM_END, _Z_BUF_ERROR):
                raise EngineError(f"zlib: deflate says {status}")
            made = _OUT_SIZE - stream.avail_out
            if made:
                got.append(ctypes.string_at(self._out, made))
            if stream.avail_out and (flush == _Z_NO_FLUSH or status == _Z_STREAM_END):
                break
            if status == _Z_STREAM_END:
                break
            if not made:
                raise EngineError("zlib: deflate makes no end")
        self._cpu_s += time.thread_time() - began
        if stream.avail_in:
            raise EngineError("zlib: deflate leaves input behind")
        return got


def machine_library() -> Path:
    """The libz that the machine's loader gives to a program that asks for it.

    Raises :class:`EngineError` when there is none.
    """
    try:
        library = ctypes.CDLL("libz.so.1")
        address = ctypes.cast(library.deflate, ctypes.c_void_p)
        own = ctypes.CDLL(None)
        info = _DlInfo()
        if own.dladdr(address, ctypes.byref(info)) and info.dli_fname:
            return Path(os.fsdecode(info.dli_fname)).resolve()
    except (OSError, AttributeError) as error:
        raise EngineError(f"there is no zlib: {error}") from error
    raise EngineError("the loader does not say where zlib is")
