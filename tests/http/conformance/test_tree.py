"""Cases 70 to 81: what jobs and people do to the tree itself.

The tree is the same whatever serves it, so these run on plain ext4 and on one mount.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from pathlib import Path

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.conformance.acting import shell
from tests.http.faults import resident_bytes
from tests.http.stocknginx import worker_user
from tests.http.targets import Area, Target
from tests.mount.syscalls import fails

pytestmark = pytest.mark.on("reference", "stock", why="the tree is the same whatever serves it")

MEMORY_MAX = 256 << 20
"""Bytes that the daemon may have taken for it, whatever there is to remove."""
WHEN_NS = 1_700_000_000_123_456_789


def test_case_070_what_pre_start_and_bpm_do_at_each_start(target: Target) -> None:
    user = worker_user()
    owner = f"{user.pw_uid}:{user.pw_gid}"
    for _ in range(2):
        shell(f"mkdir -p {target.root} {target.root}/tmp/uploads")
        shell(f"chown {owner} {target.root} {target.root}/tmp {target.root}/tmp/uploads")
        shell(f"chmod 0700 {target.root}")
        found = target.root.stat()
        assert (found.st_uid, found.st_gid) == (user.pw_uid, user.pw_gid)
        assert stat.S_IMODE(found.st_mode) == 0o700


def test_case_071_everything_belongs_to_one_user(area: Area) -> None:
    area.put()
    area.put("other/blob")
    area.copy("other/blob", "other/copy")
    user = worker_user()
    wrong = f"-not -uid {user.pw_uid} -or -not -gid {user.pw_gid}"
    assert shell(f"find {area.directory} {wrong}") == ""


def test_case_072_073_hard_linked_snapshot(area: Area) -> None:
    data = os.urandom(200_000)
    for key in ("cc/ab/cd/one", "cc/ab/cd/two", "cc/ef/three"):
        area.put(key, data)
    snap = area.file(".snap")
    shell(f"mkdir {snap} && cp --recursive --link {area.file('cc')} {snap}/")
    for key in ("cc/ab/cd/one", "cc/ab/cd/two", "cc/ef/three"):
        one, two = area.file(key).stat(), (snap / key).stat()
        assert (one.st_ino, one.st_nlink) == (two.st_ino, 2)
    area.put("cc/ab/cd/one", b"replaced")
    assert area.http.request("DELETE", area.url("cc/ab/cd/two")).status == 204
    assert area.http.request("DELETE", area.url("cc/ef/")).status == 204
    for key in ("cc/ab/cd/one", "cc/ab/cd/two", "cc/ef/three"):
        assert (snap / key).read_bytes() == data
        assert (snap / key).stat().st_nlink == 1
    assert area.file("cc/ab/cd/one").read_bytes() == b"replaced"


def test_case_074_no_link_to_another_mount(area: Area, tmp_path: Path) -> None:
    area.put()
    away = Path("/dev/shm") / f"cafs-link-{os.getpid()}"
    with fails(errno.EXDEV):
        os.link(area.file(), away)
    assert not away.exists()
    (tmp_path / "outside").touch()
    if area.target.is_cafs:
        with fails(errno.EXDEV):
            os.link(tmp_path / "outside", area.file("inside"))


def test_case_075_backup_and_restore(area: Area, tmp_path: Path) -> None:
    """BBR's scripts for this store, with the artifact below the same mount."""
    contents = {f"{n:02x}/cd/{n:02x}cd-{n}": os.urandom(n * 1000) for n in range(1, 8)}
    contents["buildpack_cache/ab/cd/guid/stack"] = b"not in the backup"
    for key, data in contents.items():
        area.put(f"cc-droplets/{key}", data, mtime=1_600_000_000 + len(data))
    root, artifact = area.directory, area.file(".bbr")
    before = {key: area.http.request("HEAD", area.url(f"cc-droplets/{key}")) for key in contents}
    shell(
        f"""
        mkdir -p {artifact}/shared
        cp --recursive --link {root}/cc-droplets {artifact}/shared
        rm -rf {artifact}/shared/cc-droplets/buildpack_cache
        """
    )
    for key in list(contents)[:3]:
        area.http.request("DELETE", area.url(f"cc-droplets/{key}"))
    area.put(f"cc-droplets/{list(contents)[4]}", b"written after the backup")
    # What bbr makes of the artifact: its size, a tar of it, checksums of what it holds.
    sums, tar = tmp_path / "sums", tmp_path / "artifact.tar"
    shell(
        f"""
        du -sh {artifact}; du -s {artifact}
        (cd {artifact}; find . -type f | xargs shasum -a 256 > {sums})
        tar -C {artifact} -c . > {tar}
        rm -rf {artifact}
        mkdir -p {artifact}
        tar -C {artifact} -x -f {tar}
        cd {artifact}
        shasum -a 256 --check --status {sums}
        """
    )
    user = worker_user()
    shell(
        f"""
        rm -rf {root}/cc-droplets
        cp --recursive --link {artifact}/shared/cc-droplets {root}
        chown -R {user.pw_uid}:{user.pw_gid} {root}
        rm -rf {artifact}
        """
    )
    for key, data in contents.items():
        reply = area.http.request("GET", area.url(f"cc-droplets/{key}"))
        if key.startswith("buildpack_cache"):
            assert reply.status == 404
            continue
        assert reply.body == data
        for name in ("ETag", "Last-Modified", "Content-Length"):
            assert reply[name] == before[key][name]
        found = area.file(f"cc-droplets/{key}").stat()
        assert (stat.S_IMODE(found.st_mode), found.st_uid) == (0o600, user.pw_uid)
    assert area.http.request("PUT", area.url("cc-droplets/new"), b"x").status == 201
    assert area.http.request("DELETE", area.url("cc-droplets/")).status == 204


