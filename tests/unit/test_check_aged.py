"""What `cafs check` says of blobs that were taken apart, and what a repair does about it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from cafs import storefile
from cafs.blobs import recipe
from cafs.cli.looking import blob_fields
from cafs.errors import CafsError
from cafs.index import layout
from cafs.index.layout import BlobRecord
from cafs.newstore import create
from cafs.operate import scrub
from cafs.operate.check import Check
from cafs.operate.look import look_at_blob, placed_chunks, verify
from cafs.operate.paths import Named, paths_of_blobs, resolve
from cafs.operate.repair import repair
from cafs.operate.sharing import sharers, use_of
from cafs.operate.usage import usage
from cafs.store import Store, open_store
from cafs.types import NO_BLOB, ROOT, BlobNo, ChunkNo
from cafs.view import View
from tests.model.audit import audit
from tests.unit import aged_store
from tests.unit.aged_store import Pair
from tests.unit.small_store import OPTIONS, PARAMS, change, write


class Made(NamedTuple):
    """A store with an aged file, one that is not, and one that shares a chunk with the first."""

    path: Path
    pair: Pair
    plain: BlobNo


async def _fill(path: Path) -> Made:
    async with open_store(path, OPTIONS) as store:
        content = aged_store.noise(1, 300_000)
        aged = await write(store, ROOT, b"aged", content)
        # The same bytes as a part of what is inside the archive.
        plain = await write(store, ROOT, b"plain", aged_store.noise(12, 60_000))
        number = await aged_store.hashed(store, aged)
        await aged_store.hashed(store, plain)
        pair = await aged_store.age(store, number, content, 10)
        await _settle(store)
        return Made(path, pair, store.tree.inodes.get(plain).blob)


async def _settle(store: Store) -> None:
    from cafs.operate.sweep import Sweeper

    await Sweeper(store).once()
    await store.commit()


@pytest.fixture
def made(tmp_path: Path) -> Made:
    path = tmp_path / "store"
    create(path, PARAMS)
    return trio.run(_fill, path)


def findings(path: Path) -> list[tuple[str, str]]:
    with View(path) as view:
        return [(found.kind, found.what) for found in Check(view).findings()]


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_an_engine_without_a_copy(made: Made, how: str) -> None:
    assert not findings(made.path)
    copy = made.path / "engines" / aged_store.PROGRAM.sha256
    if how == "damaged":
        copy.write_bytes(aged_store.PROGRAM.content[:-1])
    else:
        shutil.rmtree(copy.parent)
    ((kind, what),) = findings(made.path)
    assert kind == "engine-copy"
    assert "engine 1 (gzip 1.12)" in what and str(copy) in what


def test_of_an_engine_that_nothing_needs_nothing_is_said(tmp_path: Path) -> None:
    path = tmp_path / "store"
    create(path, PARAMS)

    async def fill() -> None:
        async with open_store(path, OPTIONS) as store:
            aged_store.record_engine(store)

    trio.run(fill)
    shutil.rmtree(path / "engines")
    assert not findings(path)


def kinds(path: Path) -> list[str]:
    return [kind for kind, _ in findings(path)]


def blob(path: Path, number: BlobNo) -> BlobRecord:
    with View(path) as view:
        return view.blobs.get(number)


def edit(path: Path, number: BlobNo, how: Callable[[BlobRecord], BlobRecord]) -> None:
    """Change a blob's record behind everybody's back."""
    value = layout.pack_blob(how(blob(path, number)))
    change(path, layout.BLOBS, layout.u48(number), value)


def test_a_store_with_aged_blobs_is_clean(made: Made) -> None:
    assert findings(made.path) == []
    assert audit(made.path) == []


def test_lost_marks_come_back(made: Made) -> None:
    """The blob's record is from before it was aged: what is inside must not be swept."""
    before = blob(made.path, made.pair.outer)
    plain = before._replace(flags=before.flags & ~layout.BLOB_AGED, mate=NO_BLOB)
    edit(made.path, made.pair.outer, lambda _: plain)
    assert set(kinds(made.path)) == {"mate", "blob-refs", "dead-queue"}
    assert repair(made.path).repaired["mate"] == 1
    assert findings(made.path) == []
    assert blob(made.path, made.pair.outer) == before
    assert blob(made.path, made.pair.inner).refs == 1


