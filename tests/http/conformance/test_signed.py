"""Cases 64 to 69: signed links, the signer, and the public servers."""

from __future__ import annotations

import time
import urllib.parse

import pytest

from tests.http.links import hmac_link, hmac_of, md5_link, md5_of
from tests.http.stocknginx import INTERNAL_NAME, SECRET
from tests.http.targets import DAV, OURS, Area, Target
from tests.http.wire import basic

KEY = "ab/cd/abcd-1"
NO_SIGNER = "the signer is another program, and Debian's nginx has no HMAC module"


def link(area: Area, kind: str = "read", key: str = KEY, lifetime_s: int = 600) -> str:
    return md5_link(SECRET, f"/{kind}/{area.name}/{key}", int(time.time()) + lifetime_s)


def test_case_064_the_vectors(target: Target) -> None:
    """The contract's own values; they expired in 2023, which only a right signature says."""
    path = "cc-droplets/ab/cd/abcd1234-0000/da39a3ee5e6b4b0d3255bfef95601890afd80709"
    with target.public() as public, target.internal() as internal:
        for http in (public, internal):
            for method, kind, md5 in (
                ("GET", "read", "bGAHpwgqU1if9VyyYLBWog"),
                ("PUT", "write", "FdpiVmgksjJzFG75nQP-XQ"),
            ):
                body = b"" if method == "PUT" else None
                good = http.request(method, f"/{kind}/{path}?md5={md5}&expires=1700003600", body)
                assert good.status == 410
                bad = http.request(method, f"/{kind}/{path}?md5={md5}&expires=1700003601", body)
                assert bad.status == 403
    assert md5_of("secret", "/read/s/link", 2147483647) == "6lMW7aVzFsz2QK8bdgDVaA"
    assert md5_of("secret", "/write/s/link", 2147483647) == "yRH3NcDrFVuFnPrKnhIxyg"


@pytest.mark.parametrize("server", ["internal", "public", "public_tls"])
def test_case_064_read_and_write_links(area: Area, server: str) -> None:
    area.put()
    target = area.target
    http = target.internal() if server == "internal" else target.public(tls=server != "public")
    with http:
        for method, body in (("GET", b"content"), ("HEAD", b"")):
            reply = http.request(method, link(area))
            assert (reply.status, reply.body) == (200, body)
            assert reply["Content-Length"] == "7"
        for method in ("PUT", "POST", "DELETE"):
            assert http.request(method, link(area), b"x").status == 405
        assert http.request("PUT", link(area, "write", "new"), b"signed").status == 201
        assert http.request("PUT", link(area, "write", "new"), b"again").status == 204
        for method in ("GET", "HEAD", "DELETE", "COPY"):
            assert http.request(method, link(area, "write", "new")).status == 405
        assert http.request("GET", link(area, "read", "new")).body == b"again"


def test_case_065_wrong_and_expired_links(area: Area) -> None:
    area.put()
    now = int(time.time())
    good = md5_of(SECRET, f"/read/{area.name}/{KEY}", now + 600)
    path = f"/read/{area.name}/{KEY}"
    with area.target.public() as http:
        for wrong in (
            f"{path}-other?md5={good}&expires={now + 600}",
            f"{path}?md5={good}&expires={now + 601}",
            f"{path}?md5={good[:-1]}&expires={now + 600}",
            f"{path}?md5=&expires={now + 600}",
            f"{path}?expires={now + 600}",
            f"{path}?md5={good}",
            path,
            md5_link(SECRET, path, 0),
            md5_link("other secret", path, now + 600),
            f"{path}?md5={good}&expires=x",
        ):
            assert http.request("GET", wrong).status == 403, wrong
        for key in (KEY, "absent"):
            expired = md5_link(SECRET, f"/read/{area.name}/{key}", now - 10)
            assert http.request("GET", expired).status == 410
        assert http.request("GET", link(area, "read", "absent")).status == 404


def test_case_065_a_link_is_to_the_decoded_path(area: Area) -> None:
    area.put("a%20b/%C3%A9")
    expires = int(time.time()) + 600
    md5 = md5_of(SECRET, f"/read/{area.name}/a b/é", expires)
    with area.target.public() as http:
        for spelled in ("a%20b/%c3%a9", "a%20b//%C3%A9", "%61%20b/./%c3%a9"):
            path = f"/read/{area.name}/{spelled}"
            reply = http.request("GET", f"{path}?md5={md5}&expires={expires}")
            assert reply.body == b"content", spelled


def test_case_066_validators_do_not_depend_on_the_signature(area: Area) -> None:
    area.put()
    with area.target.public() as http:
        first = http.request("GET", link(area, lifetime_s=500))
        validators = {
            "If-None-Match": first["ETag"],
            "If-Modified-Since": first["Last-Modified"],
        }
        assert http.request("GET", link(area, lifetime_s=700), None, validators).status == 304


def test_signed_ranges(area: Area) -> None:
    area.put(data=b"0123456789")
    with area.target.public() as http:
        reply = http.request("GET", link(area), None, {"Range": "bytes=2-4"})
        assert (reply.status, reply.body) == (206, b"234")
        assert http.request("GET", link(area), None, {"Range": "bytes=20-"}).status == 416


