"""After an upgrade of the machine: what is proven with a program is read with that program."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from cafs.archives import gnu_gzip
from cafs.archives.engine import Params
from cafs.archives.engine_record import EngineRecord
from cafs.archives.gnu_gzip import GnuGzip, GnuGzipCompressor
from cafs.index import layout
from cafs.index.layout import BLOB_NESTED
from cafs.operate import engine_proofs
from cafs.operate.paths import attr_of, resolve
from cafs.store import Store
from cafs.types import ROOT, BlobNo, Ino
from cafs.view import View
from tests.unit.archived import age, blob_of, content, droplet, gzipped, opened, put, sources, tar
from tests.unit.engine_samples import MACHINE_GZIP
from tests.unit.small_store import change, findings

pytestmark = pytest.mark.timeout(60)

ONE = droplet()


def made_by_the_new_one() -> bytes:
    """A droplet at level 9, as only the new gzip makes it: the old one's level 2."""
    data = bytearray(gzipped(tar(sources(), 1_600_000_000), "-2", "-n"))
    data[8] = 2
    return bytes(data)


TWO = made_by_the_new_one()


@contextmanager
def two_programs(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], None]]:
    """Two gzips that differ at level 9 only; the function says which of them the machine has."""
    whole = MACHINE_GZIP.read_bytes()
    programs = {"old": whole, "new": whole + b"new"}
    for name, program in programs.items():
        (directory / name).mkdir()
        (directory / name / "gzip").write_bytes(program)
        (directory / name / "gzip").chmod(0o755)
    new = hashlib.sha256(programs["new"]).hexdigest()
    original = GnuGzip.compressor

    def compressor(self: GnuGzip, params: int, *, background: bool) -> GnuGzipCompressor:
        if self.program.sha256 == new and params == Params(9).pack():
            params = Params(2).pack()
        return original(self, params, background=background)

    def install(name: str) -> None:
        patch.setenv("PATH", str(directory / name), prepend=os.pathsep)

    with monkeypatch.context() as patch:
        patch.setattr(GnuGzip, "compressor", compressor)
        yield install


async def upgraded(store: Store, sample: BlobNo) -> None:
    """Let the new program prove itself with a sample in which it does not differ."""
    await store.archives.ready()
    (proof,) = store.archives.engines.pending_proof()
    assert proof.engine.kind == gnu_gzip.KIND
    await engine_proofs.prove(store.archives, proof, [sample])
    assert store.archives.engines.pending_proof() == []


def file(store: Store, name: bytes) -> Ino:
    ino = store.tree.lookup(ROOT, name)
    assert ino is not None
    return ino


@pytest.mark.parametrize("nested", [False, True])
def test_what_is_proven_with_a_new_program_is_read_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    two = gzipped(tar({"data.gz": TWO} | sources(["json"]))) if nested else TWO

    async def main(install: Callable[[str], None]) -> None:
        path = tmp_path / "store"
        install("old")
        async with opened(path) as store:
            await age(store, await put(store, b"one", ONE))
        install("new")
        async with opened(path) as store:
            await upgraded(store, blob_of(store, file(store, b"one")))
            ino = await put(store, b"two", two)
            await age(store, ino)
            inner = store.blobs.get(store.blobs.get(blob_of(store, ino)).mate)
            assert bool(inner.flags & BLOB_NESTED) == nested
            assert await content(store, ino) == two
        for program in ("new", "old"):
            install(program)
            async with opened(path) as store:
                store.archives.cache.make_room()
                assert await content(store, file(store, b"one")) == ONE
                assert await content(store, file(store, b"two")) == two

    with two_programs(tmp_path, monkeypatch) as install:
        trio.run(main, install)
        assert not findings(tmp_path / "store")


@pytest.mark.parametrize("nested", [False, True])
def test_what_was_recorded_with_another_program_is_read_with_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nested: bool
) -> None:
    """Programs that seemed to make the same were once put into one record."""
    path = tmp_path / "store"
    two = gzipped(tar({"data.gz": TWO} | sources(["json"]))) if nested else TWO

    async def fill(install: Callable[[str], None]) -> None:
        install("new")
        async with opened(path) as store:
            await age(store, await put(store, b"two", two))
        install("old")
        async with opened(path) as store:
            # Kept as it was, beside the new one.
            await store.archives.ready()
            (proof,) = store.archives.engines.pending_proof()
            store.archives.engines.keep(proof.engine)

    async def main() -> None:
        async with opened(path) as store:
            ino = file(store, b"two")
            assert await content(store, ino) == two
            await store.archives.prove(blob_of(store, ino))
            store.archives.cache.make_room()
            assert await store.archives.thaw(blob_of(store, ino))
            assert await content(store, ino) == two

    with two_programs(tmp_path, monkeypatch) as install:
        trio.run(fill, install)
        names = [
            hashlib.sha256((tmp_path / name / "gzip").read_bytes()).hexdigest()
            for name in ("old", "new")
        ]
        number = next(n for n in (1, 2) if record_of(path, n).kind == gnu_gzip.KIND)
        record = record_of(path, number)._replace(programs=tuple(names))
        change(path, layout.META, layout.engine_key(number), record.pack())
        with View(path) as view:
            blob = attr_of(view, resolve(view, b"two").ino).blob
            assert b"".join(view.content(blob)) == two
        trio.run(main)


def record_of(path: Path, number: int) -> EngineRecord:
    with View(path) as view:
        value = view.overlay.get(layout.META, layout.engine_key(number))
    assert value is not None
    return EngineRecord.unpack(number, value)
