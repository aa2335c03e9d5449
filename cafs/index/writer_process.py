"""The process that writes the index: one LMDB transaction with sync for each batch it is sent.

It is a process and not a thread because a commit is thousands of puts, and in a thread each of
them takes the interpreter from the event loop for a moment: in a measurement the loop answered
17,500 requests a second beside a committing thread, 27,600 beside this process
(docs/decisions/0003-writer-process.md).

Speaks frames over standard input and output: an 8-byte little-endian length, then a marshal of
``(command, argument)``; answers ``(ok, kind, text)``.  marshal is safe here: both ends are the
same interpreter, and a frame that is not whole is never looked at.  Each value gets its check
here, where that keeps nobody waiting.  Ends at end of file, so it dies with its parent.  It
holds the store's lock (an inherited descriptor) as long as it lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import marshal
import os
import select
import signal
import struct
import sys
from typing import Any, BinaryIO

import lmdb

from cafs._index import seal
from cafs.index import layout, shrink
from cafs.index.env import MAP_SIZE, MAX_READERS

_LENGTH = struct.Struct("<Q")
FULL_BYTES = 256 << 10
"""A disk with less than this left counts as full."""
REST_S = 60.0
"""After so long without a batch the index is closed: its pages count as this process's memory.
The heap that batches took is given back then, too."""


def _open(directory: str) -> tuple[lmdb.Environment, list[Any]]:
    env = lmdb.open(
        directory,
        map_size=MAP_SIZE,
        max_dbs=len(layout.DATABASES) + 1,
        max_readers=MAX_READERS,
        readahead=False,
        mode=0o600,
    )
    env.reader_check()
    return env, [env.open_db(name) for name in layout.DATABASES]


def _write(env: lmdb.Environment, databases: list[Any], layer: list[dict[bytes, Any]]) -> None:
    with env.begin(write=True) as txn:
        for number, changes in enumerate(layer):
            if not changes:
                continue
            database = databases[number]
            last = b""
            if number in layout.SEQUENTIAL:
                with txn.cursor(database) as cursor:
                    last = cursor.key() if cursor.last() else b""
            # In key order neighbours share pages, which then are copied and written once.
            for key in sorted(changes):
                value = changes[key]
                if value is None:
                    txn.delete(key, db=database)
                else:
                    append = number in layout.SEQUENTIAL and key > last
                    txn.put(key, seal(number, key, value), db=database, append=append)
                    if append:
                        last = key


def _answer(
    env: lmdb.Environment, databases: list[Any], command: str, argument: Any
) -> tuple[bool, str, str]:
    try:
        if command == "write":
            _write(env, databases, argument)
        elif command == "copy":
            env.copy(argument, compact=True)
        elif command == "prepare shrunk":
            shrink.prepare(env)
        elif command == "replace with shrunk":
            shrink.replace(env)
        else:
            return False, "defect", f"unknown command {command}"
    except lmdb.MapFullError as error:
        return False, "full", str(error)
    except (lmdb.Error, OSError) as error:
        return False, kind_of(error, env.path()), f"{error}"
    return True, "", ""


def kind_of(error: Exception, directory: str) -> str:
    """What the parent is to make of an error."""
    if isinstance(error, lmdb.CorruptedError | lmdb.PageNotFoundError):
        return "damaged"
    code = getattr(error, "code", 0) or getattr(error, "errno", 0) or 0
    if code == errno.EIO and _is_full(directory):
        # LMDB's word for a write that the disk took only a part of.
        return "full"
    kinds = {errno.ENOSPC: "full", errno.EDQUOT: "full", errno.EROFS: "readonly"}
    return kinds.get(code, "io")


def _is_full(directory: str) -> bool:
    figures = os.statvfs(directory)
    # Not f_bfree, for root either: ext4 keeps blocks back that nobody can have.
    return figures.f_bavail * figures.f_frsize < FULL_BYTES


def _read_exactly(stream: BinaryIO, length: int) -> bytes | None:
    pieces = bytearray()
    while len(pieces) < length:
        piece = stream.read(length - len(pieces))
        if not piece:
            return None
        pieces += piece
    return bytes(pieces)


def _give_back() -> None:
    """Give free heap back.  Does nothing with another C library than glibc."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def main(directory: str) -> int:
    """Serve until end of file."""
    # Ctrl-C and service managers signal the whole group: only the parent decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    opened: tuple[lmdb.Environment, list[Any]] | None = None
    while True:
        # Between two frames nothing is left in the buffer, so that the descriptor tells.
        if opened and not select.select([source], [], [], REST_S)[0]:
            opened[0].close()
            opened = None
            _give_back()
        head = _read_exactly(source, _LENGTH.size)
        if head is None:
            return 0
        frame = _read_exactly(source, _LENGTH.unpack(head)[0])
        if frame is None:
            return 0
        command, argument = marshal.loads(frame)
        try:
            # Opened at the first batch and again after a failure to: the disk may have
            # come back meanwhile.
            opened = opened or _open(directory)
        except lmdb.Error as error:
            answer = (False, kind_of(error, directory), str(error))
        else:
            answer = _answer(*opened, command, argument)
            if not answer[0] or command == "replace with shrunk":
                # After a failed write of its meta page LMDB refuses all further work, and
                # after a replacement this is a file without a name.
                opened[0].close()
                opened = None
        # A batch is megabytes, and the next one may be far away.
        del frame, argument
        reply = marshal.dumps(answer)
        try:
            sink.write(_LENGTH.pack(len(reply)) + reply)
            sink.flush()
        except BrokenPipeError:
            # The daemon was killed; what it asked for is done.
            return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
