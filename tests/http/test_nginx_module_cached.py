"""Blobs that were taken apart and lie in the cache: the module sends them, or nobody's bytes.

The store is without its daemon here, so that nobody else can answer: what the module hands over has
a status of its own.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import xxhash

from cafs import storefile
from cafs.archives.cache import Cache
from cafs.archives.cachefile import BLOCK
from cafs.archives.growing import Growing
from cafs.durable import Disk
from cafs.index.layout import AGED_VERSION
from cafs.store import open_store
from cafs.types import ROOT, BlobNo
from tests.fault.smalldisk import wait_until
from tests.http.faults import open_files
from tests.http.moduleserver import HANDED_OVER, ModuleServer, receive_all, serving
from tests.unit import aged_store
from tests.unit.small_store import OPTIONS

pytestmark = pytest.mark.timeout(120)

SIZES = {"one": 1, "block": BLOCK, "two": BLOCK + 1, "large": 3_000_000, "larger": 9_000_000}
PLACES = ("cafs", "fast", "cached")
"""Locations with each way of verifying."""
Change = Callable[[Path], object]


@functools.cache
def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZES[name])


class Served:
    """A server of aged blobs, whose files in the cache the tests make."""

    def __init__(self, server: ModuleServer) -> None:
        self.server = server
        self.store_id = storefile.read(server.mount.store).id
        self.blobs: dict[str, BlobNo] = {}

    async def age(self) -> None:
        async with open_store(self.server.mount.store, OPTIONS) as store:
            for name in SIZES:
                ino = store.tree.lookup(ROOT, name.encode())
                assert ino is not None
                number = await aged_store.hashed(store, ino)
                await aged_store.age(store, number, content(name), len(self.blobs))
                self.blobs[name] = number
            await store.commit()

    def file(self, name: str) -> Path:
        return self.server.mount.store / "cache" / f"{self.blobs[name]:012x}"

    def cache(self, name: str, **wrong: object) -> Path:
        """Put a blob into the cache as the daemon does; *wrong* is what its footer lies about."""
        data = content(name)
        cache = Cache(Disk(), self.server.mount.store, self.store_id, 1 << 30)
        cache.open()
        identity = cache.identity(hashlib.sha256(data).digest(), len(data))
        growing = Growing(Disk(), cache, self.blobs[name], identity._replace(**wrong))  # type: ignore[arg-type]
        growing.append(data)
        growing.finish()
        growing.close()
        return self.file(name)

    def drop(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.file(name).unlink()

    def status(self, name: str) -> int:
        return self.server.status(f"/cafs/{name}", "GET")


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving() as server:
        for name in SIZES:
            server.write(name, content(name))
        server.mount.unmount()
        storefile.upgrade(server.mount.store, AGED_VERSION, Disk())
        made = Served(server)
        trio.run(made.age)
        # Workers that look at the store's version now.
        server.nginx.stop()
        server.start()
        yield made
        wait_until("nothing of the cache is open", lambda: not of_cache(server), 10)


def of_cache(server: ModuleServer) -> list[str]:
    """What the workers have open of the cache."""
    return [target for target in open_files(server.nginx.workers()) if "/cache/" in target]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", SIZES)
def test_what_is_in_the_cache_is_answered(
    served: Served, name: str, place: str, scheme: str
) -> None:
    served.cache(name)
    server, data = served.server, content(name)
    before = server.counter("cafs_nginx_cached_total")
    head = server.ask(f"/{place}/{name}", "HEAD", scheme=scheme)
    answer = server.ask(f"/{place}/{name}", scheme=scheme)
    assert (answer.status, answer.body, answer.headers) == (200, data, head.headers)
    for start, end in ((0, 1), (len(data) // 2, len(data)), (len(data) - 1, len(data))):
        asked = {"Range": f"bytes={start}-{end - 1}"}
        ranged = server.ask(f"/{place}/{name}", "GET", asked, scheme)
        assert (ranged.status, ranged.body) == (206, data[start:end])
    assert server.counter("cafs_nginx_cached_total") == before + 4


def test_more_ranges_than_one(served: Served) -> None:
    served.cache("large")
    data = content("large")
    asked = {"Range": f"bytes=2500000-2600000,5-9,{BLOCK - 1}-{BLOCK},-7"}
    answer = served.server.ask("/cafs/large", headers=asked)
    assert answer.status == 206
    for part in (data[2500000:2600001], data[5:10], data[BLOCK - 1 : BLOCK + 1], data[-7:]):
        assert part in answer.body
    beyond = served.server.ask("/cafs/large", headers={"Range": f"bytes={len(data)}-"})
    assert beyond.status == 416


@pytest.mark.parametrize("cached", [True, False])
def test_conditions(served: Served, cached: bool) -> None:
    """What needs no bytes is answered, in the cache or not; what does is sent or handed over."""
    served.cache("two") if cached else served.drop("two")
    sent = (200, content("two")) if cached else (HANDED_OVER,)
    head = dict(served.server.ask("/cafs/two", "HEAD").headers)
    etag, modified = head["ETag"], head["Last-Modified"]
    past, future = "Sat, 01 Jan 2000 00:00:00 GMT", "Wed, 01 Jan 2070 00:00:00 GMT"
    for headers, expected in (
        ({"If-None-Match": etag}, (304,)),
        ({"If-None-Match": f'"other", W/{etag}'}, (304,)),
        ({"If-None-Match": f"{etag} \t"}, (304,)),
        ({"If-None-Match": f"x, {etag} ,"}, (304,)),
        ({"If-None-Match": "*"}, (304,)),
        ({"If-None-Match": f"x{etag}"}, sent),
        ({"If-None-Match": f"{etag}x"}, sent),
        ({"If-None-Match": etag[:-1]}, sent),
        ({"If-None-Match": '"other"'}, sent),
        ({"If-Modified-Since": modified}, (304,)),
        ({"If-Modified-Since": past}, sent),
        ({"If-Modified-Since": future}, sent),
        ({"If-Modified-Since": modified, "If-None-Match": '"other"'}, sent),
        ({"If-Modified-Since": past, "If-None-Match": etag}, sent),
        ({"If-Modified-Since": "nonsense"}, sent),
        ({"If-Range": '"other"', "Range": "bytes=5-6"}, sent),
        ({"If-Match": etag}, sent),
    ):
        answer = served.server.ask("/cafs/two", headers=headers)
        assert (answer.status, answer.body)[: len(expected)] == expected, headers
    refused = served.server.ask("/cafs/two", headers={"If-Match": '"other"'})
    assert refused.status == (412 if cached else HANDED_OVER)


def flip(place: int) -> Change:
    def change(path: Path) -> None:
        with path.open("r+b") as file:
            size = os.fstat(file.fileno()).st_size
            at = place if place >= 0 else size + place
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1]))

    return change


def cut(length: int) -> Change:
    return lambda path: os.truncate(path, length)


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def replaced(make: Change) -> Change:
    def change(path: Path) -> None:
        path.rename(path.with_suffix(".away"))
        make(path)

    return change


def forged(path: Path) -> None:
    """A footer whose check is right, and which says that a block has one byte."""
    raw = path.read_bytes()
    size = SIZES["large"]
    table, footer = raw[size:-64], bytearray(raw[-64:-8])
    struct.pack_into("<I", footer, 12, 1)
    check = xxhash.xxh3_64_intdigest(table + footer)
    path.write_bytes(raw[:size] + table + footer + struct.pack("<Q", check))


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize(
    "change",
    [
        *[flip(-64 + place) for place in (0, 8, 12, 16, 32, 48, 56, 63)],
        *[flip(SIZES["large"]), flip(-65), flip(0), flip(2 * BLOCK - 1), flip(BLOCK)],
        *[cut(0), cut(1000), cut(SIZES["large"]), cut(SIZES["large"] + 100), grow, forged],
        *[os.unlink, replaced(os.mkdir), replaced(os.mkfifo)],
        replaced(lambda path: os.symlink(path.with_suffix(".away"), path)),
    ],
)
def test_any_other_file_is_none(served: Served, change: Change, cold: bool) -> None:
    path = served.cache("large")
    try:
        change(path)
        if cold:
            forget(path)
        assert served.status("large") == HANDED_OVER
        assert served.server.ask("/cafs/large", "HEAD").status == 200
        assert served.server.status("/alone/large", "GET") == 503
    finally:
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        path.with_suffix(".away").unlink(missing_ok=True)
    served.cache("large")
    assert served.status("large") == 200


@pytest.mark.parametrize(
    "wrong", [{"store_id": bytes(16)}, {"sha256": bytes(32)}, {"sha256": b"\xff" * 32}]
)
def test_another_stores_or_blobs_file_is_none(served: Served, wrong: dict[str, bytes]) -> None:
    served.cache("two", **wrong)
    assert served.status("two") == HANDED_OVER
    served.drop("two")
    path = served.cache("one")
    path.rename(served.file("two"))
    assert (served.status("two"), served.status("one")) == (HANDED_OVER, HANDED_OVER)
    served.cache("two")
    assert served.status("two") == 200


def forget(path: Path) -> None:
    """Nothing of a file is in the page cache any more."""
    if not path.is_file():
        return
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_what_the_page_cache_has_not_is_read_by_a_thread(served: Served, scheme: str) -> None:
    path = served.cache("larger")
    data = content("larger")
    for headers, body in (({}, data), ({"Range": "bytes=8000000-"}, data[8000000:])):
        forget(path)
        before = served.server.counter("cafs_nginx_disk_waits_total")
        assert served.server.ask("/cafs/larger", "GET", headers, scheme).body == body
        assert served.server.counter("cafs_nginx_disk_waits_total") > before


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("place", PLACES)
def test_damage_further_on_cuts_the_connection(served: Served, place: str, scheme: str) -> None:
    server, data = served.server, content("larger")
    flip(len(data) - 200_000)(served.cache("larger"))
    damaged = server.counter("cafs_nginx_damaged_total")
    with contextlib.closing(server.begin(f"/{place}/larger", scheme=scheme)) as connection:
        got, end = receive_all(connection.sock)
    header, _, body = got.partition(b"\r\n\r\n")
    assert b"200 OK" in header
    assert data.startswith(body), "wrong bytes were sent"
    assert len(body) < len(data) - 200_000
    assert end == "reset" or (scheme, end) == ("https", "ragged")
    assert server.counter("cafs_nginx_damaged_total") == damaged + 1
    assert f'"/{place}/larger" cannot be served' in server.nginx.log_text()
    served.drop("larger")


def test_a_file_that_goes_while_it_is_read_is_read_to_its_end(served: Served) -> None:
    path, data = served.cache("larger"), content("larger")
    with contextlib.closing(served.server.begin("/cafs/larger")) as connection:
        response = connection.getresponse()
        first = response.read(10)
        path.unlink()
        assert served.status("larger") == HANDED_OVER
        assert first + response.read() == data


def test_clients_that_leave_leave_nothing_open(served: Served) -> None:
    served.cache("larger")
    for _ in range(10):
        with contextlib.closing(served.server.begin("/cafs/larger")) as gone:
            gone.sock.recv(100)
    wait_until("nothing is open", lambda: not of_cache(served.server), 10)
