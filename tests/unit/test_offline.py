"""Archives that were taken apart, read by commands that look at a store by themselves."""

from __future__ import annotations

import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from cafs.archives.offline import Offline
from cafs.blobs import recipe
from cafs.errors import CafsError, ChunkDamagedError, EngineError
from cafs.operate.check import Check
from cafs.operate.look import verify
from cafs.operate.sweep import Sweeper
from cafs.types import BlobNo, ChunkNo
from cafs.view import View
from tests.conftest import ROOT, RunCafs
from tests.unit.archived import age, blob_of, droplet, gzipped, opened, put, sources, tar
from tests.unit.small_store import noise


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name, data in sources().items():
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 6)
        archive.writestr(zipfile.ZipInfo("stored"), noise(1, 50_000), zipfile.ZIP_STORED)
    return stream.getvalue()


class Made(NamedTuple):
    """A store that no daemon has."""

    path: Path
    content: dict[str, bytes]
    blobs: dict[str, BlobNo]


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("offline") / "store"
    content = {
        "droplet": droplet(),
        "members": gzipped(tar(sources(["json"]))) + gzipped(tar(sources(["email"]))),
        "zip": zipped(),
    }
    blobs: dict[str, BlobNo] = {}

    async def fill() -> None:
        async with opened(path) as store:
            for name, data in content.items():
                ino = await put(store, name.encode(), data)
                await age(store, ino)
                blobs[name] = blob_of(store, ino)
            await Sweeper(store).once()

    trio.run(fill)
    shutil.rmtree(path / "cache")
    return Made(path, content, blobs)


@pytest.fixture
def made(_pristine: Made, tmp_path: Path) -> Made:
    shutil.copytree(_pristine.path, tmp_path / "store")
    return _pristine._replace(path=tmp_path / "store")


def test_content_is_what_it_was(made: Made) -> None:
    with View(made.path) as view:
        assert list(Check(view).findings()) == []
        for name, data in made.content.items():
            assert b"".join(view.content(made.blobs[name])) == data
            assert verify(view, made.blobs[name]).damages == []


def test_any_range_of_what_is_inside(made: Made) -> None:
    with View(made.path) as view:
        inner = view.blobs.get(made.blobs["droplet"]).mate
        whole = b"".join(view.content(inner))
        assert whole == tar(sources())
        for start, end in ((0, 1), (511, 513), (700, 70_000), (len(whole) - 1, len(whole))):
            assert b"".join(view.offline.range(inner, start, end)) == whole[start:end]


def test_commands_show_and_write_it(made: Made, run_cafs: RunCafs) -> None:
    data = made.content["droplet"]
    digest = hashlib.sha256(data).hexdigest()
    shown = run_cafs("blob", "--store", made.path, "--verify", digest)
    assert shown.returncode == 0, shown.stderr
    assert "made again by gzip" in shown.stdout
    assert "chunks of what is inside" in shown.stdout
    assert re.search(r"verified +all ", shown.stdout)
    command = [
        sys.executable,
        "-m",
        "cafs.cli.main",
        "blob",
        "--store",
        str(made.path),
        "--cat",
        digest,
    ]
    written = subprocess.run(command, capture_output=True, check=True, cwd=ROOT)
    assert written.stdout == data


def damage(view: View, number: ChunkNo) -> None:
    """Flip a bit of a chunk's stored bytes."""
    extent = view.chunks.get(number).extent
    fd = os.open(view.packs.pack_path(extent.pack), os.O_RDWR)
    try:
        at = extent.offset + extent.stored_length - 1
        byte = os.pread(fd, 1, at)[0]
        os.pwrite(fd, bytes([byte ^ 1]), at)
    finally:
        os.close(fd)


@pytest.mark.parametrize("kind", [recipe.CHUNK, recipe.SLICE])
def test_damage_inside_is_told_and_never_written(made: Made, kind: int) -> None:
    data = made.content["droplet"]
    with View(made.path) as view:
        outer = made.blobs["droplet"]
        mate = view.blobs.get(outer).mate
        parts = list(view.blobs.parts(mate, 0, 1 << 40))
        place, part = next(each for each in parts if each[1].kind == kind)
        damage(view, ChunkNo(part.ref))
        verdict = verify(view, outer)
        assert verdict.damages[0].offset == place
        assert verdict.damages[0].problem.startswith("inside it: ")
        assert verdict.damages[-1].offset + verdict.damages[-1].length == len(data)
        got = b""
        with pytest.raises(ChunkDamagedError):
            for piece in view.content(outer):
                got += piece
        assert data.startswith(got)


def test_a_lost_engine_is_an_error_with_advice(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(made.path / "engines")
    monkeypatch.setattr("cafs.archives.engines.find_program", lambda _kind: None)
    with View(made.path) as view:
        with pytest.raises(EngineError, match="neither on this machine nor in"):
            list(view.content(made.blobs["droplet"]))
        (found,) = verify(view, made.blobs["droplet"]).damages
        assert "neither on this machine" in found.problem


def test_made_parts_need_an_aged_blob(made: Made) -> None:
    with View(made.path) as view:
        offline = Offline(made.path, view.blobs, view.read_chunk)
        part = recipe.made_part(1, recipe.Made(0, 1, 6, 0, 1, 0))
        with pytest.raises(CafsError, match="not aged"):
            list(offline.stored(part))
