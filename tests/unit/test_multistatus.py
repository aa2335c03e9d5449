"""What PROPFIND asks and answers, as bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cafs.http import multistatus
from cafs.http.multistatus import MalformedError, Resource, Wanted, parse, response

STORAGE_CLI = (
    b'<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:">'
    b"<D:prop><D:resourcetype/></D:prop></D:propfind>"
)
FILE = Resource(b"/admin/x", b"x", False, 5, 1_700_000_000_000_000_001)


def document(*resources: Resource, wanted: Wanted | None = None) -> bytes:
    wanted = wanted or Wanted()
    parts = [response(each, wanted) for each in resources]
    return multistatus.HEAD + b"".join(parts) + multistatus.TAIL


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b"", Wanted()),
        (b" \r\n", Wanted()),
        (b'<propfind xmlns="DAV:"><allprop/></propfind>', Wanted()),
        (b'<propfind xmlns="DAV:"><propname/></propfind>', Wanted(names_only=True)),
        (STORAGE_CLI, Wanted(frozenset({"resourcetype"}))),
        (
            b'<a:propfind xmlns:a="DAV:" xmlns:o="other:"><a:prop><a:displayname/>'
            b"<o:getcontentlength/><a:unknown><a:resourcetype/></a:unknown></a:prop></a:propfind>",
            Wanted(frozenset({"displayname", "unknown"})),
        ),
    ],
)
def test_what_is_asked(body: bytes, wanted: Wanted) -> None:
    assert parse(body) == wanted


@pytest.mark.parametrize(
    "body",
    [
        b"<broken",
        b"text",
        b"<propfind/>",
        b'<propfind xmlns="DAV:"/>',
        b'<propfind xmlns="other:"><prop/></propfind>',
        b'<propfind xmlns="DAV:"><prop/><allprop/></propfind>',
        b'<!DOCTYPE a [<!ENTITY x "y">]><propfind xmlns="DAV:"><allprop/></propfind>',
        b'<propfind xmlns="DAV:"><prop>' + b"<a>" * 200 + b"</a>" * 200 + b"</prop></propfind>",
        b"\xff\xfe\x00",
        b'<propfind xmlns="DAV:"><allprop/></propfind>trailing',
        b'<?xml version="1.0" encoding="utf-7"?><propfind xmlns="DAV:"><allprop/></propfind>',
        b'<?xml version="1.0" encoding="zip"?><propfind xmlns="DAV:"><allprop/></propfind>',
        b'<?xml version="1.0" encoding="none"?><propfind xmlns="DAV:"><allprop/></propfind>',
    ],
)
def test_what_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError):
        parse(body)


def test_entities_are_not_expanded() -> None:
    laughs = b"".join(
        b'<!ENTITY a%d "%s">' % (number, b"&a%d;" % (number - 1) * 10) for number in range(1, 10)
    )
    body = b'<!DOCTYPE x [<!ENTITY a0 "ha">' + laughs + b"]><x>&a9;</x>"
    with pytest.raises(MalformedError, match="document type"):
        parse(body)


def test_the_shape_that_two_clients_parse() -> None:
    directory = Resource(b"/admin/", b"admin", True, 4096, 0)
    text = document(directory, FILE)
    assert text.startswith(
        b'<?xml version="1.0" encoding="utf-8" ?>\n<D:multistatus xmlns:D="DAV:">'
    )
    assert text.count(b"<D:prop>") == text.count(b"<D:response>") == 2
    assert b"<D:resourcetype></D:resourcetype>" in text
    assert b"<D:resourcetype><D:collection/></D:resourcetype>" in text
    assert text.count(b"getcontentlength>5<") == 1
    assert b"<D:getlastmodified>Tue, 14 Nov 2023 22:13:20 GMT</D:getlastmodified>" in text
    assert text.count(b"<D:status>HTTP/1.1 200 OK</D:status>") == 2


def test_only_what_was_asked_for() -> None:
    text = document(FILE, wanted=parse(STORAGE_CLI))
    assert re.findall(rb"<D:prop>\n(.*)</D:prop>", text, re.DOTALL) == [
        b"<D:resourcetype></D:resourcetype>\n"
    ]
    names = document(FILE, wanted=Wanted(names_only=True))
    assert b"<D:displayname/>" in names
    assert b"2023" not in names


@given(st.binary(max_size=40), st.integers(-(1 << 62), 1 << 62))
def test_any_name_and_time_make_a_well_formed_document(name: bytes, time_ns: int) -> None:
    href = multistatus.escape_uri(b"/admin/" + name)
    text = document(Resource(href, name, False, 1, time_ns))
    root = ElementTree.fromstring(text)
    shown = root.findtext(".//{DAV:}href")
    assert shown == href.decode()
    assert re.fullmatch(r"[!-~]*", shown)
    found = root.findtext(".//{DAV:}displayname") or ""
    try:
        told = name.decode()
    except UnicodeDecodeError:
        return
    if told.isprintable():
        assert found == told


def test_all_properties_at_once_are_what_they_are_one_by_one() -> None:
    file = Resource(b"/admin/a%20b", b"a <b>", False, 123, 1_700_000_000 * 10**9)
    one_by_one = Wanted(frozenset(multistatus.PROPERTIES) | {"more"})
    assert multistatus.response(file, Wanted()) == multistatus.response(file, one_by_one)
