"""One setting: its kind, bounds and text, and how a value of it is read and checked.

Knows nothing of which settings there are: a section is any dataclass whose fields were made
with the ``*_setting`` functions below.  Invariant: a value that left this module is inside its
bounds; anything else is a :class:`ConfigError` that names the key and the bounds.
"""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cafs.errors import ConfigError
from cafs.units import duration_text, parse_duration, parse_size, size_text

SIZE, RATE, DURATION, COUNT, BOOL, CHOICE, PATH, NAME, NETWORKS, MODE, TREE_PATH = (
    "size",
    "rate",
    "duration",
    "count",
    "yes/no",
    "choice",
    "path",
    "name",
    "networks",
    "mode",
    "tree path",
)

_NAME = re.compile(r"[A-Za-z0-9._:*\[\]-]{1,253}")

Values = TypeVar("Values")


class Setting(NamedTuple):
    """What is known of one setting; a row of docs/settings.md."""

    section: str
    name: str
    kind: str
    default: Any
    low: Any
    high: Any
    choices: tuple[str, ...]
    help: str

    @property
    def key(self) -> str:
        """As it is named in messages: ``mount.commit_interval``."""
        return f"{self.section}.{self.name}"

    @property
    def flag(self) -> str:
        """As it is written on a command line: ``--commit-interval``."""
        return "--" + self.name.replace("_", "-")

    def text(self, value: Any) -> str:
        """*value* as one writes it in the file, without quotes."""
        if value is None:
            return ""
        if self.kind == SIZE:
            return size_text(value)
        if self.kind == RATE:
            return size_text(value) + "/s"
        if self.kind == DURATION:
            return duration_text(value)
        if self.kind == BOOL:
            return "true" if value else "false"
        if self.kind == NETWORKS:
            return " ".join(value)
        if self.kind == MODE:
            return f"{value:04o}"
        return str(value)

    @property
    def bounds(self) -> str:
        """What is allowed, for people: ``50ms to 60s``."""
        if self.kind == CHOICE:
            return " or ".join(self.choices)
        if self.kind == BOOL:
            return "true or false"
        if self.kind == PATH:
            return "an absolute path"
        if self.kind == NAME:
            return "letters, digits and . _ - : *"
        if self.kind == NETWORKS:
            return "addresses or networks, blanks between"
        if self.kind == TREE_PATH:
            return "names with / between"
        return f"{self.text(self.low)} to {self.text(self.high)}"


def _spec(kind: str, default: Any, low: Any, high: Any, help: str, choices: Any = ()) -> Any:
    return field(
        default=default,
        metadata={"kind": kind, "low": low, "high": high, "choices": choices, "help": help},
    )


def size_setting(default: int, low: int, high: int, help: str) -> Any:
    """A size in bytes."""
    return _spec(SIZE, default, low, high, help)


def rate_setting(default: int, low: int, high: int, help: str) -> Any:
    """Bytes per second."""
    return _spec(RATE, default, low, high, help)


def duration_setting(default: float, low: float, high: float, help: str) -> Any:
    """A duration in seconds."""
    return _spec(DURATION, default, low, high, help)


def count_setting(default: int, low: int, high: int, help: str) -> Any:
    """A whole number."""
    return _spec(COUNT, default, low, high, help)


def yes_no_setting(default: bool, help: str) -> Any:
    """True or false."""
    return _spec(BOOL, default, None, None, help)


def choice_setting(default: str, choices: tuple[str, ...], help: str) -> Any:
    """One of *choices*."""
    return _spec(CHOICE, default, None, None, help, choices)


def path_setting(help: str) -> Any:
    """An absolute path, or None."""
    return _spec(PATH, None, None, None, help)


def name_setting(default: str | None, help: str) -> Any:
    """A host name, an address or a user's name, or None."""
    return _spec(NAME, default, None, None, help)


def networks_setting(default: tuple[str, ...], help: str) -> Any:
    """Addresses and networks as ``10.0.0.0/8``; any number of them."""
    return _spec(NETWORKS, default, None, None, help)


def mode_setting(default: int, help: str) -> Any:
    """Permissions in octal digits, as ``0600``."""
    return _spec(MODE, default, 0, 0o7777, help)


def tree_path_setting(default: str, help: str) -> Any:
    """A path in the tree, from its root, without a slash at either end."""
    return _spec(TREE_PATH, default, None, None, help)


def rows_of(section: str, cls: type[Any]) -> Iterator[Setting]:
    """The table of one section, in order."""
    for item in dataclasses.fields(cls):
        about = item.metadata
        yield Setting(
            section,
            item.name,
            about["kind"],
            item.default,
            about["low"],
            about["high"],
            about["choices"],
            about["help"],
        )


