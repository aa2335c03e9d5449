"""PROPFIND through the application: depths, names, and listings that change meanwhile."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Awaitable, Callable
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

import pytest
import trio

from cafs.errors import IndexDamagedError
from cafs.http import propfind
from cafs.http_options import HttpOptions
from cafs.newstore import create
from cafs.types import ROOT, Attr, Ino
from tests.unit.site_client import Answer, Client, client
from tests.unit.small_store import PARAMS
from tests.unit.test_multistatus import STORAGE_CLI

D = "{DAV:}"


def ask(path: Path, work: Callable[[Client], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with client(path, HttpOptions(**options)) as asking:  # type: ignore[arg-type]
            await work(asking)

    create(path, PARAMS)
    trio.run(main)


def hrefs(answer: Answer) -> list[str]:
    assert answer.status == 207, answer
    assert answer.headers["content-type"] == "text/xml; charset=utf-8"
    return [href.text or "" for href in ElementTree.fromstring(answer.body).iter(f"{D}href")]


def fill(asking: Client, directory: Ino, count: int) -> None:
    for number in range(count):
        asking.store.tree.create(directory, b"%06d" % number, 0o100600, 0, 0)


def test_depths(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", "/admin/cc-x/ab/file", b"12345")
        await asking("PUT", "/admin/cc-x/other", b"")
        path = "/admin/cc-x"
        assert hrefs(await asking("PROPFIND", path)) == [path]
        assert hrefs(await asking("PROPFIND", path + "/", depth="0")) == [path + "/"]
        for own in (path, path + "/"):
            found = hrefs(await asking("PROPFIND", own, depth="1"))
            assert found[0] == own
            assert sorted(found[1:]) == [path + "/ab/", path + "/other"]
        assert hrefs(await asking("PROPFIND", path + "/other", depth="1")) == [path + "/other"]
        for headers, status in (({"depth": "infinity"}, 403), ({"depth": "2"}, 400)):
            assert (await asking("PROPFIND", path, **headers)).status == status
        assert (await asking("PROPFIND", "/admin/none", depth="1")).status == 404
        assert (await asking("PROPFIND", path + "/other/", depth="1")).status == 404
        assert (await asking("PROPFIND", path, b"<x", depth="1")).status == 400
        assert (await asking("PROPFIND", path, b" " * 70_000, depth="1")).status == 413
        found = hrefs(await asking("PROPFIND", "/admin/", depth="1"))
        assert found == ["/admin/", "/admin/cc-x/"]
        answer = await asking("PROPFIND", path, STORAGE_CLI, depth="1")
        assert len(hrefs(answer)) == 3
        assert "displayname" not in answer.text

    ask(tmp_path / "s", work)


def test_without_depth_it_can_be_1(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", "/admin/cc-x/file", b"12345")
        assert len(hrefs(await asking("PROPFIND", "/admin/cc-x/"))) == 2
        assert len(hrefs(await asking("PROPFIND", "/admin/cc-x/", depth="0"))) == 1

    ask(tmp_path / "s", work, propfind_depth="1")


def test_names(tmp_path: Path) -> None:
    names = [
        b"a&b",
        b"<tag>",
        b"with space",
        "größe".encode(),
        b"\"'",
        b"100%",
        b"?#;",
        b"\xff\x01",
    ]

    async def work(asking: Client) -> None:
        for name in [*names, b".hidden"]:
            asking.store.tree.create(ROOT, name, 0o100600, 0, 0)
        answer = await asking("PROPFIND", "/admin/", depth="1")
        found = hrefs(answer)[1:]
        assert sorted(unquote_to_bytes(href)[len("/admin/") :] for href in found) == sorted(names)
        shown = [each.text for each in ElementTree.fromstring(answer.body).iter(f"{D}displayname")]
        assert {name.decode() for name in names[:-1]} < set(shown)
        for name in names:
            # Each can be asked about by the href that it was told by.
            href = "/admin/" + quote(name)
            assert hrefs(await asking("PROPFIND", href, depth="0")) == [href]

    ask(tmp_path / "s", work)


def test_links_and_special_files(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        await asking("PUT", "/admin/x/dir/file", b"12345")
        x = tree.lookup(ROOT, b"x")
        assert x is not None
        for name, target in ((b"to-dir", b"dir"), (b"to-file", b"dir/file"), (b"nowhere", b"gone")):
            tree.create(x, name, 0o120777, 0, 0, target=target)
        tree.create(x, b"fifo", 0o010600, 0, 0)
        answer = await asking("PROPFIND", "/admin/x/", depth="1")
        assert sorted(hrefs(answer)[1:]) == [
            "/admin/x/dir/",
            "/admin/x/to-dir/",
            "/admin/x/to-file",
        ]
        assert "<D:getcontentlength>5<" in answer.text

    ask(tmp_path / "s", work)


def test_a_directory_that_may_not_be_read(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        tree.inodes.put(ROOT, tree.inodes.get(ROOT)._replace(uid=1000, gid=1000))
        tree.create(ROOT, b"closed", 0o040300, 1000, 1000)
        assert (await asking("PROPFIND", "/admin/closed/", depth="1")).status == 403
        assert (await asking("PROPFIND", "/admin/closed/", depth="0")).status == 207

    ask(tmp_path / "s", work)


def test_many_children_come_in_pieces_while_entries_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        directory = tree.create(ROOT, b"d", 0o040700, 0, 0)
        fill(asking, directory, 5000)
        real = propfind._Listing.some
        removed: list[bytes] = []

        def some(listing: propfind._Listing, ino: Ino, after: int) -> tuple[bytes, int]:
            # Between any two pieces something goes and something comes.
            number = 17 * len(removed) % 5000
            name = b"%06d" % number
            if tree.lookup(directory, name) is not None:
                asking.store.nameless.forget(tree.unlink(directory, name)[0])
                removed.append(name)
                tree.create(directory, b"new-" + name, 0o100600, 0, 0)
            return real(listing, ino, after)

        monkeypatch.setattr(propfind._Listing, "some", some)
        answer = await asking("PROPFIND", "/admin/d/", depth="1")
        assert asking.pieces > 5000 // propfind.AT_ONCE - propfind.WHOLE_MAX // propfind.AT_ONCE
        assert "content-length" not in answer.headers
        found = hrefs(answer)
        assert len(found) == len(set(found))
        untouched = {f"/admin/d/{number:06}" for number in range(5000)}
        untouched -= {f"/admin/d/{name.decode()}" for name in removed}
        assert len(removed) > 20
        assert untouched < set(found)

    ask(tmp_path / "s", work)


def test_a_directory_that_goes_while_it_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        directory = tree.create(ROOT, b"d", 0o040700, 0, 0)
        fill(asking, directory, 5000)
        real = propfind._Listing.some
        calls: list[int] = []

        def some(listing: propfind._Listing, ino: Ino, after: int) -> tuple[bytes, int]:
            calls.append(after)
            if len(calls) == 20:
                tree.detach(ROOT, b"d")
                while tree.detached:
                    asking.store.nameless.sweep_detached(1000)
            return real(listing, ino, after)

        monkeypatch.setattr(propfind._Listing, "some", some)
        assert len(hrefs(await asking("PROPFIND", "/admin/d/", depth="1"))) < 5000

    ask(tmp_path / "s", work)


def test_an_entry_whose_record_is_damaged_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", "/admin/d/good", b"12345")
        await asking("PUT", "/admin/d/bad", b"12345")
        tree = asking.store.tree
        directory = tree.lookup(ROOT, b"d")
        assert directory is not None
        bad = tree.lookup(directory, b"bad")
        real = asking.site.contents.attr

        def attr(ino: Ino) -> Attr:
            if ino == bad:
                raise IndexDamagedError("a bad record")
            return real(ino)

        monkeypatch.setattr(asking.site.contents, "attr", attr)
        found = hrefs(await asking("PROPFIND", "/admin/d/", depth="1"))
        assert sorted(found[1:]) == ["/admin/d/bad", "/admin/d/good"]

    ask(tmp_path / "s", work)
