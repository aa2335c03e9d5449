"""Which archives ageing takes, and in which order: by what the index says, and nothing else."""

from __future__ import annotations

import gzip
import io
import json
import random
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from cafs import newstore
from cafs.archives.kind import GZIP, ZIP, kind_of
from cafs.errors import DaemonError
from cafs.index import layout
from cafs.index.layout import BLOB_LEFT
from cafs.operate import candidates
from cafs.operate.candidates import Found, Rules, Search
from cafs.store import Store, open_store
from cafs.types import ROOT, BlobNo, Ino
from cafs.view import View
from tests.unit.small_store import OPTIONS, PARAMS, change, write

DAY = 86400 * 10**9
NOW = 1_700_000_000 * 10**9
LONG_AGO = NOW - 30 * DAY
RULES = Rules(used_before_ns=NOW - DAY, min_size=1000)


def droplet(seed: int, size: int = 5000) -> bytes:
    return gzip.compress(random.Random(seed).randbytes(size), 1, mtime=0)


def package(seed: int, size: int = 5000) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("app", random.Random(seed).randbytes(size))
    return made.getvalue()


class File(NamedTuple):
    path: str
    data: bytes
    atime_ns: int = LONG_AGO
    mtime_ns: int = LONG_AGO
    ctime_ns: int = LONG_AGO
    links: tuple[str, ...] = ()


async def _directory(store: Store, path: str) -> Ino:
    at = ROOT
    for name in path.split("/")[:-1]:
        found = store.tree.lookup(at, name.encode())
        if found is None:
            found = store.tree.create(at, name.encode(), stat.S_IFDIR | 0o755, 0, 0)
        at = found
    return at


def made(path: Path, files: Sequence[File]) -> dict[str, BlobNo]:
    """A store with these files: their blobs."""
    newstore.create(path, PARAMS)
    blobs: dict[str, BlobNo] = {}

    async def fill() -> None:
        async with open_store(path, OPTIONS) as store:
            inodes = store.tree.inodes
            for file in files:
                where = await _directory(store, file.path)
                ino = await write(store, where, Path(file.path).name.encode(), file.data)
                for link in file.links:
                    store.tree.link(ino, await _directory(store, link), Path(link).name.encode())
            await store.sync_all()
            for file in files:
                where = await _directory(store, file.path)
                found = store.tree.lookup(where, Path(file.path).name.encode())
                assert found is not None
                times = file.atime_ns, file.mtime_ns, file.ctime_ns
                attr = inodes.get(found)
                inodes.put(
                    found, attr._replace(atime_ns=times[0], mtime_ns=times[1], ctime_ns=times[2])
                )
                blobs[file.path] = attr.blob
            await store.sync_all()

    trio.run(fill)
    return blobs


def found(path: Path, rules: Rules = RULES) -> Found:
    with View(path) as view:
        return Search(view, rules).run()


def names(blobs: dict[str, BlobNo], result: Found) -> list[str]:
    reverse = {blob: path for path, blob in blobs.items()}
    return [reverse[each.blob] for each in result.candidates]


def test_what_an_archive_is() -> None:
    assert kind_of(droplet(1)[:4]) == GZIP
    assert kind_of(package(1)[:4]) == ZIP
    # zlib's own format, the end of an empty zip, and another method than deflate.
    for head in (b"\x78\x9c\x00\x00", b"PK\x05\x06", b"\x1f\x8b\x00\x00", b"\x1f\x8b", b""):
        assert not kind_of(head)


def test_the_most_expected_gain_comes_first(tmp_path: Path) -> None:
    files = [
        File("a/small.tgz", droplet(1, 2000)),
        File("b/large.tgz", droplet(2, 9000)),
        File("c/larger.zip", package(3, 10000)),
        File("d/middle.tgz", droplet(4, 4000)),
    ]
    blobs = made(tmp_path / "s", files)
    assert names(blobs, found(tmp_path / "s")) == [
        "b/large.tgz",
        "c/larger.zip",
        "d/middle.tgz",
        "a/small.tgz",
    ]
    learnt = RULES._replace(gains={GZIP: 0.1, ZIP: 0.7})
    assert names(blobs, found(tmp_path / "s", learnt))[0] == "c/larger.zip"
    first = found(tmp_path / "s").candidates[0]
    assert (first.kind, first.size) == (GZIP, len(files[1].data))
    assert first.expected == int(len(files[1].data) * candidates.GAIN_FIRST[GZIP])


USES: dict[str, Callable[[File, int], File]] = {
    "read": lambda file, at: file._replace(atime_ns=at),
    "written": lambda file, at: file._replace(mtime_ns=at),
    "changed": lambda file, at: file._replace(ctime_ns=at),
}


@pytest.mark.parametrize("kind", USES)
def test_any_use_counts(tmp_path: Path, kind: str) -> None:
    recent = USES[kind](File("used.tgz", droplet(1)), NOW - DAY + 1)
    barely = USES[kind](File("unused.tgz", droplet(2)), NOW - DAY - 1)
    blobs = made(tmp_path / "s", [recent, barely])
    rules = RULES._replace(keep_newest=False)
    result = found(tmp_path / "s", rules)
    assert names(blobs, result) == ["unused.tgz"]
    assert result.in_use == 1


def test_a_blob_is_used_when_one_of_its_files_is(tmp_path: Path) -> None:
    same = droplet(1)
    made(tmp_path / "s", [File("a/x", same), File("b/x", same, atime_ns=NOW)])
    assert found(tmp_path / "s").candidates == []
    blobs = made(tmp_path / "t", [File("a/x", same), File("b/x", same)])
    (only,) = found(tmp_path / "t").candidates
    assert only.blob == blobs["a/x"]


