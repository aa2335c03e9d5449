"""Which engines a store may use for what, before and after the machine's programs change."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives import engine_kinds, gnu_gzip, zlib_engine
from cafs.archives.engine import Engine
from cafs.archives.engine_copies import DIRECTORY
from cafs.archives.engine_record import EngineRecord
from cafs.archives.engines import Engines, State
from cafs.archives.program import Program
from cafs.durable import Disk
from cafs.errors import DiskFullError, EngineError, IndexDamagedError
from tests.fault.faulty import Fault, FaultyDisk
from tests.unit.engine_samples import MACHINE_GZIP, liar, run, text

GZIP, ZLIB = gnu_gzip.KIND, zlib_engine.KIND
SAME = 'exec /usr/bin/gzip "$@"'
"""Another program that makes the same bytes."""


class Machine:
    """A store's directory, its records, and what is installed."""

    def __init__(self, root: Path) -> None:
        self.store = root / "store"
        self.store.mkdir()
        self.bin = root / "bin"
        self.bin.mkdir()
        self.records: dict[int, bytes] = {}
        self.programs = {GZIP: MACHINE_GZIP, ZLIB: zlib_engine.machine_library()}
        self.disk = Disk()

    def open(self) -> Engines:
        engines = Engines(self.store, self.records.__setitem__, self.disk, self.programs)
        engines.open(dict(self.records))
        return engines

    def use(self, engines: Engines, kind: str) -> int:
        """As if something were taken apart with it."""
        engine = find(engines.anew(), kind)
        engines.keep(engine)
        return engines.number(engine)

    def upgrade(self, body: str, version: str = "gzip 1.99") -> None:
        self.programs[GZIP] = liar(self.bin, body, version)

    def kept(self) -> list[str]:
        directory = self.store / DIRECTORY
        return sorted(os.listdir(directory)) if directory.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def find(engines: list[Engine], kind: str) -> Engine:
    (found,) = [engine for engine in engines if engine.kind == kind]
    return found


def state_of(engines: Engines, kind: str, number: int = 0) -> str:
    lines = [line for line in engines.status() if line.kind == kind]
    if number:
        lines = [line for line in lines if line.number == number]
    return lines[0].state


def made_by(engine: Engine, data: bytes) -> bytes:
    return run(engine.compressor(engine_kinds.TRY_PARAMS[engine.kind], background=False), data)


def test_a_new_store_may_use_what_the_machine_has(machine: Machine) -> None:
    engines = machine.open()
    assert sorted(engine.kind for engine in engines.anew()) == [GZIP, ZLIB]
    assert engines.pending_proof() == []
    assert machine.records == {} and machine.kept() == []
    assert state_of(engines, GZIP) == "ready"


def test_what_is_used_is_recorded_and_kept(machine: Machine) -> None:
    engines = machine.open()
    assert machine.use(engines, GZIP) == 1
    assert machine.use(engines, ZLIB) == 2
    assert machine.use(engines, GZIP) == 1
    assert sorted(machine.records) == [1, 2]
    program = Program.read(MACHINE_GZIP)
    raw = json.loads(machine.records[1])
    assert raw["kind"] == GZIP and raw["programs"] == [program.sha256]
    assert re.match(r"gzip 1\.", raw["version"])
    assert program.sha256 in machine.kept() and len(machine.kept()) == 2
    kept = machine.store / DIRECTORY / program.sha256
    assert kept.read_bytes() == MACHINE_GZIP.read_bytes()
    assert stat.S_IMODE(kept.stat().st_mode) & 0o700 == 0o700
    assert stat.S_IMODE(kept.parent.stat().st_mode) == 0o700


def test_a_number_is_given_to_what_is_kept_only(machine: Machine) -> None:
    engines = machine.open()
    with pytest.raises(EngineError, match="not kept"):
        engines.number(find(engines.anew(), GZIP))
    assert machine.records == {}


