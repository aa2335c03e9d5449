"""HTTP/1.1 as a client writes it: connections, requests and replies, nothing made prettier.

Invariant: what a test gives goes onto the wire as it is (target, headers, their order), and what
comes back is shown as it came.  A connection that the server closed is opened anew only when it
had answered before, as every client with keep-alive does.
"""

from __future__ import annotations

import base64
import email.utils
import http.client
import random
import select
import socket
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

TIMEOUT_S = 30.0
_PORTS = range(10_000, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0]))
Body = bytes | Iterable[bytes]
_CLOSED_WHILE_IDLE = (
    http.client.RemoteDisconnected,
    BrokenPipeError,
    ConnectionResetError,
    ssl.SSLEOFError,
    ssl.SSLZeroReturnError,
)


@dataclass(frozen=True)
class Endpoint:
    """Where a server listens and by which name clients call it."""

    name: str
    """Host name in URLs."""
    port: int
    address: str = "127.0.0.1"
    authority: Path | None = None
    """The certificate to trust; None means plain HTTP."""

    @property
    def netloc(self) -> str:
        """What stands in the Host header."""
        return f"{self.name}:{self.port}"

    @property
    def base(self) -> str:
        """The URL without a path."""
        return f"{'https' if self.authority else 'http'}://{self.netloc}"

    def connect(self, timeout: float = TIMEOUT_S, *, receive_buffer: int = 0) -> socket.socket:
        """A new connection, with TLS where the endpoint has it.

        The end of a TLS stream without close-notify raises instead of looking like an end.
        """
        raw = socket.socket()
        try:
            if receive_buffer:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            raw.settimeout(timeout)
            raw.connect((self.address, self.port))
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self.authority is None:
                return raw
            context = _context(self.authority)
            return context.wrap_socket(raw, server_hostname=self.name, suppress_ragged_eofs=False)
        except BaseException:
            raw.close()
            raise


_contexts: dict[Path, ssl.SSLContext] = {}


def _context(authority: Path) -> ssl.SSLContext:
    if authority not in _contexts:
        _contexts[authority] = ssl.create_default_context(cafile=str(authority))
    return _contexts[authority]


@dataclass(frozen=True)
class Reply:
    """One response, read to its end."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes = field(repr=False)

    def get(self, name: str) -> str | None:
        """The value of header *name*; it may come once only."""
        found = [value for key, value in self.headers if key.lower() == name.lower()]
        assert len(found) < 2, f"{name} comes {len(found)} times: {found}"
        return found[0] if found else None

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        assert value is not None, f"no {name} in {self.headers}"
        return value

    @property
    def mtime(self) -> float:
        """Last-Modified in seconds since the epoch."""
        return email.utils.parsedate_to_datetime(self["Last-Modified"]).timestamp()


def basic(user: str, password: str) -> str:
    """The value of an Authorization header."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def http_date(seconds: float) -> str:
    """A date as HTTP writes it."""
    return email.utils.formatdate(seconds, usegmt=True)


class Connection:
    """A keep-alive connection that sends the same headers with every request."""

    def __init__(
        self,
        endpoint: Endpoint,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
    ) -> None:
        self.endpoint = endpoint
        self.headers = {"Host": endpoint.netloc, **(headers or {})}
        self.opened = 0
        """How many connections were made."""
        self._timeout = timeout
        self._http: http.client.HTTPConnection | None = None

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close it; the next request opens another."""
        if self._http is not None:
            self._http.close()
            self._http = None

    def request(
        self,
        method: str,
        target: str,
        body: Body | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Reply:
        """Send a request and read the whole reply.

        A body of bytes has a Content-Length, any other is sent in chunks, None has neither.  A
        header whose value is None is left out.
        """
        used = self._http is not None
        try:
            return self._request(method, target, body, headers)
        except _CLOSED_WHILE_IDLE:
            self.close()
            if not used or not (body is None or isinstance(body, bytes)):
                raise
        return self._request(method, target, body, headers)

    def _request(
        self,
        method: str,
        target: str,
        body: Body | None,
        headers: Mapping[str, str | None] | None,
    ) -> Reply:
        connection = self.begin(method, target, headers, _framing(body))
        if isinstance(body, bytes):
            if body:
                connection.send(body)
        elif body is not None:
            for piece in body:
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        response = self.answer()
        data = response.read()
        reply = Reply(response.status, tuple(response.getheaders()), data)
        if response.will_close:
            self.close()
        return reply

    def begin(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str | None] | None = None,
        framing: Mapping[str, str] | None = None,
    ) -> http.client.HTTPConnection:
        """Send a request up to its empty line; the caller goes on with the body and the answer."""
        if self._http is None:
            # The class without TLS: the socket that it is given has it already.
            self._http = http.client.HTTPConnection(self.endpoint.address, self.endpoint.port)
            self._http.sock = self.endpoint.connect(self._timeout)
            self._http.auto_open = 0
            self.opened += 1
        self._http.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in {**self.headers, **(framing or {}), **(headers or {})}.items():
            if value is not None:
                self._http.putheader(name, value)
        self._http.endheaders()
        return self._http

    def answer(self) -> http.client.HTTPResponse:
        """The response to what was begun; its body is for the caller to read."""
        assert self._http is not None
        return self._http.getresponse()

    @property
    def socket(self) -> socket.socket:
        """The open connection's socket."""
        assert self._http is not None and self._http.sock is not None
        return self._http.sock


def _framing(body: Body | None) -> dict[str, str]:
    if body is None:
        return {}
    if isinstance(body, bytes):
        return {"Content-Length": str(len(body))}
    return {"Transfer-Encoding": "chunked"}


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    """*data* in pieces of *size*."""
    return (data[at : at + size] for at in range(0, len(data), size))


def wait_for_port(endpoint: Endpoint, alive: int, timeout_s: float = 20.0) -> None:
    """Return when somebody accepts connections; fail if process *alive* ends before."""
    end = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((endpoint.address, endpoint.port), timeout=1).close()
            return
        except ConnectionRefusedError:
            if time.monotonic() > end or not Path(f"/proc/{alive}").exists():
                raise
            # Listening raises no event that another process could wait for.
            select.select([], [], [], 0.005)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now, and that the kernel gives to no connection of anybody.

    Chosen at random, because other workers choose at the same time, and a port is free until
    whatever it was chosen for listens on it.
    """
    found: list[int] = []
    sockets: list[socket.socket] = []
    try:
        while len(found) < count:
            port = random.SystemRandom().randrange(_PORTS.start, _PORTS.stop)
            each = socket.socket()
            sockets.append(each)
            try:
                each.bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
        return found
    finally:
        for each in sockets:
            each.close()
