"""What the commands that look inside share: a view of the newest state, places, how values look.

Changes nothing but that it asks a daemon to commit first.  Invariant: what is shown is one
commit, and if that may not be the newest state, a line on stderr says why.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cafs import lock, storefile
from cafs.cli.frame import Frame, configured_store, resolve_path, resolve_store, store_at
from cafs.cli.output import json_name, note, say
from cafs.cli.progress import progress
from cafs.errors import CafsError, DaemonAbsentError, DaemonError, UsageError
from cafs.mount.mountpoint import Mount, canonical, mount_at, mounts_of_cafs
from cafs.units import human_count, human_duration, human_size, plural

if TYPE_CHECKING:
    from cafs.operate.look import BlobLook, Kind
    from cafs.types import Attr
    from cafs.view import View

ANSWER_S: Final = 15.0
"""How long a daemon may take to commit before the last commit is shown instead."""
PATIENCE_S: Final = 1.0
"""Work that is done by then shows no bar."""

TYPE_NAMES: Final[Mapping[int, str]] = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "FIFO",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


class Place(NamedTuple):
    """A path to look at."""

    shown: bytes
    """As the user gave it, and what lies below it is shown after it; with --json as *inside*."""
    inside: bytes
    """From the store's root, ``/`` first."""


def commit_first(store: Path) -> None:
    """Have the daemon of *store*, if there is one, commit; a line on stderr if it does not."""
    from cafs import control

    late = "; this is the last commit"
    try:
        control.call(store, "commit", timeout_s=ANSWER_S)
    except DaemonAbsentError:
        held_by = lock.holder(store)
        if held_by is not None:
            note(f"{store} is in use by {held_by}, which does not answer{late}")
    except DaemonError as error:
        note(f"{error}{late}")
    except CafsError as error:
        note(f"the daemon cannot commit: {error}{late}")


@contextmanager
def looking(store: Path) -> Iterator[View]:
    """A view of *store* as it is now.  Raises StoreMissingError and its kin."""
    # Slow to import, and help needs none of it.
    from cafs.view import View

    commit_first(store)
    with View(store) as view:
        yield view


def place_of(frame: Frame, given: str, store: Path | None) -> tuple[Path, Place]:
    """The store and the place of one path.

    Raises UsageError for an empty path, NotFoundError when no store is known.
    """
    if not given:
        raise UsageError("a path is empty", advice="the store's root is /")
    found = resolve_path(given, frame, store)
    # A program asks for the same path in different ways and compares the answers.
    return found.store, Place(found.inside if frame.json else os.fsencode(given), found.inside)


def places_of(frame: Frame, given: Sequence[str], store: Path | None) -> tuple[Path, list[Place]]:
    """What ``[STORE] [PATH]...`` and ``--store`` mean together: one store, at least one place.

    The first argument is the store if it is a store's directory, or a mountpoint with something
    behind it that does not lie below that mountpoint.  Without a path it is the current
    directory if that is in a mount (and nobody said which store), else the store's root.
    """
    left = list(given)
    if store is None and left and _names_a_store(left):
        store = Path(left.pop(0))
    if not left:
        if store is not None or _store_around(frame) is None:
            return resolve_store(store, frame), [Place(b"/", b"/")]
        left = ["."]
    named = store_at(store) if store is not None else None
    found = [place_of(frame, each, named) for each in left]
    stores = {each for each, _ in found}
    if len(stores) > 1:
        raise UsageError(
            f"the paths lie in different stores: {', '.join(sorted(map(str, stores)))}",
            advice="ask for one store at a time",
        )
    return found[0][0], [place for _, place in found]


def the_store(frame: Frame, given: Path | None) -> Path:
    """As cafs.cli.frame.resolve_store, but that the current directory's store counts, too."""
    around = _store_around(frame) if given is None else None
    return around or resolve_store(given, frame)


def _store_around(frame: Frame) -> Path | None:
    """The store that the current directory lies in, unless the settings name another one."""
    try:
        mount = _mount_above(Path.cwd())
    except FileNotFoundError:
        # The current directory was removed.
        return None
    if mount is None or mount.store is None:
        return None
    configured = configured_store(frame)
    return mount.store if configured is None or store_at(configured) == mount.store else None


def _names_a_store(given: Sequence[str]) -> bool:
    path = canonical(Path(given[0]))
    mount = mount_at(path)
    if mount is not None and mount.store is not None:
        below = [_below(mount.path, Path(each)) for each in given[1:]]
        return bool(below) and not any(below)
    # What lies in a mount is a path in it, even if it looks like a store.
    return _mount_above(path) is None and storefile.is_store(path)


def _below(mountpoint: Path, path: Path) -> bool:
    return path.is_absolute() and (path == mountpoint or mountpoint in path.parents)


def _mount_above(path: Path) -> Mount | None:
    for mount in reversed(mounts_of_cafs()):
        if path == mount.path or mount.path in path.parents:
            return mount
    return None


@contextmanager
def late_progress(
    mode: str, what: str, unit: str, total: int | None
) -> Iterator[Callable[[int], None]]:
    """As cafs.cli.progress.progress, but that a bar comes only when the work takes long."""
    if mode != "auto":
        with progress(mode, what, unit, total) as shown:
            yield shown
        return
    since = time.monotonic()
    with ExitStack() as stack:
        bar: Callable[[float], None] | None = None

        def advance(done: int) -> None:
            nonlocal bar
            if bar is None:
                if time.monotonic() - since < PATIENCE_S:
                    return
                bar = stack.enter_context(progress(mode, what, unit, total))
            bar(done)

        yield advance