@pytest.mark.parametrize(
    ("call", "at"), [("pwrite_all", 1), ("sync_file", 2), ("rename", 1), ("sync_file", 1)]
)
def test_a_disk_that_is_full_when_a_program_is_to_be_kept(
    machine: Machine, call: str, at: int
) -> None:
    disk = machine.disk = FaultyDisk([Fault(at, errno.ENOSPC, call)])
    engines = machine.open()
    engine = find(engines.anew(), GZIP)
    with pytest.raises(DiskFullError):
        engines.keep(engine)
    with pytest.raises(EngineError):
        engines.number(engine)
    assert disk.all_fired
    engines.keep(engine)
    assert engines.number(engine) == 1
    assert Program.read(machine.store / DIRECTORY / engine.program.sha256).content


def test_all_is_as_it_was_after_a_restart(machine: Machine) -> None:
    machine.use(machine.open(), GZIP)
    engines = machine.open()
    assert engines.pending_proof() == []
    assert machine.use(engines, GZIP) == 1
    assert len(machine.records) == 1
    assert engines.rebuilder(1).program.sha256 == Program.read(MACHINE_GZIP).sha256


def test_another_program_has_to_be_proven(machine: Machine) -> None:
    machine.use(machine.open(), GZIP)
    original = Program.read(MACHINE_GZIP).sha256
    machine.upgrade(SAME)
    engines = machine.open()
    assert [engine.kind for engine in engines.anew()] == [ZLIB]
    assert state_of(engines, GZIP) == "unproven"
    # What is stored is rebuilt by the copy meanwhile.
    assert engines.rebuilder(1).program.sha256 == original
    (proof,) = engines.pending_proof()
    assert (proof.engine.version, proof.number) == ("gzip 1.99", 1)
    with pytest.raises(EngineError, match="may not be used"):
        engines.number(proof.engine)
    with pytest.raises(EngineError, match="not kept"):
        engines.proven(proof)
    engines.keep(proof.engine)
    engines.proven(proof)
    assert engines.pending_proof() == []
    # Some samples do not show that it never differs: it has a number of its own.
    assert machine.use(engines, GZIP) == 2
    programs = [EngineRecord.unpack(n, machine.records[n]).programs for n in (1, 2)]
    assert programs == [(original,), (proof.engine.program.sha256,)]
    assert set(machine.kept()) >= {original, proof.engine.program.sha256}
    # For good.
    again = machine.open()
    assert again.pending_proof() == []
    assert state_of(again, GZIP) == "ready"
    for each in (engines, again):
        assert [each.rebuilder(n).program.sha256 for n in (1, 2)] == [p for (p,) in programs]
    assert machine.use(again, GZIP) == 2
    # Back to the first program.
    machine.programs[GZIP] = MACHINE_GZIP
    assert machine.use(machine.open(), GZIP) == 1


def test_a_record_of_several_programs_is_added_to_by_none(machine: Machine) -> None:
    """What has its number is made again with the first of them."""
    machine.use(machine.open(), GZIP)
    original = Program.read(MACHINE_GZIP).sha256
    machine.upgrade(SAME)
    engines = machine.open()
    (proof,) = engines.pending_proof()
    engines.keep(proof.engine)
    other = proof.engine.program.sha256
    machine.records[1] = EngineRecord(GZIP, "gzip 1.12", (original, other)).pack()
    engines = machine.open()
    assert engines.pending_proof() == [] and state_of(engines, GZIP) == "ready"
    assert engines.rebuilder(1).program.sha256 == original
    assert [each.program.sha256 for each in engines.others(1)] == [other]
    assert machine.use(engines, GZIP) == 2
    assert engines.rebuilder(2).program.sha256 == other
    # Each is the last that is left of them.
    for lost in (original, other):
        (machine.store / DIRECTORY / lost).rename(machine.store / "lost")
        machine.programs = {}
        engines = machine.open()
        assert engines.rebuilder(1).program.sha256 == ({original, other} - {lost}).pop()
        engine = find(engines.anew(), GZIP)
        number = machine.use(engines, GZIP)
        assert engines.rebuilder(number) is engine
        record = EngineRecord.unpack(number, machine.records[number])
        assert record.programs[0] == engine.program.sha256
        (machine.store / "lost").rename(machine.store / DIRECTORY / lost)


