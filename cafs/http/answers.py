"""Answers that are one line of text, and what an error becomes over HTTP.

Invariant: whoever reads such an answer, in a log or with curl, learns what happened and what to
do; a client that only looks at the status sees the one of the contract.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping

from starlette.responses import Response

from cafs.errors import CafsError, DamagedError, FsError, UsageError
from cafs.log import RateLimit, correlation_id, fields

log = logging.getLogger(__name__)

RETRY_AFTER_S = 10
"""When a client may try again to write to a store that cannot be written to now."""

_limit = RateLimit(burst=20)


def text(status: int, line: str, headers: Mapping[str, str] | None = None) -> Response:
    """An answer with one line of text."""
    return Response(f"{line}\n", status, headers, "text/plain; charset=utf-8")


def empty(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without a body."""
    return Response(b"", status, headers)


def failed(error: CafsError, doing: str, status: int | None = None) -> Response:
    """What a foreseeable error is answered with; *doing* names the request, for the log.

    *status* overrides that of the error's class.
    """
    meaning = error.meaning
    status = meaning.http_status if status is None else status
    line = str(error)
    if isinstance(error, FsError) and line == errno.errorcode.get(error.errno):
        # A system call's answer is a number, and needs no text; a person's does.
        line = os.strerror(error.errno)
    # What is wrong with a request is not put right with a command's --help.
    if error.advice and not isinstance(error, (FsError, UsageError)):
        line += f"; what to do: {error.advice}"
    if status >= 500:
        # An errno is the client's mistake, whatever status the contract has for it, and so is
        # what makes no sense.
        level = logging.ERROR if isinstance(error, DamagedError) else logging.WARNING
        if isinstance(error, (FsError, UsageError)):
            level = logging.INFO
        _limit.log(log, level, type(error).__name__, f"{doing}: {error}", status=status)
    headers = {"retry-after": str(RETRY_AFTER_S)} if status == 503 else None
    return text(status, f"{status}: {line}", headers)


def defect(doing: str, error: BaseException) -> Response:
    """The answer to a request that found a defect of cafs; logs it with its traceback."""
    name = correlation_id()
    log.error("defect in %s", doing, exc_info=error, extra=fields(id=name))
    return text(500, f"500: a defect of cafs; the daemon's log has it under the id {name}")
