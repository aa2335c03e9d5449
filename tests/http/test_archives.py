"""Archives that were taken apart, read by real clients: through the mount and over HTTP."""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cafs.config import MountOptions
from cafs.index import layout
from cafs.index.layout import BLOB_AGED
from cafs.store import open_store
from cafs.types import BlobNo
from cafs.view import View
from tests.http.daemon import LOGIN, DaemonAlone, daemon_alone
from tests.unit.archived import droplet, gzipped, sources, tar
from tests.unit.small_store import noise

pytestmark = pytest.mark.timeout(120)

KEYS = ("/admin/cc-droplets/aa/bb/aabb-1/one", "/admin/cc-droplets/aa/bb/aabb-2/two")


def age_everything(store: Path) -> int:
    """Take all apart that can be, in a store that nobody has open; how many."""

    async def main() -> int:
        async with open_store(store, MountOptions()) as opened:
            # Who was unmounted a moment after the upload has left that to the next.
            await opened.hasher.once()
            done = 0
            for number in range(1, opened.counters.next_blob):
                if opened.blobs.aged.may_swap(BlobNo(number)):
                    outcome = await opened.archives.take_apart(BlobNo(number))
                    assert outcome.done, outcome
                    done += 1
            return done

    return trio.run(main)


def aged(store: Path) -> int:
    """How many aged blobs a store has by its last commit."""
    with View(store) as view:
        records = [layout.unpack_blob(v) for _, v in view.overlay.scan(layout.BLOBS, b"", b"")]
        return sum(bool(record.flags & BLOB_AGED) for record in records)


class Aged:
    """A daemon that serves two aged droplets."""

    def __init__(self, daemon: DaemonAlone) -> None:
        self.daemon = daemon
        big = gzipped(tar({"noise": noise(1, 6_000_000)} | sources()))
        self.content = dict(zip(KEYS, (big, droplet()), strict=True))
        with daemon.client() as client:
            for key, data in self.content.items():
                assert client.request("PUT", key, data).status in (201, 204)
                self.told = client.request("HEAD", key)
        self.stats = {key: os.stat(self.path(key)) for key in KEYS}
        daemon.mount.unmount()
        assert age_everything(daemon.mount.store) == 2
        # However often the tests read them.
        with daemon.settings.open("a") as settings:
            settings.write("[archives]\nthaw_after = 1000000\n")
        daemon.start()

    def path(self, key: str) -> Path:
        return self.daemon.root / key.removeprefix("/admin/")

    def forget(self) -> None:
        """Nothing rebuilt is kept, neither by the kernel nor in the cache."""
        self.daemon.mount.unmount()
        for file in (self.daemon.mount.store / "cache").iterdir():
            file.unlink()
        self.daemon.start()


@pytest.fixture(scope="module")
def served() -> Iterator[Aged]:
    """For tests that only read."""
    with daemon_alone() as daemon:
        yield Aged(daemon)


@pytest.fixture
def own() -> Iterator[Aged]:
    """For a test that changes something."""
    with daemon_alone() as daemon:
        yield Aged(daemon)


def test_files_are_what_they_were(served: Aged) -> None:
    for key, data in served.content.items():
        path = served.path(key)
        after, before = os.stat(path), served.stats[key]
        for name in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino", "st_blocks"):
            assert getattr(after, name) == getattr(before, name)
        assert path.read_bytes() == data
    with served.daemon.client() as client:
        told = client.request("HEAD", KEYS[-1])
        for name in ("etag", "last-modified", "content-length"):
            assert told[name] == served.told[name]
        for key, data in served.content.items():
            answer = client.request("GET", key)
            assert (answer.status, answer.body) == (200, data)
    assert aged(served.daemon.mount.store) == 2


