"""What the module hands over: blobs that were taken apart, and parts that it does not read."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
import trio

from cafs import storefile
from cafs.durable import Disk
from cafs.index.layout import AGED_VERSION
from cafs.store import Store, open_store
from cafs.types import ROOT, BlobNo
from tests.http.moduleserver import HANDED_OVER, ModuleServer, serving
from tests.unit import aged_store
from tests.unit.small_store import OPTIONS

pytestmark = pytest.mark.timeout(120)

SIZE = 300_000


def content(name: str) -> bytes:
    return random.Random(name).randbytes(SIZE)


async def blob_of(store: Store, name: str) -> BlobNo:
    ino = store.tree.lookup(ROOT, name.encode())
    assert ino is not None
    return await aged_store.hashed(store, ino)


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleServer]:
    """A store of version 2, without its daemon: so nothing is pending."""
    with serving() as made:
        for name in ("aged", "left", "sliced", "plain"):
            made.write(name, content(name))
        made.mount.unmount()
        storefile.upgrade(made.mount.store, AGED_VERSION, Disk())

        async def age() -> None:
            async with open_store(made.mount.store, OPTIONS) as store:
                await aged_store.age(store, await blob_of(store, "aged"), content("aged"), 5)
                store.blobs.aged.leave(await blob_of(store, "left"))
                parts, data = await aged_store.gathered(
                    store, aged_store.noise(6, 4000), aged_store.noise(7, 60_000)
                )
                number = store.blobs.adopt(parts, len(data), aged_store.digests(data))
                ino = store.tree.lookup(ROOT, b"sliced")
                assert ino is not None
                store.contents.publish(ino, number, len(data))
                await store.commit()

        trio.run(age)
        # Workers that look at the store's version now.
        made.nginx.stop()
        made.start()
        yield made


def test_what_is_aged_is_the_daemons(server: ModuleServer) -> None:
    assert server.status("/cafs/aged", "GET") == HANDED_OVER
    head = server.ask("/cafs/aged", "HEAD")
    assert head.status == 200
    assert dict(head.headers)["Content-Length"] == str(SIZE)
    assert server.ask("/cafs/aged", "GET", {"Range": "bytes=0-1"}).status == HANDED_OVER


def test_slices_are_the_daemons(server: ModuleServer) -> None:
    assert server.status("/cafs/sliced", "GET") == HANDED_OVER
    assert server.status("/cafs/sliced") == 200


@pytest.mark.parametrize("name", ["left", "plain"])
def test_what_is_plain_is_answered(server: ModuleServer, name: str) -> None:
    answer = server.ask(f"/cafs/{name}")
    assert (answer.status, answer.body) == (200, content(name))


def test_nothing_of_it_is_damage(server: ModuleServer) -> None:
    assert server.counter("cafs_nginx_damaged_total") == 0