def test_a_program_that_makes_other_bytes_is_refused(machine: Machine) -> None:
    machine.use(machine.open(), GZIP)
    data = text(50_000)
    expected = made_by(find(machine.open().anew(), GZIP), data)
    machine.upgrade("exec /usr/bin/gzip -nc1")
    engines = machine.open()
    (proof,) = engines.pending_proof()
    assert made_by(proof.engine, data) != expected
    engines.refused(proof, "blob 7 came out differently")
    assert [engine.kind for engine in engines.anew()] == [ZLIB]
    assert engines.pending_proof() == []
    (line,) = [line for line in engines.status() if line.kind == GZIP and line.state == "refused"]
    assert (line.version, line.why) == ("gzip 1.99", "blob 7 came out differently")
    # What is stored is still rebuilt.
    assert made_by(engines.rebuilder(1), data) == expected
    assert state_of(engines, GZIP, 1) == "kept"
    # The next start asks again: the program may have been put right.
    assert len(machine.open().pending_proof()) == 1


def test_when_nothing_needs_the_old_one_the_new_one_has_its_own_number(machine: Machine) -> None:
    machine.use(machine.open(), GZIP)
    machine.upgrade("exec /usr/bin/gzip -nc1")
    engines = machine.open()
    (proof,) = engines.pending_proof()
    engines.unneeded(proof)
    assert machine.use(engines, GZIP) == 2
    assert EngineRecord.unpack(2, machine.records[2]).version == "gzip 1.99"
    # And after going back to the first program, that has its own.
    machine.programs[GZIP] = MACHINE_GZIP
    engines = machine.open()
    assert engines.pending_proof() == []
    assert machine.use(engines, GZIP) == 1


def test_a_program_that_is_gone_is_replaced_by_its_copy(machine: Machine) -> None:
    machine.use(machine.open(), GZIP)
    machine.use(machine.open(), ZLIB)
    data = text(100_000)
    expected = [made_by(engine, data) for engine in machine.open().anew()]
    machine.programs = {}
    engines = machine.open()
    assert [made_by(engine, data) for engine in engines.anew()] == expected
    assert state_of(engines, GZIP) == "kept"
    assert machine.use(engines, GZIP) == 1
    assert machine.use(engines, ZLIB) == 2


def test_a_store_that_needs_nothing_does_without(machine: Machine) -> None:
    machine.programs = {}
    engines = machine.open()
    assert engines.anew() == []
    assert state_of(engines, GZIP) == "missing"
    with pytest.raises(EngineError) as caught:
        engines.rebuilder(1)
    assert caught.value.advice


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["damaged", "gone", "empty"])
def test_a_copy_that_is_no_good_is_not_used(machine: Machine, how: str) -> None:
    machine.use(machine.open(), GZIP)
    (name,) = machine.kept()
    copy = machine.store / DIRECTORY / name
    if how == "damaged":
        damage(copy)
    elif how == "empty":
        copy.write_bytes(b"")
    else:
        copy.unlink()
    programs, machine.programs = machine.programs, {}
    engines = machine.open()
    assert state_of(engines, GZIP, 1) == "lost"
    with pytest.raises(EngineError, match=r"gzip 1\..*\(engine 1\) is neither"):
        engines.rebuilder(1)
    # With the program on the machine nothing is lost, and the copy is made again.
    machine.programs = programs
    engines = machine.open()
    assert machine.use(engines, GZIP) == 1
    assert Program.read(copy).sha256 == name


