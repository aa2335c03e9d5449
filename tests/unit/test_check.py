"""A check finds each kind of wrong record, and only that; a repair puts it right."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cafs.errors import IndexDamagedError, StoreError
from cafs.index import layout
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.overlay import Overlay
from cafs.lock import StoreLock
from cafs.operate import repair as repairing
from cafs.operate.paths import paths_of_inodes
from cafs.operate.repair import repair
from cafs.store import Store
from cafs.types import ROOT, BlobNo, ChunkNo, Ino, PackNo
from cafs.view import View
from tests.conftest import RunCafs
from tests.unit.small_store import change, findings, in_store, lookup, make, noise

Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def _pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("pristine") / "store")


@pytest.fixture
def store(_pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "store"
    shutil.copytree(_pristine, copy)
    return copy


def _first(store: Path, database: int) -> tuple[bytes, bytes]:
    with View(store) as view:
        return next(iter(view.overlay.scan(database, b"", b"")))


def _edit_inode(path: bytes, **changes: int) -> Damage:
    def damage(store: Path) -> None:
        ino, attr = lookup(store, path)
        attr = attr._replace(**changes)  # type: ignore[arg-type]
        change(store, layout.INODES, layout.u48(ino), layout.pack_inode(attr))

    return damage


def _remove_entry(parent: bytes, name: bytes) -> Damage:
    def damage(store: Path) -> None:
        ino = lookup(store, parent)[0]
        change(store, layout.ENTRIES, layout.entry_key(ino, layout.name_cookie(name)), None)

    return damage


def _add_entry(parent: bytes, name: bytes, ino: int, kind: int, shift: int = 0) -> Damage:
    def damage(store: Path) -> None:
        directory = lookup(store, parent)[0]
        key = layout.entry_key(directory, layout.name_cookie(name) + shift)
        change(store, layout.ENTRIES, key, layout.entry_value(Ino(ino), kind, name))

    return damage


def _edit_blob(**changes: object) -> Damage:
    def damage(store: Path) -> None:
        number = lookup(store, b"a/b/large")[1].blob
        with View(store) as view:
            record = view.blobs.get(number)._replace(**changes)  # type: ignore[arg-type]
        change(store, layout.BLOBS, layout.u48(number), layout.pack_blob(record))

    return damage


def _edit_chunk(**changes: object) -> Damage:
    def damage(store: Path) -> None:
        key, value = _first(store, layout.CHUNKS)
        record = layout.unpack_chunk(value)
        extent = record.extent._replace(
            **{name: to for name, to in changes.items() if name in record.extent._fields}  # type: ignore[arg-type]
        )
        rest = {name: to for name, to in changes.items() if name not in record.extent._fields}
        record = record._replace(extent=extent)._replace(**rest)  # type: ignore[arg-type]
        change(store, layout.CHUNKS, key, layout.pack_chunk(record))

    return damage


def _edit_pack(**changes: int) -> Damage:
    def damage(store: Path) -> None:
        key, value = _first(store, layout.PACKS)
        record = layout.unpack_pack(value)._replace(**changes)
        change(store, layout.PACKS, key, layout.pack_pack(record))

    return damage


def _edit_counters(**changes: int) -> Damage:
    def damage(store: Path) -> None:
        with View(store) as view:
            counters = replace(view.counters, **changes)
        change(store, layout.META, COUNTERS_KEY, counters.encode())

    return damage


def _put(database: int, key: bytes, value: bytes | None) -> Damage:
    return lambda store: change(store, database, key, value)


def _remove_first(database: int) -> Damage:
    return lambda store: change(store, database, _first(store, database)[0], None)


def _cut_recipe(store: Path) -> None:
    key, value = _first(store, layout.RECIPES)
    change(store, layout.RECIPES, key, value[:-11])


REPAIRABLE: dict[str, tuple[Damage, set[str]]] = {
    "link count": (_edit_inode(b"a/small", nlink=7), {"link-count"}),
    "directory's link count": (_edit_inode(b"a", nlink=9), {"link-count"}),
    "entry count": (_edit_inode(b"a", blob=99), {"entry-count"}),
    "parent": (_edit_inode(b"a/b", aux=1), {"parent"}),
    "size": (_edit_inode(b"a/middle", size=39_999), {"size", "counters"}),
    "entry to nowhere": (
        _add_entry(b"a", b"ghost", 4711, 0o10),
        {"dangling-entry"},
    ),
    "entry in a file": (_add_entry(b"a/small", b"child", 1, 4), {"stray-entry"}),
    "entry of another type": (
        lambda store: _add_entry(b"a", b"small", lookup(store, b"a/small")[0], 4)(store),
        {"entry-type"},
    ),
    "entry out of place": (
        lambda store: _add_entry(b"a", b"moved", lookup(store, b"a/small")[0], 0o10, 1000)(store),
        {"entry-place", "entry-count", "link-count"},
    ),
    "impossible name": (
        lambda store: _add_entry(b"a", b"x/y", lookup(store, b"a/small")[0], 0o10)(store),
        {"bad-name"},
    ),
    "second name of a directory": (
        lambda store: _add_entry(b"a", b"twin", lookup(store, b"a/b")[0], 4)(store),
        {"directory-links", "entry-count"},
    ),
    "lost name": (
        _remove_entry(b"a", b"middle"),
        {"unreachable", "entry-count"},
    ),
    "lost directory": (
        _remove_entry(b"a", b"b"),
        {"unreachable", "entry-count", "link-count"},
    ),
    "orphan that is not there": (_put(layout.ORPHANS, layout.u48(999), b""), {"orphan-list"}),
    "orphan with a name": (
        lambda store: change(store, layout.ORPHANS, layout.u48(lookup(store, b"a/small")[0]), b""),
        {"orphan-list"},
    ),
    "target without a link": (_put(layout.SYMLINKS, layout.u48(999), b"x"), {"stray-target"}),
    "attribute without an inode": (
        _put(layout.XATTRS, layout.xattr_key(Ino(999), b"user.x"), b"y"),
        {"stray-xattr"},
    ),
    "blob's references": (_edit_blob(refs=5), {"blob-refs"}),
    "chunk's references": (_edit_chunk(refs=77), {"chunk-refs"}),
    "missing SHA-256 of a blob": (_remove_first(layout.BLOB_SHA256), {"missing-digest"}),
    "missing SHA-1 of a blob": (_remove_first(layout.BLOB_SHA1), {"missing-digest"}),
    "missing SHA-256 of a chunk": (_remove_first(layout.CHUNK_SHA256), {"missing-digest"}),
    "stale digest": (
        _put(layout.BLOB_SHA256, layout.digest_key(bytes(32), BlobNo(1)), b""),
        {"stale-digest"},
    ),
    "stale digest of a chunk": (
        _put(layout.CHUNK_SHA256, layout.digest_key(bytes(32), ChunkNo(999_999)), b""),
        {"stale-digest"},
    ),
    "dead queue names what is alive": (
        _put(layout.DEAD, layout.dead_key(b"b", 1), b""),
        {"dead-queue"},
    ),
    "dead queue names nothing": (
        _put(layout.DEAD, layout.dead_key(b"c", 999_999), b""),
        {"dead-queue"},
    ),
    "unhashed list names what is hashed": (
        _put(layout.UNHASHED, layout.u48(1), layout.u48(2)),
        {"unhashed-list"},
    ),
    "stray recipe": (
        _put(layout.RECIPES, layout.recipe_key(BlobNo(999), 0), b""),
        {"stray-recipe"},
    ),
    "pack's figures": (_edit_pack(live_bytes=5), {"pack-figures"}),
    "counters": (_edit_counters(files=1, blobs=77), {"counters"}),
    "next numbers": (_edit_counters(next_ino=2, next_chunk=1), {"counters"}),
}


def test_a_sound_store_is_clean(store: Path) -> None:
    assert findings(store) == Counter()


@pytest.mark.parametrize("name", REPAIRABLE)
def test_a_check_finds_just_that_and_a_repair_puts_it_right(store: Path, name: str) -> None:
    damage, expected = REPAIRABLE[name]
    large = lookup(store, b"a/b/large")[0]
    damage(store)
    assert set(findings(store)) == expected
    repair(store)
    assert findings(store) == Counter()
    with View(store) as view:
        # Wherever it is now, it is somewhere, with all that it had.
        assert paths_of_inodes(view, [large])[large]
        content = b"".join(view.content(view.tree.inodes.get(large).blob))
        assert content == noise(1, 3_000_000)


def lookup_in(view: View, path: bytes) -> Ino | None:
    ino: Ino | None = ROOT
    for name in path.split(b"/"):
        ino = view.tree.lookup(ino, name) if ino is not None else None
    return ino


UNREPAIRABLE: dict[str, tuple[Damage, set[str]]] = {
    "recipe that ends early": (_cut_recipe, {"recipe", "chunk-refs", "dead-queue"}),
    "chunks over each other": (
        lambda store: _edit_chunk(offset=40)(store),
        {"overlap"},
    ),
    "symbolic link without a target": (_remove_first(layout.SYMLINKS), {"link-target"}),
    "record of another length": (
        _put(layout.BLOBS, layout.u48(500), b"short"),
        {"index-damaged"},
    ),
}


@pytest.mark.parametrize("name", UNREPAIRABLE)
def test_a_check_finds_what_only_an_operator_can_put_right(store: Path, name: str) -> None:
    damage, expected = UNREPAIRABLE[name]
    damage(store)
    found = set(findings(store))
    assert found <= expected
    assert found & expected


def _lose_content(store: Path) -> BlobNo:
    """The blob of a/middle is gone, and everything that led to it; its number."""
    number = lookup(store, b"a/middle")[1].blob
    change(store, layout.BLOBS, layout.u48(number), None)
    return number


def test_a_file_that_has_lost_its_content_is_never_an_empty_one(store: Path) -> None:
    number = _lose_content(store)
    ino, before = lookup(store, b"a/middle")
    _edit_counters(next_blob=1)(store)
    repair(store)
    assert findings(store) == {"content": 1}
    # What comes later must not be taken for its content.
    with View(store) as view:
        assert view.counters.next_blob > number

    async def read(opened: Store) -> None:
        with pytest.raises(IndexDamagedError, match=f"blob {number}"):
            await opened.contents.read(ino, 0, 100)

    in_store(store, read)
    assert lookup(store, b"a/middle")[1] == before


def test_a_file_that_has_lost_its_content_is_listed(store: Path, run_cafs: RunCafs) -> None:
    _lose_content(store)
    repair(store)
    [line] = [
        line
        for line in run_cafs("ls", "-l", "--store", store, "/a").stdout.splitlines()
        if line.endswith(" middle")
    ]
    assert " lost " in line
    found = run_cafs("find", "--store", store, "/a", "--json")
    assert found.returncode == 0, found.stderr
    [row] = [
        row for row in map(json.loads, found.stdout.splitlines()) if row["path"] == "/a/middle"
    ]
    assert (row["sha256"], row["size_bytes"]) == (None, 40_000)
    check = run_cafs("check", store)
    assert check.returncode == 8
    assert "path: /a/middle" in check.stdout


@pytest.mark.parametrize("how", ["deleted", "written anew"])
def test_a_file_that_has_lost_its_content_can_be(store: Path, how: str) -> None:
    _lose_content(store)
    repair(store)
    assert findings(store) == {"content": 1}
    ino = lookup(store, b"a/middle")[0]
    a = lookup(store, b"a")[0]

    async def mend(opened: Store) -> None:
        if how == "deleted":
            opened.nameless.forget(opened.tree.unlink(a, b"middle")[0])
        else:
            opened.contents.opened(ino, writable=True)
            await opened.contents.truncate(ino, 0, privileged=True)
            await opened.contents.write(ino, 0, b"anew", privileged=True)
            opened.contents.closed(ino, writable=True)
        await opened.sync_all()

    in_store(store, mend)
    assert findings(store) == Counter()


def test_a_chunk_that_is_lost_keeps_its_number(store: Path) -> None:
    with View(store) as view:
        key = max(key for key, _ in view.overlay.scan(layout.CHUNKS, b"", b""))
    change(store, layout.CHUNKS, key, None)
    _edit_counters(next_chunk=1)(store)
    repair(store)
    with View(store) as view:
        assert view.counters.next_chunk > layout.from_u48(key)


def test_a_pack_that_is_lost_keeps_its_number(store: Path) -> None:
    key = _first(store, layout.PACKS)[0]
    _pack(store).unlink()
    change(store, layout.PACKS, key, None)
    _edit_counters(next_pack=1)(store)
    repair(store)
    with View(store) as view:
        assert view.counters.next_pack > int.from_bytes(key, "big")


def test_a_loop_of_directories_is_cut_and_named(store: Path) -> None:
    a, attr = lookup(store, b"a")
    b = lookup(store, b"a/b")[0]
    _remove_entry_of_root(store, b"a")
    change(
        store,
        layout.ENTRIES,
        layout.entry_key(b, layout.name_cookie(b"up")),
        layout.entry_value(a, 4, b"up"),
    )
    assert findings(store)["loop"] == 1
    repair(store)
    assert findings(store) == Counter()
    with View(store) as view:
        home = lookup_in(view, b"lost+found")
        assert home is not None
        assert {entry.ino for entry in view.tree.listing(home, 0)} & {a, b}
    assert attr.aux == ROOT


def _remove_entry_of_root(store: Path, name: bytes) -> None:
    change(store, layout.ENTRIES, layout.entry_key(ROOT, layout.name_cookie(name)), None)


def test_a_lost_root_costs_no_name(store: Path) -> None:
    before = lookup(store, b"a/b/large")
    change(store, layout.INODES, layout.u48(ROOT), None)
    assert findings(store)["root"] == 1
    done = repair(store)
    assert done.repaired["root"] == 1
    assert not done.removed_count
    assert findings(store) == Counter()
    assert lookup(store, b"a/b/large") == before


def test_lost_files_keep_their_content_in_lost_and_found(store: Path) -> None:
    ino, attr = lookup(store, b"a/middle")
    _remove_entry(b"a", b"middle")(store)
    done = repair(store)
    assert done.repaired["unreachable"] == 1
    found, again = lookup(store, b"lost+found/#%d" % ino)
    assert (found, again) == (ino, attr)


def _pack(store: Path) -> Path:
    return next((store / "packs").glob("*.pack"))


def test_a_missing_pack_is_one_finding_and_its_chunks_are_marked(store: Path) -> None:
    _pack(store).unlink()
    found = findings(store)
    assert found["pack-file"] == 1
    assert found["chunk-lost"] > 10
    repair(store)
    found = findings(store)
    assert set(found) == {"pack-file", "damaged-chunk"}


def test_several_missing_packs_cost_one_pass_over_the_chunks(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each chunk is found lost with its own pack."""
    record = layout.unpack_pack(_first(store, layout.PACKS)[1])
    for number in range(2, 6):
        key = layout.pack_key(PackNo(number))
        change(store, layout.PACKS, key, layout.pack_pack(record))
    _pack(store).unlink()
    passes = 0
    real = Overlay.scan

    def scan(self: Overlay, database: int, *range_: bytes) -> Iterator[tuple[bytes, bytes]]:
        nonlocal passes
        passes += database == layout.CHUNKS
        return real(self, database, *range_)

    monkeypatch.setattr(Overlay, "scan", scan)
    found = findings(store)
    assert found["pack-file"] == 5
    assert found["chunk-lost"] > 10
    # To load, to check, and once for all packs.
    assert passes == 3


