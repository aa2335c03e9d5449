"""Cases 82 to 91: single files and directories, as root and as nginx's own user.

The tree is the same whatever serves it, so these run on plain ext4 and on one mount.
"""

from __future__ import annotations

import errno
import mmap
import os
import stat
import threading

import pytest

from tests.http.conformance.acting import As
from tests.http.stocknginx import worker_user
from tests.http.targets import Area
from tests.mount.syscalls import as_user, fails

pytestmark = pytest.mark.on("reference", "stock", why="the tree is the same whatever serves it")

WHEN_NS = 1_700_000_000_123_456_789


@pytest.fixture(params=["root", "vcap"])
def as_them(request: pytest.FixtureRequest) -> As:
    """Runs a call as root or as the user that nginx's workers have."""
    if request.param == "root":
        return lambda call: call()
    user = worker_user()
    return lambda call: as_user(user.pw_uid, call, gid=user.pw_gid)


def test_case_082_unlinked_while_open(area: Area, as_them: As) -> None:
    area.put(data=b"content")
    file = area.file()

    def calls() -> None:
        fd = os.open(file, os.O_RDONLY)
        os.unlink(file)
        assert os.read(fd, 100) == b"content"
        assert (os.fstat(fd).st_nlink, os.fstat(fd).st_size) == (0, 7)
        os.close(fd)

    as_them(calls)
    assert area.http.request("HEAD", area.url()).status == 404


def test_case_083_renames(area: Area, as_them: As) -> None:
    area.put("dir/child/blob", b"one")
    area.put("empty/x")
    area.file("empty/x").unlink()
    area.put("new", b"two")
    at = area.file

    def calls() -> None:
        fd = os.open(at("dir/child/blob"), os.O_RDONLY)
        os.rename(at("new"), at("dir/child/blob"))
        assert os.read(fd, 10) == b"one"
        os.close(fd)
        with fails(errno.EINVAL):
            os.rename(at("dir"), at("dir/child/below"))
        with fails(errno.ENOTEMPTY, errno.EEXIST):
            os.rename(at("empty"), at("dir"))
        os.rename(at("dir"), at("empty"))

    as_them(calls)
    assert area.http.request("GET", area.url("empty/child/blob")).body == b"two"
    assert area.http.request("GET", area.url("dir/child/blob")).status == 404


def test_case_084_truncated_while_open(area: Area, as_them: As) -> None:
    old = os.urandom(300_000)
    area.put(data=old)
    os.link(area.file(), area.file("link"))
    file = area.file()

    def calls() -> bytes:
        reader = os.open(file, os.O_RDONLY)
        first = os.read(reader, 1000)
        writer = os.open(file, os.O_WRONLY | os.O_TRUNC)
        os.write(writer, b"new content")
        os.close(writer)
        rest = os.read(reader, 1_000_000)
        os.close(reader)
        return first + rest

    got: bytes = as_them(calls)
    assert got == old[:1000]
    assert area.file("link").read_bytes() == b"new content"


def test_case_085_times(area: Area, as_them: As) -> None:
    area.put()
    file = area.file()
    as_them(lambda: os.utime(file, ns=(WHEN_NS, WHEN_NS)))
    assert file.stat().st_mtime_ns == WHEN_NS
    changed = file.stat().st_ctime_ns
    assert area.http.request("GET", area.url()).status == 200
    assert file.stat().st_ctime_ns == changed
    as_them(lambda: os.utime(file, (1_000_000_000, 1_000_000_000)))
    assert file.stat().st_mtime_ns == 10**18
    if area.target.is_cafs:
        os.utime(file, ns=(WHEN_NS, WHEN_NS))
        changed = file.stat().st_ctime_ns
        area.http.close()
        area.target.restart()
        assert (file.stat().st_mtime_ns, file.stat().st_ctime_ns) == (WHEN_NS, changed)


