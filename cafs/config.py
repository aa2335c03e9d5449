"""Settings: their units, defaults and bounds, and where they come from.

The fields of the dataclasses below are the one table of all settings; docs/settings.md is held
to it by a test.  Two kinds: parameters of a store, written into it when it is made, and options
of a mount, which may differ each time.  A flag beats the file, the file beats the default.

Invariant: a value that left this module is inside its bounds.  Anything else is a
:class:`ConfigError` that names the key, the bounds and the file, before anything was changed.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cafs.archive_options import ArchiveOptions
from cafs.errors import ConfigError
from cafs.http_options import HttpOptions
from cafs.serve_options import ServeOptions
from cafs.setting import (
    Setting,
    check_values,
    choice_setting,
    count_setting,
    did_you_mean,
    duration_setting,
    parse_section,
    parse_value,
    path_setting,
    rate_setting,
    rows_of,
    size_setting,
    yes_no_setting,
)
from cafs.units import size_text

DEFAULT_FILE: Final = Path("/etc/cafs/cafs.toml")
"""Read when it exists and no other file is named."""

FILE_VARIABLE: Final = "CAFS_CONFIG"
STORE_VARIABLE: Final = "CAFS_STORE"

_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30
_DAY = 86400.0


@dataclass(frozen=True)
class Defaults:
    """Section ``default``: what commands mean when they are not told."""

    store: Path | None = path_setting("The store that commands mean when none is named.")
    mountpoint: Path | None = path_setting("Where `cafs mount` and `cafs up` mount when not told.")


@dataclass(frozen=True)
class StoreParams:
    """Section ``store``: how a store cuts and packs; fixed when it is made."""

    chunk_min: int = size_setting(
        16 * _KIB, 64, 8 * _MIB, "No chunk is shorter, but for the last one."
    )
    chunk_avg: int = size_setting(
        64 * _KIB, 4 * _KIB, 4 * _MIB, "Aimed-at chunk size; a power of two."
    )
    chunk_max: int = size_setting(256 * _KIB, 4 * _KIB, 8 * _MIB, "No chunk is longer.")
    zip_members: bool = yes_no_setting(True, "Cut zips at their members, too.")
    pack_size: int = size_setting(
        256 * _MIB, _MIB, 2 * _GIB, "A pack is closed before it grows larger."
    )

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` when the sizes do not fit each other."""
        check_values("store", self)
        if not self.chunk_min <= self.chunk_avg <= self.chunk_max:
            raise ConfigError(
                "store.chunk_min <= store.chunk_avg <= store.chunk_max must hold, but they are "
                f"{size_text(self.chunk_min)}, {size_text(self.chunk_avg)} and "
                f"{size_text(self.chunk_max)}"
            )
        if self.chunk_avg & (self.chunk_avg - 1):
            raise ConfigError(
                f"store.chunk_avg = {size_text(self.chunk_avg)} must be a power of two"
            )
        if self.pack_size < 2 * self.chunk_max:
            raise ConfigError(
                f"store.pack_size = {size_text(self.pack_size)} must be at least twice "
                f"store.chunk_max = {size_text(self.chunk_max)}"
            )


