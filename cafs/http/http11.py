"""One connection of the HTTP server: HTTP/1.1 (h11) around an ASGI application.

A connection is one task: it reads a request, runs the application, and reads the next.  Nobody
reads while the application works, so what a client sends meanwhile waits in the kernel, and who
goes away is noticed when something is read from it or sent to it.  Invariant: a connection ends
when it was idle for too long, when the daemon ends and nothing is under way, or when either side
closes it; nothing of it is left.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from typing import Any, Final

import h11
import trio
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Scope

from cafs.http import answers
from cafs.http.connection import Connection
from cafs.http.heads import HEAD_MAX, Head, NotHttpError, check, next_event
from cafs.http.known_length import KnownLength, known_length

log = logging.getLogger(__name__)

READ_MIN, READ_MAX = 64 << 10, 512 << 10
"""Bytes that are read at once; each read costs a pass through all layers, so while a body fills
them reads become longer."""
JOINED_MAX: Final = 64 << 10
"""Bytes of a body that are copied to leave together with their head."""
REQUESTS_MAX: Final = 1000
"""Requests of one connection, as with nginx: memory that it holds does not grow for ever."""
HANDSHAKE_S: Final = 30.0

PIECES_MAX: Final = 100
"""Chunks of a body that are taken at once: about two milliseconds."""

_SPELLED = {b"etag": b"ETag", b"www-authenticate": b"WWW-Authenticate"}
_DISCONNECT: Final = {"type": "http.disconnect"}
_NEVER: Final = float("inf")


class Server:
    """Serves one connection to its end."""

    def __init__(
        self,
        app: ASGIApp,
        connection: Connection,
        stream: Connection | trio.SSLStream[Connection],
        idle_s: float,
        is_ending: Callable[[], bool],
    ) -> None:
        """*stream* is the connection itself, or TLS over it.

        *idle_s* is how long a client may take for its next request; *is_ending* says that this
        one is the last.
        """
        self._app = app
        self._connection = connection
        self._stream = stream
        self._idle_s = idle_s
        self._is_ending = is_ending
        self._idle = True
        self._reading = trio.CancelScope()
        self._http = _parser()
        self._head = Head()
        self._read_size = READ_MIN
        self._requests = 0
        self._unread = False
        """Whether the client may still be sending what nobody reads."""
        self._writing = False
        """Whether something was begun to be sent, and not all of it is."""
        self._ends: dict[str, Any] = {}

    async def run(self) -> None:
        """Return when the connection is closed."""
        connection = self._connection
        try:
            if isinstance(self._stream, trio.SSLStream):
                with trio.move_on_after(HANDSHAKE_S) as scope:
                    await self._stream.do_handshake()
                if scope.cancelled_caught:
                    return
            self._ends = {
                "scheme": "https" if isinstance(self._stream, trio.SSLStream) else "http",
                "client": _address(connection.socket.family, connection.socket.getpeername()),
                "server": _address(connection.socket.family, connection.socket.getsockname()),
            }
            while await self._serve_one():
                pass
        except OSError:
            # It was reset.
            pass
        finally:
            await self._close()

    @property
    def _is_last(self) -> bool:
        """Whether no request may follow the one that is being answered."""
        return self._requests >= REQUESTS_MAX or self._is_ending()

    def end_if_idle(self) -> None:
        """The daemon is to end: wait for nothing that has not begun."""
        if self._idle:
            self._reading.cancel()

    # -- one request -------------------------------------------------------------------------

    async def _serve_one(self) -> bool:
        """Answer one request; whether there may be another."""
        http = self._http
        try:
            request = await self._next_request()
        except NotHttpError as error:
            await self._answer_none(error.with_traceback(None))
            return False
        if request is None:
            return False
        self._requests += 1
        self._unread = True
        body = known_length(http, request, self._stream)
        exchange = _Exchange(self, http, request.method, body, last=self._is_last)
        version = request.http_version.decode("ascii")
        scope = self._scope(request.method, request.target, version, list(request.headers))
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            log.exception("defect in a request")
        if exchange.gone or self._connection.broken:
            return False
        if http.our_state is h11.SEND_RESPONSE:
            await exchange.say(answers.text(500, "500: a defect of cafs; the daemon's log has it"))
            return False
        if body is None and http.their_state is h11.SEND_BODY:
            # Its end has not been looked at, for instance because it has no body at all.
            try:
                next_event(http)
            except NotHttpError:
                return False
        self._unread = _is_unread(http, body)
        if http.our_state is not h11.DONE:
            return False
        ended = body.ended if body is not None else http.their_state is h11.DONE
        if not ended:
            return False
        # Nothing is read behind a body that has passed the parser by.
        self._head = Head(http.trailing_data[0] if body is None else b"")
        self._http = _parser()
        return not self._is_ending()

    async def _next_request(self) -> h11.Request | None:
        # It may last until then, however slowly a request dribbles in.
        until = trio.current_time() + self._idle_s
        self._idle = True
        while not self._head.is_whole:
            with trio.CancelScope(deadline=until) as self._reading:
                data = await self._read()
            if self._reading.cancelled_caught:
                return None
            self._head.add(data)
        self._idle = False
        self._http.receive_data(self._head.for_h11())
        if self._head.is_last:
            self._http.receive_data(b"")
        event = next_event(self._http)
        if not isinstance(event, h11.Request):
            return None
        check(event)
        return event

    async def _answer_none(self, error: NotHttpError) -> None:
        """What came is no request: the application says so, as it says all else."""
        self._unread = True
        method, _, rest = self._head.line.partition(b" ")
        # Of a request that h11 has not taken it sends all of the answer, whatever the method.
        known = method if self._http.our_state is h11.SEND_RESPONSE else b""
        exchange = _Exchange(self, self._http, known, None, last=True)
        scope = self._scope(method, rest.partition(b" ")[0], "1.1", [])
        try:
            await self._app({**scope, "refused": error}, exchange.receive, exchange.send)
        except Exception:
            log.exception("defect in a refusal")

    def _scope(
        self, method: bytes, target: bytes, version: str, headers: list[tuple[bytes, bytes]]
    ) -> Scope:
        path, _, query = target.partition(b"?")
        return {
            "type": "http",
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "http_version": version,
            "method": method.decode("latin-1"),
            "raw_path": path,
            "path": path.decode("latin-1"),
            "query_string": query,
            "root_path": "",
            "headers": headers,
            "state": {"connection": self._connection, "line": self._head.line},
            "extensions": {},
            **self._ends,
        }

    @property
    def _is_short(self) -> bool:
        """Whether an answer was begun, and not all of it has been sent."""
        return self._writing or self._http.our_state in (h11.SEND_BODY, h11.ERROR)

    # -- the wire ----------------------------------------------------------------------------

    async def read_some(self) -> None:
        """Read some bytes of a body, or the end."""
        self._http.receive_data(await self._read())

    async def _read(self) -> bytes:
        size = self._read_size
        try:
            data = await self._stream.receive_some(size)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            data = b""
        if len(data) == size:
            self._read_size = min(2 * size, READ_MAX)
        elif len(data) < size // 4:
            self._read_size = READ_MIN
        return bytes(data)

    async def write(self, data: bytes | memoryview) -> bool:
        """Whether it is sent; if not there is nobody at the other end."""
        self._writing = True
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._connection.lost()
            return False
        self._writing = False
        return True

    async def _close(self) -> None:
        if self._connection.broken or self._is_short:
            # There is nobody to say good-bye to, or nobody must take what went out for all of
            # it, whoever ended it: a defect, the daemon's end, a client that sends half.  Nothing
            # is waited for, so it is done where the task is cancelled, too.
            self._connection.abort()
            return
        if self._unread:
            await self._connection.linger()
        elif not isinstance(self._stream, trio.SSLStream):
            try:
                await self._stream.send_eof()
            except (
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.BusyResourceError,
                OSError,
            ):
                # The client was quicker.
                pass
        await self._stream.aclose()


class _Exchange:
    """One request and its answer, as an ASGI application sees them."""

    def __init__(
        self,
        server: Server,
        http: h11.Connection,
        method: bytes,
        body: KnownLength | None,
        *,
        last: bool,
    ) -> None:
        """*body* is that of the request, if it does not come through *http*; with the *last*
        answer the connection ends."""
        self._server = server
        self._http = http
        self._body = body
        self._last = last
        self._ended = False
        self._bodiless = method == b"HEAD"
        self._head = b""
        self.gone = False
        """The client does not hear any more of it."""

    async def receive(self) -> Message:
        """The next part of the request's body.  Raises NotHttpError."""
        http = self._http
        if self._ended or self.gone:
            return _DISCONNECT
        if http.they_are_waiting_for_100_continue:
            answer = h11.InformationalResponse(status_code=100, headers=[], reason=_reason(100))
            await self._server.write(http.send(answer) or b"")
        pieces: list[bytes] = []
        try:
            if self._body is not None:
                pieces.append(await self._body.next())
                self._ended = self._body.ended
            while not pieces and not self._ended:
                # All that is here already: its end is mostly known with the last byte.
                while isinstance(event := next_event(http), h11.Data):
                    pieces.append(bytes(event.data))
                    if len(pieces) == PIECES_MAX:
                        break
                self._ended = isinstance(event, h11.EndOfMessage)
                if event is h11.NEED_DATA and not pieces:
                    await self._server.read_some()
        except NotHttpError as error:
            if not pieces:
                _, at_end = http.trailing_data
                if self._body is None and not at_end:
                    raise
                if http.our_state is h11.SEND_RESPONSE:
                    # It may have closed one direction only.
                    await self.say(answers.failed(error, "a body"))
                self.gone = True
                return _DISCONNECT
            # Asked for more, h11 says it again.
        if len(pieces) == PIECES_MAX:
            # Chunks of a few bytes: each costs as much as a large one, and all are here.
            await trio.lowlevel.checkpoint()
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        return {"type": "http.request", "body": body, "more_body": not self._ended}

    async def say(self, response: Response) -> None:
        """Give an answer that is none of the application, and the last one."""
        self._last = True
        await response({"type": "http"}, self.receive, self.send)

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        if self.gone:
            return
        http = self._http
        if message["type"] == "http.response.start":
            status = message["status"]
            headers = [(_spelled(name), value) for name, value in message.get("headers", ())]
            headers.append((b"Date", _date(int(time.time()))))
            if self._last:
                headers.append((b"Connection", b"close"))
            self._bodiless = self._bodiless or status in (204, 304)
            answer = h11.Response(status_code=status, headers=headers, reason=_reason(status))
            # Not sent alone: what follows follows at once.
            self._head = http.send(answer) or b""
            return
        body = message.get("body", b"")
        pieces: list[Any] = [self._head]
        self._head = b""
        if body and not self._bodiless:
            pieces += http.send_with_data_passthrough(h11.Data(data=body)) or ()
        if not message.get("more_body", False):
            pieces += http.send_with_data_passthrough(h11.EndOfMessage()) or ()
        if len(body) <= JOINED_MAX:
            pieces = [b"".join(pieces)]
        for piece in pieces:
            if piece and not await self._server.write(piece):
                self.gone = True
                return


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)


def _is_unread(http: h11.Connection, body: KnownLength | None) -> bool:
    """Whether something of a request, or behind it, has not been read when it is answered."""
    if body is not None:
        return not body.ended
    return http.their_state in (h11.SEND_BODY, h11.ERROR) or bool(http.trailing_data[0])


def _address(family: int, name: Any) -> tuple[str, int] | None:
    return (name[0], name[1]) if family in (socket.AF_INET, socket.AF_INET6) else None


@cache
def _reason(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""


@cache
def _spelled(name: bytes) -> bytes:
    # The names are ours, so there are few.
    return _SPELLED.get(name) or name.title()


@lru_cache(maxsize=2)
def _date(seconds: int) -> bytes:
    return formatdate(seconds, usegmt=True).encode("ascii")
