"""A full disk and a read-only one below a store that is served: cases 35, 79, 95 and 96."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator

import pytest

from tests.fault.smalldisk import MIB, SmallDisk, SmallDiskMount, need_loop_devices, wait_until
from tests.http.daemon import UnixEndpoint
from tests.http.faults import FRONTS_STOCK_AT_NIGHT, area_of, mounted, on_small_disk
from tests.http.targets import OURS, Area, Target
from tests.http.wire import Connection, Reply
from tests.model.audit import audit

pytestmark = pytest.mark.timeout(240)
FULL_LOG = r"is full|using the reserve|commit failed|waits for room|cannot store|no room|stopped"
READ_ONLY_LOG = r"[Rr]ead-only"
ANSWER_WITHIN_S = 10.0


Ill = tuple[Target, SmallDisk]


@pytest.fixture(scope="module", params=FRONTS_STOCK_AT_NIGHT)
def ill(request: pytest.FixtureRequest) -> Iterator[Ill]:
    """A target on a small disk, for all tests of this module: they leave it well."""
    with on_small_disk(request.param) as made:
        mounted(made[0]).announce(FULL_LOG)
        yield made


def assert_refused(target: Target, reply: Reply, status: int) -> None:
    """A refusal: nginx says 500, whatever the matter; cafs says what the matter is."""
    if target.name in OURS:
        assert reply.status == status, reply
        assert reply.body.count(b"\n") <= 1 and reply.body.strip(), "one line for an operator"
        assert b"Traceback" not in reply.body
    else:
        assert reply.status == 500, reply


def refused_put(area: Area, key: str, data: bytes) -> Reply:
    """A PUT that is to be refused; the server may answer before it has the whole body."""
    with area.target.admin() as http:
        connection = http.begin("PUT", area.url(key), {"Content-Length": str(len(data))})
        try:
            for at in range(0, len(data), 65_536):
                connection.send(data[at : at + 65_536])
        except OSError:
            pass  # The answer lies in the socket, if the close did not overtake it.
        response = http.answer()
        return Reply(response.status, tuple(response.getheaders()), response.read())


def test_case_035_a_put_that_does_not_fit(ill: Ill) -> None:
    target, disk = ill
    mount = mounted(target)
    with area_of(target, "cc-035") as area:
        old = os.urandom(MIB)
        area.put(data=old)
        filler = disk.fill(leave=16 * MIB)
        stored = target.stored_bytes()
        for key in ("ab/cd/abcd-1", "new/key"):
            assert_refused(target, refused_put(area, key, os.urandom(24 * MIB)), 507)
        assert area.http.request("GET", area.url()).body == old
        assert area.http.request("HEAD", area.url("new/key")).status == 404
        if target.name in OURS:
            assert [p for p in area.names() if not p.endswith("/")] == ["ab/cd/abcd-1"]
            mount.run("sweep", str(mount.store))
            wait_until("the room is back", lambda: target.stored_bytes() <= stored)
        filler.unlink()
        wait_until("writes work again", lambda: put_status(area, "new/key", b"new") == 201)
        assert area.http.request("GET", area.url("new/key")).body == b"new"
        area.http.request("DELETE", area.url(""))


def test_a_put_larger_than_the_disk_gives_its_room_back_at_once() -> None:
    """However long the grace is: nobody can be reading what never had a name."""
    need_loop_devices()
    disk = SmallDisk(64 * MIB)
    try:
        mount = SmallDiskMount(
            disk, "--commit-interval", "200ms", "--grace", "1h", init=("--pack-size", "4MiB")
        )
        mount.announce(FULL_LOG)
        try:
            mount.start()
            socket = mount.store / "http.sock"
            wait_until("it listens", socket.exists)
            with Connection(UnixEndpoint(socket)) as http:
                old = os.urandom(MIB)
                assert http.request("PUT", "/admin/kept", old).status == 201
                mount.run("sweep", str(mount.store))
                free = disk.free
                reply = http.request("PUT", "/admin/large", os.urandom(70 * MIB))
                assert reply.status == 507
                # How far it came before it was refused is a matter of the disk's speed.
                assert disk.free < free - 10 * MIB
                # The pack that "kept" lies in is left to compaction.
                wait_until("the room is back", lambda: disk.free > free - 6 * MIB, 20)
                assert http.request("PUT", "/admin/large", os.urandom(20 * MIB)).status == 201
                assert http.request("GET", "/admin/kept").body == old
            mount.unmount()
            assert not audit(mount.store)
            assert not mount.unexpected_log_lines()
        finally:
            mount.close()
    finally:
        disk.close()


def put_status(area: Area, key: str, data: bytes) -> int:
    return area.http.request("PUT", area.url(key), data).status


def test_case_095_a_full_disk(ill: Ill) -> None:
    noise = random.Random(7)
    target, _ = ill
    with area_of(target, "cc-095") as area:
        held: dict[str, bytes] = {}
        promised = _free(target)
        while True:
            key, data = f"{len(held) % 4}/{len(held)}", noise.randbytes(2 * MIB)
            reply = refused_put(area, key, data)
            if reply.status != 201:
                assert_refused(target, reply, 507)
                break
            held[key] = data
            assert len(held) < 100, "the disk never becomes full"
        # Case 79: what df called free is what blobs could take, but for what is held back.
        assert sum(map(len, held.values())) > promised * 0.9
        for key, data in list(held.items())[::5]:
            assert area.http.request("GET", area.url(key)).body == data
        assert area.http.request("HEAD", area.url("0/0"))["Content-Length"] == str(2 * MIB)
        assert area.http.request("PROPFIND", area.url("0/"), None, {"Depth": "1"}).status == 207
        os.chmod(area.file("0/4"), 0o640)
        victims = list(held)[: len(held) // 2]
        area.file(victims[0]).unlink()
        assert area.http.request("DELETE", area.url("1/")).status == 204
        for key in victims[1:]:
            if not key.startswith("1/"):
                assert area.http.request("DELETE", area.url(key)).status == 204, key
        wait_until(
            "writes work again, and nobody had to do anything",
            lambda: put_status(area, "after", noise.randbytes(4 * MIB)) in (201, 204),
            60,
        )
        for key, data in held.items():
            if key not in victims and not key.startswith("1/"):
                assert area.http.request("GET", area.url(key)).body == data
        assert area.http.request("DELETE", area.url("")).status == 204
    wait_until("all of it is back", lambda: _free(target) > promised - 6 * MIB, 60)


def _free(target: Target) -> int:
    figures = os.statvfs(target.root)
    return figures.f_bavail * figures.f_frsize


def test_case_096_a_read_only_disk(ill: Ill) -> None:
    target, disk = ill
    mount = mounted(target)
    with area_of(target, "cc-096") as area:
        mount.announce(READ_ONLY_LOG)
        mount.announce("final commit failed")
        data = os.urandom(3 * MIB)
        area.put("kept", data)
        area.put("other")
        disk.go_read_only()
        status = getattr(mount, "status")  # noqa: B009
        wait_until("it is noticed", lambda: status()["health"]["state"] == "trouble")
        for method, body in (("PUT", b"x"), ("DELETE", None), ("COPY", None)):
            began = time.monotonic()
            headers = {"Destination": target.ports.internal.base + area.url("new")}
            reply = area.http.request(method, area.url("kept"), body, headers)
            assert time.monotonic() - began < ANSWER_WITHIN_S
            assert_refused(target, reply, 503)
            if target.name in OURS:
                assert int(reply["Retry-After"]) > 0
        assert refused_put(area, "other/new", b"x").status in (500, 503)
        assert area.http.request("DELETE", area.url("absent")).status == 404
        assert area.http.request("GET", area.url("kept")).body == data
        assert area.http.request("HEAD", area.url("other")).status == 200
        assert area.http.request("PROPFIND", area.url(""), None, {"Depth": "1"}).status == 207
        # The start of nginx sets what is set already.
        user = area.target.root.stat()
        os.chmod(target.root, user.st_mode & 0o7777)
        os.chown(target.root, user.st_uid, user.st_gid)
        if target.name != "daemon":
            target.nginx.stop()  # type: ignore[attr-defined]
            target.serve()  # type: ignore[attr-defined]
            assert area.http.request("GET", area.url("kept")).body == data
        area.http.close()
        target.nginx.stop()  # type: ignore[attr-defined]
        try:
            mount.unmount()
        except AssertionError as error:
            assert "ended with 10" in str(error)  # that not all could be committed
        disk.repair()
        assert not audit(mount.store)
        mount.start()
        target.serve()  # type: ignore[attr-defined]
        assert area.http.request("GET", area.url("kept")).body == data
        assert put_status(area, "kept", b"again") == 204