def test_a_short_pack_loses_only_what_lay_beyond(store: Path) -> None:
    pack = _pack(store)
    os.truncate(pack, pack.stat().st_size - 5000)
    found = findings(store)
    assert found["pack-file"] == 1
    assert 1 <= found["chunk-lost"] <= 5


def test_a_pack_of_another_store_is_found(store: Path) -> None:
    with _pack(store).open("r+b") as file:
        file.seek(16)
        file.write(bytes(16))
    assert findings(store)["pack-file"] == 1


def test_an_extent_beyond_the_committed_length_is_found(store: Path) -> None:
    _edit_pack(size=5000)(store)
    assert findings(store)["extent"] > 0


def test_the_command_repairs_and_says_so(store: Path, run_cafs: RunCafs) -> None:
    _edit_inode(b"a/small", nlink=7)(store)
    found = run_cafs("check", store)
    assert found.returncode == 8
    assert "link-count: inode" in found.stdout
    assert "/a/small" in found.stdout
    assert "--repair" in found.stdout
    done = run_cafs("check", store, "--repair", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["clean"]
    assert report["repaired"] == {"link-count": 1}
    assert run_cafs("check", store).stdout.startswith(f"{store} is clean")


def test_a_repair_that_comes_to_its_bound_is_gone_on_with(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(900, 910):
        change(store, layout.SYMLINKS, layout.u48(number), b"x")
    monkeypatch.setattr(repairing, "AT_ONCE", 1)
    monkeypatch.setattr(repairing, "ROUNDS_MAX", 6)
    with pytest.raises(StoreError, match="6 rounds put 6 findings right") as stopped:
        repair(store)
    assert "same command" in stopped.value.advice
    assert repair(store).repaired == {"stray-target": 4}
    assert findings(store) == Counter()


def test_a_repair_needs_the_store_for_itself(store: Path, run_cafs: RunCafs) -> None:
    lock = StoreLock(store)
    try:
        assert run_cafs("check", store, "--repair").returncode == 5
        assert run_cafs("rebuild", store).returncode == 5
        assert run_cafs("check", store).returncode == 0
    finally:
        lock.release()
