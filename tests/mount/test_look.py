"""Looking inside: the same answers with a daemon and without one, and the right ones.

The oracle is the mounted tree itself, read by the kernel: os.walk, os.lstat and hashlib.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cafs.cli import looking
from cafs.cli.main import main
from cafs.operate.paths import directories, paths_of_inodes
from cafs.types import Ino
from cafs.view import View
from tests.mount.mounted import COMMAND, ROOT, Mount

BIG = 3_000_000
ODD = b"odd \xff\nname"


class Done(NamedTuple):
    """One command that ended."""

    code: int
    out: bytes
    err: bytes

    @property
    def document(self) -> Any:
        """The one JSON document of its output."""
        return json.loads(self.out)

    @property
    def documents(self) -> list[Any]:
        """One JSON document a line."""
        return [json.loads(line) for line in self.out.splitlines()]


def cafs(*arguments: object, cwd: Path | None = None) -> Done:
    """Run a command in this process: starting Python takes longer than most of them."""
    out, err = io.BytesIO(), io.BytesIO()
    with (
        contextlib.chdir(cwd or "/"),
        contextlib.redirect_stdout(io.TextIOWrapper(out, "utf-8")) as stdout,
        contextlib.redirect_stderr(io.TextIOWrapper(err, "utf-8")) as stderr,
    ):
        code = main([str(argument) for argument in arguments])
        stdout.flush()
        stderr.flush()
        return Done(code, out.getvalue(), err.getvalue())


def same_beginning() -> tuple[bytes, bytes]:
    """Two contents whose SHA-256 begin with the same four digits."""
    seen: dict[str, bytes] = {}
    for number in itertools.count():
        content = b"content %d" % number
        other = seen.setdefault(hashlib.sha256(content).hexdigest()[:4], content)
        if other != content:
            return other, content
    raise AssertionError("without end")


def build(root: Path) -> None:
    """Two trees that share content in every way there is."""
    rng = random.Random(3)
    big = rng.randbytes(BIG)
    for name in ("one/deep/er", "two", "empty"):
        (root / name).mkdir(parents=True)
    (root / "one" / "big").write_bytes(big)
    (root / "two" / "copy of big").write_bytes(big)
    # Most chunks of it are those of the other two, and it is another blob.
    (root / "two" / "longer").write_bytes(big + rng.randbytes(500_000))
    (root / "one" / "own").write_bytes(rng.randbytes(700_000))
    (root / "one" / "text").write_bytes(b"the same line again\n" * 20_000)
    (root / "one" / "short").write_bytes(b"short")
    (root / "one" / "nothing").touch()
    os.link(root / "one" / "own", root / "two" / "name of own")
    os.link(root / "one" / "text", root / "one" / "deep" / "er" / "text too")
    (root / "one" / "link").symlink_to("deep/er")
    (root / "one" / "out").symlink_to("/etc")
    (root / "two" / "over").symlink_to("../one/link")
    (root / "one" / os.fsdecode(ODD)).write_bytes(b"odd")
    os.mkfifo(root / "fifo")
    with (root / "two" / "sparse").open("wb") as stream:
        stream.seek(5_000_000)
        stream.write(b"end")
    first, second = same_beginning()
    (root / "empty" / "first").write_bytes(first)
    (root / "empty" / "second").write_bytes(second)
    os.setxattr(root / "one" / "short", "user.key", b"value")
    os.utime(root / "one" / "short", (1000, 1000))


class Both(NamedTuple):
    """The mount that is looked at, and what the questions answered while it was mounted."""

    mount: Mount
    online: dict[str, Done]


def hashed(mount: Mount) -> bool:
    """Whether every blob has its digests by now."""
    store = str(mount.store)
    long = cafs("ls", "-l", "-R", store, "--json").documents
    files = [each for each in long if each["type"] == "regular file" and each["size_bytes"]]
    return all(each["sha256"] for each in files)


def stored(mount: Mount, path: Path, content: bytes) -> str:
    """Write a file and return its SHA-256 once the store knows it.

    The kernel tells the daemon of the last close behind the writer's back.
    """
    path.write_bytes(content)
    sha = hashlib.sha256(content).hexdigest()
    until = time.monotonic() + 30
    while cafs("blob", sha, "--store", mount.store).code:
        assert time.monotonic() < until
    return sha


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def questions(mount: Mount, big: str) -> dict[str, list[object]]:
    """Everything that can be asked, by what it is called in the tests."""
    store = mount.store
    return {
        "blob": ["blob", big[:12], "--store", store, "--chunks", "--json"],
        "verify": ["blob", big, "--store", store, "--verify", "--json"],
        "cat": ["blob", big[:30], "--store", store, "--cat"],
        "stat": ["stat", "--store", store, "/one/big", "/one/link", "/fifo", "/", "--json"],
        "ls": ["ls", store, "/one", "--json"],
        "ls -lR": ["ls", "-l", "-R", store, "--json"],
        "plain ls -lR": ["ls", "-l", "-R", store],
        "du": ["du", store, "/one", "/two", "/empty", "--json"],
        "plain du": ["du", store, "--each"],
        "find": ["find", store, "--json"],
        "find -0": ["find", store, "-0"],
    }


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    mount = Mount()
    try:
        mount.start()
        build(mount.root)
        # Content written with holes gets its digests behind everything else.
        until = time.monotonic() + 30
        while not hashed(mount):
            assert time.monotonic() < until
        asked = questions(mount, digest(mount.root / "one" / "big"))
        online = {name: cafs(*arguments) for name, arguments in asked.items()}
        yield Both(mount, online)
        assert not mount.unexpected_log_lines()
    finally:
        mount.close()


@pytest.fixture(scope="module")
def mount(both: Both) -> Mount:
    return both.mount


def test_the_same_answers_without_a_daemon(both: Both) -> None:
    mount = both.mount
    asked = questions(mount, digest(mount.root / "one" / "big"))
    mount.unmount()
    try:
        for name, arguments in asked.items():
            offline = cafs(*arguments)
            assert (offline.code, offline.err) == (0, b""), name
            assert offline == both.online[name]
    finally:
        mount.start()


def test_blob(both: Both) -> None:
    root = both.mount.root
    found = both.online["blob"].document
    content = (root / "one" / "big").read_bytes()
    assert found["sha256"] == hashlib.sha256(content).hexdigest()
    assert found["sha1"] == hashlib.sha1(content).hexdigest()
    assert found["size_bytes"] == BIG
    assert found["files_count"] == 2
    assert found["paths"] == [{"path": "/one/big"}, {"path": "/two/copy of big"}]
    # Its chunks make it whole, and each has the digest of its own bytes.
    at = 0
    for chunk in found["chunks"]:
        assert chunk["at_bytes"] == at
        piece = content[at : at + chunk["raw_bytes"]]
        assert hashlib.sha256(piece).hexdigest() == chunk["sha256"]
        with (both.mount.store / "packs" / f"{chunk['pack']}.pack").open("rb") as pack:
            pack.seek(chunk["offset_bytes"])
            stored = pack.read(chunk["stored_bytes"])
        assert chunk["codec"] != "raw" or stored == piece
        at += chunk["raw_bytes"]
    assert at == BIG
    assert found["chunks_count"] == len(found["chunks"])
    # All but the last chunk or so are in the longer file, which is one other blob.
    assert found["sharing_blobs_count"] == 1
    assert 0 < BIG - found["shared_bytes"] < 300_000
    assert found["shared_chunks_count"] >= found["chunks_count"] - 2


def test_a_blob_is_found_by_each_of_its_names(mount: Mount) -> None:
    content = (mount.root / "one" / "own").read_bytes()
    sha256, sha1 = hashlib.sha256(content).hexdigest(), hashlib.sha1(content).hexdigest()
    for text in (sha256, sha256[:9].upper(), sha256[:17], sha1, sha1[:10], f"sha1:{sha1[:21]}"):
        found = cafs("blob", text, "--store", mount.root, "--json").document
        assert found["sha256"] == sha256
        # Two names of one file are two paths.
        assert [each["path"] for each in found["paths"]] == ["/one/own", "/two/name of own"]
        assert found["files_count"] == 1


def test_a_prefix_of_two_blobs_is_refused(mount: Mount) -> None:
    one, two = (digest(mount.root / "empty" / name) for name in ("first", "second"))
    done = cafs("blob", one[:4], "--store", mount.store)
    assert done.code == 2
    assert one.encode() in done.err and two.encode() in done.err
    assert b"give more digits" in done.err
    assert cafs("blob", one[:16], "--store", mount.store).code == 0
    hits = cafs("find", mount.store, "--sha", one[:4], "--name", "*[dt]").out.splitlines()
    assert hits == [b"/empty/first", b"/empty/second"]


def test_no_such_blob(mount: Mount) -> None:
    done = cafs("blob", "0" * 40, "--store", mount.store, "--json")
    assert done.code == 3
    assert done.document["error"] == "NotFoundError"


def test_cat_and_verify(both: Both) -> None:
    content = (both.mount.root / "one" / "big").read_bytes()
    assert both.online["cat"].out == content
    assert both.online["verify"].document["verify"] == {
        "ok": True,
        "read_bytes": BIG,
        "damages": [],
    }
    sparse = both.mount.root / "two" / "sparse"
    done = cafs("blob", digest(sparse)[:12], "--store", both.mount.store, "--cat")
    assert done.out == sparse.read_bytes()


def test_stat_says_what_the_kernel_says(mount: Mount) -> None:
    seen = 0
    for directory, names, files in os.walk(os.fsencode(mount.root)):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            found = cafs("stat", os.fsdecode(path), "--json").document
            assert found["inode"] == status.st_ino
            assert int(found["mode"], 8) == stat.S_IMODE(status.st_mode)
            assert (found["uid"], found["gid"]) == (status.st_uid, status.st_gid)
            assert found["nlink_count"] == status.st_nlink
            assert found["size_bytes"] == status.st_size
            assert found["mtime_ns"] == status.st_mtime_ns
            assert found["ctime_ns"] == status.st_ctime_ns
            if stat.S_ISLNK(status.st_mode):
                assert found["target"] == os.readlink(os.fsdecode(path))
            if stat.S_ISREG(status.st_mode) and status.st_size:
                content = Path(os.fsdecode(path)).read_bytes()
                assert found["content"]["sha256"] == hashlib.sha256(content).hexdigest()
                assert found["content"]["sha1"] == hashlib.sha1(content).hexdigest()
            seen += 1
    assert seen > 15


def test_stat_for_people(mount: Mount) -> None:
    text = cafs("stat", mount.root / "one" / "short").out.decode()
    assert "5 B" in text
    assert "user.key" in text
    assert digest(mount.root / "one" / "short") in text
    assert "parts     1 literal (5 B)" in text
    assert "directory of 2 names" in cafs("stat", mount.root / "empty").out.decode()
    assert "regular file, empty" in cafs("stat", mount.root / "one" / "nothing").out.decode()


def test_what_is_being_written_has_no_digest_yet(mount: Mount) -> None:
    path = mount.root / "growing"
    with path.open("wb", buffering=0) as stream:
        # Not from its start to its end, or it would have a digest at any time.
        os.pwrite(stream.fileno(), b"x" * 100_000, 200_000)
        os.pwrite(stream.fileno(), b"y" * 200_000, 0)
        found = cafs("stat", path, "--json").document
        assert found["size_bytes"] == 300_000
        assert found["content"]["sha256"] is None
        assert "still being written" in cafs("stat", path).out.decode()
        assert " not yet " in cafs("ls", "-l", path).out.decode()
    path.unlink()


def test_links_on_the_way_are_followed_within_the_store(mount: Mount) -> None:
    store = mount.store
    found = cafs("stat", "--store", store, "/two/over/./text too", "--json").document
    assert found["inode"] == (mount.root / "one" / "text").stat().st_ino
    outside = cafs("stat", "--store", store, "/one/out/passwd")
    assert outside.code == 3
    assert b"leads to /etc" in outside.err
    assert cafs("stat", "--store", store, "/one/short/x").code == 3
    assert cafs("stat", "--store", store, "/" + "n" * 300).code == 3
    missing = cafs("stat", mount.root / "nope")
    assert missing.err.startswith(f"cafs: {mount.root}/nope: no such file".encode())


def test_ls(both: Both) -> None:
    one = both.mount.root / "one"
    names = sorted(os.listdir(os.fsencode(one)))
    assert cafs("ls", one).out == b"".join(name + b"\n" for name in names)
    assert cafs("ls", cwd=one).out == cafs("ls", one).out
    as_a_process = subprocess.run(
        [*COMMAND, "ls", one], env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True
    )
    assert as_a_process.stdout == cafs("ls", one).out
    odd = next(each for each in both.online["ls"].documents if "path_b64" in each)
    assert odd["path"] == "/one/odd \ufffd\nname"
    long = cafs("ls", "-l", one).out.decode(errors="surrogateescape")
    assert f"{digest(one / 'own')[:12]} own\n" in long
    assert "link -> deep/er\n" in long


def test_find_meets_everything_once(both: Both) -> None:
    root = os.fsencode(both.mount.root)
    expected = [b"/"]
    for directory, names, files in os.walk(root):
        below = directory[len(root) :]
        expected += [below + b"/" + name for name in [*names, *files]]
    found = both.online["find -0"].out.split(b"\0")
    assert found.pop() == b""
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (["--larger", "2MB"], ["one/big", "two/copy of big", "two/longer", "two/sparse"]),
        (["--larger", "3000000B", "--smaller", "4MB"], ["two/longer"]),
        (["--smaller", "1B"], ["one/nothing"]),
        (["--type", "l"], ["one/link", "one/out", "two/over"]),
        (["--type", "l", "--type", "p"], ["fifo", "one/link", "one/out", "two/over"]),
        (["--type", "d", "--name", "e*"], ["empty", "one/deep/er"]),
        (["--older", "2d"], ["one/short"]),
        (["--older", "2d", "--type", "d"], []),
        (["--name", "*OWN"], []),
        (["--name", "*own", "--newer", "1d"], ["one/own", "two/name of own"]),
        (["--sha", "0000000000"], []),
    ],
)
def test_find_conditions(mount: Mount, conditions: list[str], expected: list[str]) -> None:
    done = cafs("find", mount.root, *conditions)
    assert done.code == 0
    assert done.out.decode().splitlines() == [f"{mount.root}/{name}" for name in expected]


def test_find_by_content(mount: Mount) -> None:
    sha = digest(mount.root / "one" / "big")
    done = cafs("find", "--sha", sha[:20], cwd=mount.root / "two")
    assert done.out == b"./copy of big\n"
    assert cafs("find", mount.store, "--sha", sha, "--type", "d").out == b""


@pytest.mark.parametrize("flag", ["--larger", "--older"])
def test_a_figure_without_a_unit_is_refused(mount: Mount, flag: str) -> None:
    done = cafs("find", mount.store, flag, "5")
    assert done.code == 2
    assert f"{flag}: '5' has no unit".encode() in done.err


def test_every_directory_leads_back_to_its_path(mount: Mount) -> None:
    expected: dict[Ino, list[bytes]] = {}
    root = os.fsencode(mount.root)
    for directory, names, files in os.walk(root):
        for name in [*names, *files]:
            path = os.path.join(directory, name)
            expected.setdefault(Ino(os.lstat(path).st_ino), []).append(path[len(root) :])
    with View(mount.store) as view:
        found = paths_of_inodes(view, list(expected))
        assert {ino: sorted(paths) for ino, paths in expected.items()} == found
        deep = Ino((mount.root / "one/deep/er").stat().st_ino)
        assert directories(view, [deep])[deep] == b"/one/deep/er"


def test_du_adds_up(both: Both) -> None:
    root = both.mount.root
    one, two, empty, total = both.online["du"].document["paths"]
    files = [path for path in root.rglob("*") if path.is_file() and not path.is_symlink()]
    each_once = {path.stat().st_ino: path.stat().st_size for path in files}
    assert total["path"] is None
    assert total["logical_bytes"] == sum(each_once.values())
    assert total["files_count"] == len(each_once)
    assert total["shared_bytes"] == 0
    assert total["freed_bytes"] == total["stored_bytes"]
    # The big one is in both, and so is the file with a name in both.
    for part in (one, two):
        assert part["unique_bytes"] > part["shared_bytes"] > BIG
    # Names below /one lead to its text twice, which is one file.
    names = {path.stat().st_ino for path in (root / "one").rglob("*") if path in files}
    assert one["files_count"] == len(names)
    assert empty["stored_bytes"] == 0
    # The whole is no more than its parts, and less by what they share.
    assert total["unique_bytes"] < one["unique_bytes"] + two["unique_bytes"]
    status = json.loads(both.mount.run("status", str(both.mount.store), "--json"))
    assert total["stored_bytes"] == status["stored_bytes"]


def test_du_counts_what_overlaps_once(mount: Mount) -> None:
    root = mount.root
    whole = cafs("du", root, "--json").document["paths"][0]
    paths = (root / "one/deep", root / "one", root / "two", root / "one/own", root, root / "fifo")
    rows = cafs("du", *paths, "--json").document["paths"]
    assert len(rows) == len(paths) + 1
    whole["path"] = None
    assert rows[-1] == whole


def test_du_tells_what_deleting_frees(mount: Mount) -> None:
    place = mount.root / "du"
    for name in ("gone", "kept"):
        (place / name).mkdir(parents=True)
    rng = random.Random(8)
    shared, own, linked = (rng.randbytes(400_000) for _ in range(3))
    (place / "gone" / "a").write_bytes(shared)
    (place / "kept" / "a").write_bytes(shared + b"and more")
    (place / "gone" / "b").write_bytes(own)
    (place / "gone" / "b again").write_bytes(own)
    (place / "gone" / "c").write_bytes(linked)
    os.link(place / "gone" / "c", place / "kept" / "c")

    def stored_bytes() -> int:
        mount.run("sweep", str(mount.store))
        status = json.loads(mount.run("status", str(mount.store), "--json"))
        return int(status["stored_bytes"])

    before = stored_bytes()
    said = cafs("du", place / "gone", "--json").document["paths"][0]
    assert 400_000 <= said["freed_bytes"] < 700_000
    subprocess.run(["rm", "-r", str(place / "gone")], check=True)
    assert before - stored_bytes() == said["freed_bytes"]
    # What the rest has is now its own.
    left = cafs("du", place, "--json").document["paths"][0]
    assert left["shared_bytes"] == 0
    subprocess.run(["rm", "-r", str(place)], check=True)


def test_damage_is_named_and_never_served(mount: Mount) -> None:
    content = random.Random(5).randbytes(1_000_000)
    sha = stored(mount, mount.root / "hurt", content)
    known = cafs("blob", sha, "--store", mount.store, "--json").document
    victim = known["chunks"][3]
    path = mount.store / "packs" / f"{victim['pack']}.pack"
    with path.open("r+b") as pack:
        pack.seek(victim["offset_bytes"] + 77)
        byte = pack.read(1)[0]
        pack.seek(-1, os.SEEK_CUR)
        pack.write(bytes((byte ^ 4,)))
    try:
        done = cafs("blob", sha, "--store", mount.store, "--verify", "--json")
        assert done.code == 8
        (damage,) = done.document["verify"]["damages"]
        assert damage["at_bytes"] == victim["at_bytes"]
        assert damage["chunk"] == victim
        plain = cafs("blob", sha, "--store", mount.store, "--verify")
        assert plain.code == 8
        assert b"DAMAGED in 1 place" in plain.out
        cat = cafs("blob", sha, "--store", mount.store, "--cat")
        assert cat.code == 8
        assert cat.out == content[: victim["at_bytes"]]
    finally:
        with path.open("r+b") as pack:
            pack.seek(victim["offset_bytes"] + 77)
            pack.write(bytes((byte,)))
    assert cafs("blob", sha, "--store", mount.store, "--verify").code == 0
    (mount.root / "hurt").unlink()


def test_a_blob_of_a_deleted_file(mount: Mount) -> None:
    content = random.Random(6).randbytes(100_000)
    path = mount.root / "deleted"
    sha = stored(mount, path, content)
    with path.open("rb"):
        path.unlink()
        out = cafs("blob", sha, "--store", mount.store).out
        assert b"none: a file that was deleted is still open" in out


def test_a_daemon_that_does_not_answer(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cafs("ls", mount.store)  # commits
    monkeypatch.setattr(looking, "ANSWER_S", 0.2)
    os.kill(mount.pid, signal.SIGSTOP)
    try:
        code = main(["ls", "--store", str(mount.store), "/empty"])
    finally:
        os.kill(mount.pid, signal.SIGCONT)
    captured = capsys.readouterr()
    assert (code, captured.out) == (0, "first\nsecond\n")
    assert "did not answer 'commit' within 0.2 s; this is the last commit" in captured.err


def test_a_bar_comes_only_when_it_takes_long(
    mount: Mount, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["du", str(mount.store)]) == 0
    assert capsys.readouterr().err == ""
    assert main(["du", str(mount.store), "--progress", "json"]) == 0
    monkeypatch.setattr(looking, "PATIENCE_S", -1.0)
    with looking.late_progress("auto", "adding up", "records", 10) as advance:
        advance(5)
    assert "adding up" in capsys.readouterr().err
