"""What clients send that no client should: each is refused with a reason, and changes nothing."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from cafs.errors import FsError
from cafs.http import serve
from cafs.http_options import HttpOptions
from cafs.newstore import create
from cafs.notices import Change, EntryChanged
from cafs.store import Store
from cafs.tree.walk import Caller
from cafs.types import ROOT, TIME_MAX_NS
from cafs.upload import Upload
from tests.unit.site_client import Client, ask
from tests.unit.small_store import PARAMS, in_store

KEY = "/admin/cc-x/ab/cd/abcd-1"


def test_a_date_beyond_the_index_becomes_its_last_one(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        for status in (201, 204):
            answer = await asking("PUT", KEY, b"x", date="Fri, 31 Dec 9999 23:59:59 GMT")
            assert answer.status == status, answer
        answer = await asking("HEAD", KEY)
        assert answer.status == 200
        assert answer.headers["last-modified"] == "Fri, 11 Apr 2262 23:47:16 GMT"

    assert TIME_MAX_NS // 10**9 == 9223372036
    ask(tmp_path / "store", work)


def test_a_link_is_signed_for_its_own_location_only(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")

    async def work(asking: Client) -> None:
        for path in ("/../write/x", "%2e%2e/write/x", "/a/../../admin/x", "/../read", "/../../x"):
            answer = await asking("GET", f"/sign?expires=9999999999&path={path}")
            assert answer.status == 400, (path, answer)
        for path in ("/a/../x", "x", "//x"):
            answer = await asking("GET", f"/sign?expires=9999999999&path={path}")
            assert answer.status == 200, (path, answer)

    ask(tmp_path / "store", work, secret_file=secret)


@pytest.mark.parametrize(
    "path", ["/admin/../../etc/passwd", "/admin/%00", "/admin/%zz", "/%2e%2e/"]
)
def test_a_path_that_makes_no_sense_is_refused_in_words_for_http(tmp_path: Path, path: str) -> None:
    async def work(asking: Client) -> None:
        answer = await asking("GET", path)
        assert answer.status == 400
        assert answer.text.count("\n") == 1
        assert "--help" not in answer.text

    ask(tmp_path / "store", work)


def test_what_the_tree_refuses_is_told_in_words(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        assert (await asking("PUT", "/admin/file", b"x")).status == 201
        long = "y" * 256
        for method, path, status, says in (
            ("PROPFIND", "file/", 404, "it is a file, and the path ends with a slash"),
            ("PROPFIND", long, 404, "File name too long"),
            ("GET", long, 404, "File name too long"),
            ("DELETE", long, 404, "File name too long"),
            ("PUT", f"{long}/x", 500, "File name too long"),
        ):
            answer = await asking(method, f"/admin/{path}")
            assert (answer.status, answer.text) == (status, f"{status}: {says}\n")

    ask(tmp_path / "store", work)


def test_a_path_of_thousands_of_names_is_made_or_refused_at_once(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        deep = "/admin/" + "a/" * 2040
        answer = await asking("PUT", f"{deep}x", b"x")
        assert answer.status == 201, answer
        assert (await asking("GET", f"{deep}x")).body == b"x"
        # What is there already is gone through once, not once for each name.
        assert (await asking("PUT", f"{deep}y/z", b"x")).status == 201
        for method, status in (("PUT", 500), ("GET", 404), ("DELETE", 404)):
            answer = await asking(method, "/admin/" + "a/" * 6000 + "x", b"x" * (method == "PUT"))
            assert answer.status == status, answer
        assert (await asking("DELETE", "/admin/a/")).status == 204

    ask(tmp_path / "store", work)


def test_missing_directories_are_made_behind_links_and_not_below_files(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        real = tree.create(ROOT, b"real", 0o040755, 0, 0)
        tree.create(ROOT, b"link", 0o120777, 0, 0, target=b"real")
        tree.create(ROOT, b"dangling", 0o120777, 0, 0, target=b"real/new")
        assert (await asking("PUT", "/admin/link/a/b/c", b"x")).status == 201
        assert (await asking("PUT", "/admin/dangling/d/e", b"y")).status == 201
        assert (await asking("GET", "/admin/real/a/b/c")).body == b"x"
        assert (await asking("GET", "/admin/real/new/d/e")).body == b"y"
        assert tree.lookup(real, b"new") is not None
        assert (await asking("PUT", "/admin/real/a/b/c/d", b"x")).status == 500
        assert (await asking("PUT", "/admin/real/a/b/c/d/e/f", b"x")).status == 500

    ask(tmp_path / "store", work)


def test_a_put_that_fails_makes_known_which_directories_it_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel may have been told that they are not there, and believes it for ever."""

    async def work(asking: Client) -> None:
        told: list[Change] = []

        async def listener(changes: Sequence[Change]) -> None:
            told.extend(changes)

        asking.store.notices.register(listener)
        tree = asking.store.tree
        # Nothing is made where it can be known before that it is in vain.
        answer = await asking("PUT", f"/admin/vain/{'y' * 256}/x", b"x")
        assert (answer.status, answer.text) == (500, "500: File name too long\n")
        assert tree.lookup(ROOT, b"vain") is None
        assert not told
        with monkeypatch.context() as patch:
            patch.setattr(Upload, "place", _fail)
            assert (await asking("PUT", "/admin/new/ab/x", b"x")).status == 507
        new = tree.lookup(ROOT, b"new")
        assert new is not None
        assert {EntryChanged(ROOT, b"new"), EntryChanged(new, b"ab")} <= set(told)

    ask(tmp_path / "store", work)