def test_ranges_and_maps_of_any_place(served: Aged) -> None:
    key, data = KEYS[0], served.content[KEYS[0]]
    choice = random.Random(1)
    with served.daemon.client() as client:
        for start in (len(data) - 100, 0, *(choice.randrange(len(data)) for _ in range(5))):
            end = min(len(data), start + choice.randrange(1, 300_000))
            answer = client.request("GET", key, headers={"Range": f"bytes={start}-{end - 1}"})
            assert (answer.status, answer.body) == (206, data[start:end])
    served.forget()
    with (
        served.path(key).open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as view,
    ):
        for place in (len(data) - 1, 5, *(choice.randrange(len(data)) for _ in range(20))):
            assert view[place : place + 5000] == data[place : place + 5000]


def test_many_readers_at_once_in_the_mount_and_over_http(served: Aged) -> None:
    wrong: list[str] = []

    def get(key: str) -> None:
        with served.daemon.client() as client:
            if client.request("GET", key).body != served.content[key]:
                wrong.append(key)

    def read(key: str) -> None:
        code = (
            "import hashlib,sys; print(hashlib.sha256(open(sys.argv[1],'rb').read()).hexdigest())"
        )
        command = [sys.executable, "-c", code, str(served.path(key))]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        if said != hashlib.sha256(served.content[key]).hexdigest():
            wrong.append(key)

    threads = [
        threading.Thread(target=work, args=(key,))
        for work in (get, read)
        for key in KEYS
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_client_that_goes_away_harms_nobody(served: Aged) -> None:
    key, data = KEYS[0], served.content[KEYS[0]]
    for _ in range(3):
        raw = served.daemon.endpoint.connect()
        head = f"GET {key} HTTP/1.1\r\nHost: x\r\nAuthorization: {LOGIN['Authorization']}\r\n\r\n"
        raw.sendall(head.encode())
        assert raw.recv(1000)
        raw.close()
    with served.daemon.client() as client:
        assert client.request("GET", key).body == data


def test_writing_to_them_through_the_mount(own: Aged) -> None:
    first, second = (bytearray(own.content[key]) for key in KEYS)
    with own.path(KEYS[0]).open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"changed")
        first[1_000_000:1_000_007] = b"changed"
    with own.path(KEYS[1]).open("ab") as file:
        file.write(b"appended")
        second += b"appended"
    assert own.path(KEYS[0]).read_bytes() == first
    assert own.path(KEYS[1]).read_bytes() == second
    own.daemon.mount.restart()
    assert own.path(KEYS[0]).read_bytes() == first
    assert own.path(KEYS[1]).read_bytes() == second


def test_damage_inside_is_an_error_and_never_a_clean_end(own: Aged) -> None:
    own.daemon.mount.announce("damage|do not match|read them from|paths of what|cut")
    key, data = KEYS[0], own.content[KEYS[0]]
    own.daemon.mount.unmount()
    for pack in (own.daemon.mount.store / "packs").glob("*.pack"):
        raw = bytearray(pack.read_bytes())
        # The noise inside is stored as it is, behind the droplets as they were.
        place = raw.rfind(noise(1, 6_000_000)[3_000_000:3_000_050])
        if place > 0:
            raw[place] ^= 1
            pack.write_bytes(raw)
            break
    own.daemon.start()
    with pytest.raises(OSError, match="Input/output"):
        own.path(key).read_bytes()
    got = b""
    raw_socket = own.daemon.endpoint.connect()
    with raw_socket:
        head = f"GET {key} HTTP/1.1\r\nHost: x\r\nAuthorization: {LOGIN['Authorization']}\r\n\r\n"
        raw_socket.sendall(head.encode())
        try:
            while piece := raw_socket.recv(1 << 16):
                got += piece
        except ConnectionResetError:
            pass
    body = got.partition(b"\r\n\r\n")[2]
    assert len(body) < len(data)
    assert data.startswith(body) or b" 500 " in got[:20]
    # Written again it is plain, and whole.
    with own.daemon.client() as client:
        assert client.request("PUT", key, data).status in (201, 204)
        assert client.request("GET", key).body == data
    # The damaged chunk is nobody's any more.
    own.daemon.mount.run("sweep", str(own.daemon.mount.store))