@pytest.mark.on(*OURS, why=NO_SIGNER)
def test_case_067_sign(area: Area) -> None:
    area.put()
    expires = int(time.time()) + 3600
    path = f"/{area.name}/{KEY}"
    for location, kind in (("sign", "read"), ("sign_for_put", "write")):
        asked = f"/{location}?expires={expires}&path={urllib.parse.quote(path, safe='')}"
        reply = area.http.request("GET", asked)
        assert reply.status == 200
        assert reply["Content-Type"].startswith("text/plain")
        md5 = md5_of(SECRET, f"/{kind}{path}", expires)
        expected = f"http://{INTERNAL_NAME}/{kind}{path}?md5={md5}&expires={expires}"
        assert reply.body.decode() == expected
        parts = urllib.parse.urlsplit(expected)
        with area.target.public() as http:
            method, body = ("GET", None) if kind == "read" else ("PUT", b"signed")
            assert http.request(method, f"{parts.path}?{parts.query}", body).status in (200, 204)
    assert area.http.request("GET", f"/sign?expires={expires}").status == 502
    assert area.http.request("GET", f"/sign?path={path}").status == 502
    assert area.http.request("GET", f"/sign/other?expires={expires}&path={path}").status == 400
    with area.target.internal() as http:
        for value in (None, basic("nobody", "x")):
            headers = {"Authorization": value}
            asked = f"/sign?expires={expires}&path={path}"
            assert http.request("GET", asked, None, headers).status == 401


@pytest.mark.on(*OURS, why=NO_SIGNER)
def test_case_068_hmac_links(area: Area) -> None:
    vector = hmac_of("s3cr3t", "GET", "cc-droplets/ab/cd/abcd1234-0000/deadbeef", 1700000000, 3600)
    assert vector == "X0fNmzwnl-Xt3ks3IwsWP2gZ1cB9hbaz8dD5nBwnfUs"
    area.put()
    now = int(time.time())
    path = f"{area.name}/{KEY}"

    def signed(verb: str, at: int = now, lifetime_s: int = 3600) -> str:
        return hmac_link(SECRET, verb, path, at, lifetime_s)

    for public in (True, False):
        with area.target.public() if public else area.target.internal() as http:
            assert http.request("GET", signed("GET")).body == b"content"
            assert http.request("HEAD", signed("HEAD")).status == 200
            assert http.request("HEAD", signed("GET")).status == 403
            assert http.request("PUT", signed("GET"), b"x").status == 403
            assert http.request("PUT", signed("PUT"), b"content").status == 204
            assert http.request("DELETE", signed("DELETE")).status == 405
            assert http.request("GET", signed("GET", now - 7200)).status == 403
            assert http.request("GET", signed("GET", now - 7200, 0)).status == 200
            assert http.request("GET", signed("GET", now + 600)).status == 200
            for wrong in (
                signed("GET").replace(KEY, "ab/cd/other"),
                signed("GET").replace("e=3600", "e=3601"),
                *_other_splits(signed("GET", now - 7200), str(now - 7200), "3600"),
                f"/signed/{path}",
                f"/signed/{path}?e=3600&st=&ts={now}",
                f"/signed/{path}?e=x&st=x&ts=x",
            ):
                assert http.request("GET", wrong).status == 403, wrong
            # On the internal server it is one of the paths that begin with /sign.
            hidden = http.request("GET", f"/signed-internal/{path}").status
            assert hidden in ((404,) if http.endpoint.name != INTERNAL_NAME else (401, 404))


def _other_splits(link: str, ts: str, lifetime: str) -> list[str]:
    """The link with digits moved between time, lifetime and path: the same text is signed."""
    base, _, query = link.partition("?")
    path, digits = base.rstrip("0123456789"), ts + lifetime
    tail = base[len(path) :] + digits
    asked = [
        (path + tail[:low], tail[low:high], tail[high:])
        for low in range(len(base) - len(path) + 1)
        for high in range(low + 1, len(tail))
    ]
    assert (base, ts, lifetime) in asked
    return [
        f"{where}?" + query.replace(f"e={lifetime}", f"e={e}").replace(f"ts={ts}", f"ts={at}")
        for where, at, e in asked
    ]


@pytest.mark.on(*OURS, why=NO_SIGNER)
def test_case_068_hmac_link_to_an_absent_blob(area: Area) -> None:
    with area.target.public() as http:
        absent = hmac_link(SECRET, "GET", f"{area.name}/absent", int(time.time()), 3600)
        assert http.request("GET", absent).status == 404
        new = hmac_link(SECRET, "PUT", f"{area.name}/new/blob", int(time.time()), 3600)
        assert http.request("PUT", new, b"signed").status == 201
    assert area.file("new/blob").read_bytes() == b"signed"


@pytest.mark.on(*DAV, "module", why="the daemon alone has one port for everything")
@pytest.mark.parametrize("tls", [False, True])
def test_case_069_public_servers(area: Area, tls: bool) -> None:
    area.put()
    with area.target.public(tls=tls) as http:
        for path in (area.url(), "/admin/", "/sign?expires=9999999999&path=%2Fx", "/nothing"):
            for headers in ({}, area.http.headers):
                secrets = {"Authorization": headers.get("Authorization")}
                assert http.request("GET", path, None, secrets).status == 404, path


@pytest.mark.on(*OURS, why="stock nginx serves any blob by its path to anybody")
def test_case_069_no_default_location(area: Area) -> None:
    area.put()
    with area.target.public() as public, area.target.internal() as internal:
        for http in (public, internal):
            for method in ("GET", "HEAD", "PUT", "PROPFIND"):
                body = b"" if method == "PUT" else None
                assert http.request(method, f"/{area.name}/{KEY}", body).status == 404


@pytest.mark.on(*DAV, why="only the reference has this hole")
def test_case_069_default_location_of_the_reference(area: Area) -> None:
    area.put()
    with area.target.public() as http:
        assert http.request("GET", f"/{area.name}/{KEY}").body == b"content"
