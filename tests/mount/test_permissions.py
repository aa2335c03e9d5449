"""Who may do what: modes, groups, sticky and setgid directories, and bits that are cleared."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.conftest import Place
from tests.mount.syscalls import as_user, fails, outcome

ME, SOMEONE, GROUP = 4001, 4002, 4100

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def _file(place: Place, mode: int, *, uid: int = 0, gid: int = 0, name: str = "f") -> Path:
    path = place / name
    path.write_bytes(b"content")
    os.chown(path, uid, gid)
    path.chmod(mode)
    return path


def _mode(path: Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def _rights(path: Path) -> str:
    """What the caller can do with *path*, tried and not asked for."""
    tries: dict[str, Callable[[], object]] = {
        "r": lambda: os.close(os.open(path, os.O_RDONLY)),
        "w": lambda: os.close(os.open(path, os.O_WRONLY)),
    }
    return "".join(letter for letter, call in tries.items() if outcome(call) == "ok")


@pytest.mark.parametrize("bits", range(8))
@pytest.mark.parametrize("who", ["owner", "group", "supplementary", "other"])
def test_modes_of_files(place: Place, who: str, bits: int) -> None:
    shift = {"owner": 6, "group": 3, "supplementary": 3, "other": 0}[who]
    uid = ME if who == "owner" else SOMEONE
    path = _file(place, bits << shift, uid=uid, gid=0 if who == "other" else GROUP)
    gid = GROUP if who == "group" else ME
    groups = (GROUP,) if who == "supplementary" else ()

    def act() -> tuple[str, list[bool]]:
        return _rights(path), [os.access(path, m) for m in (os.R_OK, os.W_OK, os.X_OK)]

    real, asked = as_user(ME, act, gid=gid, groups=groups)
    want = [bool(bits & 4), bool(bits & 2), bool(bits & 1)]
    assert real == "".join(letter for letter, yes in zip("rw", want, strict=False) if yes)
    assert asked == want


@pytest.mark.parametrize("bits", range(8))
def test_modes_of_directories(place: Place, bits: int) -> None:
    directory = place / "d"
    directory.mkdir()
    (directory / "inside").touch()
    directory.chmod(bits)

    def act() -> list[str]:
        return [
            outcome(lambda: os.listdir(directory)),
            outcome(lambda: os.stat(directory / "inside")),
            outcome(lambda: (directory / "new").touch()),
            outcome(lambda: os.rename(directory / "inside", directory / "moved")),
            outcome(lambda: os.unlink(directory / "moved")),
        ]

    read, write, search = bool(bits & 4), bool(bits & 2), bool(bits & 1)
    want = [read, search] + [write and search] * 3
    got = as_user(ME, act)
    if not (write and search):
        got[-1] = {"ENOENT": "EACCES"}.get(got[-1], got[-1])  # nothing was moved before
    assert got == ["ok" if allowed else "EACCES" for allowed in want]


def test_directory_of_mode_zero_hides_everything_but_from_root(place: Place) -> None:
    (place / "d" / "e").mkdir(parents=True)
    (place / "d" / "e" / "f").write_bytes(b"x")
    (place / "d").chmod(0)
    assert (place / "d" / "e" / "f").read_bytes() == b"x"
    for call in (os.stat, os.listdir):
        with fails(errno.EACCES):
            as_user(ME, lambda call=call: call(place / "d" / "e"))  # type: ignore[misc]


def test_a_held_directory_stays_usable_after_chmod(place: Place) -> None:
    (place / "d").mkdir()
    (place / "d" / "f").touch()

    def act() -> str:
        return outcome(lambda: os.stat(place / "d" / "f"))

    assert as_user(ME, act) == "ok"
    (place / "d").chmod(0o700)
    assert as_user(ME, act) == "EACCES"
    (place / "d").chmod(0o755)
    assert as_user(ME, act) == "ok"


def test_only_the_owner_changes_modes(place: Place) -> None:
    path = _file(place, 0o666, uid=SOMEONE, gid=SOMEONE)
    with fails(errno.EPERM):
        as_user(ME, lambda: os.chmod(path, 0o777))
    as_user(SOMEONE, lambda: os.chmod(path, 0o600))
    assert _mode(path) == 0o600


def test_only_root_gives_away_and_owners_change_to_their_groups(place: Place) -> None:
    path = _file(place, 0o644, uid=ME, gid=ME)
    with fails(errno.EPERM):
        as_user(ME, lambda: os.chown(path, SOMEONE, -1))
    with fails(errno.EPERM):
        as_user(ME, lambda: os.chown(path, -1, GROUP))
    as_user(ME, lambda: os.chown(path, ME, GROUP), groups=(GROUP,))
    as_user(ME, lambda: os.chown(path, -1, -1))
    status = path.stat()
    assert (status.st_uid, status.st_gid) == (ME, GROUP)


def test_new_files_belong_to_their_maker(place: Place) -> None:
    place.path.chmod(0o777)

    def act() -> None:
        (place / "file").touch()
        (place / "dir").mkdir()
        (place / "link").symlink_to("x")
        os.mkfifo(place / "fifo")

    as_user(ME, act, gid=GROUP)
    for name in ("file", "dir", "link", "fifo"):
        status = os.lstat(place / name)
        assert (status.st_uid, status.st_gid) == (ME, GROUP), name


def test_setgid_directory_hands_its_group_down(place: Place) -> None:
    parent = place / "p"
    parent.mkdir()
    os.chown(parent, 0, GROUP)
    parent.chmod(0o2777)

    def act() -> None:
        (parent / "file").touch()
        (parent / "dir").mkdir()
        (parent / "link").symlink_to("x")
        os.mkfifo(parent / "fifo")
        (parent / "dir" / "deeper").mkdir()

    as_user(ME, act)
    for name in ("file", "dir", "link", "fifo", "dir/deeper"):
        status = os.lstat(parent / name)
        assert (status.st_uid, status.st_gid) == (ME, GROUP), name
        inherits = name.startswith("dir")
        assert bool(status.st_mode & stat.S_ISGID) == inherits, name


def test_setgid_is_not_for_files_of_a_group_one_is_not_in(place: Place) -> None:
    parent = place / "p"
    parent.mkdir()
    os.chown(parent, 0, GROUP)
    parent.chmod(0o2777)

    def act() -> None:
        os.close(os.open(parent / "f", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.chmod(parent / "f", 0o2775)

    as_user(ME, act)
    assert _mode(parent / "f") == 0o775
    as_user(ME, lambda: os.chmod(parent / "f", 0o2775), groups=(GROUP,))
    assert _mode(parent / "f") == 0o2775


@pytest.mark.parametrize("kind", ["file", "dir", "fifo"])
def test_special_bits_are_kept_by_chmod(place: Place, kind: str) -> None:
    path = place / "x"
    if kind == "dir":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
    for mode in (0o4755, 0o2755, 0o1755, 0o7777, 0o6000, 0o0):
        path.chmod(mode)
        assert _mode(path) == mode


def _write(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    os.close(fd)


def _ftruncate(path: Path) -> None:
    fd = os.open(path, os.O_WRONLY)
    os.ftruncate(fd, 3)
    os.close(fd)


CHANGES: dict[str, Callable[[Path], None]] = {
    "write": _write,
    "truncate": lambda path: os.truncate(path, 2),
    "ftruncate": _ftruncate,
    "open with O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_users_change_clears_setuid_and_setgid(place: Place, change: str) -> None:
    path = _file(place, 0o6777, uid=SOMEONE, gid=GROUP)
    as_user(ME, lambda: CHANGES[change](path))
    assert _mode(path) == 0o777
    path.chmod(0o6777)
    assert _mode(path) == 0o6777
    as_user(SOMEONE, lambda: CHANGES[change](path))  # the owner is no exception
    assert _mode(path) == 0o777


@pytest.mark.parametrize("change", CHANGES)
def test_roots_change_keeps_setuid_and_setgid(place: Place, change: str) -> None:
    path = _file(place, 0o6777, uid=SOMEONE, gid=GROUP)
    CHANGES[change](path)
    assert _mode(path) == 0o6777


@pytest.mark.parametrize("change", CHANGES)
def test_setgid_without_group_execute(place: Place, change: str) -> None:
    path = _file(place, 0o2766, uid=SOMEONE, gid=GROUP)
    as_user(ME, lambda: CHANGES[change](path), groups=(GROUP,))
    assert _mode(path) == 0o2766  # only a mark here, so it stays


@pytest.mark.parametrize(
    ("mode", "after"), [(0o6755, 0o755), (0o4711, 0o711), (0o2755, 0o755), (0o6644, 0o2644)]
)
def test_chown_clears_setuid_and_setgid_of_files(place: Place, mode: int, after: int) -> None:
    path = _file(place, mode, uid=SOMEONE, gid=SOMEONE)
    os.chown(path, ME, GROUP)
    assert _mode(path) == after
    path.chmod(mode)
    as_user(ME, lambda: os.chown(path, -1, GROUP), groups=(GROUP,))
    assert _mode(path) == after


def test_chown_keeps_the_bits_of_directories(place: Place) -> None:
    (place / "d").mkdir()
    (place / "d").chmod(0o6755)
    os.chown(place / "d", ME, GROUP)
    assert _mode(place / "d") == 0o6755


def test_chown_of_a_symlink_itself(place: Place) -> None:
    (place / "t").touch()
    (place / "l").symlink_to("t")
    os.lchown(place / "l", ME, GROUP)
    assert os.lstat(place / "l").st_uid == ME
    assert (place / "t").stat().st_uid == 0
    os.chown(place / "l", SOMEONE, GROUP)
    assert os.lstat(place / "l").st_uid == ME
    assert (place / "t").stat().st_uid == SOMEONE


def test_setuid_program_runs_as_its_owner(place: Place) -> None:
    program = place / "id"
    shutil.copy("/usr/bin/id", program)
    os.chown(program, SOMEONE, 0)
    program.chmod(0o4755)

    def act() -> bytes:
        return subprocess.run([program, "-u"], stdout=subprocess.PIPE, check=True).stdout

    assert as_user(ME, act).strip() == str(SOMEONE).encode()


def test_execution_needs_its_bit_even_for_root(place: Place) -> None:
    program = place / "true"
    shutil.copy("/bin/true", program)
    program.chmod(0o666)
    with fails(errno.EACCES):
        subprocess.run([program], check=True)
    program.chmod(0o711)
    assert as_user(ME, lambda: subprocess.run([program], check=False).returncode) == 0


def test_sticky_directory(place: Place) -> None:
    sticky = place / "tmp"
    sticky.mkdir()
    sticky.chmod(0o1777)
    (sticky / "theirs").touch()
    os.chown(sticky / "theirs", SOMEONE, 0)
    (sticky / "sub").mkdir()
    with fails(errno.EPERM):
        as_user(ME, lambda: os.unlink(sticky / "theirs"))
    with fails(errno.EPERM):
        as_user(ME, lambda: os.rmdir(sticky / "sub"))
    as_user(SOMEONE, lambda: os.unlink(sticky / "theirs"))
    os.chown(sticky, ME, 0)
    as_user(ME, lambda: os.rmdir(sticky / "sub"))
    assert os.listdir(sticky) == []


def test_times_are_for_the_owner_now_is_for_writers(place: Place) -> None:
    path = _file(place, 0o666, uid=SOMEONE)
    with fails(errno.EPERM):
        as_user(ME, lambda: os.utime(path, (1, 1)))
    as_user(ME, lambda: os.utime(path))
    path.chmod(0o644)
    with fails(errno.EACCES):
        as_user(ME, lambda: os.utime(path))
    as_user(SOMEONE, lambda: os.utime(path, (1, 1)))
    assert path.stat().st_mtime == 1