@dataclass(frozen=True)
class MountOptions:
    """Section ``mount``: how a daemon serves a store; may differ with each mount."""

    commit_interval: float = duration_setting(
        1.0, 0.05, 60.0, "A change that nobody waits for is on disk after this time."
    )
    ingest_threads: int = count_setting(
        2, 1, 16, "Threads that cut, hash and compress what is written."
    )
    overlay_limit: int = count_setting(
        200_000,
        1000,
        10_000_000,
        "Index changes that may wait for a commit: at a quarter one begins, then writers wait.",
    )
    pending_bytes: int = size_setting(
        64 * _MIB, 8 * _MIB, 4 * _GIB, "Written bytes that may wait for ingest; then writers wait."
    )
    chunk_cache: int = size_setting(
        32 * _MIB, _MIB, 64 * _GIB, "Memory for chunks that were just read."
    )
    reserve: int = size_setting(
        8 * _MIB, _MIB, 64 * _GIB, "Disk space held back, so that deleting works when full."
    )
    grace: float = duration_setting(
        60.0, 0.0, 30 * _DAY, "A freed extent is not touched for this long: it may still be sent."
    )
    sweep_rate: int = count_setting(
        20_000, 100, 10_000_000, "Records per second that a background sweep may take out."
    )
    compact_rate: int = rate_setting(
        32 * _MIB, _MIB, 64 * _GIB, "Bytes per second that background compaction may move."
    )
    index_copy_interval: float = duration_setting(
        3600.0, 60.0, 30 * _DAY, "A hot copy of the index is made this often, if it changed."
    )
    atime: str = choice_setting(
        "relatime", ("relatime", "noatime"), "Whether reading changes a file's access time."
    )
    read_ahead: int = size_setting(
        4 * _MIB, 128 * _KIB, 16 * _MIB, "How far the kernel reads ahead in the mount."
    )
    allow_other: bool = yes_no_setting(True, "Let all users in; the kernel checks permissions.")
    pending_file: Path | None = path_setting(
        "Tells nginx what is not committed; /dev/shm/cafs-ID.pending when not given."
    )
    log_level: str = choice_setting(
        "info", ("debug", "info", "warning", "error"), "Which lines are logged."
    )

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` when a value is out of bounds."""
        check_values("mount", self)


@dataclass(frozen=True)
class Settings:
    """All settings of one run."""

    default: Defaults = Defaults()
    store: StoreParams = StoreParams()
    mount: MountOptions = MountOptions()
    archives: ArchiveOptions = ArchiveOptions()
    http: HttpOptions = HttpOptions()
    serve: ServeOptions = ServeOptions()
    explicit: frozenset[str] = frozenset()
    """Keys that the file or a flag set, as ``mount.grace``."""
    file: Path | None = None
    """The file that was read."""


SECTIONS: Final[Mapping[str, type[Any]]] = {
    "default": Defaults,
    "store": StoreParams,
    "mount": MountOptions,
    "archives": ArchiveOptions,
    "http": HttpOptions,
    "serve": ServeOptions,
}


def table() -> list[Setting]:
    """Every setting there is."""
    return [row for section, cls in SECTIONS.items() for row in rows_of(section, cls)]


def find_file(named: Path | None, environ: Mapping[str, str] = os.environ) -> Path | None:
    """The settings file: *named*, else ``CAFS_CONFIG``, else the default one if it exists.

    Raises :class:`ConfigError` when a file that was asked for is not there.
    """
    if named is None and environ.get(FILE_VARIABLE):
        named = Path(environ[FILE_VARIABLE])
    try:
        if named is None:
            return DEFAULT_FILE if DEFAULT_FILE.exists() else None
        if not named.is_file():
            if named.exists():
                raise ConfigError(f"{named}: the settings file is not a file")
            raise ConfigError(f"{named}: there is no such settings file")
    except OSError as error:
        # For instance in a directory that this user may not enter.
        raise ConfigError(f"{named or DEFAULT_FILE}: {error.strerror}") from None
    return named


def load(
    named: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """Settings of one run: defaults, then the file, then *overrides* (``{"mount.grace": "5s"}``).

    Raises :class:`ConfigError` for anything wrong in either; the message names the file or flag.
    """
    file = find_file(named, environ)
    raw = _read(file) if file else {}
    where = f"{file}: " if file else ""
    for section, content in raw.items():
        if section not in SECTIONS:
            raise ConfigError(
                f"{where}[{section}]: there is no such section{did_you_mean(section, SECTIONS)}"
            )
        if not isinstance(content, dict):
            raise ConfigError(f"{where}{section} must be a section, written [{section}]")
    parsed = {
        name: parse_section(name, cls, raw.get(name, {}), where) for name, cls in SECTIONS.items()
    }
    explicit = {f"{section}.{name}" for section, content in raw.items() for name in content}
    for section, cls in SECTIONS.items():
        changed = {
            row.name: parse_value(row, overrides[row.key], f"{row.flag}: ")
            for row in rows_of(section, cls)
            if overrides and overrides.get(row.key) is not None
        }
        if changed:
            parsed[section] = dataclasses.replace(parsed[section], **changed)
            explicit |= {f"{section}.{name}" for name in changed}
    return Settings(**parsed, explicit=frozenset(explicit), file=file)


def _read(file: Path) -> dict[str, Any]:
    # Imported here, and not by every command that only prints its help.
    import tomllib

    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        # Also of a number with thousands of digits, or a list in lists in lists.
        raise ConfigError(f"{file}: is not TOML: {error}") from None