def check_values(section: str, values: Any, where: str = "") -> None:
    """Raise :class:`ConfigError` for the first field of *values* that is out of bounds."""
    for row in rows_of(section, type(values)):
        check_value(row, getattr(values, row.name), where)


def check_value(row: Setting, value: Any, where: str = "") -> None:
    """Raise :class:`ConfigError` when *value* is outside the bounds of *row*."""
    if row.low is not None and not row.low <= value <= row.high:
        problem = f"is out of bounds: {row.bounds}"
    elif row.choices and value not in row.choices:
        problem = f"must be {row.bounds}"
    elif row.kind == PATH and value is not None and not value.is_absolute():
        problem = "must be an absolute path"
    elif row.kind in (PATH, TREE_PATH) and value is not None and "\0" in str(value):
        problem = "has a NUL character, which no path may have"
    elif row.kind == NAME and value is not None and not _NAME.fullmatch(value):
        problem = f"may have {row.bounds} only"
    elif row.kind == NETWORKS and not all(map(_is_network, value)):
        problem = f"must be {row.bounds}, as 10.0.0.0/8"
    elif row.kind == TREE_PATH and not _is_tree_path(value):
        problem = f"must be {row.bounds}, as cc-resources/app_bits_cache"
    else:
        return
    shown = row.text(value).replace("\0", "\\0")
    raise ConfigError(f"{where}{row.key} = {shown} {problem}")


def _is_network(text: str) -> bool:
    try:
        ipaddress.ip_network(text)
    except ValueError:
        return False
    return True


def _is_tree_path(text: str) -> bool:
    return all(name not in ("", ".", "..") for name in text.split("/"))


def parse_value(row: Setting, raw: object, where: str = "") -> Any:
    """The value of *row* that *raw*, from a TOML file or a flag, stands for.

    Raises :class:`ConfigError` when it has the wrong type, no unit, or is out of bounds.
    """
    value = _convert(row, raw, where)
    check_value(row, value, where)
    return value


def _convert(row: Setting, raw: object, where: str) -> Any:
    if row.kind == BOOL and isinstance(raw, bool):
        return raw
    if row.kind == COUNT and isinstance(raw, int) and not isinstance(raw, bool):
        return raw
    if row.kind in (SIZE, RATE, DURATION) and isinstance(raw, str | int | float):
        # A number without a unit is refused by the parsers, with a better message than here.
        text = str(raw)
        try:
            if row.kind == DURATION:
                return parse_duration(text)
            return parse_size(text.removesuffix("/s") if row.kind == RATE else text)
        except ValueError as error:
            raise ConfigError(f"{where}{row.key}: {error} ({row.bounds})") from None
    if row.kind == CHOICE and isinstance(raw, str):
        return raw
    if row.kind == PATH and isinstance(raw, str):
        return Path(raw)
    if row.kind in (NAME, TREE_PATH) and isinstance(raw, str):
        return raw
    if row.kind == MODE and isinstance(raw, str) and re.fullmatch("[0-7]{3,5}", raw):
        return int(raw, 8)
    if row.kind == NETWORKS and isinstance(raw, str):
        return tuple(raw.split())
    kind = {COUNT: "a whole number", BOOL: "true or false"}.get(row.kind, f"a {row.kind} in quotes")
    raise ConfigError(f"{where}{row.key} = {raw!r} must be {kind} ({row.bounds})")


def parse_section(
    section: str, cls: type[Values], raw: Mapping[str, object], where: str = ""
) -> Values:
    """The values of one section; *where* is put before each message, as in ``"FILE: "``.

    Raises :class:`ConfigError` for an unknown key or a wrong value.
    """
    rows = {row.name: row for row in rows_of(section, cls)}
    values = {}
    for name, item in raw.items():
        if name not in rows:
            raise ConfigError(
                f"{where}{section}.{name}: there is no such setting{did_you_mean(name, rows)}"
            )
        values[name] = parse_value(rows[name], item, where)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from None


def did_you_mean(name: str, known: Mapping[str, object]) -> str:
    """``"; did you mean X?"``, or which there are when nothing is like *name*."""
    near = nearest(name, known)
    return f"; did you mean {near}?" if near else f"; known are {', '.join(known)}"


def nearest(name: str, known: Mapping[str, object]) -> str | None:
    """The key of *known* that is most like *name*, if one is."""
    # Slow to import, and only mistakes need it.
    import difflib

    found = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return found[0] if found else None


def toml_lines(section: str, values: Any) -> list[str]:
    """*values* as lines of a TOML file, ``name = value``, without the section's heading."""
    lines = []
    for row in rows_of(section, type(values)):
        value = getattr(values, row.name)
        if value is None:
            continue
        text = row.text(value)
        lines.append(
            f"{row.name} = {text}" if row.kind in (BOOL, COUNT) else f'{row.name} = "{text}"'
        )
    return lines
