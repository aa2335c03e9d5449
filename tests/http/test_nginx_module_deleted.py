"""What the module does with a blob that is deleted while it is sent: all of it, or a cut."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs.config import StoreParams
from cafs.newstore import create
from cafs.operate.holes import BLOCK
from tests.fault.smalldisk import wait_until
from tests.http.moduleserver import ModuleServer, receive_all, serving

pytestmark = pytest.mark.timeout(120)

MIB = 1 << 20
SIZE = 32 * MIB
"""More than the kernel takes for a client that does not read, and several packs."""
GRACE_S = 2.0
_PUNCH = 1 | 2
"""FALLOC_FL_KEEP_SIZE and FALLOC_FL_PUNCH_HOLE."""

_libc = ctypes.CDLL(None, use_errno=True)


def noise(name: str) -> bytes:
    """A blob's content; random bytes are stored as they are."""
    return random.Random(name).randbytes(SIZE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleServer]:
    store = tmp_path_factory.mktemp("small-packs") / "store"
    create(store, StoreParams(pack_size=4 * MIB))
    more = f"cafs_grace {int(GRACE_S)}s;"
    with serving("--commit-interval", "200ms", store=store, more=more) as made:
        yield made


def begin(server: ModuleServer, target: str, scheme: str) -> http.client.HTTPConnection:
    """Ask for all of it, and take nothing yet."""
    return server.begin(target, "GET", {"Connection": "close"}, scheme)


def give_back(server: ModuleServer, name: str) -> None:
    """Delete a file, and have the space of all that is dead given back, whatever its grace."""
    packs = server.mount.store / "packs"
    before = {each.name for each in packs.glob("*.pack")}
    (server.mount.root / name).unlink()
    server.sync()
    server.mount.run("compact", str(server.mount.store), "--grace", "0s")
    gone = before - {each.name for each in packs.glob("*.pack")}
    assert len(gone) > SIZE // (4 * MIB) - 2, "its packs are still there"


def punch(fd: int) -> None:
    """Make holes of all whole blocks, as the daemon does on a full disk with what is dead."""
    size = os.fstat(fd).st_size // BLOCK * BLOCK
    done = _libc.fallocate(fd, _PUNCH, ctypes.c_long(BLOCK), ctypes.c_long(size - BLOCK))
    assert done == 0, os.strerror(ctypes.get_errno())


@pytest.mark.parametrize("place", ["cafs", "cached", "fast"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_who_has_begun_gets_all_of_it(server: ModuleServer, place: str, scheme: str) -> None:
    name = f"{place}-{scheme}"
    data = noise(name)
    server.write(name, data)
    assert server.settle(f"/cafs/{name}") == 200
    before = server.counter("cafs_nginx_damaged_total")
    with contextlib.closing(begin(server, f"/{place}/{name}", scheme)) as connection:
        first = connection.sock.recv(1000)
        asked = time.monotonic()
        give_back(server, name)
        wait_until("it is old", lambda: time.monotonic() - asked > GRACE_S)
        got, end = receive_all(connection.sock)
    header, _, body = (first + got).partition(b"\r\n\r\n")
    assert b" 200 OK" in header
    assert (end, len(body)) == ("clean", SIZE)
    assert body == data
    assert server.counter("cafs_nginx_damaged_total") == before
    assert server.status(f"/cafs/{name}") in (404, 418)


@pytest.mark.parametrize("place", ["cafs", "cached", "fast"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_holes_in_what_was_deleted_cut_it(server: ModuleServer, place: str, scheme: str) -> None:
    name = f"holes-{place}-{scheme}"
    data = noise(name)
    packs: set[Path] = set((server.mount.store / "packs").glob("*.pack"))
    server.write(name, data)
    assert server.settle(f"/cafs/{name}") == 200
    before = server.counter("cafs_nginx_damaged_total")
    with contextlib.ExitStack() as stack:
        held = []
        for pack in set((server.mount.store / "packs").glob("*.pack")) - packs:
            held.append(os.open(pack, os.O_RDWR))
            stack.callback(os.close, held[-1])
        connection = begin(server, f"/{place}/{name}", scheme)
        stack.callback(connection.close)
        first = connection.sock.recv(1000)
        asked = time.monotonic()
        give_back(server, name)
        wait_until("it is old", lambda: time.monotonic() - asked > GRACE_S)
        for fd in held:
            punch(fd)
        got, end = receive_all(connection.sock)
    body = (first + got).partition(b"\r\n\r\n")[2]
    assert data.startswith(body), "wrong bytes were sent"
    assert len(body) < SIZE
    assert end in (("reset",) if scheme == "http" else ("ragged", "reset"))
    assert server.counter("cafs_nginx_damaged_total") == before
    text = server.nginx.log_text()
    assert "was deleted meanwhile" in text
    assert f'"/{place}/{name}" cannot be sent to its end' in text
    assert "is damaged" not in text
