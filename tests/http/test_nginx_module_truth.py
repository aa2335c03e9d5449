"""The module never answers what is not so: pending changes, daemons that come and go, workers that
die, an index that is replaced, a store that is not there yet.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.links import hmac_link
from tests.http.moduleserver import HANDED_OVER, SECRET, ModuleServer, serving
from tests.mount.mounted import Mount

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def server() -> Iterator[ModuleServer]:
    """Each test leaves it with a running daemon and running workers."""
    with serving() as made:
        yield made


def shows(server: ModuleServer, target: str, status: int) -> bool:
    """Whether a change is shown; by handing over, unless it is committed already."""
    got = server.status(target)
    assert got in (status, HANDED_OVER), "a stale answer"
    return got == HANDED_OVER


def several(server: ModuleServer, target: str) -> set[int]:
    """The statuses of enough requests that each worker has some of them, most likely."""
    return {server.status(target) for _ in range(20)}


def test_what_is_not_committed_is_handed_over(server: ModuleServer) -> None:
    handed_over = 0
    for number in range(10):
        target = f"/cafs/new-{number}"
        assert server.status(target) == 404
        path = server.write(f"new-{number}", b"x" * 1000, sync=False)
        handed_over += shows(server, target, 200)
        assert server.status("/cafs/other") == 404
        path.unlink()
        handed_over += shows(server, target, 404)
    assert handed_over, "everything was committed before it was asked for"
    path = server.write("last", b"x", sync=False)
    if shows(server, "/cafs/last", 200):
        assert server.status("/alone/last") in (200, 503)
    server.sync()
    assert server.settle("/cafs/last") == 200
    assert server.counter("cafs_nginx_pending_total") >= handed_over


def test_every_change_shows_at_once(server: ModuleServer) -> None:
    path = server.write("d/file", b"one")
    assert server.settle("/cafs/d/file") == 200
    path.rename(path.with_name("other"))
    shows(server, "/cafs/d/file", 404)
    shows(server, "/cafs/d/other", 200)
    path.with_name("other").rename(path)
    shows(server, "/cafs/d/file", 200)
    assert server.settle("/cafs/d/file") == 200
    os.truncate(path, 1)
    if not shows(server, "/cafs/d/file", 200):
        assert dict(server.ask("/cafs/d/file").headers)["Content-Length"] == "1"
    assert server.settle("/cafs/d/file", "GET") == 200
    assert server.ask("/cafs/d/file").body == b"o"
    path.parent.rename(server.mount.root / "e")
    shows(server, "/cafs/d/file", 404)
    shows(server, "/cafs/e/file", 200)
    assert server.settle("/cafs/e/file") == 200


def test_a_killed_daemon_leaves_what_was_committed(server: ModuleServer) -> None:
    server.write("kept", b"kept" * 1000)
    assert server.settle("/cafs/kept") == 200
    server.write("lost", b"lost", sync=False)
    shows(server, "/cafs/lost", 200)
    server.mount.kill()
    wait_until("the lock's end", lambda: server.status("/cafs/lost") != HANDED_OVER, 10)
    assert server.ask("/cafs/kept").body == b"kept" * 1000
    after = server.status("/cafs/lost")
    server.mount.start()
    assert server.settle("/cafs/kept") == 200
    assert server.settle("/cafs/lost") == after
    server.write("later", b"later", sync=False)
    shows(server, "/cafs/later", 200)


def test_a_stopped_daemon_leaves_everything(server: ModuleServer) -> None:
    server.write("file", b"content", sync=False)
    server.mount.unmount()
    assert server.ask("/cafs/file").body == b"content"
    assert server.status("/cafs/none") == 404
    server.mount.start()
    (server.mount.root / "file").unlink()
    shows(server, "/cafs/file", 404)


def test_without_a_pending_file_the_daemon_is_asked(server: ModuleServer) -> None:
    server.write("file", b"content")
    assert server.settle("/cafs/file") == 200
    hidden = server.mount.base / "elsewhere.pending"
    settings = server.mount.base / "cafs.toml"
    settings.write_text(f'[mount]\npending_file = "{hidden}"\n')
    server.mount.unmount()
    server.mount.configure(settings)
    server.mount.start()
    assert server.status("/cafs/file") == HANDED_OVER
    server.mount.unmount()
    settings.write_text("")
    server.mount.start()
    assert server.settle("/cafs/file") == 200


def test_a_worker_that_dies_and_a_reload_cost_nothing(server: ModuleServer) -> None:
    server.write("file", b"content")
    assert server.settle("/cafs/file") == 200
    before = server.nginx.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    wait_until("new workers", lambda: not set(before) & set(server.nginx.workers()), 10)
    assert server.status("/cafs/file") == 200
    before = server.nginx.workers()
    os.kill(server.nginx.pid, signal.SIGHUP)
    wait_until("other workers", lambda: not set(before) & set(server.nginx.workers()), 10)
    assert server.status("/cafs/file") == 200
    assert server.counter('cafs_nginx_requests_total{outcome="found"}') >= 3


def test_an_index_that_is_shrunk_under_way() -> None:
    # A store of its own: one that has lost content waits for the grace period first.
    with serving() as server:
        server.write("file", b"content")
        for number in range(2000):
            (server.mount.root / f"{number:0200}").touch()
        server.sync()
        assert server.settle("/cafs/file") == 200
        for number in range(2000):
            (server.mount.root / f"{number:0200}").unlink()
        server.sync()
        index = server.mount.store / "index" / "data.mdb"
        before = index.stat().st_ino
        server.mount.run("compact", str(server.mount.store))
        assert index.stat().st_ino != before, "the index was not replaced"
        assert server.settle("/cafs/file") == 200
        (server.mount.root / "file").unlink()
        shows(server, "/cafs/file", 404)


def test_a_store_that_comes_later_is_opened_then() -> None:
    mount = Mount()
    moved = mount.base / "moved"
    mount.store.rename(moved)
    server = ModuleServer(mount)
    try:
        server.start()
        assert server.status("/cafs/file") == 503
        assert server.status("/cafs/file") == 503
        lines = server.nginx.log_text().count("cannot be opened")
        assert 1 <= lines <= 2, "one line for each worker"
        moved.rename(mount.store)
        mount.start()
        server.write("file", b"content")
        # Each worker finds it for itself.
        wait_until("the store", lambda: 503 not in several(server, "/cafs/file"), 10)
        assert server.settle("/cafs/file") == 200
        mount.unmount()
        shutil.rmtree(mount.store)
        wait_until("an end of answers", lambda: several(server, "/cafs/file") == {503}, 10)
    finally:
        server.close()


def test_signed_links(server: ModuleServer) -> None:
    server.write("cc-droplets/ab/cd/x", b"droplet")
    assert server.settle("/cafs/cc-droplets/ab/cd/x") == 200

    now = int(time.time())

    def link(method: str, path: str = "cc-droplets/ab/cd/x", at: int = now, life: int = 60) -> str:
        return hmac_link(SECRET, method, path, at, life)

    assert server.ask(link("GET")).body == b"droplet"
    assert server.status(link("HEAD"), "HEAD") == 200
    assert server.status(link("GET"), "HEAD") == 403
    assert server.status(link("PUT"), "PUT") == HANDED_OVER
    assert server.status(link("GET"), "PUT") == 403
    assert server.status("/signed/cc-droplets/ab/cd/x", "GET") == 403
    assert server.status(link("GET").replace("st=", "st=A"), "GET") == 403
    assert server.status(link("GET", "cc-droplets/none"), "GET") == 404
    assert server.status(link("GET", at=now - 100), "GET") == 403
    assert server.status(link("GET", at=now - 100, life=0), "GET") == 200
    assert server.status(link("GET", at=now + 100), "GET") == 200
    # The same text is signed: nothing stands between time and lifetime.
    for_ever = link("GET").replace("e=60", "e=0").replace(f"ts={now}", f"ts={now}6")
    assert server.status(for_ever, "GET") == 403