def test_an_unproven_program_may_rebuild_when_there_is_nothing_else(machine: Machine) -> None:
    """What it makes is verified as any; it may be the same."""
    machine.use(machine.open(), GZIP)
    machine.upgrade(SAME)
    for name in machine.kept():
        (machine.store / DIRECTORY / name).unlink()
    engines = machine.open()
    assert engines.rebuilder(1).version == "gzip 1.99"
    assert state_of(engines, GZIP) == "unproven"
    # Nobody is told that it is kept: it is lost until the other one is proven.
    (line,) = [line for line in engines.status() if line.number == 1]
    assert line.state == "lost" and "gzip 1.99" in line.why
    assert (line.sha256, line.program) == (Program.read(MACHINE_GZIP).sha256, "")
    (proof,) = engines.pending_proof()
    engines.keep(proof.engine)
    engines.proven(proof)
    lines = [(line.state, line.number) for line in engines.status() if line.kind == GZIP]
    assert lines == [("ready", 0), ("ready", 1)]
    assert EngineRecord.unpack(1, machine.records[1]).programs[1:] == (proof.engine.program.sha256,)
    # What is new does not count on the one that is lost, and may come back.
    assert machine.use(engines, GZIP) == 2


def test_a_script_is_no_engine(machine: Machine) -> None:
    """A copy of it keeps nothing of the program that it runs."""
    wrapper = machine.bin / "gzip"
    wrapper.write_text(f"#!/bin/sh\n{SAME}\n")
    wrapper.chmod(0o755)
    machine.programs[GZIP] = wrapper
    engines = machine.open()
    assert [engine.kind for engine in engines.anew()] == [ZLIB]
    (line,) = [line for line in engines.status() if line.kind == GZIP]
    assert line.state == "missing" and "no binary" in line.why and str(wrapper) in line.why


def test_a_script_that_was_kept_gives_way_to_the_program(machine: Machine) -> None:
    """A store from before scripts were refused comes round by a proof with the machine's gzip."""
    script = f"#!/bin/sh\n{SAME}\n".encode()
    name = hashlib.sha256(script).hexdigest()
    (machine.store / DIRECTORY).mkdir()
    (machine.store / DIRECTORY / name).write_bytes(script)
    machine.records[1] = EngineRecord(GZIP, "gzip 1.12", (name,)).pack()
    engines = machine.open()
    assert engines.rebuilder(1).program.path == MACHINE_GZIP
    (proof,) = engines.pending_proof()
    engines.keep(proof.engine)
    engines.proven(proof)
    assert Program.read(MACHINE_GZIP).sha256 in machine.kept()
    machine.programs = {}
    assert state_of(machine.open(), GZIP, 1) == "kept"


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_a_copy_that_is_no_good_is_put_back(machine: Machine, how: str) -> None:
    machine.use(machine.open(), GZIP)
    (name,) = machine.kept()
    copy = machine.store / DIRECTORY / name
    damage(copy) if how == "damaged" else shutil.rmtree(copy.parent)
    engines = machine.open()
    engines.restore()
    assert Program.read(copy).sha256 == name
    assert engines.problem() is None
    # Also if it goes while the daemon runs.
    copy.unlink()
    machine.use(engines, GZIP)
    assert Program.read(copy).sha256 == name


def test_what_cannot_be_put_back_is_trouble(
    machine: Machine, caplog: pytest.LogCaptureFixture
) -> None:
    machine.use(machine.open(), GZIP)
    shutil.rmtree(machine.store / DIRECTORY)
    machine.disk = FaultyDisk([Fault(1, errno.ENOSPC, "pwrite_all")])
    engines = machine.open()
    engines.restore()
    assert "cannot be kept" in caplog.text
    problem = engines.problem()
    assert problem is not None and "no copy" in str(problem) and problem.advice
    # With another program here it is lost, and that is said first.
    machine.upgrade(SAME)
    engines = machine.open()
    engines.restore()
    problem = engines.problem()
    assert problem is not None and "is lost" in str(problem) and "backup" in problem.advice