def test_an_inner_blob_without_its_outer_one_goes(made: Made) -> None:
    change(made.path, layout.BLOBS, layout.u48(made.pair.outer), None)
    assert "blob-refs" in kinds(made.path)
    repair(made.path)
    assert "blob-refs" not in kinds(made.path)
    assert blob(made.path, made.pair.inner).refs == 0

    async def sweep() -> None:
        async with open_store(made.path, OPTIONS) as store:
            await _settle(store)

    trio.run(sweep)
    # The file answers EIO, and stays to say so.
    assert kinds(made.path) == ["content"]
    assert audit(made.path)


def test_what_cannot_be_rebuilt_is_told(made: Made) -> None:
    change(made.path, layout.BLOBS, layout.u48(made.pair.inner), None)
    found = dict(findings(made.path))
    assert f"its inner blob {made.pair.inner} is not there" in found["mate"]
    repair(made.path)
    assert set(kinds(made.path)) == {"mate"}, "nothing is made up"


def test_a_mate_that_belongs_to_another_is_told(made: Made) -> None:
    edit(made.path, made.pair.inner, lambda record: record._replace(mate=made.plain))
    assert any("belongs to another blob" in what for _, what in findings(made.path))


def test_both_marks_at_once_are_told(made: Made) -> None:
    edit(made.path, made.pair.outer, lambda r: r._replace(flags=r.flags | layout.BLOB_INNER))
    assert any("at once" in what for _, what in findings(made.path))


def test_a_file_must_not_have_an_inner_blob(made: Made) -> None:
    with View(made.path) as view:
        ino = view.tree.lookup(ROOT, b"plain")
        assert ino is not None
        attr = view.tree.inodes.get(ino)._replace(
            blob=made.pair.inner, size=len(made.pair.inflated)
        )
    change(made.path, layout.INODES, layout.u48(ino), layout.pack_inode(attr))
    assert any(kind == "mate" and "inodes have it" in what for kind, what in findings(made.path))


def test_an_engine_without_record_is_told(made: Made) -> None:
    change(made.path, layout.META, layout.engine_key(1), None)
    assert any("needs engine 1, which is not there" in what for _, what in findings(made.path))


def test_a_store_file_from_a_backup_is_put_right(made: Made) -> None:
    file = storefile.read(made.path)._replace(format_version=1)
    (made.path / storefile.NAME).write_bytes(storefile.render(file))
    assert kinds(made.path) == ["format-version"]

    async def play() -> None:
        async with open_store(made.path, OPTIONS) as store:
            assert store.file.format_version == layout.AGED_VERSION

    trio.run(play)
    assert findings(made.path) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        (layout.engine_key(3), aged_store.ENGINE.pack()),
        (b"engine/2", aged_store.ENGINE.pack()),
        (layout.engine_key(2), b"{}"),
    ],
)
def test_a_wrong_record_of_an_engine_is_told(made: Made, key: bytes, value: bytes) -> None:
    change(made.path, layout.META, key, value)
    assert kinds(made.path) == ["engine"]


def _with_part(made: Made, part: recipe.Part) -> None:
    """Let the last part of the outer recipe be another one."""
    record = blob(made.path, made.pair.outer)
    parts = recipe.decode(record.parts)
    assert parts[-1].length == part.length
    row = recipe.encode([*parts[:-1], part])
    edit(made.path, made.pair.outer, lambda record: record._replace(parts=row))


def test_input_beyond_the_inner_blob_is_told(made: Made) -> None:
    how = recipe.Made(1, 1, 6, 1, len(made.pair.inflated), 0)
    _with_part(made, recipe.made_part((300_000 - 10) % 10_000, how))
    assert any("bytes beyond the" in what for _, what in findings(made.path))


def test_a_slice_beyond_its_chunk_is_told(made: Made) -> None:
    with View(made.path) as view:
        chunk = next(
            part for _, part in view.blobs.parts(made.pair.inner, 0, 1 << 40) if part.kind == 5
        )
        length = view.chunks.get(ChunkNo(chunk.ref)).extent.raw_length
    wrong = recipe.slice_of(ChunkNo(chunk.ref), length - 9, (300_000 - 10) % 10_000)
    _with_part(made, wrong)
    assert any(f"chunk {chunk.ref} has another length" in what for _, what in findings(made.path))


def test_an_inner_blob_in_a_list_of_files_content_is_told(made: Made) -> None:
    inner = layout.u48(made.pair.inner)
    change(made.path, layout.UNHASHED, inner, layout.u48(7))
    sha256 = blob(made.path, made.pair.inner).sha256
    change(made.path, layout.BLOB_SHA256, layout.digest_key(sha256, made.pair.inner), b"")
    assert sorted(kinds(made.path)) == ["stale-digest", "unhashed-list"]
    repair(made.path)
    assert findings(made.path) == []


