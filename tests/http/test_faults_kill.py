"""SIGKILL for nginx's workers, for the daemon and for both, in the middle of everything.

Cases 38, 98 and 99: what was acknowledged is there and whole, what was not leaves nothing half,
and a request is answered rightly or not at all.
"""

from __future__ import annotations

import os
import random
import signal

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.faults import FRONTS, FRONTS_STOCK_AT_NIGHT, Uploads, area_of, mounted, running
from tests.http.stocknginx import Nginx
from tests.http.targets import Target
from tests.http.wire import Reply
from tests.model.audit import audit

pytestmark = pytest.mark.timeout(300)
WITH_NGINX = [pytest.param("stock", marks=pytest.mark.slow), "module"]


def nginx_of(target: Target) -> Nginx:
    nginx = getattr(target, "nginx", None)
    assert isinstance(nginx, Nginx)
    return nginx


def kill_workers(target: Target) -> None:
    """Kill every worker and wait until the master has others."""
    nginx = nginx_of(target)
    victims = set(nginx.workers())
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    wait_until(
        "there are new workers",
        lambda: len(set(nginx.workers()) - victims) >= len(victims),
    )


def announce_death(target: Target) -> None:
    mounted(target).announce("left behind|took it over|was not closed|killed")


@pytest.mark.parametrize("name", WITH_NGINX)
def test_nginx_workers_are_killed(name: str) -> None:
    with running(name) as target:
        uploads = [Uploads(target, seed) for seed in (1, 2)]
        for _ in range(3):
            uploads[0].wait_for(10)
            kill_workers(target)
        uploads[1].wait_for(15)
        for each in uploads:
            each.stop()
        assert sum(each.interrupted for each in uploads) > 0, "the kills hit nothing"
        assert sum(each.check() for each in uploads) > 10


@pytest.mark.parametrize("name", FRONTS_STOCK_AT_NIGHT)
def test_case_098_the_daemon_is_killed(name: str) -> None:
    """Case 38, too: a power cut spares what was acknowledged as a kill does, as it is synced."""
    choice = random.Random(7)
    with running(name) as target:
        announce_death(target)
        mount = mounted(target)
        uploads = [Uploads(target, seed) for seed in (3, 4)]
        for number in range(2):
            uploads[number % 2].wait_for(choice.randrange(5, 25))
            mount.kill()
            mount.start()
            target.ready()
            uploads[number % 2].wait_for(3)
        for each in uploads:
            each.stop()
        assert sum(each.interrupted for each in uploads) > 0, "the kills hit nothing"
        assert sum(each.check() for each in uploads) > 5
        if name != "stock":
            # nginx's own copy in progress has a suffix, and is left behind when it is interrupted.
            assert not [file for each in uploads for file in each.files if file.suffix]
        assert not audit_closed(target)


def audit_closed(target: Target) -> list[str]:
    """Unmount, count everything anew, and come back."""
    mount = mounted(target)
    nginx_of(target).stop()
    mount.unmount()
    faults = audit(mount.store)
    mount.start()
    serve = getattr(target, "serve")  # noqa: B009
    serve()
    return faults


@pytest.mark.parametrize("name", ["module"])
def test_both_are_killed(name: str) -> None:
    with running(name) as target:
        announce_death(target)
        mount = mounted(target)
        uploads = Uploads(target, 5)
        for _ in range(2):
            uploads.wait_for(12)
            for pid in nginx_of(target).workers():
                os.kill(pid, signal.SIGKILL)
            mount.kill()
            mount.start()
            target.ready()
            uploads.wait_for(5)
        uploads.stop()
        assert uploads.interrupted
        assert uploads.check() > 5
        assert not audit_closed(target)


@pytest.mark.parametrize("name", WITH_NGINX)
def test_case_099_while_the_daemon_is_dead(name: str) -> None:
    """Never a 200 for what was deleted; with the module committed blobs are still served."""
    with running(name) as target, area_of(target) as area:
        announce_death(target)
        mount = mounted(target)
        kept = area.put("kept", b"x" * 200_000)
        gone = area.put("gone")
        assert area.http.request("DELETE", gone).status == 204
        area.put("after")  # over the mount a DELETE alone is not on disk yet
        tag = area.http.request("HEAD", kept)["ETag"]
        mount.kill()

        def ask(method: str, url: str, body: bytes | None = None) -> Reply:
            with target.admin() as http:
                return http.request(method, url, body)

        dead = ask("GET", kept)
        head = ask("HEAD", gone)
        if name == "module":
            assert (dead.status, dead.body, dead["ETag"]) == (200, b"x" * 200_000, tag)
            assert head.status == 404
        # A killed mount that was taken away leaves an empty directory under stock nginx.
        assert dead.status != 200 or dead.body == b"x" * 200_000
        assert head.status != 200
        if name == "module":
            for method in ("PUT", "DELETE", "PROPFIND"):
                body = b"x" if method == "PUT" else None
                assert ask(method, kept, body).status in (502, 503, 504), method
        mount.start()
        target.ready()
        assert ask("GET", kept).body == b"x" * 200_000
        assert ask("HEAD", gone).status == 404
        assert ask("PUT", gone, b"again").status == 201
        assert ask("GET", gone).body == b"again"


@pytest.mark.parametrize("name", [name for name in FRONTS if name != "stock"])
def test_a_put_that_the_daemon_did_not_survive_leaves_nothing(name: str) -> None:
    with running(name) as target, area_of(target) as area:
        announce_death(target)
        mount = mounted(target)
        area.put("kept", b"kept")
        stored = target.stored_bytes()
        with target.admin() as other:
            data = os.urandom(8 << 20)
            connection = other.begin(
                "PUT", area.url("lost"), {"Content-Length": str(2 * len(data))}
            )
            connection.send(data)
            mount.kill()
        mount.start()
        target.ready()
        assert area.http.request("HEAD", area.url("lost")).status == 404
        assert area.http.request("GET", area.url("kept")).body == b"kept"
        assert area.names() == ["kept"]
        mount.run("sweep", str(mount.store))
        assert target.stored_bytes() <= stored