def test_what_is_no_archive_is_told_once(tmp_path: Path) -> None:
    files = [
        File("text", b"words " * 1000),
        File("tiny.tgz", droplet(1, 10)),
        File("d/x.tgz", droplet(2)),
    ]
    blobs = made(tmp_path / "s", files)
    result = found(tmp_path / "s")
    assert result.strangers == [blobs["text"]]
    assert names(blobs, result) == ["d/x.tgz"]
    with View(tmp_path / "s") as view:
        record = view.blobs.get(blobs["text"])
    marked = layout.pack_blob(record._replace(flags=record.flags | BLOB_LEFT))
    change(tmp_path / "s", layout.BLOBS, layout.u48(blobs["text"]), marked)
    assert found(tmp_path / "s").strangers == []


@pytest.mark.parametrize("flag", [layout.BLOB_LEFT, layout.BLOB_UNHASHED])
def test_what_was_left_or_is_being_written_is_no_candidate(tmp_path: Path, flag: int) -> None:
    blobs = made(tmp_path / "s", [File("x.tgz", droplet(1))])
    with View(tmp_path / "s") as view:
        record = view.blobs.get(blobs["x.tgz"])
    value = layout.pack_blob(record._replace(flags=record.flags | flag))
    change(tmp_path / "s", layout.BLOBS, layout.u48(blobs["x.tgz"]), value)
    assert found(tmp_path / "s").candidates == []


def test_the_newest_droplet_of_a_directory_stays(tmp_path: Path) -> None:
    files = [
        File("cc-droplets/app/v1", droplet(1), mtime_ns=LONG_AGO),
        File("cc-droplets/app/v3", droplet(3), mtime_ns=LONG_AGO + 2 * DAY),
        File("cc-droplets/app/v2", droplet(2), mtime_ns=LONG_AGO + DAY),
        File("cc-droplets/alone/v1", droplet(4)),
    ]
    blobs = made(tmp_path / "s", files)
    result = found(tmp_path / "s")
    assert set(names(blobs, result)) == {
        "cc-droplets/app/v1",
        "cc-droplets/app/v2",
        # In a directory of its own only time counts.
        "cc-droplets/alone/v1",
    }
    assert result.kept_newest == 1
    everything = found(tmp_path / "s", RULES._replace(keep_newest=False))
    assert len(everything.candidates) == 4


def test_the_newest_may_be_one_that_is_in_use(tmp_path: Path) -> None:
    files = [
        File("app/v1", droplet(1)),
        File("app/v2", droplet(2), mtime_ns=LONG_AGO + DAY, atime_ns=NOW),
    ]
    blobs = made(tmp_path / "s", files)
    result = found(tmp_path / "s")
    assert names(blobs, result) == ["app/v1"]
    assert (result.kept_newest, result.in_use) == (0, 1)


def test_no_partition_directory_is_an_app(tmp_path: Path) -> None:
    """What lies together in ab/cd has nothing in common but the beginning of its name."""
    blobs = made(
        tmp_path / "s",
        [
            File("cc-droplets/ab/cd/abcd-1", droplet(1)),
            File("cc-droplets/ab/cd/abcd-2", droplet(2)),
            # A directory with a short name alone is none.
            File("cc-droplets/v1/one", droplet(3)),
            File("cc-droplets/v1/two", droplet(4), mtime_ns=LONG_AGO + 1),
        ],
    )
    result = found(tmp_path / "s")
    assert set(names(blobs, result)) == {
        "cc-droplets/ab/cd/abcd-1",
        "cc-droplets/ab/cd/abcd-2",
        "cc-droplets/v1/one",
    }


def test_packages_have_no_newest(tmp_path: Path) -> None:
    files = [File("app/1.zip", package(1)), File("app/2.zip", package(2), mtime_ns=LONG_AGO + 1)]
    blobs = made(tmp_path / "s", files)
    assert len(names(blobs, found(tmp_path / "s"))) == 2


def test_a_crowd_is_no_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(candidates, "SIBLINGS_MAX", 3)
    made(tmp_path / "s", [File(f"all/{n}", droplet(n), mtime_ns=LONG_AGO + n) for n in range(4)])
    assert len(found(tmp_path / "s").candidates) == 4


def test_a_pass_is_bounded_and_says_so(tmp_path: Path) -> None:
    made(tmp_path / "s", [File(f"{n}/x", droplet(n, 2000 + n)) for n in range(6)])
    result = found(tmp_path / "s", RULES._replace(limit=4))
    assert (len(result.candidates), result.more) == (4, True)
    assert not found(tmp_path / "s", RULES._replace(limit=7)).more


def test_a_damaged_record_is_nobody_s_candidate(tmp_path: Path) -> None:
    blobs = made(tmp_path / "s", [File("a/x", droplet(1)), File("b/x", droplet(2))])
    change(tmp_path / "s", layout.BLOBS, layout.u48(blobs["a/x"]), b"\0" * 9)
    assert names(blobs, found(tmp_path / "s")) == ["b/x"]


def test_the_process_of_its_own_finds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "s"
    made(path, [File("a/x", droplet(1)), File("b/x", package(2)), File("text", b"word " * 999)])
    assert trio.run(candidates.search, path, RULES) == found(path)


def test_its_failure_is_told(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="no store"):
        trio.run(candidates.search, tmp_path, RULES)


def test_it_stands_back(tmp_path: Path) -> None:
    made(tmp_path / "s", [])
    code = (
        "import os, sys\nfrom cafs.operate import candidates\n"
        "assert candidates.main(*sys.argv[1:]) == 0\nprint(os.nice(0), file=sys.stderr)"
    )
    rules = json.dumps(RULES._asdict())
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s"), rules, str(candidates.NICENESS)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.strip() == "19"
