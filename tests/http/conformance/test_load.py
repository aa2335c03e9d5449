"""Many clients, slow ones, and those that go away: cases 15, 101, 103 to 105, and no leaks."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.faults import FRONTS, descriptors, mounted, resident_bytes
from tests.http.targets import OURS, PATIENCE_S, Area, Target
from tests.http.wire import http_date

pytestmark = pytest.mark.timeout(240)
STORES = pytest.mark.on(*FRONTS, why="it is about the daemon and what stands before it")
MIB = 1 << 20
STALL_S = 10.0


def processes(target: Target) -> list[int]:
    """Those that serve: the daemon, and nginx's workers."""
    nginx = target.nginx  # type: ignore[attr-defined]
    return [mounted(target).pid, *(nginx.workers() if target.name != "daemon" else [])]


@STORES
def test_aborted_uploads_leak_nothing(area: Area) -> None:
    _abort_uploads(area, 60)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@STORES
def test_aborted_uploads_by_the_thousand_leak_nothing(area: Area) -> None:
    _abort_uploads(area, 3000)


def _abort_uploads(area: Area, count: int) -> None:
    target = area.target
    area.put("kept")

    def abort(number: int) -> None:
        with target.admin() as http:
            http.begin("PUT", area.url(f"lost/{number}"), {"Content-Length": "1000000"})
            http.socket.sendall(os.urandom(100_000 + number % 50_000))
            if number % 2:
                http.socket.shutdown(socket.SHUT_WR)  # the body ends too early
                http.socket.recv(1)

    def quietly(number: int) -> None:
        with contextlib.suppress(OSError):
            abort(number)

    stored = target.stored_bytes()
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(quietly, range(30)))  # what grows once is no leak
        pids = processes(target)
        open_before = {pid: descriptors(pid) for pid in pids}
        memory_before = {pid: resident_bytes(pid) for pid in pids}
        list(threads.map(quietly, range(count)))
    for pid in pids:
        wait_until(
            "descriptors are closed",
            lambda pid=pid: descriptors(pid) <= open_before[pid] + 4,  # type: ignore[misc]
        )
        assert resident_bytes(pid) < memory_before[pid] + 64 * MIB
    assert area.http.request("GET", area.url("kept")).body == b"content"
    mount = mounted(target)
    if target.name in OURS:
        assert area.names() == ["kept"]
    mount.run("sweep", str(mount.store))
    wait_until("the bytes are gone", lambda: target.stored_bytes() <= stored + 1000)
    spool = mount.store / "spool"
    assert not spool.exists() or not list(spool.iterdir())


@STORES
def test_slow_readers_stall_nobody(area: Area) -> None:
    """Twenty clients take a byte now and then; others are served meanwhile."""
    data = os.urandom(4 * MIB)
    target = area.target
    with contextlib.ExitStack() as stack:
        url = area.put(data=data)
        slow = []
        for _ in range(20):
            client = stack.enter_context(target.admin())
            client.begin("GET", url)
            response = client.answer()
            assert response.read(1) == data[:1]
            slow.append(response)
        memory = resident_bytes(mounted(target).pid)
        for number in range(20):
            began = time.monotonic()
            assert area.http.request("GET", url).body == data
            area.put(f"new{number}", b"x" * 1000)
            assert time.monotonic() - began < STALL_S
            for response in slow:
                assert response.read(1) == data[number + 1 : number + 2]
        assert resident_bytes(mounted(target).pid) < memory + 64 * MIB
        for response in slow[:3]:
            assert response.read() == data[21:]


@STORES
def test_case_103_many_at_once(area: Area) -> None:
    _many_at_once(area, size=4 * MIB, readers=8, writers=4, put_size=MIB)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@STORES
def test_case_103_100_times_1_gb(area: Area) -> None:
    _many_at_once(area, size=1024 * MIB, readers=100, writers=4, put_size=100 * MIB)


def _many_at_once(area: Area, size: int, readers: int, writers: int, put_size: int) -> None:
    block = os.urandom(MIB)
    target = area.target
    pieces = (number.to_bytes(8, "little") + block[8:] for number in range(size // MIB))
    area.be_patient()
    assert area.http.request("PUT", area.url("large"), pieces).status == 201
    done = threading.Event()
    stalls: list[float] = []

    def read() -> None:
        with target.admin() as http:
            http.begin("GET", area.url("large"))
            response = http.answer()
            got, last, worst = 0, time.monotonic(), 0.0
            while piece := response.read1(MIB):
                got += len(piece)
                now = time.monotonic()
                worst, last = max(worst, now - last), now
            assert got == size
            stalls.append(worst)

    def write(number: int) -> None:
        with target.admin(timeout_s=PATIENCE_S) as http:
            data = os.urandom(put_size)
            assert http.request("PUT", area.url(f"put{number}"), data).status == 201

    def ask() -> int:
        count = 0
        with target.admin() as http:
            while not done.is_set():
                assert http.request("HEAD", area.url("large")).status == 200
                assert http.request("HEAD", area.url(f"absent{count}")).status == 404
                count += 1
        return count

    with ThreadPoolExecutor(readers + writers + 1) as threads:
        storm = threads.submit(ask)
        others = [threads.submit(read) for _ in range(readers)]
        others += [threads.submit(write, number) for number in range(writers)]
        try:
            for each in others:
                each.result()
        finally:
            done.set()
        assert storm.result() > 0
    assert len(stalls) == readers
    assert max(stalls) < STALL_S


@STORES
def test_case_104_misses(area: Area) -> None:
    _misses(area, kept=500, fresh=60)


@pytest.mark.slow
@pytest.mark.timeout(600)
@STORES
def test_case_104_misses_of_a_large_push(area: Area) -> None:
    _misses(area, kept=5000, fresh=15_000)


def _misses(area: Area, kept: int, fresh: int) -> None:
    """5,000 misses on one connection within 5 s, 15,000 over fresh ones within 60 s.

    Case 105, too: the error log does not grow by a line for each.
    """
    target = area.target
    area.put()
    logs = [mounted(target).log, target.nginx.error_log]  # type: ignore[attr-defined]
    before = sum(map(_size, logs))
    began = time.monotonic()
    for number in range(kept):
        assert area.http.request("HEAD", area.url(f"{number:04x}/absent")).status == 404
    # This client's own share is about a third of it.
    assert time.monotonic() - began < max(5.0, kept / 1000)
    began = time.monotonic()
    for number in range(fresh):
        with target.admin(Connection="close") as http:
            assert http.request("HEAD", area.url(f"{number:04x}/absent")).status == 404
    assert time.monotonic() - began < max(5.0, fresh / 250)
    if target.name in OURS:
        assert sum(map(_size, logs)) - before < 2000


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


@STORES
def test_case_101_dates_far_away_are_only_dates(area: Area) -> None:
    mount = mounted(area.target)
    blobs = {when: os.urandom(50_000) for when in (0, 1, 2_000_000_000, 4_102_444_800)}
    for when, data in blobs.items():
        area.put(str(when), data, mtime=when)
        area.put("victim", os.urandom(50_000), mtime=when)
        assert area.http.request("DELETE", area.url("victim")).status == 204
    mount.run("sweep", str(mount.store))
    for when, data in blobs.items():
        reply = area.http.request("GET", area.url(str(when)))
        assert (reply.body, reply["Last-Modified"]) == (data, http_date(when))