def test_a_refused_program_is_trouble(machine: Machine) -> None:
    machine.use(machine.open(), GZIP)
    machine.upgrade("exec /usr/bin/gzip -nc1")
    engines = machine.open()
    engines.restore()
    assert engines.problem() is None, "it was not tried yet"
    (proof,) = engines.pending_proof()
    engines.refused(proof, "blob 7 came out differently")
    problem = engines.problem()
    assert problem is not None and "gzip 1.99" in str(problem) and "is safe" in problem.advice


class ForgetfulDisk(Disk):
    """What it writes is not what it was told to write."""

    def write_file(
        self, path: Any, data: Any, mode: int = 0o600, *, keep_rights: bool = False
    ) -> None:
        super().write_file(path, data[:-1], mode, keep_rights=keep_rights)


def test_a_copy_proves_itself_before_anything_needs_it(machine: Machine) -> None:
    machine.disk = ForgetfulDisk()
    engines = machine.open()
    engine = find(engines.anew(), GZIP)
    with pytest.raises(EngineError, match="is not what was kept there"):
        engines.keep(engine)
    with pytest.raises(EngineError, match="not kept"):
        engines.number(engine)
    assert machine.records == {}


BROKEN = {
    "fails": "exit 1",
    "makes no gzip": "cat",
    "makes a stream of something else": "cat >/dev/null; echo else | /usr/bin/gzip -nc",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_program_that_does_not_work_is_as_none(machine: Machine, how: str) -> None:
    machine.upgrade(BROKEN[how])
    engines = machine.open()
    assert [engine.kind for engine in engines.anew()] == [ZLIB]
    (line,) = [line for line in engines.status() if line.kind == GZIP]
    assert line.state == State.MISSING.value and line.why


def test_a_program_that_is_something_else_is_as_none(machine: Machine) -> None:
    machine.upgrade("cat", version="pigz 2.6")
    machine.programs[ZLIB] = MACHINE_GZIP
    engines = machine.open()
    assert engines.anew() == []
    assert all(line.state == "missing" and line.why for line in engines.status())


def test_an_engine_of_a_kind_that_a_newer_cafs_has(machine: Machine) -> None:
    machine.records[1] = EngineRecord("zopfli", "zopfli 1", ("ab" * 32,)).pack()
    engines = machine.open()
    assert len(engines.anew()) == 2
    with pytest.raises(EngineError, match="zopfli 1"):
        engines.rebuilder(1)
    assert machine.use(engines, GZIP) == 2


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"kind":"zlib","version":"1","programs":[]}',
        b'{"kind":"zlib","version":"1","programs":["../../bin/sh"]}',
        b'{"kind":1,"version":"1","programs":["' + b"ab" * 32 + b'"]}',
        b'{"kind":"zlib","programs":["' + b"ab" * 32 + b'"]}',
        b"[" * 100_000,
    ],
)
def test_a_damaged_record_is_told(machine: Machine, value: bytes) -> None:
    machine.records[1] = value
    with pytest.raises(IndexDamagedError, match="engine 1"):
        machine.open()


@settings(max_examples=30, deadline=None)
@given(
    st.builds(
        EngineRecord,
        st.text(max_size=20),
        st.text(max_size=20),
        st.lists(st.binary(min_size=32, max_size=32).map(bytes.hex), min_size=1, max_size=3).map(
            tuple
        ),
    )
)
def test_records_are_read_as_they_were_written(record: EngineRecord) -> None:
    assert EngineRecord.unpack(1, record.pack()) == record


def test_what_the_machine_has_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    found = engine_kinds.find_program(GZIP)
    assert found is not None and found.name == "gzip"
    library = engine_kinds.find_program(ZLIB)
    assert library is not None and "libz" in library.name


def test_nothing_is_left_open(machine: Machine) -> None:
    before = len(os.listdir("/proc/self/fd"))
    engines = machine.open()
    machine.use(engines, GZIP)
    machine.use(engines, ZLIB)
    made_by(engines.rebuilder(1), text(1000))
    assert len(os.listdir("/proc/self/fd")) <= before
