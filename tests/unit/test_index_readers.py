"""Who else has the index open: processes that die in it, and threads while its file is changed."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from cafs.newstore import create
from cafs.store import Store, open_store
from tests.conftest import ROOT
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
                cwd=ROOT,
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
