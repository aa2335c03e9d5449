"""``store.toml``: what makes a directory a store, and says which cafs may touch it.

The one reader and writer of that file.  It is written when the store is made; afterwards only
its version grows, when the store comes to hold what an older program does not know.  Invariant:
whoever opens a store has read it here first, so a store of a newer format is refused before a
byte of it is changed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, NamedTuple

from cafs.config import StoreParams
from cafs.durable import Disk
from cafs.errors import (
    AccessError,
    ConfigError,
    IndexDamagedError,
    StoreMissingError,
    StoreVersionError,
)
from cafs.setting import parse_section, toml_lines

NAME: Final = "store.toml"


class StoreFile(NamedTuple):
    """The content of ``store.toml``."""

    id: bytes
    """16 random bytes; every pack carries them."""
    format_version: int
    params: StoreParams


def is_store(path: Path) -> bool:
    """Whether *path* holds a store, of whatever version.

    Raises :class:`AccessError` when this user may not look.
    """
    try:
        return (path / NAME).is_file()
    except PermissionError:
        raise AccessError(f"{path}: may not be entered by this user") from None
    except OSError:
        # A dead mount answers ENOTCONN: whatever is below, it is no store that can be used.
        return False


def check_path(path: Path) -> None:
    """Raise :class:`ConfigError` for a path that LMDB does not take."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise ConfigError(
            f"{path}: a store cannot lie there: the path has bytes that are not UTF-8",
            advice="give it, or the directory above, another name",
        ) from None


def render(content: StoreFile) -> bytes:
    """The file's bytes."""
    return "\n".join(
        [
            "# Written by cafs. Do not edit: the content of the store depends on it.",
            f"format_version = {content.format_version}",
            f'id = "{content.id.hex()}"',
            "",
            "[store]",
            *toml_lines("store", content.params),
            "",
        ]
    ).encode()


def read(store: Path) -> StoreFile:
    """What the store in directory *store* says of itself.

    Raises :class:`StoreMissingError` when there is none, :class:`StoreVersionError` when it is
    of a newer format, :class:`IndexDamagedError` when the file cannot be understood.
    """
    # Imported here, and not by every command that only asks whether there is a store.
    import tomllib

    from cafs.index.layout import FORMAT_VERSION

    check_path(store)
    file = store / NAME
    try:
        raw: dict[str, Any] = tomllib.loads(file.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise StoreMissingError(f"{store}: there is no store") from None
    except PermissionError:
        raise AccessError(f"{file}: may not be read by this user") from None
    except (ValueError, RecursionError) as error:
        raise IndexDamagedError(
            f"{file}: is not TOML: {error}", advice="restore the file from a backup"
        ) from None
    version = raw.get("format_version")
    # The version comes first: a newer file may differ in all the rest.
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise StoreVersionError(
            f"{store}: the store has format {version}, this cafs knows up to {FORMAT_VERSION}"
        )
    try:
        params = parse_section("store", StoreParams, raw["store"], f"{file}: ")
        return StoreFile(bytes.fromhex(raw["id"]), int(raw["format_version"]), params)
    except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
        raise IndexDamagedError(
            f"{file}: cannot be understood: {error}", advice="restore the file from a backup"
        ) from None


def upgrade(store: Path, version: int, disk: Disk) -> StoreFile:
    """Make the store's version at least *version*, durably; what the file says then.

    The caller holds the store's lock, and calls this before the store has anything that needs
    the version.  The file is replaced as a whole: after a crash it is the old or the new one.
    Raises what read() raises, DiskFullError and its kin.
    """
    content = read(store)
    if content.format_version >= version:
        return content
    content = content._replace(format_version=version)
    disk.write_file(store / NAME, render(content), keep_rights=True)
    return content