def test_case_086_errors(area: Area, as_them: As) -> None:
    area.put("dir/blob")
    at = area.file

    def calls() -> None:
        os.close(os.open(at("dir/new"), os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        with fails(errno.EEXIST):
            os.open(at("dir/new"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        with fails(errno.EEXIST):
            os.mkdir(at("dir"))
        with fails(errno.ENOTEMPTY):
            os.rmdir(at("dir"))
        with fails(errno.ENAMETOOLONG):
            os.mkdir(at("x" * 256))
        with fails(errno.ENOTDIR):
            os.open(at("dir/blob/x"), os.O_RDONLY)

    as_them(calls)


def test_case_087_listing_while_it_changes(area: Area, as_them: As) -> None:
    area.put("dir/first")
    directory = area.file("dir")
    steady = {f"steady{number}" for number in range(500)}
    for name in steady:
        (directory / name).touch()
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            (directory / f"churn{number % 300}").touch()
            (directory / f"churn{(number * 7) % 300}").unlink(missing_ok=True)

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(10):
            names = as_them(lambda: [entry.name for entry in os.scandir(directory)])
            kept = [name for name in names if name.startswith("steady")]
            assert len(kept) == len(steady) and set(kept) == steady
    finally:
        stop.set()
        thread.join()


def test_case_088_symbolic_links(area: Area, as_them: As) -> None:
    area.put("dir/blob")
    at = area.file

    def calls() -> None:
        os.symlink("dir/blob", at("dir/../link"))
        assert at("link").read_bytes() == b"content"
        assert stat.S_ISLNK(os.lstat(at("link")).st_mode)
        os.unlink(at("link"))
        os.symlink("dir", at("link"))

    as_them(calls)
    assert area.http.request("DELETE", area.url("link")).status == 204
    assert area.http.request("GET", area.url("dir/blob")).body == b"content"


def test_case_089_modes(area: Area) -> None:
    area.put("one")
    user, file = worker_user(), area.file("one")
    for mode in (0o400, 0o444):
        file.chmod(mode)
        assert stat.S_IMODE(file.stat().st_mode) == mode
        with fails(errno.EACCES):
            as_user(user.pw_uid, lambda: os.open(file, os.O_WRONLY | os.O_TRUNC), gid=user.pw_gid)
        os.close(os.open(file, os.O_WRONLY))
        # Over HTTP a blob is replaced, and not written to.
        assert area.http.request("PUT", area.url("one"), b"replaced").status == 204
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_case_090_writes_of_every_kind(area: Area, as_them: As) -> None:
    area.put("first")
    model = bytearray(os.urandom(400_000))
    data, file = bytes(model), area.file("written")

    def calls() -> None:
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        for at in range(0, len(data), 65_536):
            os.write(fd, data[at : at + 65_536])
        for at in (350_000, 5, 123_456):
            os.pwrite(fd, b"patched", at)
        os.ftruncate(fd, 300_000)
        os.ftruncate(fd, 310_000)
        os.close(fd)
        fd = os.open(file, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"appended")
        os.close(fd)

    as_them(calls)
    for at in (350_000, 5, 123_456):
        model[at : at + 7] = b"patched"
    expected = bytes(model[:300_000]) + bytes(10_000) + b"appended"
    assert file.read_bytes() == expected
    os.chown(file, worker_user().pw_uid, worker_user().pw_gid)
    assert area.http.request("GET", area.url("written")).body == expected


def test_case_091_ways_to_read(area: Area, as_them: As) -> None:
    data = os.urandom(500_000)
    area.put(data=data)
    file, copy = area.file(), area.file("copy")

    def calls() -> None:
        fd = os.open(file, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
            assert mapped[:] == data
        reader, writer = os.pipe()
        assert os.splice(fd, writer, 4096, offset_src=1000) == 4096
        assert os.read(reader, 5000) == data[1000:5096]
        os.close(reader)
        os.close(writer)
        out = os.open(copy, os.O_RDWR | os.O_CREAT, 0o600)
        sent = 0
        while sent < 200_000:
            sent += os.sendfile(out, fd, sent, 200_000 - sent)
        try:
            while sent < len(data):
                sent += os.copy_file_range(fd, out, len(data) - sent, sent, sent)
        except OSError as error:
            assert error.errno in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP)
            os.pwrite(out, data[sent:], sent)
        os.close(out)
        os.close(fd)

    as_them(calls)
    assert copy.read_bytes() == data
