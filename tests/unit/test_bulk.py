"""Many look-ups at once say what single ones say, wherever the records are."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cafs import _bulk
from cafs.errors import FsError
from cafs.index import layout
from cafs.newstore import create
from cafs.store import Store, open_store
from cafs.tree.bulk import Names, Subdirectories
from cafs.types import ROOT, Ino
from tests.model.storethread import QUIET
from tests.unit.small_store import PARAMS, change

KINDS = {"file": 0o100600, "directory": 0o040700, "link": 0o120777}
names = st.binary(min_size=1, max_size=3).filter(
    lambda name: b"/" not in name and b"\0" not in name
)
# Nobody can make the dot entries, but everybody may ask for them.
made = names.filter(lambda name: name not in (b".", b".."))


def make(store: Store, name: bytes, kind: str) -> None:
    target = b"x" if kind == "link" else None
    store.tree.create(ROOT, name, KINDS[kind], 0, 0, target=target)


def one_by_one(store: Store, name: bytes, kind: int) -> Ino:
    if name in (b".", b".."):
        # Entries only: the dot entries are none.
        return Ino(0)
    ino = store.tree.lookup(ROOT, name)
    if ino is None or stat.S_IFMT(store.tree.inodes.get(ino).mode) != kind:
        return Ino(0)
    return ino


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    committed=st.dictionaries(made, st.sampled_from(sorted(KINDS)), max_size=8),
    removed=st.sets(names, max_size=4),
    pending=st.dictionaries(made, st.sampled_from(sorted(KINDS)), max_size=8),
    asked=st.lists(names, max_size=8),
)
def test_the_same_as_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    committed: dict[bytes, str],
    removed: set[bytes],
    pending: dict[bytes, str],
    asked: list[bytes],
) -> None:
    path = tmp_path_factory.mktemp("bulk") / "s"
    create(path, PARAMS)

    async def main() -> None:
        async with open_store(path, QUIET) as store:
            for name, kind in committed.items():
                make(store, name, kind)
            await store.commit()
            for name in removed & set(committed):
                try:
                    store.tree.unlink(ROOT, name)
                except FsError:
                    continue
            for name, kind in pending.items():
                try:
                    make(store, name, kind)
                except FsError:
                    continue
            many = Names(store.tree, store.overlay)
            wanted = [*asked, *committed, *pending]
            files = many.files([ROOT] * len(wanted), wanted)
            assert files == [one_by_one(store, name, stat.S_IFREG) for name in wanted]
            directories = many.directories([ROOT] * len(wanted), wanted)
            assert directories == [one_by_one(store, name, stat.S_IFDIR) for name in wanted]
            assert many.sizes(files) == [
                store.tree.inodes.get(ino).size if ino else -1 for ino in files
            ]

    trio.run(main)


def test_a_damaged_record_hides_only_itself(tmp_path: Path) -> None:
    path = tmp_path / "s"
    create(path, PARAMS)
    found: dict[str, Any] = {}

    async def fill() -> None:
        async with open_store(path, QUIET) as store:
            for name in (b"a", b"b", b"c"):
                make(store, name, "file")
            found["inos"] = [store.tree.lookup(ROOT, name) for name in (b"a", b"b", b"c")]

    async def look() -> None:
        async with open_store(path, QUIET) as store:
            many = Names(store.tree, store.overlay)
            assert [bool(ino) for ino in many.files([ROOT] * 3, [b"a", b"b", b"c"])] == [1, 0, 1]
            assert many.sizes(found["inos"]) == [0, 0, -2]

    trio.run(fill)
    change(path, layout.ENTRIES, layout.entry_key(ROOT, layout.name_cookie(b"b")), b"short")
    change(path, layout.INODES, layout.u48(found["inos"][2]), b"short")
    trio.run(look)


def test_subdirectories_are_remembered_until_something_changes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    create(path, PARAMS)

    async def main() -> None:
        async with open_store(path, QUIET) as store:
            remembered = Subdirectories(store.tree)
            remembered.of(ROOT)[b"x"] = Ino(7)
            assert remembered.of(ROOT) == {b"x": 7}
            make(store, b"new", "file")
            assert remembered.of(ROOT) == {}

    trio.run(main)


def test_what_is_asked_wrongly() -> None:
    def get(key: bytes, default: None, handle: object) -> bytes | None:
        raise KeyError(key)

    bulk: Any = _bulk
    wrong: list[tuple[Any, ...]] = [
        (),
        (get, 1, (), (1,), ()),
        (get, 1, [], (1,), (b"x",)),
        (get, 1, ([],), (1,), (b"x",)),
        (get, 1, (), (1,), ("x",)),
        (get, 1, (), ("x",), (b"x",)),
    ]
    for arguments in wrong:
        with pytest.raises(TypeError):
            bulk.entries(*arguments)
    with pytest.raises(OverflowError):
        bulk.entries(get, 1, (), (-1,), (b"x",))
    with pytest.raises(KeyError):
        bulk.entries(get, 1, (), (1,), (b"x",))
    with pytest.raises(TypeError):
        bulk.entries(lambda *_: "text", 1, (), (1,), (b"x",))
    with pytest.raises(TypeError):
        bulk.sizes(get, 1, (), 1)
    with pytest.raises(KeyError):
        bulk.sizes(get, 1, (), (1,))
    assert bulk.sizes(lambda *_: None, 1, ({},), (1, 2)) == [-1, -1]
