"""DELETE and the directories that it empties."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from cafs.clock import Clock
from cafs.errors import ReadOnlyError
from cafs.http.pruning import Pruner, may_go
from cafs.newstore import create
from cafs.notices import Change, EntryChanged, InodeChanged
from cafs.operate.sweep import Sweeper
from cafs.types import ROOT, Ino
from tests.model.audit import audit
from tests.unit.site_client import Client, ask, client
from tests.unit.small_store import PARAMS

K = "/admin/cc-x/ab/cd/abcd-1"


def test_a_file_is_deleted_and_its_parents_stay(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", K, b"bytes")
        assert (await asking("DELETE", K)).status == 204
        assert not asking.store.overlay.dirty, "204 comes after the commit"
        assert (await asking("HEAD", K)).status == 404
        assert (await asking("DELETE", K)).status == 404
        assert (await asking("HEAD", "/admin/cc-x/ab/cd/")).status == 403

    ask(tmp_path / "s", work)


def test_what_is_refused(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", K, b"bytes")
        for path, headers, status in (
            (K + "/", {}, 409),
            (K + "/x", {}, 409),
            (K, {"depth": "1"}, 400),
            ("/admin/cc-x", {}, 409),
            ("/admin/cc-x/", {"depth": "0"}, 400),
            ("/admin/absent/", {}, 404),
            ("/admin/absent/x", {}, 404),
            ("/admin/" + "n" * 300, {}, 404),
            ("/admin/", {}, 403),
        ):
            answer = await asking("DELETE", path, **headers)
            assert answer.status == status, path
            assert answer.text.startswith(str(status))
        assert (await asking("DELETE", K, b"body")).status == 415
        assert (await asking("DELETE", K, transfer_encoding="chunked")).status == 415
        assert (await asking("HEAD", K)).status == 200
        assert (await asking("DELETE", K, depth="infinity")).status == 204

    ask(tmp_path / "s", work)


def test_a_directory_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        told: list[Change] = []

        async def listen(changes: Sequence[Change]) -> None:
            told.extend(changes)

        asking.store.notices.register(listen)
        for number in range(20):
            await asking("PUT", f"/admin/cc-x/b/{number % 3}/.{number}", b"bytes" * number)
        directory = asking.store.tree.lookup(ROOT, b"cc-x")
        assert directory is not None
        assert (await asking("DELETE", "/admin/cc-x/b/", depth="infinity")).status == 204
        assert not asking.store.overlay.dirty
        assert EntryChanged(directory, b"b") in told
        assert (await asking("DELETE", "/admin/cc-x/b/")).status == 404
        assert (await asking("PUT", "/admin/cc-x/b/0/new", b"new")).status == 201
        await Sweeper(asking.store).once()
        assert asking.store.counters.files == 1
        assert (await asking("GET", "/admin/cc-x/b/0/new")).body == b"new"

    ask(tmp_path / "s", work)


def test_other_names_of_what_was_in_it_hear_of_it(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        told: list[Change] = []

        async def listen(changes: Sequence[Change]) -> None:
            told.extend(changes)

        await asking("PUT", "/admin/cc-x/b/file", b"bytes")
        tree = asking.store.tree
        file = asking.site.find(_path("cc-x/b/file"))
        tree.link(file, ROOT, b"kept")
        await asking("DELETE", "/admin/cc-x/b/")
        asking.store.notices.register(listen)
        await Sweeper(asking.store).once()
        assert told == [InodeChanged(file)]
        assert tree.inodes.get(file).nlink == 1

    ask(tmp_path / "s", work)


def _path(text: str):  # type: ignore[no-untyped-def]
    from cafs.http.paths import TreePath

    return TreePath(tuple(text.encode().split(b"/")), False)


def test_permissions_count(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        tree = asking.store.tree
        root = tree.inodes.get(ROOT)
        tree.inodes.put(ROOT, root._replace(uid=1000, gid=1000))
        await asking("PUT", "/admin/top/below/file", b"bytes")
        top = tree.lookup(ROOT, b"top")
        assert top is not None
        below = tree.lookup(top, b"below")
        assert below is not None
        mine = tree.inodes.get(below)
        tree.inodes.put(below, mine._replace(mode=0o040500))
        assert (await asking("DELETE", "/admin/top/below/file")).status == 403
        assert (await asking("DELETE", "/admin/top/below/")).status == 403
        # The sticky bit: only who owns it.
        tree.inodes.put(below, mine._replace(mode=0o041777, uid=2, gid=2))
        file = tree.lookup(below, b"file")
        assert file is not None
        tree.inodes.put(file, tree.inodes.get(file)._replace(uid=3))
        assert (await asking("DELETE", "/admin/top/below/file")).status == 403
        tree.inodes.put(file, tree.inodes.get(file)._replace(uid=1000))
        assert (await asking("DELETE", "/admin/top/below/file")).status == 204

    ask(tmp_path / "s", work)


def test_a_symbolic_link_is_deleted_itself(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", "/admin/file", b"bytes")
        asking.store.tree.create(ROOT, b"link", 0o120777, 0, 0, target=b"file")
        assert (await asking("DELETE", "/admin/link")).status == 204
        assert (await asking("GET", "/admin/file")).body == b"bytes"

    ask(tmp_path / "s", work)


def test_a_read_only_disk_is_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", K, b"bytes")

        def refuse() -> None:
            raise ReadOnlyError("the disk is read-only")

        monkeypatch.setattr(asking.store.space, "admit_removal", refuse)
        answer = await asking("DELETE", K)
        assert (answer.status, answer.headers["retry-after"]) == (503, "10")
        assert (await asking("HEAD", K)).status == 200

    ask(tmp_path / "s", work)


# -- emptied directories -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("", False),
        ("ab", False),
        ("cc-x", False),
        ("cc-x/ab", True),
        ("cc-x/ab/cd", True),
        ("cc-x/ab/cd/some-guid", True),
        ("cc-x/buildpack_cache", False),
        ("cc-x/buildpack_cache/ab", True),
        ("tmp/uploads", False),
        ("cc-x/by-hand/x", False),
    ],
)
def test_which_directories_may_go(path: str, answer: bool) -> None:
    assert may_go(tuple(path.encode().split(b"/")) if path else ()) == answer


class Mocked(Clock):
    """The clock of trio's mock, for records too."""

    def now_ns(self) -> int:
        return round((trio.current_time() + 1e6) * 1e9)

    def monotonic(self) -> float:
        return trio.current_time()


