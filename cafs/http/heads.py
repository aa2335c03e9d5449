"""The line and the headers of a request: collected here until they are whole, and then for h11.

h11 refuses what nginx takes (bytes beyond ASCII in a path) and takes what nginx refuses; so that
a blob has the same names and the same rules whoever answers, its input is made to fit before,
and what it made of it is looked at after.  Invariant: what is behind a head stays as it came.
"""

from __future__ import annotations

import re
from typing import Final

import h11
from h11 import _abnf, _readers

from cafs.errors import Meaning, UsageError

HEAD_MAX: Final = 40 << 10
"""Bytes of a request's line and headers, up to the empty line and with it.

nginx takes 32 KiB, and adds headers of its own to what it hands over.
"""
SAID_MAX: Final = 200
"""Characters of what is said about a request that is none."""

_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f]")
_QUOTED = re.compile(r"bytearray\(b(.*)\)")
_ONCE: Final = frozenset(
    (
        b"authorization",
        b"content-range",
        b"expect",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
    )
)
"""Headers that nginx takes once only; h11 sees to Host and to those that say where a body ends."""
_HOST = re.compile(rb"(?!\.?(?::|$))(?!.*\.\.)[^\x00-\x20/\x7f]+")
"""A Host that nginx takes: more than a port, no empty part, and nothing that ends a name."""
_END = re.compile(rb"\n\r?\n")
_TARGET = re.compile(rb"(?<= )[^ \r\n]+(?= )")
_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")

# The blanks behind a header's colon are for one part of h11's pattern only: it has two that could
# share them, and where a header is none it would try the square of their number, which holds all
# clients up for seconds.  Here, as h11 reads the trailers of a body beside what is given to it.
_readers.header_field_re = re.compile(
    _abnf.header_field.replace(f":{_abnf.OWS}", f":(?>{_abnf.OWS})").encode("ascii")
)


class NotHttpError(UsageError):
    """What a client sent is not HTTP as it should be; knows the status that says how."""

    def __init__(self, message: str, status: int = 400) -> None:
        """*message* may quote what the client sent."""
        ascii_only = message[:SAID_MAX].encode("ascii", "backslashreplace").decode()
        super().__init__(_UNPRINTABLE.sub("?", ascii_only))
        self._status = status

    @property
    def meaning(self) -> Meaning:
        """That of its class, with its own status."""
        return super().meaning._replace(http_status=self._status)


class Head:
    """What has come of one request, and perhaps of what is behind its head."""

    def __init__(self, came: bytes = b"") -> None:
        """*came* was read together with the request before."""
        self._came = b""
        self._length = 0
        self.is_whole = False
        """Whether more would change nothing, be it that this will never be a head."""
        self.is_last = False
        """Whether the connection ended here."""
        if came:
            self.add(came)

    def add(self, data: bytes) -> None:
        """The next bytes; none when the connection has ended."""
        seen = len(self._came)
        self._came += data
        end = _END.search(self._came, max(0, seen - 2))
        self._length = end.end() if end is not None else len(self._came)
        self.is_last = not data
        # No line begins with a space or a control character.
        hopeless = self._length > HEAD_MAX or self._came[:1] <= b" "
        self.is_whole = end is not None or self.is_last or hopeless

    @property
    def line(self) -> bytes:
        """The request's line, as it came."""
        return self._came[:HEAD_MAX].partition(b"\n")[0].rstrip(b"\r")

    def for_h11(self) -> bytes:
        """All of it, with a line that h11 takes if nginx would.

        Raises NotHttpError for one that is too long.
        """
        if self._length > HEAD_MAX:
            raise _too_long()
        line = self.line
        if line.isascii():
            return self._came
        return _TARGET.sub(_escaped, line, count=1) + self._came[len(line) :]


def _escaped(target: re.Match[bytes]) -> bytes:
    return _BEYOND_ASCII.sub(lambda byte: b"%%%02X" % byte[0][0], target[0])


def next_event(
    http: h11.Connection,
) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
    """What h11 makes of what it has.  Raises NotHttpError."""
    try:
        return http.next_event()
    except h11.RemoteProtocolError as error:
        status = error.error_status_hint
        # h11 shows lines as it holds them.
        said = _QUOTED.sub(r"\1", str(error))
        # It was raised by a method of its own: through this it would keep itself, and all that
        # the connection is made of, until somebody collects garbage.
        error.__traceback__ = None
    raise _too_long() if status == 431 else _malformed(said, status)


def _malformed(said: str, status: int = 400) -> NotHttpError:
    return NotHttpError(f"this is not HTTP as it should be: {said}", status)


def _too_long() -> NotHttpError:
    return NotHttpError(f"the request's line and headers are longer than {HEAD_MAX} bytes", 431)


def check(request: h11.Request) -> None:
    """Refuse what h11 lets through, and nginx does not or could understand otherwise.

    Raises NotHttpError.  A request whose end another server may see elsewhere (RFC 9112,
    section 6.1): h11 believes Transfer-Encoding; who believes Content-Length takes the rest of
    the body for a request of somebody else.  Control characters in a value (RFC 9110, section
    5.5), another major version (RFC 9110, section 15.6.6), a Host that is none, and a second
    value where one counts, because somebody else may look at the other.
    """
    if request.http_version[:2] != b"1.":
        raise _malformed("only HTTP/1.1 is spoken here", 505)
    names = set()
    for name, value in request.headers:
        if name in names and name in _ONCE:
            raise _malformed(f"{name.decode()} comes twice")
        names.add(name)
        if _CONTROL.search(value):
            raise _malformed("there are control characters in a header")
        if name == b"host" and not _HOST.fullmatch(value):
            raise _malformed("the Host is none")
    if b"transfer-encoding" in names and (
        b"content-length" in names or request.http_version < b"1.1"
    ):
        raise _malformed("it is not clear how long the body is")
