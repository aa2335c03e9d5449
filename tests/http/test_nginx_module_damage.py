"""What the module does when bytes on disk are not those that were written: never a clean answer."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.faults import open_files
from tests.http.moduleserver import ModuleServer, receive_all, serving
from tests.unit.damaged_index import flip

pytestmark = pytest.mark.timeout(120)

SIZE = 3 << 20
TWO_LINES = "two\nlines"
BLOBS = (
    *("first-http", "first-https", "later-http", "later-https"),
    *("short", "slow", "cold", TWO_LINES),
)


def noise(name: str) -> bytes:
    """A blob's content; random bytes are stored as they are."""
    return random.Random(name).randbytes(SIZE)


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleServer]:
    """A store without its daemon: so nothing is pending, and nobody else answers."""
    with serving() as made:
        for name in BLOBS:
            made.write(name, noise(name))
        made.mount.unmount()
        yield made


def damage(server: ModuleServer, data: bytes, at: int) -> tuple[Path, int]:
    """Flip a bit of byte *at* of a blob, in its pack."""
    for pack in (server.mount.store / "packs").glob("*.pack"):
        offset = pack.read_bytes().find(data[at : at + 64])
        if offset >= 0:
            with pack.open("r+b") as file:
                file.seek(offset)
                file.write(bytes([data[at] ^ 1]))
            return pack, offset
    raise AssertionError("not stored")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_damage_at_the_beginning_is_an_honest_500(server: ModuleServer, scheme: str) -> None:
    data = noise(f"first-{scheme}")
    before = server.counter("cafs_nginx_damaged_total")
    damage(server, data, 0)
    assert server.ask(f"/cafs/first-{scheme}", scheme=scheme).status == 500
    assert server.ask(f"/cached/first-{scheme}", scheme=scheme).status == 500
    # What is behind it is served, and HEAD needs no chunk.
    ranged = server.ask(f"/cafs/first-{scheme}", "GET", {"Range": f"bytes={SIZE - 10}-"}, scheme)
    assert (ranged.status, ranged.body) == (206, data[-10:])
    assert server.ask(f"/cafs/first-{scheme}", "HEAD", scheme=scheme).status == 200
    assert server.counter("cafs_nginx_damaged_total") == before + 2
    assert "is damaged" in server.nginx.log_text()
    assert f'"/cafs/first-{scheme}" cannot be served' in server.nginx.log_text()


def test_a_name_cannot_put_lines_into_the_log(server: ModuleServer) -> None:
    damage(server, noise(TWO_LINES), 0)
    assert server.ask("/cafs/two%0alines").status == 500
    assert '"/cafs/two%0alines" cannot be served' in server.nginx.log_text()


@pytest.mark.parametrize("place", ["cafs", "cached"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_damage_further_on_cuts_the_connection(
    server: ModuleServer, scheme: str, place: str
) -> None:
    data = noise(f"later-{scheme}")
    if place == "cafs":
        damage(server, data, SIZE - 300_000)
    connection = server.begin(f"/{place}/later-{scheme}", scheme=scheme)
    got, end = receive_all(connection.sock)
    connection.close()
    header, _, body = got.partition(b"\r\n\r\n")
    assert b"200 OK" in header
    assert data.startswith(body), "wrong bytes were sent"
    assert len(body) < SIZE - 300_000
    assert end == ("reset" if scheme == "http" else "ragged") or (scheme, end) == ("https", "reset")
    assert server.ask("/cafs/none").status == 404


def test_a_pack_that_is_too_short_or_gone(server: ModuleServer) -> None:
    data = noise("short")
    pack, offset = damage(server, data, SIZE - 1000)
    held = pack.read_bytes()
    with pack.open("r+b") as file:
        file.truncate(offset)
    connection = server.begin("/cafs/short")
    with contextlib.closing(connection):
        got, end = receive_all(connection.sock)
    assert (end, len(got.partition(b"\r\n\r\n")[2]) < SIZE) == ("reset", True)
    pack.rename(pack.with_suffix(".away"))
    assert server.status("/cafs/short", "GET") == 500
    pack.with_suffix(".away").rename(pack)
    pack.write_bytes(held)


def test_a_flipped_bit_of_the_index_is_500_for_what_needs_it() -> None:
    with serving() as server:
        for number in range(30):
            server.write(f"file-{number}", b"x", sync=False)
        server.sync()
        server.settle("/cafs/file-7")
        ino = (server.mount.root / "file-7").stat().st_ino
        server.mount.unmount()
        flip(server.mount.store / "index", "inodes", ino.to_bytes(6, "big"), bit=77)
        answers = {name: server.status(f"/cafs/file-{name}") for name in range(30)}
        assert answers.pop(7) == 500
        assert set(answers.values()) == {200}
        assert f"the index is damaged: inodes {ino}" in server.nginx.log_text()


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_is_not_cached_is_read_by_a_thread(server: ModuleServer, scheme: str) -> None:
    for pack in (server.mount.store / "packs").glob("*.pack"):
        fd = os.open(pack, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
    before = server.counter("cafs_nginx_disk_waits_total")
    assert server.ask("/cafs/cold", scheme=scheme).body == noise("cold")
    ranged = {"Range": "bytes=1000000-2000000,5-9,-7"}
    assert server.ask("/cafs/cold", "GET", ranged, scheme).status == 206
    assert server.counter("cafs_nginx_disk_waits_total") > before


def test_a_slow_reader_and_one_that_leaves_cost_the_others_nothing(server: ModuleServer) -> None:
    data = noise("slow")
    with contextlib.ExitStack() as stack:
        slow = [server.begin("/cafs/slow", scheme=scheme) for scheme in ("http", "https") * 5]
        for connection in slow:
            stack.callback(connection.close)
        for _ in range(10):
            with contextlib.closing(server.begin("/cafs/slow")) as gone:
                gone.sock.recv(100)
        assert server.ask("/cafs/slow").body == data
        for connection in slow:
            assert connection.getresponse().read() == data
    workers = server.nginx.workers()

    def packs_open() -> int:
        return sum(".pack" in target for target in open_files(workers))

    wait_until("no open pack", lambda: packs_open() == 0, 10)
