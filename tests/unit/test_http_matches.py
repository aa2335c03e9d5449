"""POST /resource_matches on a real tree: the same answer as a HEAD for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from cafs.http_options import HttpOptions
from cafs.index import layout
from cafs.newstore import create
from cafs.types import ROOT, Ino
from tests.unit.site_client import Client, client
from tests.unit.small_store import PARAMS, change

SIZE = 70_000
TOP = "/admin/cc-resources/app_bits_cache"


def content(number: int) -> bytes:
    return hashlib.sha256(b"%d" % number).digest() * (SIZE // 32) + bytes(SIZE % 32)


def key(number: int) -> str:
    return hashlib.sha1(content(number)).hexdigest()


def place(sha1: str) -> str:
    return f"{TOP}/{sha1[:2]}/{sha1[2:4]}/{sha1}"


def entry(sha1: str, size: int = SIZE) -> dict[str, Any]:
    return {"checksum": {"value": sha1}, "size_in_bytes": size, "path": "p", "mode": "644"}


async def known(asking: Client, *entries: dict[str, Any]) -> list[str]:
    body = json.dumps({"resources": entries}).encode()
    answer = await asking("POST", "/resource_matches", body)
    assert answer.status == 201, answer
    assert answer.headers["content-type"] == "application/json"
    return [each["checksum"]["value"] for each in json.loads(answer.body)["resources"]]


def ask(path: Path, work: Callable[[Client], Awaitable[None]], **options: object) -> None:
    async def main() -> None:
        async with client(path, HttpOptions(**options)) as asking:  # type: ignore[arg-type]
            await work(asking)

    if not path.exists():
        create(path, PARAMS)
    trio.run(main)


def test_what_is_there_is_known(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        assert await known(asking, entry(key(1))) == []
        for number in range(20):
            await asking("PUT", place(key(number)), content(number))
        all_of_them = [entry(key(number)) for number in range(40)]
        for _ in range(2):
            # What was remembered of the directories is used the second time.
            assert await known(asking, *all_of_them) == [key(number) for number in range(20)]
        assert await known(asking, entry(key(1), SIZE + 1)) == []
        assert await known(asking, entry(key(1).upper())) == [key(1).upper()]
        old = {"sha1": key(1), "size": SIZE, "mode": "644"}
        answer = await asking("POST", "/resource_matches", json.dumps([old]).encode())
        assert (answer.status, json.loads(answer.body)) == (200, [old])

    ask(tmp_path / "s", work)


def test_what_clients_make_up_is_not_remembered(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", place(key(1)), content(1))
        first, rest = key(1)[:2], key(1)[4:]
        made_up = [f"{first}{one}{two}{rest}" for one in "ghijklmn" for two in "opqrstuv"]
        assert await known(asking, *map(entry, made_up)) == []
        real = [f"{first}{number:02x}{rest}" for number in range(256)]
        assert await known(asking, *map(entry, real)) == [key(1)]
        remembered = asking.site.partitions._known.values()
        assert sum(len(names) for _, _, names in remembered) == 256

    ask(tmp_path / "s", work)


def test_it_follows_every_change(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        sha1 = key(1)
        tree = asking.store.tree
        for _ in range(2):
            await asking("PUT", place(sha1), content(1))
            assert await known(asking, entry(sha1)) == [sha1]
            await asking("DELETE", place(sha1))
            assert await known(asking, entry(sha1)) == []
        await asking("PUT", place(sha1), content(1))
        first = asking.site.find(_path(place(sha1)[:-44]))
        # Renamed, and renamed back.
        name = sha1[2:4].encode()
        tree.rename(first, name, first, b"xx", 0)
        assert await known(asking, entry(sha1)) == []
        tree.rename(first, b"xx", first, name, 0)
        assert await known(asking, entry(sha1)) == [sha1]
        # Another one of the same name.
        await asking("DELETE", f"{TOP}/{sha1[:2]}/{sha1[2:4]}/")
        assert await known(asking, entry(sha1)) == []
        await asking("PUT", place(sha1), content(1))
        assert await known(asking, entry(sha1)) == [sha1]
        await asking("DELETE", "/admin/cc-resources/")
        assert await known(asking, entry(sha1)) == []

    ask(tmp_path / "s", work)


def _path(text: str):  # type: ignore[no-untyped-def]
    from cafs.http.paths import TreePath

    return TreePath(tuple(text.removeprefix("/admin/").strip("/").encode().split(b"/")), True)


def test_what_is_being_written_has_the_size_that_it_shows(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        store, sha1 = asking.store, key(1)
        await asking("PUT", place(sha1), b"")
        ino = asking.site.find(_path(place(sha1)))
        store.contents.opened(ino, writable=True)
        await store.contents.write(ino, 0, content(1), privileged=True)
        assert await known(asking, entry(sha1)) == [sha1]
        store.contents.closed(ino, writable=True)

    ask(tmp_path / "s", work)


def test_what_is_no_file_is_not_known(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        await asking("PUT", place(key(1)), content(1))
        directory = asking.site.find(_path(place(key(1))[:-41]))
        name = (key(1)[:4] + 36 * "0").encode()
        tree.create(directory, name, 0o120777, 0, 0, target=key(1).encode())
        tree.create(directory, name[:-1] + b"1", 0o040700, 0, 0)
        names = (name.decode(), name[:-1].decode() + "1", "." * 40, "../" + "a" * 37, "é" * 40)
        assert await known(asking, *[entry(each) for each in names]) == []

    ask(tmp_path / "s", work)


def test_names_whose_hashes_collide(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(layout, "name_cookie", _collides)

    async def work(asking: Client) -> None:
        sha1 = key(1)
        tree = asking.store.tree
        await asking("PUT", place(sha1)[:-1] + "x", b"takes the place")
        directory = asking.site.find(_path(place(sha1)[:-41]))
        await asking("PUT", place(sha1), content(1))
        assert tree.inodes.get(directory).flags & layout.INODE_PROBED
        assert await known(asking, entry(sha1)) == [sha1]

    ask(tmp_path / "s", work)


_cookie = layout.name_cookie


def _collides(name: bytes) -> int:
    """The place of key(1) for both names."""
    return _cookie(key(1).encode()) if len(name) == 40 else _cookie(name)


def test_damage_hides_only_what_it_lies_in(tmp_path: Path) -> None:
    path = tmp_path / "s"
    inodes: dict[int, Ino] = {}

    async def fill(asking: Client) -> None:
        for number in range(4):
            await asking("PUT", place(key(number)), content(number))
            inodes[number] = asking.site.find(_path(place(key(number))))

    async def look(asking: Client) -> None:
        entries = [entry(key(number)) for number in range(4)]
        assert await known(asking, *entries) == [key(0), key(2), key(3)]

    ask(path, fill)
    change(path, layout.INODES, layout.u48(inodes[1]), b"not a record")
    ask(path, look)


def test_what_is_refused(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        for body, status in ((b"{}", 422), (b"no json", 422), (bytes(9 << 20), 413)):
            answer = await asking("POST", "/resource_matches", body)
            assert answer.status == status
            assert answer.text.count("\n") == 1
        assert (await asking("GET", "/resource_matches")).status == 405

    ask(tmp_path / "s", work)


def test_the_directory_is_a_setting_and_may_be_missing_or_closed(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        assert await known(asking, entry(key(1))) == []
        sha1 = key(1)
        await asking("PUT", f"/admin/other/{sha1[:2]}/{sha1[2:4]}/{sha1}", content(1))
        assert await known(asking, entry(sha1)) == [sha1]
        tree.inodes.put(ROOT, tree.inodes.get(ROOT)._replace(uid=1000, gid=1000))
        body = json.dumps({"resources": [entry(sha1)]}).encode()
        other = tree.lookup(ROOT, b"other")
        assert other is not None
        tree.inodes.put(other, tree.inodes.get(other)._replace(mode=0o040600, uid=1000))
        assert (await asking("POST", "/resource_matches", body)).status == 403

    ask(tmp_path / "s", work, resource_directory="other")
