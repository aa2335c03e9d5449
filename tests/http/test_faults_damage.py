"""Bytes on disk that are not what was written: cases 20, 97, 100 and 102.

A client gets the right bytes or an error; a body that cannot be finished never ends cleanly.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import ssl
import time
from pathlib import Path

import pytest

from cafs import control
from tests.fault.smalldisk import wait_until
from tests.http import links
from tests.http.faults import FRONTS_STOCK_AT_NIGHT, area_of, mounted, running
from tests.http.stocknginx import SECRET
from tests.http.targets import Area, Target
from tests.http.wire import Connection
from tests.mount.mounted import Mount

pytestmark = pytest.mark.timeout(180)
DAMAGE_LOG = "damage|could not be|not what was written|checksum|EIO|cannot be read|truncated|short"
MIB = 1 << 20


def find_in_packs(mount: Mount, data: bytes) -> list[tuple[Path, int]]:
    """Packs and offsets where these bytes lie; random bytes are stored as they are.

    More than one where a part was stored before it was known how far its chunk goes: of a PUT
    that lasted longer than a commit takes to come, or had to be sent again.
    """
    places = [
        (pack, found.start())
        for pack in sorted((mount.store / "packs").glob("*.pack"))
        for found in re.finditer(re.escape(data), pack.read_bytes())
    ]
    assert places, "the bytes are in no pack"
    return places


def flip(pack: Path, offset: int) -> None:
    with pack.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def read_damaged(area: Area, key: str, data: bytes) -> str:
    """How a GET of a damaged blob ends: ``500``, or ``cut`` after right bytes only."""
    with area.target.admin() as client:
        return how_it_ends(client, area.url(key), data)


def how_it_ends(connection: Connection, url: str, data: bytes) -> str:
    """The same for any URL and connection."""
    with connection as client:
        client.begin("GET", url)
        try:
            response = client.answer()
            if response.status == 500:
                return "500"
            assert response.status == 200
            got = bytearray()
            while piece := response.read1(65_536):
                got += piece
                assert data.startswith(got), "wrong bytes were sent"
            assert len(got) < len(data), "it was sent whole, and it is damaged"
        except (ssl.SSLEOFError, ConnectionResetError):
            return "cut"
        except http.client.IncompleteRead:
            pass
        raise AssertionError("the connection ended as if all was well: with close-notify, or FIN")


def heals(area: Area, key: str, data: bytes) -> bool:
    """Write it again: whether it can be read now."""
    area.put(key, data)
    try:
        return area.http.request("GET", area.url(key)).body == data
    except (OSError, http.client.IncompleteRead):
        area.http.close()
        return False


@pytest.mark.parametrize("name", FRONTS_STOCK_AT_NIGHT)
def test_case_020_a_flipped_byte(name: str) -> None:
    """Case 100, too: nothing but the blobs with that chunk is affected."""
    with running(name) as target, area_of(target) as area:
        mount = mounted(target)
        mount.announce(DAMAGE_LOG)
        data, other = os.urandom(6 * MIB), os.urandom(MIB)
        area.put("damaged", data)
        area.put("copy-of-it", data)
        area.put("other", other)
        area.http.close()
        target.stored_bytes()  # commits
        stop(target)  # and with it go the caches
        for place in find_in_packs(mount, data[4 * MIB : 4 * MIB + 100]):
            flip(*place)
        mount.start()
        start(target)
        # Three times, as the clients try; by the last the daemon knows, whoever saw it first.
        for key in ("damaged", "copy-of-it", "damaged"):
            assert read_damaged(area, key, data) in ("500", "cut")
        # What lies before it can be had, and what lies on it cannot.
        before = area.http.request("GET", area.url("damaged"), None, {"Range": "bytes=0-99999"})
        assert (before.status, before.body) == (206, data[:100_000])
        assert area.http.request("GET", area.url("other")).body == other
        assert area.http.request("HEAD", area.url("damaged")).status == 200
        # The daemon marks the chunk a moment after it has seen it; then the next PUT stores it.
        wait_until("written again it is whole", lambda: heals(area, "damaged", data))


@pytest.mark.parametrize("name", ["module", "unbuilt"])
def test_case_020_in_the_clear(name: str) -> None:
    """Links for everybody need no TLS, and there a reset is all that tells."""
    with running(name) as target, area_of(target) as area:
        mount = mounted(target)
        mount.announce(DAMAGE_LOG)
        data = os.urandom(6 * MIB)
        area.put("damaged", data)
        area.http.close()
        target.stored_bytes()
        stop(target)
        for place in find_in_packs(mount, data[4 * MIB : 4 * MIB + 100]):
            flip(*place)
        mount.start()
        start(target)
        uri = f"/read/{area.name}/damaged"
        url = links.md5_link(SECRET, uri, int(time.time()) + 600)
        for _ in range(3):
            assert how_it_ends(target.public(), url, data) in ("500", "cut")
        wait_until("written again it is whole", lambda: heals(area, "damaged", data))
        with target.public() as public:
            assert public.request("GET", url).body == data


@pytest.mark.parametrize("name", [pytest.param("daemon", marks=pytest.mark.slow), "module"])
def test_case_097_a_pack_that_lost_its_end(name: str) -> None:
    with running(name, to_be_clean=False) as target, area_of(target) as area:
        mount = mounted(target)
        mount.announce(DAMAGE_LOG)
        blobs = {f"blob{number}": os.urandom(MIB) for number in range(6)}
        for key, data in blobs.items():
            area.put(key, data)
        area.http.close()
        target.stored_bytes()
        last = list(blobs)[-1]
        pack, at = find_in_packs(mount, blobs[last][MIB // 2 : MIB // 2 + 64])[0]
        stop(target)
        os.truncate(pack, at)
        mount.start()
        start(target)
        served = 0
        for key, data in blobs.items():
            if key == last:
                assert read_damaged(area, key, data) in ("500", "cut")
            else:
                assert area.http.request("GET", area.url(key)).body == data
                served += 1
        assert served == len(blobs) - 1
        report = mount.run("scrub", str(mount.store), code=8)
        assert f"{area.name}/{last}" in report
        assert area.http.request("DELETE", area.url(last)).status == 204


def stop(target: Target) -> None:
    target.nginx.stop()  # type: ignore[attr-defined]
    mounted(target).unmount()


def start(target: Target) -> None:
    target.serve()  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["module"])
def test_case_102_a_lost_index(name: str) -> None:
    with running(name) as target, area_of(target) as area:
        mount = mounted(target)
        mount.announce("rebuil|index|orphan")
        data = os.urandom(300_000)
        area.put("ab/cd/blob", data, mtime=1_700_000_000)
        before = area.http.request("HEAD", area.url("ab/cd/blob"))
        area.http.close()
        control.call(mount.store, "copy_index")
        stop(target)
        shutil.rmtree(mount.store / "index")
        mount.run("rebuild", str(mount.store))
        mount.start()
        start(target)
        reply = area.http.request("GET", area.url("ab/cd/blob"))
        assert (reply.status, reply.body) == (200, data)
        for header in ("ETag", "Last-Modified", "Content-Length"):
            assert reply[header] == before[header]
