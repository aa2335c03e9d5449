"""A scrub makes some archives again, and says so when one does not come out as it went in."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from cafs.index import layout
from cafs.operate import scrub_aged
from cafs.operate.scrub_aged import Proven, prove_some
from cafs.types import BlobNo
from cafs.view import View
from tests.conftest import RunCafs
from tests.unit import aged_store
from tests.unit.archived import age, blob_of, gzipped, opened, put, sources, tar
from tests.unit.small_store import change

pytestmark = pytest.mark.timeout(60)
SMALL = gzipped(tar(sources(["json"])))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, BlobNo]:
    path = tmp_path_factory.mktemp("aged") / "store"

    async def fill() -> BlobNo:
        async with opened(path) as store:
            ino = await put(store, b"aged", SMALL)
            await put(store, b"plain", SMALL[:1000])
            await age(store, ino)
            return blob_of(store, ino)

    return path, trio.run(fill)


@pytest.fixture
def store(pristine: tuple[Path, BlobNo], tmp_path: Path) -> Iterator[tuple[Path, BlobNo]]:
    path, blob = pristine
    shutil.copytree(path, tmp_path / "store")
    yield tmp_path / "store", blob


def proven(path: Path) -> Proven:
    with View(path) as view:
        return prove_some(view, random.Random(1), lambda _done, _total: None)


def test_what_is_sound_comes_out_as_it_went_in(store: tuple[Path, BlobNo]) -> None:
    found = proven(store[0])
    assert found == Proven(aged_count=1, rebuilt_count=1, rebuilt_bytes=len(SMALL), failed=[])


def test_another_sha256_is_told(store: tuple[Path, BlobNo], run_cafs: RunCafs) -> None:
    path, blob = store
    with View(path) as view:
        record = view.blobs.get(blob)
    wrong = layout.pack_blob(record._replace(sha256=bytes(32)))
    change(path, layout.BLOBS, layout.u48(blob), wrong)
    (failed,) = proven(path).failed
    assert failed.blob == blob
    done = run_cafs("scrub", path)
    assert done.returncode == 8
    assert "cannot be made again" in done.stdout
    assert "/aged" in done.stdout


def test_a_lost_engine_is_told_with_every_path(
    store: tuple[Path, BlobNo], run_cafs: RunCafs
) -> None:
    path, _ = store
    with View(path) as view:
        value = view.overlay.get(layout.META, layout.engine_key(1))
    assert value is not None
    record = aged_store.ENGINE._replace(kind="no-such-kind")
    change(path, layout.META, layout.engine_key(1), record.pack())
    done = run_cafs("scrub", path, "--json")
    assert done.returncode == 8
    report = json.loads(done.stdout)
    assert report["damaged_chunks_count"] == 0
    (failed,) = report["not_rebuilt"]
    assert failed["paths"] == [{"path": "/aged"}]
    assert failed["advice"]


def test_a_copy_that_is_gone_is_told_before_it_is_needed(
    store: tuple[Path, BlobNo], run_cafs: RunCafs
) -> None:
    path, _ = store
    shutil.rmtree(path / "engines")
    done = run_cafs("scrub", path, "--json")
    assert done.returncode == 8
    report = json.loads(done.stdout)
    # The machine's own gzip makes it again, today.
    assert report["not_rebuilt_count"] == 0
    (lacking,) = report["engines_lacking"]
    assert lacking["engine"] == 1 and "has no copy" in lacking["why"] and lacking["advice"]
    done = run_cafs("scrub", path)
    assert done.returncode == 8
    assert "not kept: engine 1" in done.stdout and "all content" not in done.stdout


def test_the_sample_is_bounded_and_every_archive_has_its_chance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "store"
    count = 12

    async def fill() -> None:
        async with opened(path) as store:
            for seed in range(count):
                await aged_store.aged(store, 10 * seed, 3000)
            await store.commit()

    trio.run(fill)
    monkeypatch.setattr(scrub_aged, "SAMPLE_MAX", 3)
    with View(path) as view:
        seen: set[BlobNo] = set()
        for seed in range(60):
            total, sample = scrub_aged._sample(view, random.Random(seed))
            assert (total, len(sample)) == (count, 3)
            seen.update(sample)
        assert len(seen) == count
        monkeypatch.setattr(scrub_aged, "SAMPLE_BYTES_MAX", 1)
        assert len(scrub_aged._sample(view, random.Random(1))[1]) == 1
