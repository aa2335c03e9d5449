"""What nginx sends counts as read: access times as ext4 has them under nginx, with relatime."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.moduleserver import ModuleServer, serving

pytestmark = pytest.mark.timeout(120)

OLD_NS = 1_600_000_000 * 10**9


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleServer]:
    with serving(user="www-data") as made:
        # The workers are another user than the daemon: the store is theirs.
        made.mount.unmount()
        for directory, names, files in os.walk(made.mount.store):
            for name in [".", *names, *files]:
                os.chown(os.path.join(directory, name), 33, 33)
        made.mount.start()
        yield made


def aged(server: ModuleServer, name: str) -> Path:
    """A committed file that was last read and changed long ago."""
    path = server.write(name, b"content " * 1000)
    path.chmod(0o644)
    os.utime(path, ns=(OLD_NS, OLD_NS))
    server.sync()
    for pack in (server.mount.store / "packs").iterdir():
        os.chown(pack, 33, 33)
    assert server.settle(f"/cafs/{name}") == 200
    assert path.stat().st_atime_ns == OLD_NS
    return path


def noticed(path: Path) -> bool:
    return path.stat().st_atime_ns > OLD_NS


def test_what_nginx_sends_sets_the_access_time(server: ModuleServer) -> None:
    path = aged(server, "sent")
    before = path.stat()
    assert server.ask("/cafs/sent").body == b"content " * 1000
    wait_until("the read is noticed", lambda: noticed(path))
    after = path.stat()
    assert abs(after.st_atime_ns - time.time_ns()) < 60 * 10**9
    assert (after.st_mtime_ns, after.st_ctime_ns) == (before.st_mtime_ns, before.st_ctime_ns)


@pytest.mark.parametrize("headers", [{"Range": "bytes=10-19"}, {"Range": "bytes=0-1,5-6"}])
def test_so_does_a_part(server: ModuleServer, headers: dict[str, str]) -> None:
    path = aged(server, "part")
    assert server.ask("/cafs/part", headers=headers).status == 206
    wait_until("the read is noticed", lambda: noticed(path))


def test_without_a_body_nothing_is_read(server: ModuleServer) -> None:
    quiet, loud = aged(server, "quiet"), aged(server, "loud")
    etag = dict(server.ask("/cafs/quiet", "HEAD").headers)["ETag"]
    assert server.ask("/cafs/quiet", headers={"If-None-Match": etag}).status == 304
    assert server.ask("/cafs/quiet", headers={"Range": "bytes=999999-"}).status == 416
    # What comes later arrives later: when this one is there, the others would be, too.
    assert server.ask("/cafs/loud").status == 200
    wait_until("the read is noticed", lambda: noticed(loud))
    assert quiet.stat().st_atime_ns == OLD_NS


def test_after_a_restart_of_the_daemon_too(server: ModuleServer) -> None:
    path = aged(server, "again")
    server.mount.kill()
    server.mount.start()
    assert server.settle("/cafs/again") == 200
    assert server.ask("/cafs/again").status == 200
    wait_until("the read is noticed", lambda: noticed(path))
