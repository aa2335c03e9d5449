"""The engines of one store: which there are, which may be used for what, and copies of them.

Finds the machine's gzip and zlib, knows them by the SHA-256 of their files, and tells them
apart from what the index says was used.  Keeps a copy of each program that something stored
needs in ``STORE/engines``, so that an upgrade of the machine takes nothing away.

Invariants: a program is used to take archives apart only if nothing stored was made with
another of its kind, or if it was proven to make the same bytes.  Each has a number of its own,
and whatever is recorded with that is made again with the same program: a proof by a few samples
does not show that two of them never differ.  For rebuilding any may be tried, because every
rebuilt byte is verified before somebody sees it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from cafs.archives.engine import Engine
from cafs.archives.engine_copies import Copies
from cafs.archives.engine_kinds import KINDS, find_program, identify
from cafs.archives.engine_record import EngineRecord
from cafs.archives.engine_status import LOST, LOST_ADVICE, REFUSED, EngineStatus, worst
from cafs.archives.program import Program
from cafs.durable import Disk
from cafs.errors import CafsError, EngineError

log = logging.getLogger(__name__)

RecordWriter = Callable[[int, bytes], None]
"""Puts the record of an engine's number into the index; on the event loop."""


class State(Enum):
    """What an engine of the machine may be used for."""

    READY = "ready"
    UNPROVEN = "unproven"
    """Another program than the one that something stored was made with: nothing new is taken
    apart with it until a sample was rebuilt."""
    REFUSED = REFUSED
    """It was found to make other bytes."""
    MISSING = "missing"
    """There is none of this kind."""


class PendingProof(NamedTuple):
    """An engine that has to show that it makes the same bytes as what is recorded."""

    engine: Engine
    number: int
    """Rebuild blobs that have made parts with this number, with that engine."""


