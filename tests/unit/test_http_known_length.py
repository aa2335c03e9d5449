"""Bodies of known length pass the parser by, and nothing else does: requests on a real socket."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator

import h11
import pytest
import trio
import trio.testing
from starlette.types import Message, Receive, Scope, Send

from cafs.http.connection import Connection
from cafs.http.http11 import Server
from cafs.http.known_length import MANY, PIECE, known_length

KIB = 1 << 10
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
Client = Callable[[trio.SocketStream], Awaitable[None]]


def put(body: bytes, *headers: str) -> bytes:
    lines = ["PUT /x HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


def chunked(body: bytes) -> bytes:
    head = b"PUT /x HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


GET = b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer(send: Send, status: int, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def digesting(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with the method, the length and a digest of what came."""
    digest, length, more = hashlib.sha1(), 0, True
    while more:
        message = await receive()
        assert message["type"] == "http.request"
        more = message["more_body"]
        data = message["body"]
        assert isinstance(data, bytes)
        digest.update(data)
        length += len(data)
    await answer(send, 200, f"{scope['method']} {length} {digest.hexdigest()}".encode())


def expected(method: str, body: bytes) -> bytes:
    return f"{method} {len(body)} {hashlib.sha1(body).hexdigest()}".encode()


def serve(app: Application, client: Client) -> None:
    """Serve one connection to its end, while *client* has the other end."""

    async def main() -> None:
        ours, theirs = trio.socket.socketpair()
        connection = Connection(trio.SocketStream(ours), 10.0, trusted=True)
        server = Server(app, connection, connection, 10.0, lambda: False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.run)
            with trio.fail_after(20):
                async with trio.SocketStream(theirs) as stream:
                    await client(stream)

    trio.run(main)


async def everything(stream: trio.SocketStream) -> bytes:
    pieces = []
    # Who closes a unix socket that holds something unread resets it, behind what was sent.
    with contextlib.suppress(trio.BrokenResourceError):
        while data := await stream.receive_some(64 * KIB):
            pieces.append(data)
    return b"".join(pieces)


def bodies(said: bytes, count: int) -> Iterator[bytes]:
    """The bodies of *count* answers, and nothing may be behind them."""
    parser = h11.Connection(h11.CLIENT)
    parser.receive_data(said)
    for _ in range(count):
        parser.send(h11.Request(method="GET", target="/", headers=[("host", "x")]))
        parser.send(h11.EndOfMessage())
        body = b""
        while not isinstance(event := parser.next_event(), h11.EndOfMessage):
            assert event is not h11.NEED_DATA, said
            if isinstance(event, h11.Response):
                assert event.status_code == 200
            elif isinstance(event, h11.Data):
                body += event.data
        yield body
        parser.start_next_cycle()
    assert parser.trailing_data[0] == b""


SIZES = (
    0,
    1,
    5,
    70_000,
    0,
    64 * KIB - 100,
    PIECE - 1,
    PIECE,
    PIECE + 1,
    3,
    1_000_000,
    3_000_000,
    2,
)


@pytest.mark.parametrize("piece", [1 << 30, 300_000, 65_536, 10_007, 997])
def test_requests_one_behind_the_other_keep_their_bodies(piece: int) -> None:
    chance = random.Random(piece)
    sent, wanted = [], []
    for size in SIZES:
        body = chance.randbytes(size)
        sent += [put(body), GET, chunked(b"in between"), put(body)]
        wanted += [expected("PUT", body), expected("GET", b"")]
        wanted += [expected("PUT", b"in between"), expected("PUT", body)]
    data = b"".join(sent)
    said = b""

    async def client(stream: trio.SocketStream) -> None:
        async def send() -> None:
            at = 0
            while at < len(data):
                size = chance.randint(1, 2 * piece)
                await stream.send_all(data[at : at + size])
                at += size
            await stream.send_eof()

        nonlocal said
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            said = await everything(stream)

    serve(digesting, client)
    assert list(bodies(said, len(wanted))) == wanted


def test_a_request_that_ends_in_the_middle_of_everything_it_can() -> None:
    """Each border of head, body and next request once between two reads."""
    data = put(b"four") + put(b"") + GET
    borders = range(1, len(data))
    said = []

    async def client(stream: trio.SocketStream) -> None:
        for border in borders:
            await stream.send_all(data[:border])
            # Somebody else has his turn: what was sent is read alone.
            await trio.testing.wait_all_tasks_blocked()
            await stream.send_all(data[border:])
            got = b""
            while got.count(b"HTTP/1.1 200 ") < 3 or not got.endswith(expected("GET", b"")):
                got += await stream.receive_some(64 * KIB)
            said.append(got)

    serve(digesting, client)
    for got in said:
        assert list(bodies(got, 3)) == [
            expected("PUT", b"four"),
            expected("PUT", b""),
            expected("GET", b""),
        ]


