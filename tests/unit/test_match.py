"""``cafs match``: an app's directory beside what a store has."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
import trio

from cafs.errors import AccessError, UsageError
from cafs.newstore import create
from cafs.operate.match import app_files, match
from cafs.view import View
from tests.conftest import RunCafs
from tests.unit.site_client import client
from tests.unit.small_store import PARAMS, noise

TOP = "cc-resources/app_bits_cache"


def upload(store: Path, *contents: bytes) -> None:
    async def main() -> None:
        async with client(store) as asking:
            for content in contents:
                sha1 = hashlib.sha1(content).hexdigest()
                path = f"/admin/{TOP}/{sha1[:2]}/{sha1[2:4]}/{sha1}"
                assert (await asking("PUT", path, content)).status == 201

    create(store, PARAMS)
    trio.run(main)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    directory = tmp_path / "app"
    (directory / "lib").mkdir(parents=True)
    (directory / ".git").mkdir()
    for name, content, mode in (
        ("known", noise(1, 70_000), 0o644),
        ("lib/unknown", noise(2, 70_000), 0o755),
        ("lib/private", noise(1, 70_000), 0o400),
        ("at-bound", noise(3, 65_536), 0o644),
        ("small", b"x", 0o644),
        (".git/object", noise(1, 70_000), 0o644),
        ("manifest.yml", noise(1, 70_000), 0o644),
    ):
        (directory / name).write_bytes(content)
        (directory / name).chmod(mode)
    (directory / "link").symlink_to("known")
    os.mkfifo(directory / "fifo")
    return directory


def test_which_files_an_app_has(app: Path) -> None:
    files = app_files(os.fsencode(app))
    assert [(file.path, file.eligible) for file in files] == [
        (b"at-bound", False),
        (b"known", True),
        (b"lib/private", False),
        (b"lib/unknown", True),
        (b"small", False),
    ]
    with pytest.raises(UsageError, match="is no directory"):
        app_files(os.fsencode(app / "small"))


def test_what_is_known(app: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    upload(store, noise(1, 70_000), noise(3, 65_536))
    root = os.fsencode(app)
    with View(store) as view:
        found = list(match(view, root, app_files(root), TOP))
        assert [(each.file.path, each.known) for each in found] == [
            (b"known", True),
            (b"lib/unknown", False),
        ]
        assert not any(each.known for each in match(view, root, app_files(root), "elsewhere"))


def test_a_file_that_cannot_be_read_is_named(app: Path, tmp_path: Path) -> None:
    files = app_files(os.fsencode(app))
    (app / "known").unlink()
    (app / "known").mkdir()
    store = tmp_path / "store"
    upload(store)
    with View(store) as view, pytest.raises(Exception, match="known") as caught:
        list(match(view, os.fsencode(app), files, TOP))
    assert caught.type.__module__ == AccessError.__module__


def test_the_command(app: Path, tmp_path: Path, run_cafs: RunCafs) -> None:
    store = tmp_path / "store"
    upload(store, noise(1, 70_000))
    shown = run_cafs("match", app, "--store", store)
    assert shown.returncode == 0, shown.stderr
    sha1 = hashlib.sha1(noise(1, 70_000)).hexdigest()
    lines = shown.stdout.splitlines()
    assert lines[0].split() == ["THERE", "SIZE", "SHA1", "PATH"]
    assert lines[1].split() == ["yes", "68.4", "KiB", sha1, "known"]
    assert lines[2].split()[0] == "no"
    assert lines[4].startswith("1 of 2 files are there")
    assert lines[5].startswith("3 other files")
    answer = json.loads(run_cafs("match", app, "--store", store, "--json").stdout)
    assert (answer["files_count"], answer["eligible_count"], answer["known_count"]) == (5, 2, 1)
    assert answer["eligible"][0] == {
        "path": "known",
        "size_bytes": 70_000,
        "mode": "0644",
        "sha1": sha1,
        "known": True,
    }
    wrong = run_cafs("match", app / "none", "--store", store)
    assert wrong.returncode == 2
    assert "is no directory" in wrong.stderr
