"""COPY: one step, no cost of size, and never a half of anything."""

from __future__ import annotations

import stat
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from cafs import copying
from cafs.errors import DiskFullError
from cafs.newstore import create
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store
from cafs.types import ROOT, BlobNo, Ino
from tests.model.audit import audit
from tests.model.storethread import QUIET
from tests.unit.site_client import Client, client
from tests.unit.small_store import PARAMS, noise

S, D = "/admin/cc-x/ab/cd/source", "/admin/cc-x/ef/01/copy"
TO_D = "https://store:4443" + D
DATE = "Tue, 14 Nov 2023 22:13:20 GMT"


def ask(path: Path, work: Callable[[Client], Awaitable[None]]) -> None:
    async def main() -> None:
        async with client(path) as asking:
            await work(asking)
            await Sweeper(asking.store).once()
            assert not list(asking.store.tree.inodes.orphans()), "something was left behind"

    create(path, PARAMS)
    trio.run(main)
    assert not audit(path)


def find(store: Store, path: str) -> Ino:
    ino: Ino | None = ROOT
    for name in path.strip("/").removeprefix("admin/").encode().split(b"/"):
        assert ino is not None, path
        ino = store.tree.lookup(ino, name)
    assert ino is not None, path
    return ino


def test_the_two_steps_of_the_clients(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        data = noise(1, 200_000)
        await asking("PUT", S, data, date=DATE)
        stored = asking.store.counters.stored_bytes
        assert (await asking("PUT", D)).status == 201
        assert (await asking("COPY", S, destination=TO_D)).status == 204
        assert not asking.store.overlay.dirty, "204 comes after the commit"
        source, copy = await asking("GET", S), await asking("GET", D)
        assert copy.body == data
        assert copy.headers == source.headers
        attr = asking.store.tree.inodes.get(find(asking.store, D))
        assert (stat.S_IMODE(attr.mode), attr.nlink) == (0o600, 1)
        assert attr.blob == asking.store.tree.inodes.get(find(asking.store, S)).blob
        assert asking.store.counters.stored_bytes == stored
        # Each goes its own way from here.
        await asking("PUT", S, b"changed")
        assert (await asking("GET", D)).body == data

    ask(tmp_path / "s", work)


def test_an_empty_file_is_copied_too(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", S)
        assert (await asking("COPY", S, destination="/admin/cc-x/ab/cd/copy")).status == 204
        assert (await asking("GET", "/admin/cc-x/ab/cd/copy")).body == b""

    ask(tmp_path / "s", work)


def test_other_links_of_the_destination_keep_their_bytes(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", S, b"new")
        await asking("PUT", D, b"old")
        asking.store.tree.link(find(asking.store, D), ROOT, b"other")
        assert (await asking("COPY", S, destination=TO_D)).status == 204
        assert (await asking("GET", D)).body == b"new"
        assert (await asking("GET", "/admin/other")).body == b"old"
        assert asking.store.tree.inodes.get(find(asking.store, "other")).nlink == 1

    ask(tmp_path / "s", work)


def test_what_is_refused_and_leaves_all_as_it_was(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", S, b"bytes")
        await asking("PUT", D, b"old")
        await asking("PUT", "/admin/cc-x/dir/file", b"x")
        asking.store.tree.create(ROOT, b"fifo", 0o010600, 0, 0)
        absent, own = "/admin/cc-x/ab/cd/absent", "https://store:4443"
        generation = asking.store.counters.generation
        for source, headers, status in (
            (S, {}, 400),
            (S, {"destination": "https://elsewhere" + D}, 400),
            (S, {"destination": "https://storeroom" + D}, 400),
            (S, {"destination": "http://store:4443" + D}, 400),
            (S, {"destination": "https://store:4443"}, 400),
            (S, {"destination": "/read/cc-x/ef/01/copy"}, 400),
            (S, {"destination": "/admin/../../x"}, 400),
            (S, {"destination": "relative"}, 400),
            (S, {"destination": D, "depth": "1"}, 400),
            (S, {"destination": D, "overwrite": "X"}, 400),
            (S, {"destination": D + "/"}, 409),
            (S + "/", {"destination": D}, 409),
            (S + "/", {"destination": "/admin/cc-x/new/"}, 404),
            (S, {"destination": D, "overwrite": "F"}, 412),
            (absent, {"destination": D, "overwrite": "F"}, 412),
            (absent, {"destination": TO_D}, 404),
            (absent, {"destination": "/admin/none/x"}, 404),
            (S, {"destination": "/admin/none/x"}, 409),
            (S, {"destination": D + "/below"}, 409),
            (S, {"destination": "/admin/cc-x/dir"}, 409),
            (S, {"destination": own + S}, 403),
            (S, {"destination": own + S.replace("/cd", "//cd").replace("source", "%73ource")}, 403),
            ("/admin/cc-x/dir", {"destination": D}, 400),
            ("/admin/cc-x/dir/", {"destination": "/admin/cc-x/dir/below/"}, 403),
            ("/admin/cc-x/dir/", {"destination": "/admin/cc-x/"}, 403),
            ("/admin/cc-x/dir/", {"destination": "/admin/"}, 403),
            ("/admin/fifo", {"destination": D}, 404),
        ):
            answer = await asking("COPY", source, **headers)
            assert answer.status == status, (source, headers, answer)
        assert (await asking("COPY", S, b"body", destination=D)).status == 415
        assert asking.store.counters.generation == generation
        assert (await asking("GET", S)).body == b"bytes"
        assert (await asking("GET", D)).body == b"old"

    ask(tmp_path / "s", work)


@pytest.mark.parametrize(
    "destination",
    [
        D,
        "https://store" + D,
        "https://STORE:1" + D,
        TO_D + "?query",
        "https://store:4443" + D.replace("copy", "%63opy"),
    ],
)
def test_forms_of_destination(tmp_path: Path, destination: str) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", S, b"bytes")
        await asking("PUT", D)
        answer = await asking("COPY", S, destination=destination, overwrite="T")
        assert answer.status == 204
        assert (await asking("GET", D)).body == b"bytes"

    ask(tmp_path / "s", work)


def test_permissions_count(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        tree.inodes.put(ROOT, tree.inodes.get(ROOT)._replace(uid=1000, gid=1000))
        await asking("PUT", S, b"bytes")
        await asking("PUT", D, b"old")
        directory = find(asking.store, "cc-x/ef/01")
        mine = tree.inodes.get(directory)
        tree.inodes.put(directory, mine._replace(mode=0o040500))
        assert (await asking("COPY", S, destination=TO_D)).status == 403
        tree.inodes.put(directory, mine)
        source = find(asking.store, S)
        tree.inodes.put(source, tree.inodes.get(source)._replace(mode=0o100200))
        assert (await asking("COPY", S, destination=TO_D)).status == 403
        assert (await asking("GET", D)).body == b"old"

    ask(tmp_path / "s", work)


def test_a_directory_is_copied_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        for number in range(10):
            await asking("PUT", f"/admin/a/{number % 3}/{number}", b"%d" % number)
        a = find(asking.store, "a")
        tree.create(a, b"link", 0o120777, 0, 0, target=b"0/0")
        tree.create(a, b"fifo", 0o010600, 0, 0)
        await asking("PUT", "/admin/b/old", b"old")
        assert (await asking("COPY", "/admin/a/", destination="/admin/b/")).status == 201
        assert (await asking("GET", "/admin/b/1/7")).body == b"7"
        assert (await asking("GET", "/admin/b/link")).body == b"0"
        assert (await asking("HEAD", "/admin/b/old")).status == 404
        assert tree.lookup(find(asking.store, "b"), b"fifo") is None
        assert tree.inodes.get(find(asking.store, "b")).nlink == 5
        assert (await asking("COPY", "/admin/a/", destination="/admin/new/")).status == 201

        real, calls = copying.copy_file, []

        async def fails(*arguments: object) -> Ino:
            calls.append(1)
            if len(calls) == 5:
                raise DiskFullError("the disk is full")
            return await real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(copying, "copy_file", fails)
        assert (await asking("COPY", "/admin/a/", destination="/admin/b/")).status == 507
        assert (await asking("GET", "/admin/b/1/7")).body == b"7"

    ask(tmp_path / "s", work)


def test_what_is_removed_while_it_is_copied_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(asking: Client) -> None:
        store = asking.store
        for number in range(6):
            await asking("PUT", f"/admin/a/{number}/file", b"%d" % number)
        await asking("PUT", S, b"bytes")
        real, calls = copying.copy_file, []

        async def removes(*arguments: object) -> Ino:
            calls.append(1)
            if len(calls) == 3:
                store.nameless.forget(store.tree.detach(ROOT, b"a"))
                while store.tree.detached:
                    store.nameless.sweep_detached(100)
            return await real(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(copying, "copy_file", removes)
        assert (await asking("COPY", "/admin/a/", destination="/admin/b/")).status == 404
        assert store.tree.lookup(ROOT, b"b") is None
        monkeypatch.setattr(copying, "copy_file", real)

        settled = copying._settled

        async def removes_first(store: Store, source: Ino) -> None:
            await asking("DELETE", S)
            await settled(store, source)

        monkeypatch.setattr(copying, "_settled", removes_first)
        assert (await asking("COPY", S, destination="/admin/b")).status == 404

    ask(tmp_path / "s", work)


def test_content_that_is_still_being_written_is_copied_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s"
    create(path, PARAMS)
    monkeypatch.setattr(copying, "DIGESTS_S", 0.1)

    async def main() -> None:
        async with open_store(path, QUIET) as store:
            data = noise(7, 100_000)
            ino = store.tree.create(ROOT, b"file", 0o100644, 0, 0)
            store.contents.opened(ino, writable=True)
            await store.contents.write(ino, 0, data, privileged=True)
            await store.contents.write(ino, 500, b"patch", privileged=True)
            copy = await copying.copy_file(store, ino, 1, 2)
            assert store.tree.place(copy, ROOT, b"copy") is None
            await store.contents.write(ino, 0, b"later", privileged=True)
            await store.contents.settle(ino)
            store.contents.closed(ino, writable=True)
            wanted = data[:500] + b"patch" + data[505:]
            assert await store.contents.read(copy, 0, 1 << 20) == wanted
            await store.sync_all()
            await store.hasher.once()
            assert await store.contents.read(copy, 0, 1 << 20) == wanted
            await store.commit()

    trio.run(main)
    assert not audit(path)


def test_a_blob_that_waits_for_its_digests_gets_them_and_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "s"
    create(path, PARAMS)

    async def main() -> None:
        async with open_store(path, QUIET) as store:
            ino = store.tree.create(ROOT, b"file", 0o100644, 0, 0)
            store.contents.opened(ino, writable=True)
            await store.contents.write(ino, 5000, noise(8, 50_000), privileged=True)
            store.contents.closed(ino, writable=True)
            copy = await copying.copy_file(store, ino, 1, 2)
            store.tree.place(copy, ROOT, b"copy")
            assert store.tree.inodes.get(copy).blob == store.tree.inodes.get(ino).blob
            assert store.counters.blobs == 1
            await store.sync_all()

    trio.run(main)
    assert not audit(path)


@pytest.mark.parametrize("is_changed", ["no", "once", "always", "hashed"])
def test_a_long_recipe_is_copied_some_parts_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_changed: str
) -> None:
    path = tmp_path / "s"
    create(path, PARAMS)
    for name in ("DIGESTS_S", "HASHED_AT_ONCE", "FORKED_AT_ONCE"):
        monkeypatch.setattr(copying, name, 0)
    monkeypatch.setattr(copying, "PARTS_AT_ONCE", 7)

    async def main() -> None:
        async with open_store(path, QUIET) as store:
            ino = store.tree.create(ROOT, b"file", 0o100644, 0, 0)
            data = bytearray(noise(9, 300_000))

            async def write(offset: int, piece: bytes) -> None:
                data[offset : offset + len(piece)] = piece
                store.contents.opened(ino, writable=True)
                await store.contents.write(ino, offset, piece, privileged=True)
                await store.contents.settle(ino)
                if is_changed != "always":
                    store.contents.closed(ino, writable=True)

            await write(1, bytes(data[1:]))
            await write(0, bytes(data[:1]))
            real = store.blobs.fork_more
            pieces: list[int] = []

            def fork_more(number: BlobNo, source: BlobNo, limit: int) -> int:
                pieces.append(real(number, source, limit))
                return pieces[-1]

            monkeypatch.setattr(store.blobs, "fork_more", fork_more)
            copied: list[Ino] = []
            async with trio.open_nursery() as nursery:

                async def copy() -> None:
                    copied.append(await copying.copy_file(store, ino, 1, 2))
                    nursery.cancel_scope.cancel()

                async def disturb() -> None:
                    while True:
                        begun = len(pieces)
                        while len(pieces) < begun + 3:
                            await trio.lowlevel.checkpoint()
                        if is_changed == "hashed":
                            await store.hasher.once()
                        elif is_changed != "no":
                            await write(1000 + len(pieces), b"change")
                        if is_changed != "always":
                            return

                nursery.start_soon(copy)
                nursery.start_soon(disturb)
            assert len(pieces) > 3
            store.tree.place(copied[0], ROOT, b"copy")
            if is_changed != "always":
                assert await store.contents.read(copied[0], 0, 1 << 20) == data
            else:
                assert len(await store.contents.read(copied[0], 0, 1 << 20)) == len(data)
            await store.sync_all()
            if is_changed == "always":
                store.contents.closed(ino, writable=True)
            await store.sync_all()
            await store.hasher.once()
            await Sweeper(store).once()
            await store.commit()

    trio.run(main)
    assert not audit(path)
