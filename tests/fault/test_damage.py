"""Damage on disk under a real mount: EIO for what is affected, never wrong bytes, never a crash.

Each test damages the store while it is not mounted, mounts it, and looks at everything: what is
affected answers EIO and is named in the log with its blob and paths; the rest is as it was.
"""

from __future__ import annotations

import errno
import hashlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cafs import control
from cafs.blobs import recipe
from cafs.index import layout
from cafs.types import ROOT, ChunkNo, Extent, Ino
from cafs.view import View
from tests.fault.smalldisk import wait_until
from tests.mount import mounted
from tests.mount.mounted import Mount
from tests.unit.damaged_index import break_leaf, break_root, flip

FILES = 200


def _noise(seed: object, length: int) -> bytes:
    return random.Random(str(seed)).randbytes(length)


def _expected() -> dict[str, bytes]:
    """What is in the mount, by path."""
    content = {f"many/file {number}": _noise(number, 2000) for number in range(FILES)}
    shared = _noise("shared", 700_000)
    content["shared/one"] = shared
    content["shared/two"] = shared
    content["shared/longer"] = shared + _noise("tail", 100_000)
    content["alone"] = _noise("alone", 300_000)
    return content


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with files in it, of which each test damages a copy."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("there is no /dev/fuse here")
    mount = Mount()
    try:
        mount.start()
        for name, data in _expected().items():
            path = mount.root / name
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        control.call(mount.store, "copy_index")
        mount.unmount()
        return mount.store.rename(tmp_path_factory.mktemp("damage") / "store")
    finally:
        mount.close()


@pytest.fixture
def filled(template: Path) -> Iterator[Mount]:
    """A mount with files in it, unmounted."""
    mount = Mount(store=template)
    try:
        yield mount
    finally:
        mount.close()


def _look(mount: Mount) -> tuple[set[str], set[str]]:
    """Read everything: the paths that are as they were, and those that answer EIO.

    Anything else (wrong bytes, another error, a name that just is not there) fails.
    """
    good, bad = set(), set()
    for name, data in _expected().items():
        try:
            found = (mount.root / name).read_bytes()
        except OSError as error:
            assert error.errno == errno.EIO, (name, error)
            bad.add(name)
        else:
            assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest(), name
            good.add(name)
    return good, bad


def _log(mount: Mount) -> str:
    return mount.log.read_text(errors="replace")


def _chunks(store: Path, path: str) -> list[tuple[ChunkNo, Extent]]:
    """The chunks of a file, in its order."""
    with View(store) as view:
        ino: Ino | None = ROOT
        for name in path.split("/"):
            assert ino is not None
            ino = view.tree.lookup(ino, name.encode())
        assert ino is not None
        attr = view.tree.inodes.get(ino)
        refs = recipe.chunk_refs(part for _, part in view.blobs.parts(attr.blob, 0, attr.size))
        return [(number, view.chunks.get(number).extent) for number in refs]


def _first_chunk(store: Path, path: str) -> tuple[ChunkNo, Path, int, int]:
    """Number, pack, offset and length of a file's first chunk."""
    number, extent = _chunks(store, path)[0]
    pack = store / "packs" / f"{extent.pack:08x}.pack"
    return number, pack, extent.offset, extent.stored_length