@pytest.mark.parametrize("sent", [0, 1, 100_000])
def test_a_body_that_ends_too_early_is_no_body(sent: int) -> None:
    messages: list[Message] = []
    said = b""

    async def app(_scope: Scope, receive: Receive, _send: Send) -> None:
        while not messages or messages[-1]["type"] != "http.disconnect":
            messages.append(await receive())

    async def client(stream: trio.SocketStream) -> None:
        nonlocal said
        await stream.send_all(put(b"x" * 100_001)[: sent - 100_001 or None])
        await stream.send_eof()
        said = await everything(stream)

    serve(app, client)
    assert all(message["more_body"] for message in messages[:-1])
    assert sum(len(message["body"]) for message in messages[:-1]) == sent
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1


def test_a_body_that_nobody_reads_is_not_taken_for_a_request() -> None:
    said = b""

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        await answer(send, 413, b"no")

    async def client(stream: trio.SocketStream) -> None:
        nonlocal said
        await stream.send_all(put(GET * 3000)[:-1])
        said = await everything(stream)

    serve(app, client)
    assert said.startswith(b"HTTP/1.1 413 ")
    assert said.count(b"HTTP/1.1 ") == 1


def test_whoever_waits_to_be_asked_for_a_body_is_asked_once() -> None:
    body = random.Random(1).randbytes(300_000)
    said = b""

    async def client(stream: trio.SocketStream) -> None:
        nonlocal said
        request = put(body, "Expect: 100-continue")
        head = request[: -len(body)]
        for _ in range(2):
            await stream.send_all(head)
            assert await stream.receive_some(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
            await stream.send_all(body)
            got = b""
            while not got.endswith(expected("PUT", body)):
                got += await stream.receive_some(1000)
            said += got

    serve(digesting, client)
    assert list(bodies(said, 2)) == [expected("PUT", body)] * 2


def test_who_stops_waiting_for_a_body_loses_nothing_of_it() -> None:
    body = random.Random(2).randbytes(200_000)
    tired = trio.Event()
    got = bytearray()

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            with trio.move_on_after(0.05) as scope:
                message = await receive()
                got.extend(message["body"])
                more = message["more_body"]
            if scope.cancelled_caught:
                tired.set()
        await answer(send, 200, b"")

    async def client(stream: trio.SocketStream) -> None:
        request = put(body)
        await stream.send_all(request[:-100_000])
        await tired.wait()
        await stream.send_all(request[-100_000:])
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200 ")

    serve(app, client)
    assert got == body


def test_a_connection_that_is_to_be_closed_is_closed() -> None:
    said = []
    body = b"x" * 100_000

    for request in (
        put(body, "Connection: close"),
        put(body).replace(b"HTTP/1.1", b"HTTP/1.0", 1),
    ):

        async def client(stream: trio.SocketStream, request: bytes = request) -> None:
            await stream.send_all(request)
            said.append(await everything(stream))

        serve(digesting, client)
    for each in said:
        assert b"\r\nConnection: close\r\n" in each
        assert each.endswith(expected("PUT", body))


@pytest.mark.parametrize(
    "data",
    [
        put(b""),
        put(b"came with its head"),
        put(b"came with its head") + GET,
        chunked(b"in chunks"),
        GET,
        put(b"for another method").replace(b"PUT", b"POST")[:-1],
        b"PUT /x HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_goes_through_the_parser(data: bytes) -> None:
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    ours, theirs = trio.testing.memory_stream_one_way_pair()
    assert known_length(parser, request, theirs) is None
    del ours


def test_pieces_are_bounded() -> None:
    sizes: list[int] = []

    async def app(_scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            sizes.append(len(message["body"]))
            more = message["more_body"]
        await answer(send, 200, b"")

    async def client(stream: trio.SocketStream) -> None:
        await stream.send_all(put(bytes(20 << 20)))
        assert (await stream.receive_some(1000)).startswith(b"HTTP/1.1 200 ")

    serve(app, client)
    assert sum(sizes) == 20 << 20
    assert max(sizes) <= MANY
