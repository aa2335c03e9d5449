"""One format for every line that cafs logs, and the few tools that keep a log readable.

A line is ``time level logger: message key=value ...``; the fields come from ``extra`` through
:func:`fields`.  Invariant: a record is one line, whatever its message holds, so that a log can
be searched line by line (a traceback is indented below its line).
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Mapping
from typing import Any, TextIO

from cafs.clock import Clock, SystemClock

_FIELDS = "cafs_fields"
_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f-\x9f]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t", "\u2028": r"\u2028", "\u2029": r"\u2029"}
# sd-daemon(3): the journal takes the priority from this prefix.
_JOURNAL_PRIORITY = {
    logging.DEBUG: "<7>",
    logging.INFO: "<6>",
    logging.WARNING: "<4>",
    logging.ERROR: "<3>",
    logging.CRITICAL: "<2>",
}


def fields(**values: object) -> dict[str, Any]:
    """Fields for one line: ``log.warning("slow commit", extra=fields(took_s=3.2))``."""
    return {_FIELDS: values}


def correlation_id() -> str:
    """A short random id that ties what a user was told to the line in the log."""
    return os.urandom(4).hex()


class LineFormatter(logging.Formatter):
    """Formats a record as one line with its fields at the end."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """The line; a traceback follows on indented lines."""
        parts = [f"{record.levelname.lower()} {record.name}: {_one_line(record.getMessage())}"]
        extra = getattr(record, _FIELDS, None)
        if isinstance(extra, Mapping):
            parts += [f"{key}={_value(value)}" for key, value in extra.items()]
        line = " ".join(parts)
        if self._journal:
            # The journal notes the time itself.
            line = _JOURNAL_PRIORITY.get(record.levelno, "<6>") + line
        else:
            at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            line = f"{at}.{int(record.msecs):03d}Z {line}"
        if record.exc_info:
            trace = self.formatException(record.exc_info)
            line += "\n" + "\n".join("    " + row for row in trace.splitlines())
        return line


def _one_line(text: str) -> str:
    """The text with nothing in it that ends a line, or that a terminal would obey."""
    if _CONTROL.search(text) is None:
        return text
    return _CONTROL.sub(_spelled_out, text.replace("\\", "\\\\"))


def _spelled_out(found: re.Match[str]) -> str:
    return _SHORT.get(found[0]) or f"\\x{ord(found[0]):02x}"


def _value(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    # A name may hold bytes that are not UTF-8; fsdecode keeps them apart as lone surrogates.
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
    text = raw.decode("utf-8", "backslashreplace")
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{_CONTROL.sub(_spelled_out, escaped)}"'


def stream_is_journal(stream: TextIO) -> bool:
    """Whether systemd connected *stream* to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        device, inode = os.environ.get("JOURNAL_STREAM", "").split(":")
        status = os.fstat(stream.fileno())
    except (ValueError, OSError):
        return False
    return (status.st_dev, status.st_ino) == (int(device), int(inode))


def to_stream(level: str, stream: TextIO) -> None:
    """Log to *stream* from *level* on, as a foreground process does."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(LineFormatter(journal=stream_is_journal(stream)))
    install(level, handler)


def install(level: str, handler: logging.Handler) -> None:
    """Log through *handler*, and nothing else, from *level* on."""
    # A full disk must not turn each log line into a traceback on the same full disk.
    logging.raiseExceptions = False
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)


def is_kept() -> bool:
    """Whether this process was told where to log to."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, LineFormatter) for handler in handlers)


class RateLimit:
    """Lets the first lines of a kind pass, then one per interval, and counts those held back.

    Not for more than one thread at a time; a lost count would be harmless.
    """

    def __init__(
        self, burst: int = 5, interval_s: float = 60.0, clock: Clock | None = None
    ) -> None:
        self._burst = burst
        self._interval = interval_s
        self._clock = clock or SystemClock()
        self._kinds: dict[str, tuple[int, float, int]] = {}

    def allow(self, kind: str) -> int | None:
        """How many lines of *kind* were held back since the last one; None: hold this one too."""
        now = self._clock.monotonic()
        passed, since, held = self._kinds.get(kind, (0, now, 0))
        if now - since >= self._interval:
            passed, since = 0, now
            # After a quiet interval the burst is there again, after a busy one a single line.
            if held:
                passed = self._burst - 1
        if passed >= self._burst:
            self._kinds[kind] = (passed, since, held + 1)
            return None
        self._kinds[kind] = (passed + 1, since, 0)
        return held

    def log(
        self, logger: logging.Logger, level: int, kind: str, message: str, **values: object
    ) -> None:
        """Log unless lines of *kind* came too often; says how many were held back before."""
        held = self.allow(kind)
        if held is None:
            return
        if held:
            values["held_back"] = held
        logger.log(level, "%s", message, extra=fields(**values))
