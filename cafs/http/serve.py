"""Listening: the unix socket for nginx, and TCP with or without TLS for a machine without it.

Runs in the daemon's event loop.  Who comes through the unix socket is known to be nginx, and a
connection can be cut without a clean end.
Invariant: when serve() says that it has started both are listening; when it ends, requests
under way have had their answers or their time is over.
"""

from __future__ import annotations

import logging
import os
import resource
import socket
import ssl
import stat
from functools import partial
from pathlib import Path

import trio

from cafs.errors import AddressError, ConfigError
from cafs.http.app import Application
from cafs.http.connection import Connection
from cafs.http.http11 import Server
from cafs.http.site import Site
from cafs.http_options import HttpOptions
from cafs.log import RateLimit
from cafs.store import Store

log = logging.getLogger(__name__)

SOCKET_NAME = "http.sock"
BACKLOG = 1024
CONNECTIONS_MAX = 8192
"""As nginx has it; what comes beyond is closed at once, so that the store can open its packs."""
GRACE_S = 10.0
"""How long requests that are under way may take when the daemon is to end."""


def socket_path(store: Path, options: HttpOptions) -> Path:
    """Where the unix socket of a store is."""
    return options.socket or store / SOCKET_NAME


async def serve(
    options: HttpOptions,
    store: Store,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Answer HTTP until cancelled.

    Raises before it has started: AddressError for a port that is taken, ConfigError for a
    certificate that is none.
    """
    server = _Server(store, options)
    try:
        await server.run(task_status)
    finally:
        server.application.close()


async def _hold(
    ended: trio.Event, *, task_status: trio.TaskStatus[trio.Nursery] = trio.TASK_STATUS_IGNORED
) -> None:
    """A nursery for connections: those that are under way when the daemon is told to end go on.

    Its deadline is the end of that.  A task of its own, because what ends the listeners must not
    reach into it.
    """
    # Cancelled before it began, nobody would ever say that it is to end.
    await trio.lowlevel.checkpoint_if_cancelled()
    async with trio.open_nursery() as connections:
        connections.cancel_scope.shield = True
        task_status.started(connections)
        await ended.wait()


class _Server:
    def __init__(self, store: Store, options: HttpOptions) -> None:
        self._options = options
        self._site = Site(store, options)
        self.application = Application(self._site)
        self._socket = socket_path(store.path, options)
        self._ending = False
        self._servers: set[Server] = set()
        self._strangers = 0
        """Connections over TCP.  However many there are, nginx has its own way in."""
        self._crowd_max = min(CONNECTIONS_MAX, _descriptors() // 2)
        self._limit = RateLimit()
        self._tls = Certificate(options) if options.certificate is not None else None

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        unix = self._listen_unix() if self._options.serve else None
        listeners = [(unix, True)] if unix is not None else []
        try:
            if self._options.listen is not None:
                listeners += [(each, False) for each in _listen_tcp(self._options.listen)]
        except AddressError:
            if unix is not None:
                unix.close()
                _unlink(self._socket)
            raise
        async with trio.open_nursery() as nursery:
            ended = trio.Event()
            connections: trio.Nursery = await nursery.start(_hold, ended)
            try:
                async with trio.open_nursery() as accepting:
                    for listening, trusted in listeners:
                        accepting.start_soon(
                            partial(
                                trio.serve_listeners,
                                partial(self._serve, trusted),
                                [trio.SocketListener(trio.socket.from_stdlib_socket(listening))],
                                handler_nursery=connections,
                            )
                        )
                    accepting.start_soon(self._site.pruner.run)
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                if unix is not None:
                    _unlink(self._socket)
                connections.cancel_scope.deadline = trio.current_time() + GRACE_S
                ended.set()
                self._ending = True
                for server in list(self._servers):
                    server.end_if_idle()

    async def _serve(self, trusted: bool, stream: trio.SocketStream) -> None:
        if not trusted and self._strangers >= self._crowd_max:
            text = f"{self._crowd_max} connections are open: no more are taken"
            self._limit.log(log, logging.WARNING, "crowd", text)
            return
        connection = Connection(stream, self._options.client_timeout, trusted=trusted)
        outer: Connection | trio.SSLStream[Connection] = connection
        if self._tls is not None and not trusted:
            context = self._tls.context()
            outer = trio.SSLStream(connection, context, server_side=True, https_compatible=True)
        server = Server(
            self.application,
            connection,
            outer,
            self._options.keepalive,
            lambda: self._ending,
        )
        self._servers.add(server)
        self._strangers += not trusted
        try:
            await server.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError, ssl.SSLError):
            # It was cut, by us or by the client.
            pass
        except Exception:
            log.exception("defect in a connection: it was cut")
        finally:
            self._servers.discard(server)
            self._strangers -= not trusted
            connection.socket.close()
            if isinstance(outer, trio.SSLStream):
                # It refers to itself: with all that is in its buffers it would wait for somebody
                # to collect garbage, which the daemon rarely does.
                vars(outer).clear()

    def _listen_unix(self) -> socket.socket | None:
        path = self._socket
        try:
            if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
            listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            # unix(7) limits an address to 108 bytes, and a store may lie deeper than that.
            directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            old = os.umask(0o177)
            try:
                listening.bind(f"/proc/self/fd/{directory}/{path.name}")
            finally:
                os.umask(old)
                os.close(directory)
            caller = self._site.caller
            if os.geteuid() == 0:
                os.chown(path, caller.uid, caller.gid)
            listening.listen(BACKLOG)
            listening.setblocking(False)
        except OSError as error:
            # A read-only disk must not keep a store from being mounted.
            log.error("nginx cannot reach this daemon: %s: %s", path, error.strerror)
            return None
        return listening


class Certificate:
    """The TLS context, made anew when the certificate's file has changed."""

    def __init__(self, options: HttpOptions) -> None:
        """Raises ConfigError for a certificate that cannot be used."""
        assert options.certificate is not None
        self._file = options.certificate
        self._key = options.certificate_key
        self._version: tuple[int, int] = (0, 0)
        self._limit = RateLimit()
        try:
            self._version = self._look()
            self._context = self._load()
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"http.certificate = {self._file}: {error}") from None

    def _look(self) -> tuple[int, int]:
        status = os.stat(self._file)
        return status.st_mtime_ns, status.st_ino

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._file, self._key)
        return context

    def context(self) -> ssl.SSLContext:
        """The context to answer the next connection with."""
        try:
            version = self._look()
            if version != self._version:
                self._context, self._version = self._load(), version
        except (OSError, ssl.SSLError) as error:
            # Being replaced just now: the one before is as good.
            text = f"http.certificate = {self._file}: {error}"
            self._limit.log(log, logging.WARNING, "certificate", text)
        return self._context


def _listen_tcp(address: str) -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    listening: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(
            None if host == "*" else host,
            int(port),
            type=socket.SOCK_STREAM,
            flags=socket.AI_PASSIVE,
        )
        for family, kind, protocol, _, where in found:
            each = socket.socket(family, kind, protocol)
            listening.append(each)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind(where)
            each.listen(BACKLOG)
            each.setblocking(False)
    except OSError as error:
        for each in listening:
            each.close()
        raise AddressError(
            f"the daemon cannot listen on {address} (http.listen): {error.strerror or error}",
            advice=f"see who does: ss -ltnp 'sport = :{port}'; or set another address",
        ) from None
    return listening


def _descriptors() -> int:
    """Raise the limit of open files as far as this process may; what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4 * CONNECTIONS_MAX
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.info("%s is left behind: %s", path, error.strerror)
