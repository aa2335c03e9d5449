"""The benchmarks' own parts: a wrong ratio or a blind verifier would be worse than none."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench import acknowledged, report
from bench.client import Client, ClientError
from bench.compare import differences, snapshot
from bench.corpus import zip_as_pushed
from bench.fetch import TRIES, CorpusError, run_client
from bench.meter import descendants, footprint, usage
from bench.result import Daemon, Result, ResultError, Sample, Spread
from bench.run import take_turns
from bench.sides import Floor, Side
from bench.work import MEASURES, WORKLOADS
from bench.work.base import Context, Measure, Take, Target, Workload
from bench.work.data import write_source


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Client:
    return Client(tmp_path_factory.mktemp("client"))


@pytest.fixture
def context(client: Client, tmp_path: Path) -> Context:
    for name in ("corpus", "scratch"):
        (tmp_path / name).mkdir()
    return Context(tmp_path / "corpus", tmp_path / "scratch", client, 1, True, None)


def result(*samples: Sample) -> Result:
    machine = {"cpu": "c", "cores": 2, "memory_bytes": 1 << 30, "filesystem": "ext2/ext3"}
    machine |= {"load_before": 0.0, "system": "s", "kernel": "k"}
    return Result("c", "t", 1, False, machine, {"python": "3"}, "abc", {}, list(samples))


def test_client_does_what_it_says(client: Client, tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    assert client("create", directory, 20, 100, 7).bytes == 2000
    contents = {path.read_bytes() for path in directory.iterdir()}
    assert len(contents) == 20
    assert all(len(content) == 100 for content in contents)
    assert client("list", directory, 2).operations == 2 * (20 + 2)
    paths = tmp_path / "paths"
    paths.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in directory.iterdir()))
    assert client("stat", paths, 3, "there").operations == 60
    with pytest.raises(ClientError, match="expected ENOENT"):
        client("stat", paths, 1, "missing")
    client("unlink", directory, 20)
    assert client("stat", paths, 1, "missing").operations == 20
    with pytest.raises(ClientError, match="No such file"):
        client("stat", paths, 1, "there")


def test_client_writes_and_reads_whole_files(client: Client, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(10_001))
    assert client("write", target, source, 4096).bytes == 10_001
    assert target.read_bytes() == source.read_bytes()
    assert client("read", target, 4096).bytes == 10_001
    assert client("random", target, 5, 1).operations == 5
    assert target.stat().st_size == 10_001
    assert target.read_bytes() != source.read_bytes()


def test_zip_is_streamed_as_cf_push_does(tmp_path: Path) -> None:
    source = tmp_path / "app"
    (source / "b").mkdir(parents=True)
    (source / "b" / "x.txt").write_text("hello " * 1000)
    (source / "a").write_bytes(b"")
    for name in ("1.zip", "2.zip"):
        zip_as_pushed(source, tmp_path / name)
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.namelist() == ["a", "b/", "b/x.txt"]
        assert archive.testzip() is None
        assert archive.getinfo("b/x.txt").flag_bits & 0x08
        assert archive.getinfo("b/x.txt").compress_type == zipfile.ZIP_DEFLATED


def test_a_failing_registry_is_asked_again_and_then_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(CorpusError, match=r"could not fetch thing 1\.0.*\n.*\n.*is kept"):
        run_client(["false"], "thing 1.0", {}, tmp_path)
    assert capsys.readouterr().err.count("failed") == TRIES
    with pytest.raises(CorpusError, match="no-such-client is not installed"):
        run_client(["no-such-client"], "thing 1.0", {}, tmp_path)


def test_footprint_counts_a_hard_linked_file_once(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_bytes(bytes(10_000))
    one = footprint(tmp_path)
    os.link(tmp_path / "d" / "a", tmp_path / "b")
    two = footprint(tmp_path)
    assert (one.files, two.files) == (1, 2)
    assert one.logical_bytes == two.logical_bytes == 10_000
    assert one.allocated_bytes == two.allocated_bytes >= 12_288


def test_usage_sees_this_process() -> None:
    assert os.getpid() in descendants(os.getpid())
    used = usage(os.getpid())
    assert used.cpu_s > 0
    assert 0 < used.anonymous_bytes < used.pss_bytes <= used.rss_bytes * 1.1
    assert usage(2**22 + 1).processes == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: (d / "x").write_bytes(b"other"), "content"),
        (lambda d: (d / "x").chmod(0o600), "mode"),
        (lambda d: os.utime(d / "x", ns=(1, 2)), "mtime_ns"),
        (lambda d: (d / "x").unlink(), "missing: x"),
        (lambda d: (d / "y").touch(), "not expected: y"),
        (lambda d: ((d / "l").unlink(), (d / "l").symlink_to("w")), "content z is w"),
    ],
)
def test_comparison_sees(tmp_path: Path, change: Callable[[Path], object], said: str) -> None:
    (tmp_path / "x").write_bytes(b"thing")
    (tmp_path / "l").symlink_to("z")
    before = snapshot(tmp_path)
    assert differences(before, snapshot(tmp_path)) == []
    change(tmp_path)
    (line,) = [line for line in differences(before, snapshot(tmp_path)) if said in line]
    assert line


def written(directory: Path, manifest: Path, steps: int = 60) -> None:
    fd = os.open(manifest, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        acknowledged.Writer(directory, fd, 5).go(steps)
    finally:
        os.close(fd)


def test_acknowledged_steps_verify_and_a_lost_one_is_found(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    written(tmp_path / "d", manifest)
    states = acknowledged.expected(manifest)
    assert acknowledged.count_done(manifest) >= 40
    assert acknowledged.verify(states) == []
    lost = next(path for path in states if path.exists())
    lost.unlink()
    assert acknowledged.verify(states)[0].startswith(f"{lost}: missing, expected ")
    lost.write_bytes(b"wrong")
    assert len(acknowledged.verify(states)) == 1


def test_a_step_in_flight_may_be_there_or_not_but_nothing_else(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest"
    old, new = "a" * 64, "b" * 64
    line = '{{"what": "{}", "path": "/p", "sha256": "{}", "atomic": {}}}\n'.format
    manifest.write_text(
        line("try", old, "true")
        + line("done", old, "true")
        + line("try", new, "true")
        + line("done", new, "true")[:20]
    )
    (state,) = acknowledged.expected(manifest).values()
    assert state.allowed == {old, new}
    assert not state.anything
    assert acknowledged.count_done(manifest) == 1


def test_ratio_is_of_speeds_and_of_bytes() -> None:
    time, rate, size = MEASURES["copy_in"], MEASURES["create"], MEASURES["stored_zips"]
    got = result(
        *(Sample("copy_in", n, {"cafs": 4.0, "ext4": e}) for n, e in enumerate((1.0, 2.0, 8.0))),
        Sample("create", 0, {"cafs": 50.0, "ext4": 100.0, "floor": 40.0}),
        Sample("stored_zips", 0, {"cafs": 44.0, "ext4": 100.0}),
    )
    assert got.ratio(time) == 0.5
    assert got.ratio(rate) == 0.5
    assert got.ratio(rate, "floor") == 1.25
    assert got.ratio(size) == 0.44
    assert got.met(size) is True
    assert got.met(rate) is False
    assert got.met(time) is None
    assert got.met(MEASURES["stored_releases"]) is None
    assert got.spread(time, "ext4") == Spread(2.0, 1.5, 5.0)


def test_a_result_survives_its_file(tmp_path: Path) -> None:
    given = result(
        Sample("create", 0, {"cafs": 1.0}, ["cafs"], Daemon(0.5, 1.0, 100, 90)),
        Sample("create", 1, {"cafs": 2.0}, ["cafs"]),
    )
    given.save(tmp_path / "r.json")
    assert Result.load(tmp_path / "r.json") == given
    (tmp_path / "r.json").write_text("[")
    with pytest.raises(ResultError, match=r"r\.json"):
        Result.load(tmp_path / "r.json")


def test_report_names_every_target_and_its_verdict() -> None:
    got = result(
        Sample("create", 0, {"cafs": 2000.0, "ext4": 9000.0, "floor": 4000.0}),
        Sample("stored_zips", 0, {"cafs": 50.0, "ext4": 100.0}),
        Sample("idle_files", 0, {"cafs": 5000.0}),
    )
    text = report.markdown(got, "bench/results/r.json")
    assert "| create, write 4 KiB, close | >= 1,500/s | 2,000/s | met | 4,000/s |" in text
    assert "| stored bytes: their zips | <= 0.45 | 0.50 | missed |  |" in text
    assert "| 2.00 | above |" in text
    assert "with 5,000 files" in text
    targets = [measure for measure in MEASURES.values() if measure.target]
    assert text.count("not measured |") == len(targets) - 2


def test_workloads_have_names_and_keys_of_their_own() -> None:
    assert len({w.name for w in WORKLOADS}) == len(WORKLOADS)
    assert len(MEASURES) == sum(len(w.measures) for w in WORKLOADS)


def test_sides_take_turns_and_leave_nothing(context: Context, tmp_path: Path) -> None:
    class Toy(Workload):
        name = "toy"
        measures = (Measure("toy", "toy", "B", Target("ratio", "at most", 1)),)

        def setup(self, side: Side) -> None:
            (side.root / "ready").touch()

        def run(self, side: Side, repetition: int, take: Take) -> None:
            assert (side.root / "ready").exists()
            take("toy", lambda: float(repetition))

    class Other(Side):
        name = "other"

    sides = [Side(tmp_path / "one"), Other(tmp_path / "two")]
    samples = take_turns(Toy(context), sides, 3, lambda _: None)
    assert [s.order for s in samples] == [["ext4", "other"], ["other", "ext4"], ["ext4", "other"]]
    assert [s.values for s in samples] == [{"ext4": n, "other": n} for n in (0.0, 1.0, 2.0)]
    assert not (tmp_path / "one").exists()
    assert not (tmp_path / "two").exists()


def test_sources_are_new_each_time_and_the_same_for_the_same_seed(context: Context) -> None:
    again, first, second = (
        write_source(context, "random", 5000, repetition).read_bytes() for repetition in (0, 0, 1)
    )
    assert len(first) == 5000
    assert again == first
    assert first != second


@pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="needs FUSE")
def test_floor_serves_what_the_workloads_ask(client: Client, tmp_path: Path) -> None:
    floor = Floor(tmp_path / "floor")
    floor.fresh()
    try:
        directory = floor.root / "d"
        directory.mkdir()
        client("create", directory, 30, 4096, 1)
        assert sum(path.stat().st_size for path in directory.iterdir()) == 30 * 4096
        assert client("read", directory / "f00000007", 1024).bytes == 4096
        client("unlink", directory, 30)
        directory.rmdir()
        used = floor.usage()
        assert used is not None
        assert used.processes == 1
    finally:
        floor.stop()
    assert not os.path.ismount(floor.root)
