"""A damaged page of an index that has no copy: what is not lost is kept, what is lost is told."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from cafs import newstore
from cafs.blobs import recipe
from cafs.config import StoreParams
from cafs.errors import CafsError
from cafs.index import layout
from cafs.operate.rebuild import rebuild
from cafs.store import Store
from cafs.types import ROOT, BlobNo
from cafs.view import View
from tests.conftest import RunCafs
from tests.unit.aged_store import hashed
from tests.unit.damaged_index import break_leaf
from tests.unit.small_store import change, findings, in_store, lookup, noise, write

FILES = {b"f%d" % seed: noise(seed, 50_000 if seed else 1_500_000) for seed in range(60)}


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pristine") / "store"
    newstore.create(path, StoreParams(chunk_min=1024, chunk_avg=4096, chunk_max=8192))

    async def fill(opened: Store) -> None:
        for name, data in FILES.items():
            await hashed(opened, await write(opened, ROOT, name, data))

    in_store(path, fill)
    return path


@pytest.fixture
def store(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(_pristine, copy)
    return copy


def _nothing(_phase: str) -> None:
    pass


def _read(store: Path) -> dict[bytes, bytes | None]:
    """Every file's bytes by its path; None of one that cannot be read."""
    found: dict[bytes, bytes | None] = {}
    with View(store) as view:
        home = view.tree.lookup(ROOT, b"lost+found")
        for prefix, directory in ((b"", ROOT), (b"lost+found/", home)):
            for entry in view.tree.listing(directory, 0) if directory else ():
                attr = view.tree.inodes.get(entry.ino)
                if entry.type != 0o10:
                    continue
                try:
                    data = b"".join(view.content(attr.blob)) if attr.blob else b""
                    assert len(data) == attr.size
                except CafsError:
                    data = None
                found[prefix + entry.name] = data
    return found


def test_chunks_that_have_lost_their_records_are_found_in_the_packs(store: Path) -> None:
    break_leaf(store / "index", "chunks")
    done = rebuild(store, _nothing)
    assert done.remade_chunks > 10
    assert not done.lost_chunks
    assert not done.repaired.left
    assert _read(store) == FILES
    assert not findings(store)


def test_a_chunk_of_which_nothing_is_left_in_the_packs_stays_lost(store: Path) -> None:
    """Nor is another one taken for it."""
    with View(store) as view:
        key, value = next(iter(view.overlay.scan(layout.CHUNKS, b"", b"")))
    extent = layout.unpack_chunk(value).extent
    change(store, layout.CHUNKS, key, None)
    pack = next((store / "packs").glob("*.pack"))
    with pack.open("r+b") as file:
        file.seek(extent.offset)
        file.write(bytes(extent.stored_length))
    done = rebuild(store, _nothing)
    assert done.remade_chunks == 0
    assert done.repaired.left == {"recipe": 1}
    wrong = [name for name, data in _read(store).items() if data != FILES[name]]
    assert wrong == [b"f0"]


def test_files_that_have_lost_their_inodes_keep_their_content(store: Path) -> None:
    break_leaf(store / "index", "inodes")
    done = rebuild(store, _nothing)
    now = _read(store)
    gone = FILES.keys() - now.keys()
    assert gone
    assert {b"/" + name for name in gone} == set(done.repaired.removed)
    assert done.repaired.removed_count == len(gone)
    for name, data in FILES.items():
        if name in gone:
            digest = hashlib.sha256(data).hexdigest().encode()
            assert now[b"lost+found/" + digest] == data
        else:
            assert now[name] == data
    assert not findings(store)


def test_what_a_rebuild_has_cost_is_said(store: Path, run_cafs: RunCafs) -> None:
    break_leaf(store / "index", "inodes")
    shutil.copytree(store, store.parent / "again")
    done = run_cafs("rebuild", store)
    assert done.returncode == 8
    gone = FILES.keys() - _read(store).keys()
    for name in gone:
        assert (
            f"removed, because what it led to is lost or has another name: /{name.decode()}\n"
            in (done.stdout)
        )
    done = run_cafs("rebuild", store.parent / "again", "--json")
    assert done.returncode == 8
    report = json.loads(done.stdout)
    assert report["removed_names_count"] == len(gone)
    assert {each["path"] for each in report["removed_names"]} == {
        f"/{name.decode()}" for name in gone
    }


