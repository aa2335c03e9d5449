"""Log lines: one record one line, whatever is in it; and no flood of the same."""

from __future__ import annotations

import io
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cafs.log import LineFormatter, RateLimit, correlation_id, fields, stream_is_journal


def _record(message: str, *arguments: object, **values: object) -> logging.LogRecord:
    record = logging.LogRecord("cafs.store", logging.WARNING, __file__, 1, message, arguments, None)
    record.__dict__.update(fields(**values))
    record.created, record.msecs = 0.0, 7.0
    return record


def test_a_line_has_time_level_logger_message_and_fields() -> None:
    line = LineFormatter().format(_record("commit of %d changes", 3, took_s=1.5, path="/a b"))
    assert line == (
        '1970-01-01T00:00:00.007Z warning cafs.store: commit of 3 changes took_s=1.5 path="/a b"'
    )


def test_the_journal_gets_a_priority_and_no_time() -> None:
    assert LineFormatter(journal=True).format(_record("full")) == "<4>warning cafs.store: full"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "x"\n', '"say \\"x\\"\\n"'),
        ("clear\x1b[2J\r", '"clear\\x1b[2J\\r"'),
        ("\x9b2J", '"\\x9b2J"'),
        (b"name\xff", '"name\\\\xff"'),
        (os.fsdecode(b"name\xff"), '"name\\\\xff"'),
        (0.1234567891, "0.123457"),
        (None, "None"),
    ],
)
def test_a_field_can_be_told_from_its_neighbours(value: object, text: str) -> None:
    assert LineFormatter(journal=True).format(_record("m", key=value)).endswith(f"m key={text}")


def test_a_record_is_one_line_and_its_traceback_indented() -> None:
    record = _record("first\nsecond")
    try:
        raise ValueError("of two\nlines")
    except ValueError:
        record.exc_info = sys.exc_info()
    first, *trace = LineFormatter().format(record).split("\n")
    assert first.endswith("first\\nsecond")
    assert trace
    assert all(row.startswith("    ") for row in trace)


def test_nothing_in_a_line_ends_it_or_moves_the_cursor() -> None:
    line = LineFormatter(journal=True).format(_record("user a\r\n\x1b[2J\x9b\u2028 C:\\d"))
    assert line.endswith(r"user a\r\n\x1b[2J\x9b\u2028 C:\\d")


def test_ids_differ() -> None:
    assert re.fullmatch("[0-9a-f]{8}", correlation_id())
    assert correlation_id() != correlation_id()


def test_the_journal_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "stream").open("w") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        assert stream_is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino + 1}")
        assert not stream_is_journal(stream)
        monkeypatch.setenv("JOURNAL_STREAM", "nonsense")
        assert not stream_is_journal(stream)
    assert not stream_is_journal(io.StringIO())


class _Clock:
    """Stands where the test puts it."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def now_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds


def test_a_flood_becomes_one_line_per_interval_with_a_count() -> None:
    clock = _Clock()
    limit = RateLimit(burst=2, interval_s=60, clock=clock)
    assert [limit.allow("full") for _ in range(4)] == [0, 0, None, None]
    assert limit.allow("other") == 0
    clock.seconds += 60
    assert [limit.allow("full") for _ in range(2)] == [2, None]
    clock.seconds += 60
    assert limit.allow("full") == 1
    clock.seconds += 60
    assert [limit.allow("full") for _ in range(3)] == [0, 0, None]


def test_what_was_held_back_is_told(caplog: pytest.LogCaptureFixture) -> None:
    clock = _Clock()
    limit = RateLimit(burst=1, interval_s=60, clock=clock)
    logger = logging.getLogger("test.flood")
    for _ in range(3):
        limit.log(logger, logging.WARNING, "full", "disk full at 100 %", path="/s")
    clock.seconds += 61
    limit.log(logger, logging.WARNING, "full", "disk full at 100 %", path="/s")
    assert [record.getMessage() for record in caplog.records] == ["disk full at 100 %"] * 2
    lines = [LineFormatter(journal=True).format(record) for record in caplog.records]
    assert lines[1].endswith("path=/s held_back=2")


def test_a_rotated_file_is_followed_by_stderr(tmp_path: Path) -> None:
    """In a process of its own, because it moves stdout and stderr."""
    script = (
        "import logging, os, sys, pathlib\n"
        "from cafs import logfile\n"
        "logfile.FILE_BYTES = 300\n"
        "logfile.to_file('info', pathlib.Path(sys.argv[1]))\n"
        "for n in range(4): logging.getLogger('x').info('line %d %s', n, 'y' * 100)\n"
        "os.write(2, b'last gasp\\n')\n"
    )
    log = tmp_path / "cafs.log"
    done = subprocess.run([sys.executable, "-c", script, log], capture_output=True, check=True)
    assert done.stderr == b""
    assert (tmp_path / "cafs.log.1").exists()
    assert log.read_text().endswith("last gasp\n")
    assert "line 3" in log.read_text()
