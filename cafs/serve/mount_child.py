"""The daemon as a process of its own: ``python -m cafs.serve.mount_child``.

What it is to do comes as one JSON object on stdin, and what becomes of it goes as JSON lines to
the descriptor that it names: that the mount answers, or the error that kept it from that.
Invariant: the values are those that the parent checked; nothing is read from settings files.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from cafs import log
from cafs.archive_options import ArchiveOptions
from cafs.config import MountOptions, Settings
from cafs.control import error_fields, error_from
from cafs.errors import CafsError, DaemonError
from cafs.http_options import HttpOptions
from cafs.logfile import to_file
from cafs.serve.child import Child, how_it_ended
from cafs.setting import BOOL, COUNT, parse_section, rows_of

_logger = logging.getLogger(__name__)


class MountProcess:
    """A running daemon, from the parent's side."""

    def __init__(
        self, store: Path, mountpoint: Path, settings: Settings, log_file: Path | None
    ) -> None:
        """Start it; :meth:`ready` waits until the mount answers."""
        reader, writer = os.pipe()
        task = {
            "store": os.fsdecode(store),
            "mountpoint": os.fsdecode(mountpoint),
            "log_file": None if log_file is None else os.fsdecode(log_file),
            "report": writer,
            "mount": raw_values("mount", settings.mount),
            "http": raw_values("http", settings.http),
            "archives": raw_values("archives", settings.archives),
        }
        try:
            self.child = Child(
                [sys.executable, "-m", "cafs.serve.mount_child"],
                stdin=subprocess.PIPE,
                pass_fds=[writer],
                env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            )
        except OSError as error:
            os.close(reader)
            raise DaemonError(f"{sys.executable}: cannot be run: {error.strerror}") from None
        finally:
            os.close(writer)
        self.error: CafsError | None = None
        """What kept the mount from answering, as the daemon told it."""
        self._report = trio.lowlevel.FdStream(reader)
        assert self.child.process.stdin is not None
        with self.child.process.stdin as stdin:
            # Less than a pipe holds, so this does not wait for the child.
            stdin.write(json.dumps(task).encode())

    async def ready(self) -> None:
        """Return when the mount answers; raises the error that the daemon had instead."""
        said = b""
        async for data in self._report:
            said += data
            if b"\n" not in said:
                continue
            message: dict[str, Any] = json.loads(said.partition(b"\n")[0])
            if message.get("ready"):
                return
            self.error = error_from(message)
            raise self.error
        status = await self.child.wait()
        raise DaemonError(f"the daemon {how_it_ended(status)} before the mount was there")

    async def close(self) -> None:
        """End it by force if it still runs, and let go of it."""
        self.child.close()
        await self._report.aclose()


def raw_values(section: str, values: Any) -> dict[str, object]:
    """*values* as :func:`~cafs.setting.parse_section` takes them, and JSON can hold them."""
    found: dict[str, object] = {}
    for row in rows_of(section, type(values)):
        value = getattr(values, row.name)
        if value is not None:
            found[row.name] = value if row.kind in (BOOL, COUNT) else row.text(value)
    return found


def main() -> int:
    """Serve the mount that stdin tells of; returns the exit code."""
    task: dict[str, Any] = json.load(sys.stdin)
    mount = parse_section("mount", MountOptions, task["mount"])
    http = parse_section("http", HttpOptions, task["http"])
    archives = parse_section("archives", ArchiveOptions, task["archives"])
    store, mountpoint = Path(task["store"]), Path(task["mountpoint"])
    report: int = task["report"]

    told = False

    def tell(**message: object) -> None:
        nonlocal told
        if told:
            # The log has it.
            return
        told = True
        try:
            os.write(report, json.dumps(message).encode() + b"\n")
        except OSError:
            # Nobody listens any more.
            pass
        os.close(report)

    if task["log_file"] is None:
        log.to_stream(mount.log_level, sys.stderr)
    else:
        to_file(mount.log_level, Path(task["log_file"]))
    return _serve(store, mountpoint, mount, http, archives, tell)


def _serve(
    store: Path,
    mountpoint: Path,
    mount: MountOptions,
    http: HttpOptions,
    archives: ArchiveOptions,
    tell: Callable[..., None],
) -> int:
    from cafs.mount.run import run

    beside = []
    if http.serve or http.listen is not None:
        from cafs.http.serve import serve

        beside.append(functools.partial(serve, http))
    try:
        run(store, mountpoint, mount, lambda: tell(ready=True), beside, archives)
    except CafsError as error:
        _logger.error("%s", error, extra=log.fields(advice=error.advice))
        tell(**error_fields(error))
        return error.meaning.exit_code
    except Exception:
        name = log.correlation_id()
        _logger.exception("the daemon ended by a defect", extra=log.fields(id=name))
        tell(**error_fields(DaemonError(f"the daemon ended by a defect of cafs, id {name}")))
        return 70
    return 0


if __name__ == "__main__":
    sys.exit(main())
