"""The benchmark of archives: a reader that overlooks a wrong byte would prove anything."""

from __future__ import annotations

import compileall
import gzip
import hashlib
import io
import json
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import trio

from bench.archives import corpus, cutting, report
from bench.archives.apps import NODE_APPS, PYTHON_APPS
from bench.archives.blobs import (
    Read,
    UnlikeError,
    allocated,
    copy_in,
    inflated,
    read_file,
    verify,
)
from bench.archives.corpus import Blob, Staging
from bench.archives.inside import look, streams
from bench.archives.load import Readers
from bench.archives.measures import MEASURES
from bench.archives.run import ArchivesResult, described
from bench.archives.service import AgedServer
from bench.fetch import CorpusError, Fetcher
from tests.unit.archived import age, droplet, gzipped, opened, put, tar


def a_blob(root: Path, path: str, content: bytes) -> Blob:
    place = root / "store" / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content)
    return Blob("droplets", "app", "1", path, len(content), hashlib.sha256(content).hexdigest())


def test_what_comes_back_is_compared_byte_for_byte(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    blob = a_blob(tmp_path, "cc-droplets/ab", content)
    original = corpus.source(tmp_path, blob)
    copy_in(tmp_path, [blob], tmp_path / "mount")
    copied = tmp_path / "mount" / blob.path
    read = read_file(copied, original)
    verify(blob, read, "")
    assert 0 < read.first_byte_s <= read.seconds

    copied.write_bytes(content[:-1])
    with pytest.raises(UnlikeError, match="2,999,999 bytes"):
        verify(blob, read_file(copied, original), "")
    copied.write_bytes(content + b"x")
    with pytest.raises(UnlikeError, match="other bytes"):
        read_file(copied, original)
    copied.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UnlikeError, match="other bytes"):
        read_file(copied, original)
    with pytest.raises(UnlikeError, match="SHA-256"):
        verify(blob, read_file(copied), "")