# -- how values look -----------------------------------------------------------------------------


def pairs(rows: Sequence[tuple[str, str]]) -> None:
    """Labels and values, aligned, to stdout."""
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        say(f"{label.ljust(width)}  {text}")


def size_and_bytes(size: int) -> str:
    """A size for people, and exactly."""
    return human_size(size) if size < 1024 else f"{human_size(size)} ({human_count(size)} bytes)"


def time_text(time_ns: int) -> str:
    """A time in the local zone, to the nanosecond."""
    seconds, rest = divmod(time_ns, 10**9)
    try:
        local = datetime.fromtimestamp(seconds).astimezone()
    except (ValueError, OverflowError, OSError):
        # A file may be dated beyond what calendars reach.
        return f"{seconds}.{rest:09d} s since 1970"
    return f"{local:%Y-%m-%d %H:%M:%S}.{rest:09d} {local:%z}"


def short_time(time_ns: int) -> str:
    """A time in the local zone, to the minute."""
    return time_text(time_ns)[:16]


@lru_cache(maxsize=1024)
def user_name(uid: int) -> str:
    """The user's name, or the number if nobody has it."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


@lru_cache(maxsize=1024)
def group_name(gid: int) -> str:
    """The group's name, or the number if nobody has it."""
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def attr_fields(ino: int, attr: Attr) -> dict[str, Any]:
    """An inode's record as fields of JSON."""
    return {
        "type": TYPE_NAMES.get(stat.S_IFMT(attr.mode), "unknown"),
        "inode": ino,
        "mode": f"{stat.S_IMODE(attr.mode):04o}",
        "uid": attr.uid,
        "gid": attr.gid,
        "nlink_count": attr.nlink,
        "size_bytes": attr.size,
        "atime_ns": attr.atime_ns,
        "mtime_ns": attr.mtime_ns,
        "ctime_ns": attr.ctime_ns,
    }


def blob_fields(look: BlobLook) -> dict[str, Any]:
    """A blob as fields of JSON; digests are null while they are not known."""
    from cafs.index.layout import BLOB_LEFT

    record, use = look.record, look.use
    fields: dict[str, Any] = {
        "blob": look.blob,
        "sha256": record.sha256.hex() if look.hashed else None,
        "sha1": record.sha1.hex() if look.hashed else None,
        "size_bytes": record.size,
        "files_count": record.refs,
    }
    for kind in look.kinds:
        stem = f"{_kind_name(kind)}s".replace(" ", "_")
        fields[f"{stem}_count"] = kind.parts
        fields[f"{stem}_bytes"] = kind.length
    aged = look.aged
    fields["aged"] = None
    if aged is not None:
        fields["aged"] = {
            "inner_blob": aged.inner,
            "inner_bytes": aged.size,
            "rebuild_s": round(aged.rebuild_s, 3),
            "engines": [{"engine": n, "version": version} for n, version in aged.engines],
        }
    fields["left_plain"] = bool(record.flags & BLOB_LEFT)
    return fields | {
        "distinct_chunks_count": len(use.times),
        "distinct_bytes": use.raw_bytes,
        "stored_bytes": use.stored_bytes,
        "compression_ratio": None if look.ratio is None else round(look.ratio, 3),
        "shared_chunks_count": len(use.shared),
        "shared_bytes": use.shared_bytes,
    }


def _kind_name(kind: Kind) -> str:
    return "made part" if kind.name == "made" else kind.name


def aged_row(look: BlobLook) -> list[tuple[str, str]]:
    """How a blob that was taken apart is made again; nothing for others."""
    if look.aged is None:
        return []
    engines = " and ".join(version for _, version in look.aged.engines)
    seconds = human_duration(look.aged.rebuild_s)
    text = f"into {size_and_bytes(look.aged.size)}; made again by {engines} in about {seconds}"
    return [("taken apart", text)]


def blob_rows(look: BlobLook, sharers: int | None = None) -> list[tuple[str, str]]:
    """A blob for people; *sharers* is the number of blobs that have chunks of it, if known."""
    record, use = look.record, look.use
    unknown = "not known yet (still being written)"
    parts = [
        plural(kind.parts, _kind_name(kind)) + f" ({human_size(kind.length)})"
        for kind in look.kinds
        if kind.parts
    ]
    stored = "nothing in packs"
    if use.times:
        ratio = ", not compressed"
        if look.ratio is not None and look.ratio >= 1.005:
            ratio = f", compressed {look.ratio:.2f} : 1"
        stored = f"{size_and_bytes(use.stored_bytes)} in {plural(len(use.times), 'distinct chunk')}"
        stored += ratio
    shared = "no chunk with any other blob"
    if use.shared:
        shared = f"{plural(len(use.shared), 'chunk')} ({human_size(use.shared_bytes)}) with "
        shared += "other blobs" if sharers is None else plural(sharers, "other blob")
    return [
        ("sha256", record.sha256.hex() if look.hashed else unknown),
        ("sha1", record.sha1.hex() if look.hashed else unknown),
        ("parts", ", ".join(parts) or "none"),
        *aged_row(look),
        ("stored", stored),
        ("shared", shared),
    ]


def path_fields(path: bytes) -> dict[str, str]:
    """A path as fields of JSON."""
    return json_name("path", path)
