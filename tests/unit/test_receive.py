"""What a fast sender sends, in one call: all of it, what came before a pause, or before the end."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator

import pytest
import trio

from cafs import _receive
from cafs.http.connection import Connection

MIB = 1 << 20
LONG_MS = 20_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    # As trio has them.
    ours.setblocking(False)
    with ours, theirs:
        yield ours, theirs


def test_more_than_a_socket_holds_comes_in_one_call(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    data = random.Random(1).randbytes(5 * MIB)
    sender = threading.Thread(target=theirs.sendall, args=(data,))
    sender.start()
    first = _receive.many(ours.fileno(), 4 * MIB, LONG_MS, LONG_MS)
    assert len(first) == 4 * MIB
    assert first + _receive.many(ours.fileno(), MIB, LONG_MS, LONG_MS) == data
    sender.join()


def test_what_came_before_a_pause(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    assert _receive.many(ours.fileno(), 100, 0, LONG_MS) == b""
    assert _receive.many(ours.fileno(), 100, 1, LONG_MS) == b""
    theirs.sendall(b"some")
    assert _receive.many(ours.fileno(), 100, 1, LONG_MS) == b"some"


def test_who_sends_in_drops_holds_nobody_up(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    sent, over = 0, threading.Event()

    def drip() -> None:
        nonlocal sent
        while not over.wait(0.0005):
            sent += theirs.send(b"drop")

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        # Would else wait for a megabyte.
        got = _receive.many(ours.fileno(), MIB, LONG_MS, 50)
    finally:
        over.set()
        dripping.join()
    assert 0 < len(got) <= sent


def test_what_came_before_the_end(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    theirs.sendall(b"last words")
    theirs.close()
    assert _receive.many(ours.fileno(), 100, LONG_MS, LONG_MS) == b"last words"
    assert _receive.many(ours.fileno(), 100, LONG_MS, LONG_MS) == b""


def test_a_broken_connection_is_an_error(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    # Who closes a unix socket that holds something unread resets it.
    ours.sendall(b"unread")
    theirs.close()
    with pytest.raises(ConnectionResetError):
        _receive.many(ours.fileno(), 100, LONG_MS, LONG_MS)


def test_what_came_before_it_broke(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.sendall(b"unread")
    theirs.sendall(b"last words")
    theirs.close()
    assert _receive.many(ours.fileno(), 100, LONG_MS, LONG_MS) == b"last words"
    # The kernel tells an error once.
    assert _receive.many(ours.fileno(), 100, LONG_MS, LONG_MS) == b""


def test_what_is_not_asked_for(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, _ = pair
    for size, patience in ((0, 1), (-1, 1), (1, -1)):
        with pytest.raises(ValueError, match="size"):
            _receive.many(ours.fileno(), size, patience, LONG_MS)
    with pytest.raises(OSError, match="Bad file descriptor"):
        _receive.many(-1, 1, 1, 1)
    with pytest.raises(MemoryError):
        _receive.many(ours.fileno(), 2**62, 1, LONG_MS)


def test_a_connection_that_is_cut_meanwhile_is_not_read_from_again() -> None:
    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        connection = Connection(trio.SocketStream(ours), 10.0, trusted=True)
        assert await connection.receive_many(100) == b""
        with theirs:
            await theirs.send(b"x" * 100)
            assert await connection.receive_many(100) == b"x" * 100
            assert connection.received == 100
            connection.abort()
            assert await connection.receive_many(100) == b""

    trio.run(main)


def test_a_reset_is_the_end_of_a_connection() -> None:
    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        connection = Connection(trio.SocketStream(ours), 10.0, trusted=True)
        await connection.send_all(b"unread")
        theirs.close()
        with pytest.raises(trio.BrokenResourceError):
            await connection.receive_many(100)
        assert connection.broken
        await connection.aclose()

    trio.run(main)