def test_a_copy_that_fails_makes_known_what_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(asking: Client) -> None:
        told: list[Change] = []

        async def listener(changes: Sequence[Change]) -> None:
            told.extend(changes)

        for path in ("from/x", "to/y"):
            assert (await asking("PUT", f"/admin/{path}", b"x")).status == 201
        asking.store.notices.register(listener)
        tree = asking.store.tree
        with monkeypatch.context() as patch:
            patch.setattr(tree, "place", _fail)
            destination = "https://store:4443/admin/to/"
            answer = await asking("COPY", "/admin/from/", destination=destination)
        assert answer.status >= 500
        assert tree.lookup(ROOT, b"to") is None
        assert EntryChanged(ROOT, b"to") in told

    ask(tmp_path / "store", work)


def _fail(*_: object) -> None:
    raise FsError(errno.ENOSPC)


def test_who_puts_over_a_file_must_be_allowed_to_replace_it(tmp_path: Path) -> None:
    """As with COPY, and with rename(2): the sticky bit of a directory counts."""

    async def work(asking: Client) -> None:
        tree = asking.store.tree
        shared = tree.create(ROOT, b"shared", 0o041777, 1, 1)
        tree.create(shared, b"theirs", 0o100666, 1, 1)
        tree.create(shared, b"own", 0o100666, 7, 7)
        asking.site._owner = Caller(7, 7)
        assert (await asking("PUT", "/admin/shared/new", b"x")).status == 201
        assert (await asking("PUT", "/admin/shared/own", b"x")).status == 204
        answer = await asking("PUT", "/admin/shared/theirs", b"x")
        assert answer.status == 500
        assert "sticky bit" in answer.text

    ask(tmp_path / "store", work)


def test_nginx_comes_in_however_many_strangers_there_are(tmp_path: Path) -> None:
    async def work(store: Store) -> None:
        server = serve._Server(store, HttpOptions())
        server._strangers = server._crowd_max
        said = {}

        async def handle(trusted: bool, stream: trio.SocketStream) -> None:
            # As trio.serve_listeners does it.
            try:
                await server._serve(trusted, stream)
            finally:
                await trio.aclose_forcefully(stream)

        for trusted in (False, True):
            ours, theirs = trio.socket.socketpair()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(handle, trusted, trio.SocketStream(ours))
                client = trio.SocketStream(theirs)
                try:
                    await client.send_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                    said[trusted] = await client.receive_some()
                except trio.BrokenResourceError:
                    said[trusted] = b""
                await client.aclose()
        assert said[False] == b""
        assert said[True].startswith(b"HTTP/1.1 200 ")

    create(tmp_path / "store", PARAMS)
    in_store(tmp_path / "store", work)
