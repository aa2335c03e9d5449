"""The daemon's end of the control socket: questions and orders of the command line.

One JSON object a line, as cafs.control says.  Each command is one small method; whatever it
raises reaches the caller as the class that it was.
"""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import trio

from cafs.control import AWAIT_END, MAX_LINE_BYTES, NAME, error_fields
from cafs.errors import CafsError, UsageError
from cafs.mount import translate
from cafs.mount.damage import DamageReporter
from cafs.mount.farewell import Farewell
from cafs.mount.kernel import Tuning
from cafs.operate.ageing import Ageing
from cafs.operate.ageing_job import Job
from cafs.operate.compact import Compactor, OnProgress
from cafs.operate.condemn import condemn_in
from cafs.operate.give_back import compact_now, sweep_now
from cafs.operate.index_copy import IndexCopier
from cafs.operate.sweep import Sweeper
from cafs.store import Store

log = logging.getLogger(__name__)

SIGN_OF_LIFE_S = 1.0

Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Caller:
    """Who asks: called with what is to be sent."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def __call__(self, answer: dict[str, Any]) -> None:
        await self.stream.send_all(json.dumps(answer).encode() + b"\n")


class ControlSocket:
    """The control socket of a store whose lock is held.  Whoever connects before it is served
    waits: to a command a mount that is there is one that answers."""

    def __init__(self, store: Path) -> None:
        self._path = store / NAME
        self.socket: socket.socket | None = None
        """None, and a line in the log, where there can be none."""
        try:
            self._path.unlink(missing_ok=True)
            self.socket = _listen(self._path)
        except OSError as error:
            log.warning("no control socket %s: %s", self._path, error.strerror)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more connections, and remove it; again is no harm."""
        if self.socket is not None:
            listening, self.socket = self.socket, None
            listening.close()
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                # A read-only disk: a socket that nobody listens on does no harm.
                log.info("%s is left behind: %s", self._path, error.strerror)


class ControlServer:
    """Serves one store's control socket."""

    def __init__(
        self,
        store: Store,
        mountpoint: Path,
        tuning: list[Tuning],
        damage: DamageReporter,
        farewell: Farewell,
    ) -> None:
        self._store = store
        self._farewell = farewell
        self._damage = damage
        self._mountpoint = mountpoint
        self._tuning = tuning
        self.sweeper = Sweeper(store)
        self.compactor = Compactor(store)
        self.copier = IndexCopier(store)
        self.ageing = Ageing(store)
        self._commands: dict[str, Callable[..., Awaitable[dict[str, Any]]]] = {
            "status": self._status,
            "commit": self._commit,
            "sweep": self._sweep,
            "compact": self._compact,
            "condemn": self._condemn,
            "copy_index": self._copy_index,
            "age": self._age,
            "pause_ageing": self._pause_ageing,
            AWAIT_END: self._await_end,
        }

    async def run(self, control: ControlSocket) -> None:
        """Answer whoever connects, until cancelled."""
        with control:
            if control.socket is not None:
                taken = trio.socket.from_stdlib_socket(control.socket)
                await trio.serve_listeners(self._serve, [trio.SocketListener(taken)])

    async def _serve(self, stream: trio.SocketStream) -> None:
        send = _Caller(stream)
        try:
            request = bytearray()
            while not request.endswith(b"\n"):
                piece = await stream.receive_some(65536)
                if not piece or len(request) > MAX_LINE_BYTES:
                    return
                request += piece
            await send(await self._answer(bytes(request), send))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # The caller went away; what it ordered has been done all the same.
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _answer(self, line: bytes, send: _Caller) -> dict[str, Any]:
        try:
            request = json.loads(line)
            command = self._commands.get(request.pop("command", ""))
            if command is None:
                raise UsageError("the daemon does not know this command; is it an older cafs?")
            return {"ok": True} | await command(send, **request)
        except CafsError as error:
            return {"ok": False} | error_fields(error)
        except (trio.BrokenResourceError, trio.Cancelled):
            raise
        except Exception as defect:
            log.exception("defect in a control command")
            return {"ok": False} | error_fields(CafsError(f"defect in the daemon: {defect!r}"))

    async def _status(self, send: Send) -> dict[str, Any]:
        answer = self._store.status()
        answer["mountpoint"] = str(self._mountpoint)
        answer["pid"] = os.getpid()
        answer["defects_count"] = translate.defects
        answer["damaged_reads_count"] = self._damage.count
        answer["kernel"] = {
            each.name: each.value or f"not set: {each.problem}" for each in self._tuning
        }
        return answer

    async def _commit(self, send: Send) -> dict[str, Any]:
        await self._store.sync_all()
        return {"generation": self._store.counters.generation}

    async def _sweep(self, send: Send) -> dict[str, Any]:
        return await _attended(send, partial(sweep_now, self._store, self.sweeper, self.copier))

    async def _compact(self, send: Send, grace_s: float | None = None) -> dict[str, Any]:
        work = partial(compact_now, self._store, self.sweeper, self.compactor, self.copier, grace_s)
        return await _attended(send, work)

    async def _copy_index(self, send: Send) -> dict[str, Any]:
        async def work(_on_progress: OnProgress) -> dict[str, Any]:
            await self._store.sync_all()
            return {"copied": await self.copier.once()}

        return await _attended(send, work)

    async def _age(self, send: Send, **order: Any) -> dict[str, Any]:
        async def work(on_progress: OnProgress) -> dict[str, Any]:
            return (await self.ageing.now(Job(**order, on_progress=on_progress))).fields()

        return await _attended(send, work)

    async def _pause_ageing(self, send: Send, paused: bool) -> dict[str, Any]:
        await self.ageing.pause(paused=paused)
        return {"state": self.ageing.doing}

    async def _condemn(self, send: Send, chunks: list[int], damaged: bool) -> dict[str, Any]:
        async def work(_on_progress: OnProgress) -> dict[str, Any]:
            return {"marked_count": await condemn_in(self._store, chunks, damaged=damaged)}

        return await _attended(send, work)

    async def _await_end(self, send: _Caller) -> dict[str, Any]:
        await self._farewell.attend(send.stream, partial(send, {"progress": {}}))
        return {}


async def _attended(
    send: Send, work: Callable[[OnProgress], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    """Do long work, and tell the caller each second how far it is."""
    finished = trio.Event()
    reached: dict[str, float] = {"done": 0, "total": 0}

    def on_progress(done: int, total: int, /, waiting_s: float = 0.0) -> None:
        reached.update(done=done, total=total, waiting_s=waiting_s)

    async def tell() -> None:
        while not finished.is_set():
            with trio.move_on_after(SIGN_OF_LIFE_S):
                await finished.wait()
                return
            try:
                await send({"progress": reached})
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                return

    answer: dict[str, Any] = {}
    error: CafsError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tell)
        try:
            answer = await work(on_progress)
        except CafsError as raised:
            error = raised
        finished.set()
    if error is not None:
        raise error
    return answer


def _listen(path: Path) -> socket.socket:
    """A listening socket at *path*, whose length may exceed what an address holds."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        old = os.umask(0o177)
        try:
            listening.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.umask(old)
        listening.listen(16)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    finally:
        os.close(directory)
    return listening