def test_case_076_restore_by_copying(area: Area) -> None:
    for number in range(5):
        area.put(f"cc/{number}/blob", b"x" * number)
    tags = [area.http.request("HEAD", area.url(f"cc/{n}/blob"))["ETag"] for n in range(5)]
    user = worker_user()
    shell(
        f"""
        cp --recursive --preserve=timestamps {area.file("cc")} {area.file("saved")}
        rm -rf {area.file("cc")}
        cp --recursive --preserve=timestamps {area.file("saved")} {area.file("cc")}
        """
    )
    assert area.http.request("HEAD", area.url("cc/1/blob")).status in (200, 403)
    shell(f"chown -R {user.pw_uid}:{user.pw_gid} {area.directory}")
    for number in range(5):
        reply = area.http.request("HEAD", area.url(f"cc/{number}/blob"))
        assert (reply.status, reply["ETag"]) == (200, tags[number])
        assert area.http.request("PUT", area.url(f"cc/{number}/more"), b"x").status == 201
    assert area.http.request("DELETE", area.url("cc/")).status == 204


def test_case_077_tar_and_checksums(area: Area, tmp_path: Path) -> None:
    sums = set()
    for number in range(6):
        data = os.urandom(number * 40_000)
        area.put(f"ab/{number}", data, mtime=1_600_000_000 + number)
        sums.add(f"{hashlib.sha256(data).hexdigest()}  ./ab/{number}")
    with open(area.file("sparse"), "wb") as sparse:
        sparse.truncate(1_000_000)
        sparse.seek(500_000)
        sparse.write(b"island")
    shell(f"(tar -C {area.directory} --xattrs --sparse -cf - .) | (tar -C {tmp_path} -xpf -)")
    printed = shell(
        f"cd {tmp_path} && find . -path ./sparse -prune -o -type f -print | xargs shasum -a 256"
    )
    assert set(printed.splitlines()) == sums
    assert (tmp_path / "sparse").read_bytes() == area.file("sparse").read_bytes()
    for number in range(6):
        assert (tmp_path / f"ab/{number}").stat().st_mtime == 1_600_000_000 + number


def test_case_078_du(area: Area) -> None:
    area.put("ab/one", os.urandom(1_000_000))
    area.put("ab/two", os.urandom(500_000))
    os.link(area.file("ab/one"), area.file("ab/link"))
    apparent = int(shell(f"du --apparent-size -s -B1 {area.directory}").split()[0])
    assert 1_500_000 <= apparent < 1_600_000
    disk = int(shell(f"du -s -B1 {area.directory}").split()[0])
    assert disk < 2_000_000
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            area.file(f"ab/{number % 50}").write_bytes(b"x")
            area.file(f"ab/{(number * 7) % 50}").unlink(missing_ok=True)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(5):
            done = shell(f"du -s {area.directory} 2>&1 || true")
            assert "Input/output" not in done
    finally:
        stop.set()
        thread.join()


