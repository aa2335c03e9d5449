"""Archives that were taken apart, read through nginx: by the daemon first, then from the cache."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.daemon import DaemonAlone, daemon_alone
from tests.http.moduleserver import ModuleServer, receive_all
from tests.http.nginx import need_sources
from tests.http.test_archives import age_everything, aged
from tests.unit.archived import gzipped, sources, tar
from tests.unit.small_store import noise

pytestmark = pytest.mark.timeout(120)

KEY = "/admin/cc-droplets/aa/bb/aabb-1/one"
DATA = gzipped(tar({"noise": noise(1, 4_000_000)} | sources(("json",))))


class Both:
    """nginx with the module, and the daemon that it hands over to; one aged droplet."""

    def __init__(self, daemon: DaemonAlone, thaw_after: int) -> None:
        self.daemon = daemon
        with daemon.client() as client:
            assert client.request("PUT", KEY, DATA).status == 201
        daemon.mount.unmount()
        assert age_everything(daemon.mount.store) == 1
        with daemon.settings.open("a") as settings:
            settings.write(f"[archives]\nthaw_after = {thaw_after}\n")
        daemon.start()
        store = daemon.mount.store
        locations = (
            f"location /admin/ {{ cafs {store}; cafs_fallback @real; }}\n"
            f"location @real {{ proxy_pass http://unix:{store}/http.sock; }}\n"
        )
        self.nginx = ModuleServer(daemon.mount, more=locations)

    def counters(self) -> tuple[int, int]:
        """Answers from the cache, and requests that were handed over."""
        names = ("cafs_nginx_cached_total", 'cafs_nginx_requests_total{outcome="handed_over"}')
        cached, handed_over = (self.nginx.counter(name) for name in names)
        return cached, handed_over

    def archives(self) -> dict[str, Any]:
        """What the daemon says of itself."""
        said = json.loads(self.daemon.mount.run("status", "--json", str(self.daemon.mount.store)))
        section = said["archives"]
        assert isinstance(section, dict)
        return section

    def get(self, **headers: str) -> tuple[int, bytes]:
        answer = self.nginx.ask(KEY, headers=headers)
        return answer.status, answer.body

    @property
    def file(self) -> Path:
        """The one file of the cache."""
        (path,) = (self.daemon.mount.store / "cache").iterdir()
        return path


@contextlib.contextmanager
def both(thaw_after: int) -> Iterator[Both]:
    need_sources()
    with daemon_alone() as daemon:
        made = Both(daemon, thaw_after)
        try:
            made.nginx.start()
            yield made
        finally:
            made.nginx.nginx.stop()


def test_the_second_read_needs_no_daemon() -> None:
    with both(thaw_after=1000) as pair:
        assert pair.get() == (200, DATA)
        assert pair.counters() == (0, 1)
        hits = pair.archives()["cache_hits_count"]
        assert pair.get() == (200, DATA)
        assert pair.get(Range="bytes=1000000-1999999") == (206, DATA[1_000_000:2_000_000])
        assert pair.counters() == (2, 1)
        # The first was counted where it was answered, the others when nginx had told of them.
        wait_until("nginx's reads arrive", lambda: pair.archives()["cache_hits_count"] > hits)
        assert pair.archives()["reads_count"] == 2
        assert pair.archives()["rebuilds_count"] == 1
        os.kill(pair.daemon.mount.pid, signal.SIGSTOP)
        try:
            assert pair.get() == (200, DATA)
            assert pair.get(Range="bytes=-7") == (206, DATA[-7:])
        finally:
            os.kill(pair.daemon.mount.pid, signal.SIGCONT)
        assert pair.counters() == (4, 1)
        pair.daemon.mount.kill()
        assert pair.get() == (200, DATA)
        pair.daemon.start()


def test_damage_is_found_and_made_good_by_the_next_read() -> None:
    with both(thaw_after=1000) as pair:
        pair.daemon.mount.announce("it is made anew")
        assert pair.get() == (200, DATA)
        place = len(DATA) - 100_000
        with pair.file.open("r+b") as file:
            file.seek(place)
            file.write(bytes([DATA[place] ^ 1]))
        with contextlib.closing(pair.nginx.begin(KEY)) as connection:
            got, end = receive_all(connection.sock)
        body = got.partition(b"\r\n\r\n")[2]
        assert end == "reset" and DATA.startswith(body) and len(body) <= place
        assert pair.counters() == (1, 1)
        assert pair.get() == (200, DATA)
        assert pair.counters() == (1, 2)
        assert pair.file.read_bytes()[: len(DATA)] == DATA
        # An ending that is wrong leads to the daemon at once.
        os.truncate(pair.file, 1000)
        assert pair.get() == (200, DATA)
        assert pair.get() == (200, DATA)


def test_what_nginx_sends_again_and_again_is_thawed() -> None:
    with both(thaw_after=4) as pair:
        assert pair.get() == (200, DATA)
        for _ in range(2):
            assert pair.get() == (200, DATA)
        # Pieces are no use of their own while somebody reads.
        for start in range(1, 6):
            assert pair.get(Range=f"bytes={start}-{start}") == (206, DATA[start : start + 1])
        wait_until("nginx's reads arrive", lambda: pair.archives()["reads_count"] >= 3)
        assert (pair.archives()["reads_count"], pair.archives()["thawed_count"]) == (3, 0)
        with contextlib.closing(pair.nginx.begin(KEY)) as slow:
            response = slow.getresponse()
            first = response.read(10)
            wait_until("it is thawed", lambda: pair.archives()["thawed_count"] == 1)
            assert pair.archives()["reads_count"] == 4
            cache = pair.daemon.mount.store / "cache"
            wait_until("its file is gone", lambda: not list(cache.iterdir()))
            assert first + response.read() == DATA
        cached, _ = pair.counters()
        assert pair.get() == (200, DATA)
        pair.nginx.sync()
        wait_until("it is plain", lambda: aged(pair.daemon.mount.store) == 0)
        _, handed_over = pair.counters()
        assert pair.get() == (200, DATA)
        assert pair.counters() == (cached, handed_over)
