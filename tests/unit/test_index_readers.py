"""Who else has the index open: processes that die in it, and threads while its file is changed."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cafs.index import layout
from cafs.newstore import create
from cafs.operate.sweep import Sweeper
from cafs.store import Store, open_store
from cafs.types import ROOT
from tests.conftest import ROOT as REPOSITORY
from tests.unit.small_store import OPTIONS, PARAMS

_READER = """
import sys
from pathlib import Path
from cafs.view import View

with View(Path(sys.argv[1])):
    print("reading", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    create(tmp_path / "store", PARAMS)
    return tmp_path / "store"


def _readers(store: Store) -> set[int]:
    """Processes with a slot in the table of those who read the index."""
    lines = store.environment._env.readers().splitlines()
    return {int(line.split()[0]) for line in lines if line.split()[0].isdigit()}


def test_a_process_that_is_killed_while_it_reads_keeps_no_page(path: Path) -> None:
    """Else the index would grow with each commit until the store is opened anew."""

    async def main() -> None:
        async with open_store(path, replace(OPTIONS, commit_interval=0.05)) as store:
            with subprocess.Popen(
                [sys.executable, "-c", _READER, path],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=REPOSITORY,
            ) as child:
                assert child.stdout is not None
                assert child.stdout.readline() == b"reading\n"
                assert child.pid in _readers(store)
                child.send_signal(signal.SIGTERM)
                child.wait()
            with trio.fail_after(20):
                while child.pid in _readers(store):
                    await trio.sleep(0.01)

    trio.run(main)


def test_nobody_reads_the_index_while_its_file_is_changed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taking archives apart has a thread of its own, which asks the index for chunks."""
    monkeypatch.setattr("cafs.store.WORTH", 0)
    digests = [bytes([number]) * 32 for number in range(64)]

    async def main() -> int:
        async with open_store(path, OPTIONS) as store:
            over = False

            def ask() -> None:
                until = time.monotonic() + 0.05
                while time.monotonic() < until:
                    store.overlay.committed_numbers(layout.CHUNK_SHA256, digests)

            async def age(task_status: trio.TaskStatus[None]) -> None:
                task_status.started()
                while not over:
                    await store.archives._background.run(ask)

            async with trio.open_nursery() as nursery:
                await nursery.start(age)
                freed = 0
                for number in range(3):
                    await _free_pages(store, number)
                    freed += await store.shrink_index()
                over = True
            return freed

    assert trio.run(main) > 0


async def _free_pages(store: Store, number: int) -> None:
    """Let the index have more pages than it needs."""
    names = [b"%d %d" % (number, name) for name in range(2000)]
    for name in names:
        store.tree.create(ROOT, name, stat.S_IFREG | 0o644, 0, 0)
    await store.commit()
    for name in names:
        store.nameless.forget(store.tree.unlink(ROOT, name)[0])
    await store.commit()
    await Sweeper(store).once()
    await store.commit()
