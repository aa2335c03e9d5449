"""COPY and DELETE over HTTP as the mount of the same tree shows them, and as a kill leaves them."""

from __future__ import annotations

import errno
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs.view import View
from tests.fault.smalldisk import wait_until
from tests.mount.mounted import MOUNT_TIMEOUT_S, Mount


class UnixClient(http.client.HTTPConnection):
    """HTTP over the daemon's unix socket, as nginx speaks it."""

    def __init__(self, path: Path) -> None:
        super().__init__("store", timeout=30)
        self._path = str(path)

    def connect(self) -> None:
        deadline = time.monotonic() + MOUNT_TIMEOUT_S
        while True:
            self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.sock.settimeout(30)
            try:
                self.sock.connect(self._path)
                return
            except (FileNotFoundError, ConnectionRefusedError):
                # The daemon listens a moment after its mount is there.
                self.sock.close()
                assert time.monotonic() < deadline
                time.sleep(0.005)


class Served:
    """A mounted store and a client of its daemon."""

    def __init__(self) -> None:
        self.mount = Mount("--commit-interval", "50ms", "--grace", "0s")
        self.root = self.mount.root
        self.client = UnixClient(self.mount.store / "http.sock")

    def start(self) -> None:
        """Start the daemon."""
        self.client.close()
        self.mount.start()

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> int:
        """The status of an answer, which is read to its end."""
        self.client.request(method, path, body, headers)
        answer = self.client.getresponse()
        answer.read()
        return answer.status

    def sweep(self) -> None:
        """Take out everything that is to go."""
        self.mount.run("sweep", str(self.mount.store))

    def removed(self) -> int:
        """Removed directories that still have entries."""
        status = json.loads(self.mount.run("status", str(self.mount.store), "--json"))
        count: int = status["pending"]["removed_directories_count"]
        return count

    def close(self) -> None:
        """Take everything away."""
        self.client.close()
        self.mount.close()


@pytest.fixture
def served() -> Iterator[Served]:
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    made = Served()
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.mark.parametrize("full", [False, True])
def test_a_removed_directory_is_empty_to_who_has_it_open(served: Served, full: bool) -> None:
    directory = served.root / "dir"
    directory.mkdir()
    if full:
        assert served.ask("PUT", "/admin/dir/file", b"x") == 201
    opened = os.open(directory, os.O_RDONLY)
    try:
        assert served.ask("DELETE", "/admin/dir/") == 204
        served.sweep()
        assert os.fstat(opened).st_nlink == 0
        assert os.listdir(opened) == []
    finally:
        os.close(opened)

    def left() -> bool:
        with View(served.mount.store) as view:
            return any(view.tree.inodes.orphans())

    # When it is closed the kernel forgets it.
    wait_until("it is gone", lambda: not left())


def test_the_mount_shows_a_removed_tree_no_more(served: Served) -> None:
    root = served.root
    for name in ("one", "two"):
        assert served.ask("PUT", f"/admin/top/ab/{name}", name.encode()) == 201
    os.link(root / "top/ab/one", root / "kept")
    assert (root / "kept").stat().st_nlink == 2
    directory = os.open(root / "top/ab", os.O_RDONLY)
    reader = (root / "top/ab/two").open("rb")
    assert served.ask("DELETE", "/admin/top/") == 204
    assert os.listdir(root) == ["kept"]
    assert not (root / "top/ab/two").exists()
    with pytest.raises(OSError) as caught:
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=directory)
    assert caught.value.errno in (errno.ENOENT, errno.ESTALE)
    served.sweep()
    assert reader.read() == b"two"
    assert os.fstat(reader.fileno()).st_nlink == 0
    assert (root / "kept").stat().st_nlink == 1
    assert (root / "kept").read_bytes() == b"one"
    reader.close()
    os.close(directory)
    # The name is free for a new one.
    assert served.ask("PUT", "/admin/top/ab/one", b"new") == 201
    assert (root / "top/ab/one").read_bytes() == b"new"
    served.mount.unmount()
    served.mount.run("check", str(served.mount.store))


def test_the_mount_shows_a_copy_at_once(served: Served) -> None:
    root = served.root
    served.ask("PUT", "/admin/source", b"new content")
    served.ask("PUT", "/admin/copy", b"old")
    os.link(root / "copy", root / "link")
    assert not (root / "fresh").exists()
    with (root / "copy").open("rb") as reader:
        assert served.ask("COPY", "/admin/source", Destination="/admin/copy") == 204
        assert served.ask("COPY", "/admin/source", Destination="/admin/fresh") == 204
        assert (root / "copy").read_bytes() == (root / "fresh").read_bytes() == b"new content"
        assert (root / "link").read_bytes() == reader.read() == b"old"
    assert (root / "link").stat().st_nlink == 1
    assert (root / "copy").stat().st_mtime_ns == (root / "source").stat().st_mtime_ns
    assert (root / "copy").stat().st_ino != (root / "source").stat().st_ino


def test_what_is_written_through_the_mount_can_be_copied(served: Served) -> None:
    data = os.urandom(3_000_000)
    with (served.root / "source").open("wb") as writer:
        writer.write(data)
        writer.flush()
        assert served.ask("COPY", "/admin/source", Destination="/admin/copy") == 204
        assert (served.root / "copy").read_bytes() == data
        writer.seek(10)
        writer.write(b"changed")
    assert (served.root / "copy").read_bytes() == data
    assert (served.root / "source").read_bytes() == data[:10] + b"changed" + data[17:]


def test_a_kill_right_after_the_answer_loses_nothing(served: Served) -> None:
    for number in range(300):
        directory = served.root / "top" / str(number % 20)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / str(number)).write_bytes(b"%d" % number)
    served.ask("PUT", "/admin/source", b"content")
    assert served.ask("COPY", "/admin/source", Destination="/admin/copy") == 204
    assert served.ask("COPY", "/admin/top/", Destination="/admin/tree/") == 201
    assert served.ask("DELETE", "/admin/top/") == 204
    served.mount.kill()
    served.mount.run("check", str(served.mount.store))
    served.start()
    assert sorted(os.listdir(served.root)) == ["copy", "source", "tree"]
    assert (served.root / "copy").read_bytes() == b"content"
    assert (served.root / "tree/19/299").read_bytes() == b"299"
    served.sweep()
    assert served.removed() == 0
    status = os.statvfs(served.root)
    assert status.f_files - status.f_ffree == 1 + 2 + 1 + 20 + 300
    served.mount.unmount()
    served.mount.run("check", str(served.mount.store))


def test_resources_that_came_through_the_mount_are_known(served: Served) -> None:
    sha1 = "ab" * 20
    place = served.root / "cc-resources/app_bits_cache/ab/ab"
    place.mkdir(parents=True)
    entry = {"checksum": {"value": sha1}, "size_in_bytes": 70_000, "mode": "644"}
    body = json.dumps({"resources": [entry]}).encode()

    def known() -> int:
        served.client.request("POST", "/resource_matches", body)
        answer = served.client.getresponse()
        assert answer.status == 201
        return len(json.loads(answer.read())["resources"])

    assert known() == 0
    with (place / sha1).open("wb") as writer:
        writer.write(bytes(70_000))
        writer.flush()
        assert known() == 1
    (place / sha1).rename(place / "other")
    assert known() == 0
