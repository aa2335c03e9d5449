"""A random exerciser of one file's data: every way in and out, against a model in memory.

Owns the file it is given and a bytearray that says what must be in it.  Invariant: after each
step any byte that is read, by whichever way, is that of the model.
`python -m tests.mount.fsx FILE` runs it by hand; the seed that failed repeats the failure.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

PAGE = mmap.PAGESIZE
_IO_SETUP, _IO_DESTROY, _IO_GETEVENTS, _IO_SUBMIT = 206, 207, 208, 209
_IOCB_PREAD, _IOCB_PWRITE = 0, 1
_libc = ctypes.CDLL(None, use_errno=True)


class Mismatch(AssertionError):
    """The file differs from the model; says where, and after which steps."""


@dataclass
class Exerciser:
    """Steps on one file; *ways* says which kinds of I/O may be used."""

    path: Path
    seed: int
    ways: frozenset[str] = frozenset({"plain", "mmap", "vector", "truncate", "reopen"})
    max_size: int = 256 * 1024
    max_piece: int = 64 * 1024
    model: bytearray = field(default_factory=bytearray)
    history: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)
        self._align = PAGE if "direct" in self.ways else 1
        self._flags = os.O_RDWR | (os.O_DIRECT if "direct" in self.ways else 0)
        self._fd = os.open(self.path, self._flags | os.O_CREAT | os.O_TRUNC, 0o644)
        self._context = ctypes.c_ulong()
        if "aio" in self.ways:
            _check(_libc.syscall(_IO_SETUP, 8, ctypes.byref(self._context)), "io_setup")

    def close(self) -> None:
        """Close the file; what it holds stays."""
        if self._context:
            _libc.syscall(_IO_DESTROY, self._context)
        os.close(self._fd)

    def run(self, steps: int) -> None:
        """Take *steps* random steps, then compare the whole file."""
        table = self._table()
        for _ in range(steps):
            name, step = self._rng.choice(table)
            self.history.append(name)
            step()
            size = os.fstat(self._fd).st_size
            if size != len(self.model):
                raise Mismatch(self._story(f"size {size} instead of {len(self.model)}"))
        self.history.append("end")
        self._drop()
        self._compare(0, self.path.read_bytes(), len(self.model))

    def _table(self) -> list[tuple[str, Callable[[], None]]]:
        table: list[tuple[str, Callable[[], None]]] = [
            ("read", self._read),
            ("read", self._read),
            ("write", self._write),
            ("write", self._write),
        ]
        if "mmap" in self.ways:
            table += [("map read", self._map_read), ("map write", self._map_write)] * 2
        if "truncate" in self.ways:
            table += [("truncate", self._truncate)]
        if "append" in self.ways:
            table += [("append", self._append)]
        if "reopen" in self.ways:
            table += [("reopen", self._reopen), ("sync", lambda: os.fsync(self._fd))]
            table += [("drop", self._drop)] * 2
        if "aio" in self.ways:
            table += [("aio read", self._aio_read), ("aio write", self._aio_write)] * 2
        return table

    # Where and how much

    def _span(self, within: int) -> tuple[int, int]:
        """A random offset and length below *within*, aligned as this way of I/O asks."""
        offset = self._rng.randrange(max(min(within, self.max_size), 1))
        length = self._rng.randint(1, self.max_piece)
        if self._rng.random() < 0.3:
            offset -= offset % PAGE
        offset -= offset % self._align
        length += -length % self._align
        return offset, min(length, self.max_size - offset)

    def _piece(self, length: int) -> bytes:
        kind = self._rng.random()
        if kind < 0.2:
            return bytes(length)
        if kind < 0.5:
            return bytes([self._rng.randrange(256)]) * length
        return self._rng.randbytes(length)

    def _put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data
        self.history[-1] += f" {offset}+{len(data)}"

    def _compare(self, offset: int, got: bytes, asked: int) -> None:
        want = bytes(self.model[offset : offset + asked])
        if got == want:
            return
        at = next(
            (i for i, (a, b) in enumerate(zip(got, want, strict=False)) if a != b),
            min(len(got), len(want)),
        )
        raise Mismatch(
            self._story(
                f"at {offset + at} (asked {offset}+{asked}, got {len(got)} bytes): "
                f"{got[at : at + 16].hex()} instead of {want[at : at + 16].hex()}"
            )
        )

    def _story(self, what: str) -> str:
        last = "\n  ".join(self.history[-30:])
        return f"seed {self.seed}, step {len(self.history)}: {what}\n  {last}"

    # Plain and direct

    def _read(self) -> None:
        offset, length = self._span(len(self.model) + 100)
        buffer = mmap.mmap(-1, length)  # page-aligned, for O_DIRECT
        got = os.preadv(self._fd, [buffer], offset)
        self._compare(offset, buffer[:got], length)

    def _write(self) -> None:
        offset, length = self._span(self.max_size)
        data = self._piece(length)
        buffer = mmap.mmap(-1, length)
        buffer[:] = data
        if "vector" in self.ways and length > 10 and self._align == 1:
            cut = self._rng.randrange(1, length)
            done = os.pwritev(self._fd, [data[:cut], data[cut:]], offset)
        else:
            done = os.pwritev(self._fd, [buffer], offset)
        if done != length:
            raise Mismatch(self._story(f"wrote {done} of {length}"))
        self._put(offset, data)

    def _append(self) -> None:
        length = min(self._rng.randint(1, 5000), self.max_size - len(self.model))
        if length <= 0:
            return
        data = self._piece(length)
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        self._put(len(self.model), data)

    def _truncate(self) -> None:
        size = self._rng.randrange(self.max_size)
        size -= size % self._align
        os.ftruncate(self._fd, size)
        if size < len(self.model):
            del self.model[size:]
        else:
            self.model.extend(bytes(size - len(self.model)))
        self.history[-1] += f" {size}"

    def _reopen(self) -> None:
        os.close(self._fd)
        self._fd = os.open(self.path, self._flags)

    def _drop(self) -> None:
        """Have the kernel forget its pages, so that the next reads are the filesystem's own.

        Without the sync dirty pages of maps stay, and what was written may be anywhere.
        """
        if self._rng.random() < 0.5:
            os.fdatasync(self._fd)
        os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)

    # Memory maps

    def _map_read(self) -> None:
        offset, length = self._span(len(self.model))
        length = min(length, len(self.model) - offset)
        if length <= 0:
            return
        first = offset - offset % mmap.ALLOCATIONGRANULARITY
        span = offset - first + length
        with mmap.mmap(self._fd, span, prot=mmap.PROT_READ, offset=first) as view:
            self._compare(offset, view[offset - first :], length)

    def _map_write(self) -> None:
        offset, length = self._span(len(self.model))
        length = min(length, len(self.model) - offset)
        if length <= 0:
            return
        data = self._piece(length)
        first = offset - offset % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(self._fd, offset - first + length, offset=first) as view:
            view[offset - first :] = data
            if self._rng.random() < 0.5 or "direct" in self.ways:
                view.flush()
        self._put(offset, data)

    # Asynchronous I/O of the kernel (io_submit), several requests at once

    def _aio_read(self) -> None:
        spans = [self._span(max(len(self.model), 1)) for _ in range(4)]
        buffers = [mmap.mmap(-1, length) for _, length in spans]
        got = self._submit(_IOCB_PREAD, spans, buffers)
        for (offset, length), buffer, count in zip(spans, buffers, got, strict=True):
            self._compare(offset, buffer[:count], length)

    def _aio_write(self) -> None:
        # Disjoint ranges: the order in which they finish is nobody's promise.
        slot = self.max_size // 4
        spans, pieces = [], []
        for i in range(4):
            offset = i * slot + self._rng.randrange(slot // 2)
            offset -= offset % PAGE
            length = self._rng.randint(1, slot // 4)
            spans.append((offset, length + -length % self._align))
            pieces.append(self._piece(spans[-1][1]))
        buffers = [mmap.mmap(-1, len(piece)) for piece in pieces]
        for buffer, piece in zip(buffers, pieces, strict=True):
            buffer[:] = piece
        done = self._submit(_IOCB_PWRITE, spans, buffers)
        if done != [length for _, length in spans]:
            raise Mismatch(self._story(f"wrote {done} of {spans}"))
        for (offset, _), piece in zip(spans, pieces, strict=True):
            self._put(offset, piece)

    def _submit(
        self, opcode: int, spans: list[tuple[int, int]], buffers: list[mmap.mmap]
    ) -> list[int]:
        """Submit all at once; the results in the order of *spans*."""
        blocks = []
        for i, ((offset, length), buffer) in enumerate(zip(spans, buffers, strict=True)):
            address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
            raw = struct.pack(
                "=QIIHhIQQqQII", i, 0, 0, opcode, 0, self._fd, address, length, offset, 0, 0, 0
            )
            blocks.append(ctypes.create_string_buffer(raw, len(raw)))
        pointers = (ctypes.c_void_p * len(blocks))(*(ctypes.addressof(b) for b in blocks))
        count = len(blocks)
        sent = _check(_libc.syscall(_IO_SUBMIT, self._context, count, pointers), "io_submit")
        events = ctypes.create_string_buffer(32 * sent)
        _check(
            _libc.syscall(_IO_GETEVENTS, self._context, sent, sent, events, None), "io_getevents"
        )
        results = [0] * sent
        for i in range(sent):
            index, _, result, _ = struct.unpack_from("=QQqq", events, 32 * i)
            if result < 0:
                raise Mismatch(self._story(f"aio: errno {-result}"))
            results[index] = result
        return results


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


MODES: dict[str, frozenset[str]] = {
    "plain": frozenset({"plain", "vector", "truncate", "append", "reopen"}),
    "mmap": frozenset({"plain", "mmap", "truncate", "append", "reopen"}),
    "direct": frozenset({"direct", "truncate", "reopen"}),
    "direct and mmap": frozenset({"direct", "mmap", "truncate", "reopen"}),
    "aio": frozenset({"aio", "plain", "truncate", "reopen"}),
    "direct aio": frozenset({"aio", "direct", "truncate", "reopen"}),
    "all but direct": frozenset({"plain", "vector", "mmap", "truncate", "append", "reopen", "aio"}),
}


def main() -> None:
    """Run by hand: each mode, many seeds."""
    parser = argparse.ArgumentParser(description="random I/O on one file against a model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--mode", choices=sorted(MODES), action="append")
    parser.add_argument("--max-size", type=int, default=256 * 1024)
    options = parser.parse_args()
    for mode in options.mode or MODES:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            exerciser = Exerciser(options.file, seed, MODES[mode], max_size=options.max_size)
            exerciser.run(options.steps)
            exerciser.close()
        print(f"{mode}: {options.seeds} seeds of {options.steps} steps")


if __name__ == "__main__":
    main()