class _Machine:
    """The machine's program of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.engine: Engine | None = None
        self.state = State.MISSING
        self.number = 0
        self.why = ""


class Engines:
    """See above.  Belongs to the event loop, but for those methods that say that they block."""

    def __init__(
        self,
        store: Path,
        write: RecordWriter,
        disk: Disk,
        programs: Mapping[str, Path] | None = None,
    ) -> None:
        """*programs* stand in for what the machine has, by kind."""
        self._copies = Copies(store, disk)
        self._write = write
        self._programs = programs
        self._records: dict[int, EngineRecord] = {}
        self._machine = {kind: _Machine(kind) for kind in KINDS}
        self._rebuilders: dict[int, Engine] = {}
        self._others: dict[int, list[Engine]] = {}
        """What else may have made what has a number, by records that name several programs."""
        self._kept: set[str] = set()
        """Programs whose copies have shown that they work."""

    def open(self, records: Mapping[int, bytes]) -> None:
        """Find the programs, and take over what the index has under which number.

        Blocks, for a few hundredths of a second.  Raises IndexDamagedError; a program that is
        missing or fails is a state and not an error.
        """
        self._records = {
            number: EngineRecord.unpack(number, value) for number, value in records.items()
        }
        for machine in self._machine.values():
            self._look(machine)
        for number, record in self._records.items():
            found = self._find_rebuilders(record)
            if found:
                self._rebuilders[number], *self._others[number] = found
            else:
                log.error("engine %d (%s) is lost: see cafs status", number, record.version)
        for machine in self._machine.values():
            self._judge(machine)

    # -- taking apart

    def anew(self) -> list[Engine]:
        """Those that archives may be taken apart with now."""
        return [
            machine.engine
            for machine in self._machine.values()
            if machine.engine is not None and machine.state is State.READY
        ]

    def keep(self, engine: Engine) -> None:
        """Keep a copy of the program in the store, durably; quick if there is one.

        Before number().  The copy has shown that it works: it is what is left after an upgrade.
        Blocks.  Raises DiskFullError and its kin, EngineError for a copy that is no good.
        """
        name = engine.program.sha256
        if name in self._kept and self._copies.there(name):
            return
        self._kept.discard(name)
        try:
            self._copy(engine.kind, name)
        except EngineError:
            self._copies.write(engine.program)
            self._copy(engine.kind, name)
        self._kept.add(name)

    def restore(self) -> None:
        """Put back the copies that are missing or damaged, where the machine has the program.

        Blocks; what cannot be put back is logged, and is a problem() from now on.
        """
        for number, record in self._records.items():
            for engine in self._all_rebuilders(number):
                if engine.program.sha256 not in record.programs:
                    continue
                try:
                    self.keep(engine)
                except CafsError as error:
                    log.error("engine %d (%s) cannot be kept: %s", number, record.version, error)

    def number(self, engine: Engine) -> int:
        """The number for made parts; it is recorded, if it was not, with the next commit.

        From then on rebuilder() gives the same program for it, also after a restart.  Raises
        :class:`EngineError` for an engine that may not be used, or is not kept.
        """
        machine = self._machine[engine.kind]
        if machine.engine is not engine or machine.state is not State.READY:
            raise EngineError(f"{engine.version} may not be used to take archives apart")
        if engine.program.sha256 not in self._kept:
            raise EngineError(f"{engine.version} was not kept")
        if not machine.number:
            machine.number = max(self._records, default=0) + 1
            record = EngineRecord(engine.kind, engine.version, (engine.program.sha256,))
            self._put(machine.number, record)
            self._rebuilders[machine.number] = engine
        return machine.number

    # -- rebuilding

    def rebuilder(self, number: int) -> Engine:
        """The engine for made parts with this number.

        Raises :class:`EngineError` when there is none that can be run.
        """
        engine = self._rebuilders.get(number)
        if engine is not None:
            return engine
        record = self._records.get(number)
        what = f"{record.version} (engine {number})" if record else f"engine {number}"
        raise EngineError(
            f"{what} is neither on this machine nor in {self._copies.directory}",
            advice=LOST_ADVICE,
        )

    def others(self, number: int) -> Sequence[Engine]:
        """Further programs to try for made parts with this number, if rebuilder() has made other
        bytes."""
        return self._others.get(number, ())

    def record(self, number: int) -> EngineRecord | None:
        """What is recorded under a number."""
        return self._records.get(number)

    # -- after an upgrade of the machine

    def pending_proof(self) -> list[PendingProof]:
        """What has to be proven before more is taken apart.

        Then one of proven(), refused() or unneeded() is to be called.
        """
        return [
            PendingProof(machine.engine, self._latest(machine.kind))
            for machine in self._machine.values()
            if machine.engine is not None and machine.state is State.UNPROVEN
        ]

    def proven(self, proof: PendingProof) -> None:
        """A sample came out the same.  keep() has to be called before.

        Raises :class:`EngineError` if it is not kept.
        """
        engine = proof.engine
        name = engine.program.sha256
        if name not in self._kept:
            raise EngineError(f"{engine.version} was not kept")
        record = self._records[proof.number]
        in_use = self._rebuilders.get(proof.number)
        if in_use is None or in_use.program.sha256 not in record.programs:
            # Its own is lost: from now on this one is kept for what was made with it.
            self._put(proof.number, record._replace(programs=(*record.programs, name)))
            self._rebuilders[proof.number] = engine
        machine = self._machine[engine.kind]
        machine.state, machine.number, machine.why = State.READY, self._number_of(engine), ""
        log.info("%s makes the same bytes as %s", engine.version, record.version)

    def refused(self, proof: PendingProof, why: str) -> None:
        """It makes other bytes, or fails: nothing new is taken apart with it."""
        machine = self._machine[proof.engine.kind]
        machine.state, machine.why = State.REFUSED, why
        log.error(
            "%s does not make the same bytes as engine %d (%s): nothing more is taken apart "
            "with it, and what is stored needs the copy in %s",
            proof.engine.version,
            proof.number,
            why,
            self._copies.directory,
        )

    def unneeded(self, proof: PendingProof) -> None:
        """Nothing stored needs what is recorded: the engine gets a record of its own."""
        machine = self._machine[proof.engine.kind]
        machine.state, machine.number, machine.why = State.READY, 0, ""

    # -- for people

    def problem(self) -> EngineError | None:
        """What an operator has to see to, the worst of it; for who has called restore()."""
        unkept = [
            self._line(number, record)
            for number, record in self._records.items()
            if not self._kept.intersection(record.programs)
        ]
        return worst(self.status(), unkept)

    def status(self) -> list[EngineStatus]:
        """The machine's engines, and kept ones that are used in their place or that are lost."""
        lines = []
        for machine in self._machine.values():
            engine = machine.engine
            version, path, sha256 = _about(engine)
            state = machine.state.value
            if engine is not None and self._is_copy(engine):
                state = "kept"
            lines.append(
                EngineStatus(
                    machine.kind, state, version, path, sha256, machine.number, machine.why
                )
            )
        shown = {(line.kind, line.number) for line in lines}
        for number, record in sorted(self._records.items()):
            if (record.kind, number) in shown:
                continue
            lines.append(self._line(number, record))
        return lines

    def _line(self, number: int, record: EngineRecord) -> EngineStatus:
        """About what makes again what was made with engine *number*."""
        engine = self._rebuilders.get(number)
        version, path, sha256 = _about(engine)
        if engine is not None and sha256 in record.programs:
            own = self._machine[record.kind].engine
            state = "ready" if engine is own and not self._is_copy(engine) else "kept"
            why = ""
        else:
            state, why = LOST, "what was made with it cannot be read"
            if engine is not None:
                why = f"{version} is tried in its place, and was not found to make the same"
            version, path, sha256 = "", "", record.programs[0]
        return EngineStatus(
            record.kind, state, version or record.version, path, sha256, number, why
        )

    # -- inside

    def _put(self, number: int, record: EngineRecord) -> None:
        self._write(number, record.pack())
        self._records[number] = record

    def _latest(self, kind: str) -> int:
        """The newest record of a kind; 0 if there is none."""
        return max((n for n, record in self._records.items() if record.kind == kind), default=0)

    def _number_of(self, engine: Engine) -> int:
        """The number that was recorded for this very program; 0 if there is none.

        Not one whose record has it as well: what has that number is made again with another.
        """
        name = engine.program.sha256
        return max((n for n, each in self._records.items() if each.programs[0] == name), default=0)

    def _all_rebuilders(self, number: int) -> list[Engine]:
        first = self._rebuilders.get(number)
        return [] if first is None else [first, *self.others(number)]

    def _look(self, machine: _Machine) -> None:
        try:
            path = find_program(machine.kind) if self._programs is None else None
            if self._programs is not None:
                path = self._programs.get(machine.kind)
            if path is None:
                machine.why = "there is none"
                return
            machine.engine = identify(machine.kind, Program.read(path))
        except CafsError as error:
            machine.why = str(error)

    def _find_rebuilders(self, record: EngineRecord) -> list[Engine]:
        """Those programs of a record that can be run, in its order."""
        machine = self._machine.get(record.kind)
        own = machine.engine if machine is not None else None
        found: list[Engine] = []
        for name in record.programs:
            if own is not None and own.program.sha256 == name:
                found.append(own)
                continue
            if record.kind not in KINDS:
                continue
            try:
                found.append(self._copy(record.kind, name))
                self._kept.add(name)
            except EngineError as error:
                log.warning("a kept engine cannot be used: %s", error)
        if not found and own is not None:
            # The last resort: it may make the same, and if it does not, that will be seen.
            found.append(own)
        return found

    def _copy(self, kind: str, name: str) -> Engine:
        """The engine that a kept copy is.  Raises EngineError when it is none, or another."""
        return identify(kind, self._copies.read(name))

    def _is_copy(self, engine: Engine) -> bool:
        return engine.program.path.parent == self._copies.directory

    def _judge(self, machine: _Machine) -> None:
        """What the machine's engine may be used for, by what is recorded."""
        latest = self._latest(machine.kind)
        if machine.engine is None:
            # gzip was removed from the machine: the copy is as good as ever.
            numbers = [n for n in self._rebuilders if self._records[n].kind == machine.kind]
            if numbers:
                machine.engine, machine.state = self._rebuilders[max(numbers)], State.READY
                machine.number = self._number_of(machine.engine)
            return
        name = machine.engine.program.sha256
        if any(name in record.programs for record in self._records.values()):
            machine.state, machine.number = State.READY, self._number_of(machine.engine)
        elif latest:
            machine.state = State.UNPROVEN
            machine.why = f"is another program than that of engine {latest}"
        else:
            machine.state = State.READY


def _about(engine: Engine | None) -> tuple[str, str, str]:
    if engine is None:
        return "", "", ""
    return engine.version, str(engine.program.path), engine.program.sha256