def test_files_that_have_lost_their_blobs_are_not_empty(store: Path, run_cafs: RunCafs) -> None:
    break_leaf(store / "index", "blobs")
    done = run_cafs("rebuild", store)
    assert done.returncode == 8
    assert "not to be had back: content" in done.stdout
    now = _read(store)
    assert now.keys() == FILES.keys()
    lost = [name for name, data in now.items() if data is None]
    assert lost
    assert all(data == FILES[name] for name, data in now.items() if data is not None)
    check = run_cafs("check", store, "--json")
    assert check.returncode == 8
    assert json.loads(check.stdout)["kinds"] == {"content": len(lost)}


@pytest.mark.parametrize("name", [b"long", b"short", b"holes"])
def test_blobs_that_have_lost_their_records_come_back_where_the_rest_is_there(
    store: Path, name: bytes
) -> None:
    sizes = {b"long": 600_000, b"short": 700, b"holes": 800_000}
    data = noise(500, sizes[name])

    async def more(opened: Store) -> None:
        ino = await write(opened, ROOT, name, data)
        if name == b"holes":
            await opened.contents.truncate(ino, 1_000_000, privileged=True)
            await hashed(opened, ino)
        await opened.sync_all()

    in_store(store, more)
    number = lookup(store, name)[1].blob
    data = data.ljust(1_000_000, b"\0") if name == b"holes" else data
    with View(store) as view:
        before = view.blobs.get(number)
    change(store, layout.BLOBS, layout.u48(number), None)
    done = rebuild(store, _nothing)
    assert done.remade_blobs == 1
    assert _read(store) == FILES | {name: data}
    assert not findings(store)
    with View(store) as view:
        assert view.blobs.get(number) == before


@pytest.mark.parametrize("damage", ["a row", "a chunk", "the digest"])
def test_a_blob_is_made_again_of_nothing_but_its_own_bytes(store: Path, damage: str) -> None:
    number = lookup(store, b"f0")[1].blob
    change(store, layout.BLOBS, layout.u48(number), None)
    with View(store) as view:
        rows = list(view.overlay.scan(layout.RECIPES, layout.u48(number), layout.u48(number)))
        digest = next(
            key
            for key, _ in view.overlay.scan(layout.BLOB_SHA256, b"", b"")
            if layout.digest_number(key) == number
        )
    if damage == "a row":
        change(store, layout.RECIPES, rows[-1][0], None)
    elif damage == "a chunk":
        change(store, layout.CHUNKS, layout.u48(recipe.decode(rows[0][1])[3].ref), None)
        for side in (store / "packs").glob("*.side"):
            side.unlink()
    else:
        change(store, layout.BLOB_SHA256, digest, None)
        wrong = layout.digest_key(bytes(32), number)
        change(store, layout.BLOB_SHA256, wrong, b"")
    done = rebuild(store, _nothing)
    assert done.remade_blobs == 0
    assert done.repaired.left["content"] == 1
    assert [name for name, data in _read(store).items() if data is None] == [b"f0"]


def test_a_repair_says_which_names_it_removes(store: Path, run_cafs: RunCafs) -> None:
    ino = layout.u48(max(_inodes(store)))
    change(store, layout.INODES, ino, None)
    done = run_cafs("check", store, "--repair", "--json")
    report = json.loads(done.stdout)
    assert report["removed_names"] == [{"path": "/f59"}]
    digest = hashlib.sha256(FILES[b"f59"]).hexdigest().encode()
    assert _read(store)[b"lost+found/" + digest] == FILES[b"f59"]


def _inodes(store: Path) -> list[int]:
    with View(store) as view:
        return [layout.from_u48(key) for key, _ in view.overlay.scan(layout.INODES, b"", b"")]


def test_what_was_deleted_does_not_come_back_by_a_repair(store: Path) -> None:
    """A blob that waits for the sweep has no references, and needs no name."""

    async def delete(opened: Store) -> None:
        opened.nameless.forget(opened.tree.unlink(ROOT, b"f1")[0])
        await opened.sync_all()

    in_store(store, delete)
    with View(store) as view:
        dead = [
            BlobNo(layout.from_u48(k[1:])) for k, _ in view.overlay.scan(layout.DEAD, b"b", b"b")
        ]
    assert dead
    break_leaf(store / "index", "chunks")
    rebuild(store, _nothing)
    assert _read(store) == {name: data for name, data in FILES.items() if name != b"f1"}
