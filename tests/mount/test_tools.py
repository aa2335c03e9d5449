"""Programs that people use on such trees, as a whole: cp, tar, rsync, sqlite, a few more."""

from __future__ import annotations

import filecmp
import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.test_restart import build


def _run(*arguments: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, check=False)
    assert done.returncode == 0, (arguments, done.stderr)


def _snapshot(root: Path) -> dict[str, object]:
    """All of a tree that a faithful copy keeps."""
    found: dict[str, object] = {}
    groups: dict[int, str] = {}
    for directory, names, files in sorted(os.walk(root)):
        for name in sorted([*names, *files]):
            path = Path(directory) / name
            s = os.lstat(path)
            key = os.fsdecode(path.relative_to(root))
            kind = stat.S_IFMT(s.st_mode)
            content: object = b""
            if kind == stat.S_IFREG:
                content = path.read_bytes()
            elif kind == stat.S_IFLNK:
                content = os.readlink(path)
            first = groups.setdefault(s.st_ino, key) if kind != stat.S_IFDIR else key
            attributes = {
                a: os.getxattr(path, a, follow_symlinks=False)
                for a in sorted(os.listxattr(path, follow_symlinks=False))
            }
            links = 0 if kind == stat.S_IFDIR else s.st_nlink
            size = 0 if kind == stat.S_IFDIR else s.st_size
            found[key] = (
                *(s.st_mode, s.st_uid, s.st_gid, s.st_rdev, size, links, s.st_mtime_ns),
                *(content, attributes, first),
            )
    return found


def _cp(source: Path, target: Path) -> None:
    _run("cp", "-a", source, target)


def _tar(source: Path, target: Path) -> None:
    archive = target.with_suffix(".tar")
    options = ("--xattrs", "--xattrs-include=*", "--acls", "--sparse", "--format=posix")
    _run("tar", *options, "-cf", archive, "-C", source, ".")
    target.mkdir()
    _run("tar", *options, "-xpf", archive, "-C", target, "--same-owner")
    archive.unlink()


def _rsync(source: Path, target: Path, *options: str) -> None:
    if not shutil.which("rsync"):
        pytest.skip("rsync is not installed")
    # Without the window rsync leaves a time alone that is right to the second.
    _run("rsync", "-aHAX", "--modify-window=-1", *(options or ("-S",)), f"{source}/", target)


COPIES: dict[str, Callable[[Path, Path], None]] = {"cp -a": _cp, "tar": _tar, "rsync": _rsync}


@pytest.mark.parametrize("copy", COPIES)
def test_copied_in_and_out_again(place: Place, control_root: Path, copy: str) -> None:
    source, back = control_root / "source", control_root / "back"
    try:
        source.mkdir()
        build(source)
        COPIES[copy](source, place / "copy")
        assert _snapshot(place / "copy") == _snapshot(source)
        COPIES[copy](place / "copy", back)
        assert _snapshot(back) == _snapshot(source)
        _run("diff", "-r", "--no-dereference", source / "a", place / "copy" / "a")
    finally:
        for path in (source, back):
            shutil.rmtree(path, ignore_errors=True)


def test_rsync_brings_a_changed_tree_up_to_date(place: Place, control_root: Path) -> None:
    source = control_root / "source"
    try:
        source.mkdir()
        build(source)
        _rsync(source, place / "copy")
        (source / "a" / "f4").write_bytes(b"shorter")
        with (source / "a" / "f5").open("rb+") as stream:
            stream.seek(1_000_000)
            stream.write(b"in the middle")
        shutil.rmtree(source / "a" / "b")
        _rsync(source, place / "copy", "--delete", "--inplace")
        assert _snapshot(place / "copy") == _snapshot(source)
    finally:
        shutil.rmtree(source, ignore_errors=True)


def test_a_python_library_copied_compared_and_removed(place: Place) -> None:
    library = Path(os.__file__).parent / "email"
    shutil.copytree(library, place / "email")
    comparison = filecmp.dircmp(library, place / "email", ignore=[])
    assert not comparison.diff_files
    assert not comparison.left_only
    assert not comparison.right_only
    _run("find", place / "email", "-name", "*.py", "-newer", "/etc/passwd")
    shutil.rmtree(place / "email")
    assert os.listdir(place.path) == []


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_sqlite(place: Place, journal: str) -> None:
    path = place / "data.db"
    one = sqlite3.connect(path)
    one.execute(f"pragma journal_mode={journal}")
    one.execute("create table t (n integer primary key, v blob)")
    for i in range(30):
        with one:
            one.execute("insert into t values (?, randomblob(3000))", (i,))
    two = sqlite3.connect(path)
    assert two.execute("select count(*) from t").fetchone() == (30,)
    assert two.execute("pragma integrity_check").fetchone() == ("ok",)
    with one:
        one.execute("delete from t where n % 2")
    one.execute("vacuum")
    assert two.execute("select count(*) from t").fetchone() == (15,)
    one.close()
    two.close()


def test_git(place: Place) -> None:
    if not shutil.which("git"):
        pytest.skip("git is not installed")
    tree = place / "repository"
    tree.mkdir()
    identity = ("-c", "user.name=n", "-c", "user.email=e", "-c", "safe.directory=*")
    _run("git", "init", "-q", ".", cwd=tree)
    for i in range(3):
        (tree / f"file{i}").write_text("line\n" * (i + 1) * 1000)
        _run("git", *identity, "add", "-A", cwd=tree)
        _run("git", *identity, "commit", "-q", "-m", f"change {i}", cwd=tree)
    _run("git", *identity, "gc", "-q", cwd=tree)
    _run("git", *identity, "fsck", "--strict", cwd=tree)
    _run("git", *identity, "clone", "-q", ".", "../clone", cwd=tree)
    assert (place / "clone" / "file2").read_text() == "line\n" * 3000


def test_compiler_and_program(place: Place) -> None:
    if not shutil.which("gcc"):
        pytest.skip("gcc is not installed")
    (place / "hello.c").write_text('#include <stdio.h>\nint main(void){puts("hello");return 0;}\n')
    _run("gcc", "-O1", "-o", "hello", "hello.c", cwd=place.path)
    done = subprocess.run([place / "hello"], check=True, stdout=subprocess.PIPE)
    assert done.stdout == b"hello\n"