def test_case_079_df(target: Target) -> None:
    found = os.statvfs(target.root)
    assert found.f_blocks >= found.f_bfree >= found.f_bavail > 0
    _, size, used, free = (
        int(x) if x.isdigit() else 0
        for x in shell(f"df -B1 --output=source,size,used,avail {target.root}")
        .splitlines()[1]
        .split()
    )
    assert size >= used + free
    assert shell(f"df -i {target.root}")


MILLION = pytest.param(1_000_000, marks=[pytest.mark.slow, pytest.mark.timeout(4 * 3600)])
HOURS_S = 3600.0


@pytest.mark.parametrize("count", [800, MILLION])
def test_case_080_rm_of_many_files(area: Area, count: int) -> None:
    """All goes without an error, in bounded memory, and gives its space back."""
    mount = area.target.store_mount
    top = area.file("cc-resources")
    top.mkdir(parents=True)
    if mount:
        # What tests before this one have removed is not to go meanwhile.
        mount.run("sweep", str(mount.store))
    before = area.target.stored_bytes() if mount else 0
    memory = resident_bytes(mount.pid) if mount else 0
    for number in range(count):
        directory = top / f"{number % 64:02x}"
        if number < 64:
            directory.mkdir(parents=True)
        # Some have content of their own, for there to be space that can come back.
        (directory / str(number)).write_bytes(os.urandom(4096) if number % 64 == 0 else b"")
    if mount:
        least = before + count // 64 * 4000
        wait_until("all content is stored", lambda: area.target.stored_bytes() > least, 60)
    shell(f"rm -rf {top}/*", HOURS_S)
    assert os.listdir(top) == []
    if mount is None:
        return
    assert resident_bytes(mount.pid) < memory + MEMORY_MAX
    wait_until("the chunks are gone", lambda: area.target.stored_bytes() <= before, 600)
    mount.run("compact", str(mount.store), "--grace", "0s")
    packs = sum(each.stat().st_size for each in (mount.store / "packs").glob("*.pack"))
    assert packs <= 1.06 * before + 65_536


@pytest.mark.parametrize("count", [500, MILLION])
def test_case_081_empty_directories_go_while_puts_go_on(area: Area, count: int) -> None:
    area.put("keep/blob")
    stop = threading.Event()
    statuses: list[int] = []

    def put() -> None:
        with area.target.admin() as http:
            while not stop.is_set():
                key = area.url(f"{len(statuses) % 5:02x}/cd/{len(statuses)}")
                statuses.append(http.request("PUT", key, b"x").status)

    thread = threading.Thread(target=put)
    thread.start()
    try:
        for round_ in range(5):
            for number in range(count // 5):
                area.file(f"empty{round_}/{number % 10}/{number}").mkdir(parents=True)
            shell(f"find {area.directory} -type d -empty -delete 2>/dev/null || true", HOURS_S)
    finally:
        stop.set()
        thread.join()
    # A PUT whose new directory goes before the blob is in it may fail; it does not hang.
    assert set(statuses) <= {201, 500}
    for number, status in enumerate(statuses):
        assert area.file(f"{number % 5:02x}/cd/{number}").exists() == (status == 201)
    # What find(1) removed was made again by the PUTs that followed.
    assert statuses.count(201) > len(statuses) // 2
    assert not list(area.directory.glob("empty*"))
    assert area.file("keep/blob").exists()


def test_case_081_parents_are_made_again(area: Area) -> None:
    """Without luck: each PUT comes when find(1) has just taken the directories of the last."""
    for number in range(5):
        key = f"ab/cd/{number}"
        assert area.http.request("PUT", area.url(key), b"x").status == 201
        area.file(key).unlink()
        shell(f"find {area.directory} -type d -empty -delete")
        assert not area.file("ab").exists()
    assert area.http.request("PUT", area.url("ab/cd/last"), b"x").status == 201
    assert area.file("ab/cd/last").read_bytes() == b"x"
