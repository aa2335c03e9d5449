"""What commands print: tables and trees of values for people, JSON for programs.

Results go to stdout, everything else to stderr.  Invariant: with ``--json`` stdout holds
exactly one JSON document (or one per line, where a command's help says so), and nothing else.
"""

from __future__ import annotations

import base64
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from cafs.units import human_count, human_duration, human_size

# What may move a terminal's cursor; a surrogate stands for a byte that is not UTF-8.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\udc80-\udcff]")


def say(text: str = "") -> None:
    """A line of the result, to stdout."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """A line beside the result, to stderr."""
    tell(f"cafs: {text}\n")


def tell(text: str) -> None:
    """Write to stderr as it is.  Where that takes nothing (a full disk), it is left unsaid.

    What a command does, and its exit code, must not depend on whether somebody listens.
    """
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:
        # Python would try again at exit, and make an exit code of its own of it.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stderr.fileno())
        os.close(null)


def warn(text: str) -> None:
    """A warning, to stderr."""
    note(f"warning: {text}")


def say_json(value: Any) -> None:
    """One JSON document, to stdout; on a terminal indented."""
    indent = 2 if sys.stdout.isatty() else None
    say(json.dumps(value, indent=indent, ensure_ascii=True, default=_json_default))


def _json_default(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{type(value).__name__} has no JSON form")


def json_name(key: str, name: bytes) -> dict[str, str]:
    """Fields for a name: ``key``, and ``key_b64`` with the exact bytes when it is not UTF-8."""
    try:
        return {key: name.decode("utf-8")}
    except UnicodeDecodeError:
        return {
            key: name.decode("utf-8", "replace"),
            f"{key}_b64": base64.b64encode(name).decode("ascii"),
        }


def show_json_name(fields: Mapping[str, str], key: str = "path") -> str:
    """The name that json_name() has made fields of, as show_name() shows it."""
    exact = fields.get(f"{key}_b64")
    return show_name(base64.b64decode(exact) if exact else fields[key].encode())


def show_name(name: bytes) -> str:
    """A name as text: exactly, but on a terminal one that could control it is quoted.

    The quoted form is that of a shell ($'...'), so that it can be pasted.
    """
    text = os.fsdecode(name)
    if _CONTROL.search(text) and sys.stdout.isatty():
        quoted = text.replace("\\", "\\\\").replace("'", "\\'")
        return "$'" + _CONTROL.sub(_escape, quoted) + "'"
    return text


def _escape(match: re.Match[str]) -> str:
    known = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\x1b": "\\e"}.get(match[0])
    return known or "".join(f"\\x{byte:02x}" for byte in os.fsencode(match[0]))


def table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, right: Sequence[str] = ()
) -> None:
    """A table to stdout: never cut to the terminal's width, so that it can be searched.

    *right* names the columns that are aligned to the right.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [
        max([len(title), *(len(row[number]) for row in cells)])
        for number, title in enumerate(columns)
    ]
    for row in [[title.upper() for title in columns], *cells]:
        parts = [
            cell.rjust(width) if title in right else cell.ljust(width)
            for title, cell, width in zip(columns, row, widths, strict=True)
        ]
        say("  ".join(parts).rstrip())


SUFFIXES: Final[Mapping[str, Callable[[float], str]]] = {
    "_bytes_per_s": lambda value: f"{human_size(value)}/s",
    "_per_s": lambda value: f"{value:,.1f}/s",
    "_bytes": human_size,
    "_ns": lambda value: human_duration(value / 1e9),
    "_ms": lambda value: human_duration(value / 1e3),
    "_s": human_duration,
    "_count": lambda value: human_count(round(value)),
    "_ratio": lambda value: f"{value:.3g}",
    "_percent": lambda value: f"{value:.3g} %",
}
"""A key's last part tells its unit; the rest is the label."""


def label_and_value(key: str, value: object) -> tuple[str, str]:
    """How a field of an answer is shown: ``("stored", "1.20 GiB")`` for ``stored_bytes``."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        for suffix, show in SUFFIXES.items():
            if key.endswith(suffix) and len(key) > len(suffix):
                label = key.removesuffix(suffix)
                return label.replace("_", " "), show(value)
        if key == "ratio":
            return key, f"{value:.3g}"
    if value is None:
        # What is not known has no unit.
        key = next((key.removesuffix(each) for each in SUFFIXES if key.endswith(each)), key)
    return key.replace("_", " "), show_value(value)


def show_value(value: object) -> str:
    """A value without a unit, for people."""
    if value is None or value in ("", {}, []):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def tree(values: Mapping[str, Any], indent: int = 0) -> None:
    """Nested values to stdout: plain fields aligned, then each group under its name."""
    plain = {key: value for key, value in values.items() if not _is_group(value)}
    shown: dict[str, str] = {}
    for key, value in plain.items():
        label, text = label_and_value(key, value)
        # How many and how large are one line.
        shown[label] = f"{shown[label]}, {text}" if label in shown else text
    width = max(map(len, shown), default=0)
    pad = "  " * indent
    for label, text in shown.items():
        say(f"{pad}{label.ljust(width)}  {text}".rstrip())
    for key, value in values.items():
        if not _is_group(value):
            continue
        if indent == 0:
            say()
        say(f"{pad}{key.replace('_', ' ')}:")
        if isinstance(value, Mapping):
            tree(value, indent + 1)
        else:
            _items(value, indent + 1)


def _is_group(value: object) -> bool:
    # An empty group is shown in one line, as "-".
    return isinstance(value, Mapping | list) and bool(value)


def _items(values: Sequence[Any], indent: int) -> None:
    pad = "  " * indent
    for value in values:
        if isinstance(value, Mapping):
            fields = (label_and_value(key, item) for key, item in value.items())
            say(pad + ", ".join(f"{label} {text}" for label, text in fields))
        else:
            say(f"{pad}{show_value(value)}")
