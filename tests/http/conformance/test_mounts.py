"""Cases 92 to 94: mounts over, under and beside the store's own."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from pathlib import Path

import pytest

from tests.fault.smalldisk import wait_until
from tests.http.targets import CAFS, Area
from tests.mount.mounted import Mount
from tests.mount.syscalls import fails

_libc = ctypes.CDLL(None, use_errno=True)


def umount(path: Path) -> None:
    if _libc.umount2(os.fsencode(path), 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(path))


@pytest.mark.on("stock", why="it is nginx that has a file open in the mount")
def test_case_092_busy_while_nginx_has_a_file(area: Area) -> None:
    area.put(data=os.urandom(6 << 20))
    with area.target.admin() as reader:
        reader.begin("GET", area.url())
        response = reader.answer()
        response.read(1000)
        with fails(errno.EBUSY):
            umount(area.target.root)
        reader.socket.close()
        reader.close()
    area.target.restart()  # stops nginx, unmounts, and both come back
    assert len(area.http.request("GET", area.url()).body) == 6 << 20


def test_case_093_mounted_over_what_lies_there() -> None:
    mount = Mount()
    mount.announce("not empty")
    try:
        (mount.root / "cc-packages").mkdir()
        (mount.root / "cc-packages" / "below").touch()
        mount.start()
        assert os.listdir(mount.root) == []
        assert "cc-packages" in mount.log.read_text()
        mount.unmount()
        assert os.listdir(mount.root / "cc-packages") == ["below"]
        assert not mount.unexpected_log_lines()
    finally:
        mount.close()


@pytest.mark.on(*CAFS, why="it is about the mount")
def test_case_094_the_bind_mount_of_bpm(area: Area, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root makes bind mounts")
    area.put("seen", b"from outside")
    script = f"""
        set -e
        mount --rbind {area.target.root} {tmp_path}
        mount --make-rprivate {tmp_path}
        mount -o remount,bind,nodev,nosuid,noexec {tmp_path}
        cd {tmp_path}/{area.name}
        test "$(cat seen)" = "from outside"
        echo -n "from inside" > written
        read line   # until a file was made outside
        test "$(cat later)" = "made later"
        cp seen runs && chmod 755 runs && ! ./runs 2>/dev/null
        rm seen
    """
    inside = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        # The other namespace tells nobody how far it is.
        wait_until(
            "it is written inside",
            lambda: area.file("written").exists() and area.file("written").stat().st_size == 11,
        )
        assert area.file("written").read_bytes() == b"from inside"
        area.put("later", b"made later")
        _, said = inside.communicate(b"go on\n", timeout=30)
        assert inside.returncode == 0, said
    finally:
        inside.kill()
        inside.communicate()
    assert area.http.request("HEAD", area.url("seen")).status == 404
