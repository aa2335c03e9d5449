"""The head of a request before h11 has it: when it is whole, its limit, and what is changed."""

from __future__ import annotations

import time

import h11
import pytest

from cafs.http.heads import HEAD_MAX, Head, NotHttpError, next_event

REST = b"\r\nHost: x\xff\r\n\r\n\xc3 body \xc3\xa9 "


@pytest.mark.parametrize(
    ("line", "given"),
    [
        (b"GET /x HTTP/1.1", b"GET /x HTTP/1.1"),
        (b"PUT /x/\xc3\xa9?\xff%20 HTTP/1.1", b"PUT /x/%C3%A9?%FF%20 HTTP/1.1"),
        # Only the target: these are for h11 to refuse.
        (b"P\xc3T /x HTTP/1.1", b"P\xc3T /x HTTP/1.1"),
        (b"GET /x\xc3 HTTP/1.1\xc3", b"GET /x%C3 HTTP/1.1\xc3"),
        (b"GET /x y\xc3 HTTP/1.1", b"GET /x y\xc3 HTTP/1.1"),
        (b"GET /x\xc3", b"GET /x\xc3"),
    ],
)
def test_bytes_beyond_ascii_are_escaped_in_the_target_alone(line: bytes, given: bytes) -> None:
    head = Head(line + REST)
    assert head.is_whole
    assert head.line == line
    assert head.for_h11() == given + REST


@pytest.mark.parametrize("ends", [b"\r\n", b"\n"])
def test_it_is_whole_with_its_empty_line_however_it_comes(ends: bytes) -> None:
    whole = b"GET /\xc3\xa9 HTTP/1.1" + ends + b"Host: x" + ends + ends
    head = Head()
    for at in range(len(whole)):
        assert not head.is_whole
        head.add(whole[at : at + 1])
    assert head.is_whole
    assert head.for_h11() == whole.replace(b"\xc3\xa9", b"%C3%A9")
    assert Head(whole[:10]).line == whole[:10]


@pytest.mark.parametrize("came", [b"\x16\x03\x01", b"\r\n", b"\n", b" GET / HTTP/1.1"])
def test_what_never_becomes_a_line_is_not_waited_for(came: bytes) -> None:
    assert Head(came).is_whole


def test_the_end_of_the_connection_ends_it() -> None:
    for came in (b"", b"GET / HT"):
        head = Head(came)
        assert not head.is_whole
        head.add(b"")
        assert head.is_whole
        assert head.is_last
        assert head.for_h11() == came


@pytest.mark.parametrize("at_once", [True, False])
def test_its_length_is_limited_to_the_byte(at_once: bool) -> None:
    def head(length: int) -> Head:
        begin, end = b"GET / HTTP/1.1\r\nHost: x\r\nA: ", b"\r\n\r\n"
        whole = begin + (length - len(begin) - len(end)) * b"a" + end + b"the body"
        made = Head() if not at_once else Head(whole)
        for start in range(0, 0 if at_once else len(whole), 5000):
            made.add(whole[start : start + 5000])
        assert made.is_whole
        return made

    assert head(HEAD_MAX).for_h11().endswith(b"aa\r\n\r\nthe body")
    with pytest.raises(NotHttpError) as refused:
        head(HEAD_MAX + 1).for_h11()
    assert refused.value.meaning.http_status == 431


def test_a_line_without_an_end_is_not_kept() -> None:
    head = Head(b"GET /" + HEAD_MAX * b"a")
    assert head.is_whole
    assert len(head.line) == HEAD_MAX
    with pytest.raises(NotHttpError):
        head.for_h11()


@pytest.mark.parametrize("where", ["head", "trailer"])
def test_blanks_before_what_is_refused_cost_no_time(where: str) -> None:
    """The daemon has one thread: while it looks at one header, nobody else is served."""
    line = b"X:" + b" " * 32_000 + b"\0\r\n\r\n"
    http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
    head = b"PUT / HTTP/1.1\r\nHost: x\r\n"
    if where == "trailer":
        http.receive_data(head + b"Transfer-Encoding: chunked\r\n\r\n0\r\n")
        assert isinstance(next_event(http), h11.Request)
        http.receive_data(line)
    else:
        http.receive_data(head + line)
    begun = time.thread_time()
    with pytest.raises(NotHttpError):
        next_event(http)
    assert time.thread_time() - begun < 0.5


def test_what_a_header_is_to_h11_is_what_it_was() -> None:
    for line in (b"A:", b"A: ", b"A:b", b"A: \tb  c \xff ", b"A:  \t"):
        http = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX)
        http.receive_data(b"GET / HTTP/1.1\r\nHost: x\r\n" + line + b"\r\n\r\n")
        request = next_event(http)
        assert isinstance(request, h11.Request)
        assert list(request.headers)[-1] == (b"a", line[2:].strip(b" \t"))