class Service(AgedServer):
    """Gives what lies in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.dies: Readers | None = None

    def read(self, blob: Blob, like: Path | None = None) -> Read:
        if self.dies is not None:
            with self.dies.down():
                raise ConnectionError("gone")
        return read_file(self.directory / blob.path, like)

    get = read


def test_a_failed_read_is_excused_only_while_the_service_is_down(tmp_path: Path) -> None:
    blob = a_blob(tmp_path, "cc-droplets/ab", b"x" * 1000)
    copy_in(tmp_path, [blob], tmp_path / "mount")
    service = Service(tmp_path / "mount")
    with Readers(tmp_path, [blob], service, 1) as readers:
        while readers.seen.reads < 5:
            pass
    assert not readers.seen.failures
    assert readers.seen.bytes == 1000 * readers.seen.reads
    service.dies = readers
    readers.read_one(blob, True)
    assert (readers.seen.cut_off, readers.seen.failures) == (1, [])
    service.dies = None
    (tmp_path / "mount" / blob.path).unlink()
    readers.read_one(blob, False)
    assert "No such file" in readers.seen.failures[0]
    with readers.down():
        readers.read_one(blob, True)
    assert (readers.seen.cut_off, len(readers.seen.failures)) == (2, 1)


def test_a_wrong_byte_is_never_excused(tmp_path: Path) -> None:
    blob = a_blob(tmp_path, "cc-droplets/ab", b"x" * 1000)
    copy_in(tmp_path, [blob], tmp_path / "mount")
    (tmp_path / "mount" / blob.path).write_bytes(b"x" * 999 + b"y")
    readers = Readers(tmp_path, [blob], Service(tmp_path / "mount"), 1)
    with readers.down():
        readers.read_one(blob, True)
    assert "other bytes" in readers.seen.failures[0]


def test_a_staging_makes_what_the_stager_makes(tmp_path: Path) -> None:
    staging = Staging(tmp_path, Fetcher(tmp_path / "python"), "app", "1")
    (staging.app / "main.py").write_text("print()\n")
    (staging.app / "static").write_bytes(b"s" * 65_536)
    staging.push()
    (staging.cache / "final" / "kept").write_text("kept")
    blobs = {blob.type: blob for blob in staging.finish()}
    assert set(blobs) == set(corpus.TYPES)
    for blob in blobs.values():
        content = corpus.source(tmp_path, blob).read_bytes()
        assert (blob.size, blob.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    sha1 = hashlib.sha1(b"s" * 65_536).hexdigest()
    place = f"cc-resources/app_bits_cache/{sha1[:2]}/{sha1[2:4]}/{sha1}"
    assert blobs["resources"].path == place
    droplet = corpus.source(tmp_path, blobs["droplets"])
    # GNU gzip, without a name or a time, at its default level.
    assert droplet.read_bytes()[:10] == b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
    assert inflated(tmp_path, [blobs["droplets"]]) == len(cutting.inflate(droplet))
    with tarfile.open(droplet) as opened:
        names = set(opened.getnames())
        assert {(member.uname, member.uid) for member in opened} == {("vcap", 2000)}
    assert names >= {"./app/main.py", "./deps/0", "./logs", "./profile.d", "./staging_info.yml"}
    with zipfile.ZipFile(corpus.source(tmp_path, blobs["packages"])) as package:
        assert set(package.namelist()) == {"main.py", "static"}
    assert allocated(tmp_path, list(blobs.values())) >= 65_536


def test_a_corpus_is_whole_or_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="bench archives --corpus --quick"):
        corpus.load(tmp_path, quick=True)
    built = tmp_path / "built"
    built.mkdir()
    for app in (*PYTHON_APPS, *NODE_APPS):
        for release in app.releases:
            cache = Blob("buildpack caches", app.name, release, f"cache/{app.name}", 1, "")
            droplet = Blob("droplets", app.name, release, f"{app.name}/{release}", 100, "")
            said = json.dumps([asdict(droplet), asdict(cache)])
            (built / f"{app.name}-{release}.json").write_text(said)
    blobs = corpus.load(tmp_path)
    caches = [blob for blob in blobs if blob.type == "buildpack caches"]
    # The last staging's replaces those before it.
    assert [blob.release for blob in caches] == [
        app.releases[-1] for app in (*PYTHON_APPS, *NODE_APPS)
    ]
    assert described(blobs)["droplets"]["bytes"] == 100 * (len(blobs) - len(caches))
    assert 0 < len(corpus.load(tmp_path, quick=True)) < len(blobs)


@pytest.fixture
def droplets(tmp_path: Path) -> Iterator[list[bytes]]:
    """Two stagings of the same app: other directories, other times."""
    made = []
    source = "\n".join(f"def f{n}(x={n}):\n    return [x, {n}]\n" for n in range(200))
    for number in range(2):
        contents = tmp_path / f"contents{number}"
        (contents / "deps").mkdir(parents=True)
        code = contents / "deps" / "code.py"
        code.write_text(source)
        os.utime(code, (10**9 + number, 10**9 + number))
        compileall.compile_dir(contents, quiet=2)
        (contents / "tiny").write_text("tiny")
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as opened:
            opened.add(contents, ".")
        made.append(raw.getvalue())
    yield made


@pytest.mark.parametrize("way", cutting.WAYS, ids=lambda way: way.name)
def test_pieces_are_the_content(droplets: list[bytes], way: cutting.Way) -> None:
    cutter = cutting.Cutter(way)
    for content in droplets:
        pieces = list(cutter.pieces(memoryview(content)))
        assert b"".join(piece for piece, _ in pieces) == content
        cutter.add(len(zlib.compress(content)), content)
    outcome = cutter.outcome
    assert outcome.inflated == sum(map(len, droplets))
    assert outcome.unique + outcome.gathered <= outcome.inflated
    assert outcome.total(1, 64 << 10) > 0


def test_bytecode_of_two_stagings_has_the_same_chunks(droplets: list[bytes]) -> None:
    chunks = {}
    for bytecode in (False, True):
        cutter = cutting.Cutter(cutting.Way("", bytecode=bytecode))
        for content in droplets:
            cutter.add(1, content)
        chunks[bytecode] = cutter.outcome.unique
    assert chunks[True] < chunks[False]


def test_what_is_inside_a_store_is_counted(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("deflated", os.urandom(70_000))
        archive.writestr("deflated.gz", gzip.compress(os.urandom(50_000)))
        archive.writestr("stored", b"x", zipfile.ZIP_STORED)
        archive.writestr("short", b"x")

    async def fill() -> None:
        async with opened(tmp_path / "store") as store:
            first = await put(store, b"droplet", droplet(more={"a.jar": packed.getvalue()}))
            await put(store, b"another", droplet(5))
            await age(store, first)

    trio.run(fill)
    assert look(tmp_path / "store") == (1, 0, {"gnu-gzip": 1, "nested": 3})
    link = tarfile.TarInfo("a link")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jar"
    linked = link.tobuf()
    blobs = [
        replace(a_blob(tmp_path, "cc-packages/ab", packed.getvalue()), type="packages"),
        a_blob(tmp_path, "cc-droplets/large", gzipped(linked + tar({"a.jar": packed.getvalue()}))),
        a_blob(tmp_path, "cc-droplets/small", bytes(100)),
    ]
    assert streams(tmp_path, blobs) == {"gnu-gzip": 1, "zlib": 3, "nested": 3}


def test_the_report_says_what_was_reached() -> None:
    machine = {"cpu": "c", "cores": 2, "memory_bytes": 1 << 30, "filesystem": "ext4"}
    machine |= {"load_before": 0.0, "system": "s", "kernel": "k"}
    result = ArchivesResult("c", "t", 1, False, machine, {}, "abc", {"archives": True})
    result.note("aged_buildpack caches", ext4=2e9, cafs=4e8)
    for number, (quiet, ageing) in enumerate([(100.0, 180.0), (110.0, 160.0), (100.0, 170.0)]):
        result.note("head.p99", number, quiet=quiet)
        result.note("head.p99", number, ageing=ageing)
    result.note("first_http_cold", cafs=0.25)
    text = report.section(result, "bench/results/archives.json")
    title = MEASURES["aged_buildpack caches"].title
    assert f"| {title} | 2,000.0 MB | 400.0 MB | 0.20 | <= 0.25 | met |" in text
    assert "| 100 us (100 to 105 us) | 170 us (165 to 175 us) | 1.70 | <= 1.5 | missed |" in text
    assert "| 0.25 s |  | <= 1.00 s | met |" in text
    assert f"Not measured in this run: {MEASURES['aged_resources'].title}" in text