def test_counts_are_put_right(made: Made) -> None:
    edit(made.path, made.pair.inner, lambda record: record._replace(refs=4))
    assert kinds(made.path) == ["blob-refs"]
    repair(made.path)
    assert blob(made.path, made.pair.inner).refs == 1
    assert findings(made.path) == []


# -- commands that look --------------------------------------------------------------------------


def test_what_an_aged_file_takes_is_what_it_is_made_of(made: Made) -> None:
    with View(made.path) as view:
        inner = [part for part in view.recipes(made.pair.outer) if part.kind in (1, 5)]
        numbers = {ChunkNo(part.ref) for part in inner}
        stored = sum(view.chunks.get(number).extent.stored_length for number in numbers)
        used = usage(view, [_named(view, b"/aged")])
        assert (used.logical, used.blobs, used.chunks) == (300_000, 1, len(numbers))
        assert used.stored == stored
        # What is inside is the other file's content, too: that would stay.
        shared = use_of(view, made.plain).raw_bytes
        assert used.shared == shared
        assert used.freed == stored - sum(
            view.chunks.get(number).extent.stored_length
            for number in use_of(view, made.plain).times
        )
        both = usage(view, [_named(view, b"/aged"), _named(view, b"/plain")])
        assert (both.shared, both.freed) == (0, both.stored)
        whole = usage(view, [Named(ROOT, b"", ROOT)])
        assert (whole.chunks, whole.stored) == (view.counters.chunks, view.counters.stored_bytes)


def _named(view: View, path: bytes) -> Named:
    return resolve(view, path)


def test_the_dead_have_no_claim(made: Made) -> None:
    """A deleted archive, not swept yet, whose inner blob shares all of another file."""

    async def play() -> None:
        async with open_store(made.path, OPTIONS) as store:
            store.tree.unlink(ROOT, b"aged")
            for ino in list(store.tree.inodes.orphans()):
                store.nameless.forget(ino)
            await store.commit()

    trio.run(play)
    with View(made.path) as view:
        assert view.blobs.get(made.pair.outer).refs == 0
        assert view.blobs.get(made.pair.inner).refs == 1
        used = usage(view, [_named(view, b"/plain")])
        assert (used.shared, used.freed) == (0, used.stored)


def test_a_damaged_chunk_inside_names_the_archive(made: Made) -> None:
    with View(made.path) as view:
        own = set(use_of(view, made.pair.outer).times) - set(use_of(view, made.plain).times)
        (headers,) = own
        assert scrub.blobs_with(view, [headers], {}) == {made.pair.outer: {headers}}
        other = next(iter(use_of(view, made.plain).times))
        assert set(scrub.blobs_with(view, [other], {})) == {made.pair.outer, made.plain}
        assert paths_of_blobs(view, [made.pair.outer]) == {made.pair.outer: [b"/aged"]}


def test_who_shares_is_told_by_its_files(made: Made) -> None:
    with View(made.path) as view:
        assert sharers(view, made.pair.outer, use_of(view, made.pair.outer)) == {made.plain}
        assert sharers(view, made.plain, use_of(view, made.plain)) == {made.pair.outer}


def test_a_look_says_how_it_is_stored(made: Made) -> None:
    with View(made.path) as view:
        look = look_at_blob(view, made.pair.outer)
        assert look.aged is not None
        assert (look.aged.inner, look.aged.size) == (made.pair.inner, len(made.pair.inflated))
        assert look.aged.engines == [(1, "gzip 1.12")]
        fields = blob_fields(look)
        assert fields["made_parts_bytes"] == 300_000 - 10
        assert fields["aged"]["engines"] == [{"engine": 1, "version": "gzip 1.12"}]
        chunks = list(placed_chunks(view, made.pair.outer))
        assert {each.number for each in chunks} == set(look.use.times)
        assert look_at_blob(view, made.plain).aged is None
        assert verify(view, made.pair.inner).damages == []


def test_what_cannot_be_rebuilt_is_damage(made: Made) -> None:
    """Nothing here makes these bytes: the recorded engine is not on any machine."""
    with View(made.path) as view:
        (damage,) = verify(view, made.pair.outer).damages
        assert (damage.offset, damage.length) == (10, 300_000 - 10)
        with pytest.raises(CafsError):
            list(view.content(made.pair.outer))
        assert b"".join(view.content(made.pair.inner)) == made.pair.inflated
