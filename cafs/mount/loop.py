"""Taking the next request without a pass through the event loop, when it is there already.

pyfuse3 waits for each request by way of trio: a lock, a registration with epoll and a pass of
the scheduler, which together cost more than most of our handlers.  But while a client is busy
its next request usually waits already, and one poll(2) tells.  The event loop still gets its
turn every few requests, so that nothing else waits long.
"""

from __future__ import annotations

import logging
import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

import pyfuse3

log = logging.getLogger(__name__)

IN_A_ROW = 8
"""Requests that are taken before everybody else gets a turn."""
_WAIT = "_wait_fuse_readable"


def fuse_descriptor() -> int | None:
    """The descriptor of /dev/fuse that this process has open, if it is just one."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                found.append(int(name))
        except OSError:
            continue
    return found[0] if len(found) == 1 else None


@contextmanager
def requests_at_once() -> Iterator[None]:
    """While this lasts, pyfuse3.main() takes requests that are there without waiting for them.

    Replaces a function of pyfuse3 by one that falls back on it.  Does nothing, and says so in
    the log, with a pyfuse3 that has no such function.
    """
    patient = getattr(pyfuse3, _WAIT, None)
    fd = fuse_descriptor()
    if patient is None or fd is None:
        log.warning("this pyfuse3 waits for each request by way of the event loop: slower")
        yield
        return
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    ready = poll.poll
    row = 0

    async def wait_fuse_readable() -> bool:
        nonlocal row
        if row < IN_A_ROW and ready(0):
            row += 1
            return True
        row = 0
        # Only poll's word counts: what patient() was told of may have been taken meanwhile, and
        # a read without a request would block everything.
        while await patient():
            if ready(0):
                return True
        return False

    setattr(pyfuse3, _WAIT, wait_fuse_readable)
    try:
        yield
    finally:
        setattr(pyfuse3, _WAIT, patient)
