"""Cases 56 to 63: listings, as both generations of client read them."""

from __future__ import annotations

import email.utils
import os
import threading
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import pytest

from tests.http.clients import WALK_BODY
from tests.http.targets import OURS, Area
from tests.http.wire import Connection, Reply

WHEN = 1_700_000_000
D = "{DAV:}"


class Entry(NamedTuple):
    """One response of a listing."""

    href: str
    props: dict[str, ElementTree.Element]

    @property
    def is_collection(self) -> bool:
        return self.props["resourcetype"].find(f"{D}collection") is not None

    @property
    def name(self) -> str | None:
        return self.props["displayname"].text


def propfind(
    http: Connection, url: str, depth: str | None = "1", body: bytes | None = None
) -> Reply:
    headers: dict[str, str | None] = {"Depth": depth}
    return http.request("PROPFIND", url, body, headers)


def entries(reply: Reply) -> list[Entry]:
    """The responses of a multistatus, each held to the shape that the clients need."""
    assert reply.status == 207, reply
    assert reply["Content-Type"].lower().replace('"', "") == "text/xml; charset=utf-8"
    root = ElementTree.fromstring(reply.body)
    assert root.tag == f"{D}multistatus"
    found = []
    for response in root:
        assert response.tag == f"{D}response"
        href = response.findtext(f"{D}href")
        assert href is not None
        (propstat,) = response.findall(f"{D}propstat")
        assert "200" in (propstat.findtext(f"{D}status") or "")
        (prop,) = propstat.findall(f"{D}prop")
        found.append(Entry(href, {child.tag.removeprefix(D): child for child in prop}))
    return found


def by_name(found: list[Entry]) -> Mapping[str | None, Entry]:
    return {entry.name: entry for entry in found}


def test_case_056_without_depth_only_the_collection(area: Area) -> None:
    area.put("ab/one")
    for url in (area.url("ab/"), area.url("ab"), area.url("")):
        for depth in (None, "0"):
            (only,) = entries(propfind(area.http, url, depth))
            assert only.href == url
            assert only.is_collection


def test_case_057_depth_1(area: Area) -> None:
    area.put("cc/ab/one", b"12345", mtime=WHEN)
    area.put("cc/two", b"", mtime=WHEN + 1)
    for url in (area.url("cc/"), area.url("cc")):
        found = entries(propfind(area.http, url))
        assert found[0].href == url
        assert found[0].is_collection
        assert len(found) == 3
        children = by_name(found[1:])
        directory, file = children["ab"], children["two"]
        assert directory.href == area.url("cc/ab/")
        assert directory.is_collection
        assert "getcontentlength" not in directory.props
        assert file.href == area.url("cc/two")
        assert not file.is_collection
        assert file.props["getcontentlength"].text == "0"
        modified = file.props["getlastmodified"].text
        assert modified is not None
        assert email.utils.parsedate_to_datetime(modified).timestamp() == WHEN + 1


def test_case_057_a_blob_alone(area: Area) -> None:
    url = area.put("one", b"12345", mtime=WHEN)
    for depth in (None, "0", "1"):
        (only,) = entries(propfind(area.http, url, depth))
        assert (only.href, only.is_collection) == (url, False)
        assert only.props["getcontentlength"].text == "5"


def test_case_058_the_shape_that_dav_client_parses(area: Area) -> None:
    """It selects //D:prop by that very prefix and takes any child node for a directory."""
    area.put("cc/ab/one")
    area.put("cc/two")
    text = propfind(area.http, area.url("cc/")).body.decode()
    start = text.index("multistatus")
    assert text[start - 2 : start] == "D:"
    assert 'xmlns:D="DAV:"' in text[start : text.index(">", start)]
    assert text.count("<D:prop>") == text.count("<D:response>") == 3
    for piece in text.split("<D:response>")[1:]:
        kind = piece.split("<D:resourcetype", 1)[1].split("D:resourcetype>")[0]
        if "two" in piece:
            assert kind.startswith(("></", "/>")), f"not empty: {kind!r}"
        else:
            assert "<D:collection/>" in kind


def test_case_059_only_what_was_asked_for(area: Area) -> None:
    area.put("cc/ab/one")
    area.put("cc/two")
    found = entries(propfind(area.http, area.url("cc/"), "1", WALK_BODY))
    assert [set(entry.props) for entry in found] == [{"resourcetype"}] * 3
    assert sum(entry.is_collection for entry in found) == 2


def test_case_059_statuses(area: Area) -> None:
    area.put()
    assert propfind(area.http, area.url("absent/")).status == 404
    assert propfind(area.http, area.url("absent/"), "0", WALK_BODY).status == 404
    assert propfind(area.http, area.url(""), "infinity").status == 403
    assert propfind(area.http, area.url(""), "2").status == 400
    assert propfind(area.http, area.url(""), "1", b"<broken").status == 400
    area.http.close()
    many = b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "b"><!ENTITY c "&b;&b;">]><a>&c;</a>'
    assert propfind(area.http, area.url(""), "1", many).status < 500


def test_case_060_names(area: Area) -> None:
    names = ["a&b", "a<b", "a>b", 'a"b', "a b", "été", "%41", "a+b", "q?s#h", "]]>", "日"]
    area.put("cc/plain")
    for name in names:
        area.file(f"cc/{name}").write_bytes(b"x")
        os.mkdir(area.file(f"cc/{name}.d"))
    area.file("cc/.hidden").write_bytes(b"x")
    os.mkdir(area.file("cc/.snap"))
    found = entries(propfind(area.http, area.url("cc/")))[1:]
    assert {entry.name for entry in found} == {
        "plain",
        *names,
        *(f"{name}.d" for name in names),
    }
    for entry in found:
        assert entry.href.isascii()
        path = urllib.parse.unquote(entry.href)
        slash = "/" if entry.is_collection else ""
        assert path == area.url(f"cc/{entry.name}{slash}")
        # The href is a URL that works.
        assert propfind(area.http, entry.href, "0").status == 207


def test_case_060_hidden_directory_asked_for_by_name(area: Area) -> None:
    area.put(".snap/one")
    assert len(entries(propfind(area.http, area.url(".snap/")))) == 2


def test_case_061_many_children(area: Area) -> None:
    _list_many(area, 1_000)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_case_061_65_536_children(area: Area) -> None:
    _list_many(area, 65_536)


def _list_many(area: Area, count: int) -> None:
    area.be_patient()
    area.put("cc/0")
    for number in range(1, count):
        area.file(f"cc/{number}").touch()
    found = entries(propfind(area.http, area.url("cc/"), "1", WALK_BODY))
    assert len(found) == count + 1
    assert {int(entry.href.rpartition("/")[2]) for entry in found[1:]} == set(range(count))


@pytest.mark.on(*OURS, why="nginx's answer is 500 when an entry vanishes while it lists")
def test_case_061_listing_while_children_are_deleted(area: Area) -> None:
    area.put("cc/stays")
    for number in range(200):
        area.file(f"cc/{number}").touch()
    stop = threading.Event()

    def delete_all() -> None:
        for number in range(200):
            if stop.is_set():
                return
            os.unlink(area.file(f"cc/{number}"))

    with ThreadPoolExecutor(1) as threads:
        deleter = threads.submit(delete_all)
        try:
            while not deleter.done():
                found = entries(propfind(area.http, area.url("cc/")))
                assert "stays" in by_name(found)
        finally:
            stop.set()
        deleter.result()
    assert len(entries(propfind(area.http, area.url("cc/")))) == 2