def pruning(path: Path, work: Callable[[Client, Pruner, MockClock], Awaitable[None]]) -> None:
    """Run *work* with a pruner, in a time of its own."""
    clock = MockClock()

    async def main() -> None:
        async with client(path) as asking:
            mocked = Mocked()
            asking.store.clock = mocked
            asking.store.tree._clock = mocked
            async with trio.open_nursery() as nursery:
                nursery.start_soon(asking.site.pruner.run)
                await work(asking, asking.site.pruner, clock)
                nursery.cancel_scope.cancel()

    create(path, PARAMS)
    trio.run(main, clock=clock)
    assert not audit(path)


def there(asking: Client, path: str) -> bool:
    ino: Ino | None = ROOT
    for name in path.encode().split(b"/"):
        ino = asking.store.tree.lookup(ino, name) if ino is not None else None
    return ino is not None


async def passes(clock: MockClock, seconds: float) -> None:
    """Time passes, and whoever waited for it does what is to be done."""
    for _ in range(round(seconds)):
        clock.jump(1.0)
        await trio.testing.wait_all_tasks_blocked(0.001)


def test_emptied_directories_go_after_a_while(tmp_path: Path) -> None:
    async def work(asking: Client, pruner: Pruner, clock: MockClock) -> None:
        await asking("PUT", "/admin/cc-x/ab/cd/guid/one", b"1")
        await asking("PUT", "/admin/cc-x/ab/xx/two", b"2")
        await asking("DELETE", "/admin/cc-x/ab/cd/guid/one")
        await passes(clock, 5)
        assert there(asking, "cc-x/ab/cd/guid")
        await passes(clock, 60)
        assert not there(asking, "cc-x/ab/cd")
        assert there(asking, "cc-x/ab/xx/two")
        await asking("DELETE", "/admin/cc-x/ab/xx/")
        await passes(clock, 60)
        assert not there(asking, "cc-x/ab")
        assert there(asking, "cc-x")

    pruning(tmp_path / "s", work)


def test_one_that_was_just_made_or_used_stays(tmp_path: Path) -> None:
    async def work(asking: Client, pruner: Pruner, clock: MockClock) -> None:
        await asking("PUT", "/admin/cc-x/ab/cd/one", b"1")
        await asking("DELETE", "/admin/cc-x/ab/cd/one")
        # Somebody on the mount makes the directory and what is to be put into it.
        await passes(clock, 8)
        tree = asking.store.tree
        cd = tree.lookup(tree.lookup(tree.lookup(ROOT, b"cc-x"), b"ab"), b"cd")  # type: ignore[arg-type]
        assert cd is not None
        tree.create(cd, b"temporary", 0o100600, 0, 0)
        ino, _ = tree.unlink(cd, b"temporary")
        asking.store.nameless.forget(ino)
        await passes(clock, 8)
        assert there(asking, "cc-x/ab/cd")
        tree.create(cd, b"file", 0o100600, 0, 0)
        await passes(clock, 100)
        assert there(asking, "cc-x/ab/cd/file")

    pruning(tmp_path / "s", work)


def test_a_disk_that_takes_no_changes_leaves_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")

    async def work(asking: Client, pruner: Pruner, clock: MockClock) -> None:
        await asking("PUT", "/admin/cc-x/ab/cd/one", b"1")
        await asking("DELETE", "/admin/cc-x/ab/cd/one")

        def refuse() -> None:
            raise ReadOnlyError("the disk is read-only")

        monkeypatch.setattr(asking.store.space, "admit_removal", refuse)
        await passes(clock, 30)
        assert there(asking, "cc-x/ab/cd")

    pruning(tmp_path / "s", work)
    assert "left standing" in caplog.text


def test_it_can_be_switched_off(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        await asking("PUT", K, b"bytes")
        await asking("DELETE", K)
        assert not asking.site.pruner._due

    ask(tmp_path / "s", work, prune=False)