def _flip(store: Path, path: str) -> ChunkNo:
    number, pack, offset, length = _first_chunk(store, path)
    with pack.open("r+b") as file:
        file.seek(offset + length // 3)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return number


def test_a_flipped_byte_is_eio_for_exactly_the_files_that_have_it(filled: Mount) -> None:
    number = _flip(filled.store, "shared/one")
    filled.start()
    good, bad = _look(filled)
    assert bad == {"shared/one", "shared/two", "shared/longer"}
    assert len(good) == FILES + 1
    wait_until(
        "the log names chunk, blob and paths",
        lambda: "path=/shared/two" in _log(filled) and "path=/shared/longer" in _log(filled),
    )
    sha256 = hashlib.sha256(_expected()["shared/one"]).hexdigest()
    assert f"chunk {number}:" in _log(filled)
    assert f"blob={sha256}" in _log(filled)
    assert control.call(filled.store, "status")["damaged_reads_count"] > 0
    filled.unmount()


def test_damage_ends_no_mount_whose_program_was_replaced(
    filled: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = (
        "import sys, types; from cafs.mount import damage; from cafs.cli.main import main; "
        "damage.sys = types.SimpleNamespace(executable='/nonexistent/python'); sys.exit(main())"
    )
    _flip(filled.store, "alone")
    monkeypatch.setattr(mounted, "COMMAND", (sys.executable, "-c", script))
    filled.start()
    with pytest.raises(OSError, match="Input/output error"):
        (filled.root / "alone").read_bytes()
    wait_until("it is said", lambda: "of what is damaged are not known: [Errno 2]" in _log(filled))
    assert (filled.root / "many" / "file 0").read_bytes() == _expected()["many/file 0"]
    filled.unmount()


def test_what_is_behind_the_damage_in_the_same_file_can_be_read(filled: Mount) -> None:
    _flip(filled.store, "shared/longer")
    filled.start()
    with (filled.root / "shared" / "longer").open("rb", buffering=0) as file:
        assert (
            os.pread(file.fileno(), 1000, 750_000) == _expected()["shared/longer"][750_000:][:1000]
        )
        with pytest.raises(OSError, match="Input/output error"):
            os.pread(file.fileno(), 1000, 0)
    filled.unmount()


def test_a_file_that_is_copied_in_again_heals_all_that_shared_its_damage(filled: Mount) -> None:
    _flip(filled.store, "shared/one")
    filled.start()
    assert _look(filled)[1]
    wait_until("the chunk is marked", lambda: "damaged file" in _log(filled))
    health = _health(filled)
    assert health["state"] == "trouble"
    assert "1 chunk;" in health["problem"]
    assert "copy the files" in health["what_to_do"]
    sha256 = hashlib.sha256(_expected()["shared/one"]).hexdigest()
    shown = filled.run("blob", sha256, "--store", str(filled.store), "--chunks")
    assert "raw, damaged" in shown
    with (filled.root / "restored").open("wb") as file:
        file.write(_expected()["shared/one"])
        os.fsync(file.fileno())
    assert not _look(filled)[1]
    assert _health(filled)["state"] == "ok"
    filled.restart()
    assert not _look(filled)[1]
    filled.unmount()
    assert "is clean" in filled.run("check", str(filled.store))


def _health(mount: Mount) -> dict[str, str]:
    health: dict[str, str] = control.call(mount.store, "status")["health"]
    return health


def test_a_missing_pack_is_eio_and_the_tree_is_served(filled: Mount) -> None:
    for pack in (filled.store / "packs").glob("*.pack"):
        pack.unlink()
    filled.start()
    good, bad = _look(filled)
    assert not good
    assert len(bad) == FILES + 4
    assert len(os.listdir(filled.root / "many")) == FILES
    (filled.root / "new").write_bytes(b"writing goes on" * 100_000)
    filled.restart()
    assert (filled.root / "new").read_bytes() == b"writing goes on" * 100_000
    assert "is missing" in _log(filled)
    assert "damaged or lost" in _health(filled)["problem"]
    filled.unmount()


@pytest.mark.parametrize("keep", [0, 250_000])
def test_content_that_a_pack_has_lost_is_stored_when_it_is_written_again(
    filled: Mount, keep: int
) -> None:
    """What was acknowledged is there after a kill, though the chunk table knew all of it."""
    for pack in (filled.store / "packs").glob("*.pack"):
        if keep:
            os.truncate(pack, keep)
        else:
            pack.unlink()
    filled.start()
    for name in ("one", "two"):
        with (filled.root / f"restored-{name}").open("wb") as file:
            file.write(_expected()["shared/one"])
            os.fsync(file.fileno())
    assert "chunks are lost" in _log(filled)
    filled.kill()
    filled.start()
    for name in ("one", "two"):
        assert (filled.root / f"restored-{name}").read_bytes() == _expected()["shared/one"]
        assert (filled.root / "shared" / name).read_bytes() == _expected()["shared/one"]
    filled.unmount()


def test_a_truncated_pack_loses_what_lay_beyond(filled: Mount) -> None:
    _, pack, offset, _ = _first_chunk(filled.store, "alone")
    os.truncate(pack, offset + 10)
    filled.start()
    good, bad = _look(filled)
    assert "alone" in bad
    assert "many/file 0" in good
    beyond = {
        name
        for name in _expected()
        if any(
            extent.offset + extent.stored_length > offset + 10
            for _, extent in _chunks(filled.store, name)
        )
    }
    assert bad == beyond
    filled.unmount()


def test_a_torn_tail_beyond_the_commit_is_cut_off(filled: Mount) -> None:
    packs = sorted((filled.store / "packs").glob("*.pack"))
    length = packs[-1].stat().st_size
    with packs[-1].open("ab") as file:
        file.write(_noise("torn", 12_345))
    filled.start()
    assert not _look(filled)[1]
    assert packs[-1].stat().st_size == length
    (filled.root / "next").write_bytes(_noise("next", 100_000))
    filled.restart()
    assert (filled.root / "next").read_bytes() == _noise("next", 100_000)
    filled.unmount()
    assert "all content is as it was written" in filled.run("scrub", str(filled.store))


@pytest.mark.parametrize("database", ["inodes", "entries", "blobs", "chunks", "xattrs"])
def test_a_damaged_page_of_the_index_is_eio_for_what_lay_in_it(
    filled: Mount, database: str
) -> None:
    if database == "xattrs":
        # A database of one page: its root is fenced off in LMDB's own list.
        filled.start()
        os.setxattr(filled.root / "alone", "user.x", b"y")
        filled.unmount()
    break_leaf(filled.store / "index", database)
    filled.start()
    good, bad = _look(filled)
    if database == "xattrs":
        assert not bad
        with pytest.raises(OSError, match="Input/output error"):
            os.getxattr(filled.root / "alone", "user.x")
    else:
        assert bad
        assert good
    assert f"of index database {database} is damaged" in _log(filled)
    if database == "inodes":
        wait_until("the log names a path", lambda: 'path="/many/file ' in _log(filled))
    filled.unmount()
    filled.run("rebuild", str(filled.store))
    filled.start()
    assert not _look(filled)[1]
    filled.unmount()
    assert "is clean" in filled.run("check", str(filled.store))


def _record(store: Path, database: str, directory: str, name: str) -> bytes:
    """The key of a record that only one file needs."""
    with View(store) as view:
        parent = view.tree.lookup(ROOT, directory.encode())
        assert parent is not None
        ino = view.tree.lookup(parent, name.encode())
        assert ino is not None
        blob = view.tree.inodes.get(ino).blob
        (chunk,) = recipe.chunk_refs(part for _, part in view.blobs.parts(blob, 0, 2000))
    return {
        "entries": layout.entry_key(parent, layout.name_cookie(name.encode())),
        "inodes": layout.u48(ino),
        "blobs": layout.u48(blob),
        "chunks": layout.u48(chunk),
    }[database]


@pytest.mark.parametrize("database", ["entries", "inodes", "blobs", "chunks"])
def test_a_flipped_bit_of_the_index_is_eio_for_exactly_its_record(
    filled: Mount, database: str
) -> None:
    index = filled.store / "index"
    flip(index, database, _record(filled.store, database, "many", "file 7"), bit=77)
    told = filled.run("check", str(filled.store), code=8)
    assert f"of index database {database} is damaged: the value of key" in told
    filled.start()
    good, bad = _look(filled)
    assert bad == {"many/file 7"}
    assert len(good) == FILES + 3
    assert f"of index database {database} is damaged" in _log(filled)
    (filled.root / "new").write_bytes(b"writing goes on")
    filled.restart()
    assert _look(filled)[1] == bad
    assert (filled.root / "new").read_bytes() == b"writing goes on"
    filled.unmount()
    filled.run("rebuild", str(filled.store))
    filled.start()
    assert not _look(filled)[1]
    filled.unmount()
    assert "is clean" in filled.run("check", str(filled.store))


@pytest.mark.parametrize("database", ["inodes", "blobs"])
def test_the_kernel_may_forget_what_is_damaged(filled: Mount, database: str) -> None:
    flip(
        filled.store / "index", database, _record(filled.store, database, "many", "file 7"), bit=77
    )
    filled.start()
    victim = filled.root / "many" / "file 7"
    if database == "inodes":
        # The listing tells the kernel of it, and the look at it makes the kernel let go.
        assert "file 7" in os.listdir(filled.root / "many")
        with pytest.raises(OSError, match="Input/output error"):
            victim.stat()
        filled.forget()
    else:
        victim.unlink()
        wait_until("it is kept", lambda: "without a name stays" in _log(filled))
    (filled.root / "new").write_bytes(b"writing goes on")
    filled.restart()
    assert (filled.root / "new").read_bytes() == b"writing goes on"
    assert len(os.listdir(filled.root / "many")) == FILES - (database == "blobs")
    filled.unmount()


def test_a_flipped_bit_of_a_name_s_key_does_not_hide_the_name(filled: Mount) -> None:
    key = _record(filled.store, "entries", "many", "file 7")
    flip(filled.store / "index", "entries", key, in_key=True)
    filled.start()
    assert not _look(filled)[1]
    assert "key " in _log(filled) and "put right" in _log(filled)
    filled.unmount()
    assert "is clean" in filled.run("check", str(filled.store))


def test_an_index_without_a_beginning_is_refused_with_advice_and_rebuilt(filled: Mount) -> None:
    break_root(filled.store / "index")
    with pytest.raises(AssertionError, match="cafs rebuild"):
        filled.start()
    filled._process = None
    filled.run("rebuild", str(filled.store))
    filled.start()
    assert not _look(filled)[1]
    filled.unmount()
