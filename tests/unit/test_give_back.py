"""Space comes back: packs, the index, and its copy."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import trio

from cafs import newstore
from cafs.index.copyplace import DIRECTORY
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.operate.compact import Compactor
from cafs.operate.give_back import compact_now, compact_offline
from cafs.operate.index_copy import IndexCopier
from cafs.operate.sweep import Sweeper
from cafs.store import open_store
from cafs.types import ROOT
from cafs.view import View
from tests.conftest import ROOT as REPOSITORY
from tests.conftest import RunCafs
from tests.unit.small_store import (
    OPTIONS,
    PARAMS,
    assert_sound,
    findings,
    make,
    noise,
    untold,
    write,
)


def _allocated(path: Path) -> int:
    done = subprocess.run(["du", "-s", "-B1", path], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[0])


async def _fill_and_empty(path: Path) -> None:
    async with open_store(path, OPTIONS) as store:
        for number in range(3000):
            store.tree.create(ROOT, b"f%d" % number, stat.S_IFREG | 0o644, 0, 0)
        for number in range(20):
            await write(store, ROOT, b"w%d" % number, noise(number, 100_000))
        await store.sync_all()
        assert await IndexCopier(store).once()
        for entry in list(store.tree.listing(ROOT, 0)):
            ino, last = store.tree.unlink(ROOT, entry.name)
            assert last
            store.nameless.forget(ino)
        await store.sync_all()


def test_after_deleting_everything_a_store_is_as_large_as_an_empty_one(
    tmp_path: Path, run_cafs: RunCafs
) -> None:
    path, empty = tmp_path / "store", tmp_path / "empty"
    for each in (path, empty):
        newstore.create(each, PARAMS)
    trio.run(_fill_and_empty, path)
    assert run_cafs("compact", empty).returncode == 0
    assert _allocated(path / "packs") > 1_000_000
    for command in ("sweep", "compact"):
        done = run_cafs(command, path)
        assert done.returncode == 0, done.stderr
    assert _allocated(path) <= 1.05 * _allocated(empty) + 4096
    assert (path / DIRECTORY / "data.mdb").stat().st_size < 100_000
    assert not findings(path)


def test_the_index_shrinks_under_a_store_that_goes_on(tmp_path: Path) -> None:
    path = make(tmp_path / "store")

    async def work() -> tuple[int, int]:
        async with open_store(path, OPTIONS) as store:
            for number in range(4000):
                store.tree.create(ROOT, b"f%d" % number, stat.S_IFREG | 0o644, 0, 0)
            await store.sync_all()
            for number in range(4000):
                store.nameless.forget(store.tree.unlink(ROOT, b"f%d" % number)[0])
            before = store.environment.file_bytes()
            parts = Sweeper(store), Compactor(store), IndexCopier(store)
            answer = await compact_now(store, *parts, 0.0, untold)
            after = store.environment.file_bytes()
            assert answer["freed_index_bytes"] > 0
            # It reads and writes what it did before.
            assert store.tree.lookup(ROOT, b"a") is not None
            await write(store, ROOT, b"later", noise(9, 50_000))
            await store.sync_all()
            return before, after

    before, after = trio.run(work)
    assert after < before / 2
    assert not findings(path)
    with View(path) as view:
        later = view.tree.lookup(ROOT, b"later")
        assert later is not None
        assert b"".join(view.content(view.tree.inodes.get(later).blob)) == noise(9, 50_000)


def test_an_index_writer_that_dies_when_the_copy_is_in_place_has_done_it(tmp_path: Path) -> None:
    path = make(tmp_path / "store")
    index = path / "index"
    lock = StoreLock(path)
    writer = IndexWriter(index, lock.fd)
    try:
        writer.prepare_shrunk()
        # What it does, up to where it dies.
        process = writer.start()
        os.rename(index / "shrunk" / "data.mdb", index / "data.mdb")
        process.kill()
        process.wait()
        writer.replace_with_shrunk()
    finally:
        writer.close()
        lock.release()
    assert sorted(os.listdir(index)) == ["data.mdb", "lock.mdb"]
    assert_sound(path)


def test_a_view_from_before_goes_on_with_what_it_saw(tmp_path: Path) -> None:
    path = make(tmp_path / "store")
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from pathlib import Path\n"
            "from cafs.view import View\n"
            "with View(Path(sys.argv[1])) as view:\n"
            "    print('ready', flush=True)\n"
            "    sys.stdin.readline()\n"
            "    print(sum(1 for _ in view.overlay.scan(1, b'', b'')))\n",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    with reader:
        assert reader.stdout is not None and reader.stdin is not None
        assert reader.stdout.readline() == "ready\n"
        trio.run(compact_offline, path, OPTIONS, 0.0, untold)
        reader.stdin.write("\n")
        reader.stdin.close()
        assert int(reader.stdout.read()) == 9
