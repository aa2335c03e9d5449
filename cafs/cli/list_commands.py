"""``cafs ls``, ``du`` and ``find``: a part of the tree, mounted or not.

Only looks and prints: walking is :mod:`cafs.operate.find`, adding up :mod:`cafs.operate.usage`.
Invariant: what is listed leaves at once, so that memory does not grow with the answer.
"""

from __future__ import annotations

import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cafs.cli.frame import TEXT_PATH_TYPE, Frame, command, store_option
from cafs.cli.looking import (
    TYPE_NAMES,
    Place,
    attr_fields,
    group_name,
    late_progress,
    looking,
    path_fields,
    places_of,
    short_time,
    user_name,
)
from cafs.cli.output import say, say_json, show_name, table
from cafs.cli.progress import progress_option
from cafs.errors import UsageError
from cafs.units import human_count, human_size, parse_duration, parse_size

if TYPE_CHECKING:
    from cafs.operate.find import Met
    from cafs.operate.usage import Usage
    from cafs.types import Attr, Ino
    from cafs.view import View

DIGITS: Final = 12
"""Of a SHA-256 in a long listing."""

_places_argument = click.argument(
    "where_", metavar="[STORE] [PATH]...", nargs=-1, type=TEXT_PATH_TYPE
)


@command(
    "ls",
    example="cafs ls /var/vcap/store/shared/cc-packages -l\n"
    "cafs ls /var/lib/cafs/blobs /cc-packages -R",
)
@_places_argument
@store_option
@click.option("-l", "--long", is_flag=True, help="Mode, owner, size, time, SHA-256 and name.")
@click.option("-R", "--recursive", is_flag=True, help="Go into directories.")
def ls(
    frame: Frame, where_: tuple[str, ...], store: Path | None, long: bool, recursive: bool
) -> None:
    """List what is in directory PATH, in order of the names' bytes.

    PATH lies on a mount, or begins at the root of STORE, which need not be mounted. With
    --json, one document a line; -l adds what it shows.
    """
    from cafs.operate.paths import attr_of, resolve

    found, places = places_of(frame, where_, store)
    with looking(found) as view:
        roots = [(place, resolve(view, place.inside, place.shown).ino) for place in places]
        titles = len(roots) > 1 or recursive
        first = True
        for place, ino in roots:
            if not stat.S_ISDIR(attr_of(view, ino).mode):
                _ls_one(frame, view, place, ino, long)
                first = False
                continue
            for path, directory in _directories(view, place, ino, recursive):
                if titles and not frame.json:
                    say(("" if first else "\n") + show_name(path) + ":")
                first = False
                _ls_directory(frame, view, path, directory, long)


def _directories(
    view: View, place: Place, ino: Ino, recursive: bool
) -> Iterator[tuple[bytes, Ino]]:
    from cafs.operate.find import walk

    if not recursive:
        yield place.shown, ino
        return
    for met in walk(view, ino, place.shown):
        if met.type == stat.S_IFDIR >> 12:
            yield met.path, met.ino


def _ls_directory(frame: Frame, view: View, path: bytes, directory: Ino, long: bool) -> None:
    from cafs.operate.find import Met, entries

    for name, ino, kind in entries(view, directory):
        _ls_line(frame, view, Met(path.rstrip(b"/") + b"/" + name, name, ino, kind), name, long)


def _ls_one(frame: Frame, view: View, place: Place, ino: Ino, long: bool) -> None:
    from cafs.operate.find import Met
    from cafs.operate.paths import attr_of

    met = Met(place.shown, place.shown, ino, attr_of(view, ino).mode >> 12)
    _ls_line(frame, view, met, place.shown, long)


def _ls_line(frame: Frame, view: View, met: Met, name: bytes, long: bool) -> None:
    if not long:
        if frame.json:
            kind = TYPE_NAMES.get(met.type << 12, "unknown")
            say_json(path_fields(met.path) | {"type": kind, "inode": met.ino})
        else:
            say(show_name(name))
        return
    from cafs.operate.paths import attr_of

    attr = attr_of(view, met.ino)
    digest = _sha256(view, attr)
    if frame.json:
        say_json(path_fields(met.path) | attr_fields(met.ino, attr) | {"sha256": digest})
        return
    owner = f"{user_name(attr.uid):<8} {group_name(attr.gid):<8}"
    # A name that is not in the table of digests yet is marked, one without content is not.
    shown = digest[:DIGITS] if digest else _why_no_digest(view, attr)
    # Fixed widths: a table would have to hold a directory of a million names.
    line = f"{stat.filemode(attr.mode)} {attr.nlink:>3} {owner} {human_size(attr.size):>9}"
    line += f" {short_time(attr.mtime_ns)} {shown:<{DIGITS}} {show_name(name)}"
    if stat.S_ISLNK(attr.mode):
        line += f" -> {show_name(view.tree.readlink(met.ino))}"
    say(line)


def _has_content(attr: Attr) -> bool:
    return stat.S_ISREG(attr.mode) and bool(attr.blob)


def _sha256(view: View, attr: Attr) -> str | None:
    """The digest of a regular file's content, if it has some that is hashed."""
    from cafs.index.layout import BLOB_UNHASHED

    if not _has_content(attr):
        return None
    if view.outer(attr.blob) is None:
        # It was lost: what there is is listed all the same.
        return None
    record = view.blobs.get(attr.blob)
    return None if record.flags & BLOB_UNHASHED else record.sha256.hex()


def _why_no_digest(view: View, attr: Attr) -> str:
    if not _has_content(attr):
        return "-"
    return "lost" if view.outer(attr.blob) is None else "not yet"


@command(
    "du",
    example="cafs du /var/vcap/store/shared/cc-droplets\n"
    "cafs du /var/lib/cafs/blobs / --each\ncafs du --store /var/lib/cafs/blobs /a /b --json",
)
@_places_argument
@store_option
@click.option("--each", is_flag=True, help="A row for each directory in PATH, too.")
@progress_option
def du(
    frame: Frame, where_: tuple[str, ...], store: Path | None, each: bool, progress: str
) -> None:
    """Show how much PATH holds, and what deleting it would free.

    \b
    LOGICAL  sum of the files' sizes
    UNIQUE   bytes of the different chunks they are made of
    STORED   what these chunks take in packs
    SHARED   the part of UNIQUE that something outside PATH has, too
    FREES    what deleting PATH gives back, after sweep and compaction

    Several PATHs get a row each, and one for all of them together. Without PATH, the whole
    store is meant, or the current directory if that is in a mount.
    """
    from cafs.operate.find import entries
    from cafs.operate.paths import Named, resolve
    from cafs.operate.usage import usage
    from cafs.types import ROOT

    found, places = places_of(frame, where_, store)
    with looking(found) as view:
        rows: list[tuple[bytes | None, list[Named]]] = []
        roots: list[Named] = []
        for place in places:
            root = resolve(view, place.inside, place.shown)
            for name, ino, kind in entries(view, root.ino) if each else ():
                if kind == stat.S_IFDIR >> 12:
                    path = place.shown.rstrip(b"/") + b"/" + name
                    rows.append((path, [Named(root.ino, name, ino)]))
            rows.append((place.shown, [root]))
            roots.append(root)
        if len(roots) > 1:
            rows.append((None, roots))
        usages: list[tuple[bytes | None, Usage]] = []
        counters = view.counters
        total = 2 * counters.inodes + counters.blobs + counters.chunks
        for label, named in rows:
            # Of a part of the tree nobody knows beforehand how much it is.
            whole = any(root.ino == ROOT for root in named)
            with late_progress(
                progress, "adding up", "records", total if whole else None
            ) as advance:
                usages.append((label, usage(view, named, advance)))
    if frame.json:
        say_json({"store": found, "paths": [_usage_fields(*row) for row in usages]})
        return
    columns = ("logical", "unique", "stored", "shared", "frees", "files", "path")
    cells = [
        (
            human_size(sum_.logical),
            human_size(sum_.unique),
            human_size(sum_.stored),
            human_size(sum_.shared),
            human_size(sum_.freed),
            human_count(sum_.files),
            "all of them together" if path is None else show_name(path),
        )
        for path, sum_ in usages
    ]
    table(columns, cells, right=columns[:-1])


def _usage_fields(path: bytes | None, sum_: Usage) -> dict[str, Any]:
    return ({"path": None} if path is None else path_fields(path)) | {
        "files_count": sum_.files,
        "directories_count": sum_.directories,
        "others_count": sum_.others,
        "blobs_count": sum_.blobs,
        "chunks_count": sum_.chunks,
        "logical_bytes": sum_.logical,
        "unique_bytes": sum_.unique,
        "stored_bytes": sum_.stored,
        "shared_bytes": sum_.shared,
        "freed_bytes": sum_.freed,
    }


@command(
    "find",
    example="cafs find /var/vcap/store/shared --larger 1GiB --older 90d\n"
    "cafs find /var/lib/cafs/blobs / --sha 3a5f0c\n"
    "cafs find --type f --name '*.tgz' -0 | xargs -0 ls -l",
)
@_places_argument
@store_option
@click.option("--sha", metavar="PREFIX", help="Files whose SHA-256 or SHA-1 begins so.")
@click.option("--larger", metavar="SIZE", help="Files of more than SIZE, such as 64KiB.")
@click.option("--smaller", metavar="SIZE", help="Files of less than SIZE.")
@click.option("--older", metavar="DURATION", help="Modified longer ago than DURATION: 30d, 12h.")
@click.option("--newer", metavar="DURATION", help="Modified within DURATION.")
@click.option(
    "--type",
    "types",
    type=click.Choice(["f", "d", "l", "p", "s", "c", "b"]),
    multiple=True,
    help="f: regular file, d: directory, l: symbolic link ...; may be given again.",
)
@click.option("--name", "glob", metavar="GLOB", help="The last part of the path: '*.tgz'.")
@click.option("-0", "--null", "null", is_flag=True, help="End each path with a NUL byte.")
@progress_option
def find(
    frame: Frame,
    where_: tuple[str, ...],
    store: Path | None,
    sha: str | None,
    larger: str | None,
    smaller: str | None,
    older: str | None,
    newer: str | None,
    types: tuple[str, ...],
    glob: str | None,
    null: bool,
    progress: str,
) -> None:
    """Print the paths at and below PATH that meet all conditions.

    PATH lies on a mount, or begins at the root of STORE, which need not be mounted. With
    --json, one document a line.
    """
    if null and frame.json:
        raise UsageError("-0 and --json exclude each other")
    now = time.time_ns()
    sizes = _size("--larger", larger), _size("--smaller", smaller)
    ages = _age("--older", older, now), _age("--newer", newer, now)
    from cafs.operate import find as finding
    from cafs.operate.digests import parse
    from cafs.operate.paths import resolve

    if sha is not None:
        parse(sha)
    found, places = places_of(frame, where_, store)
    with looking(found) as view:
        blobs = None if sha is None else finding.blobs_that_begin_with(view, sha)
        name = None if glob is None else os.fsencode(glob)
        wanted = finding.Conditions(blobs, *sizes, *ages, types or None, name)
        if blobs is not None and not blobs:
            return
        # On a terminal the answer itself shows that it goes on.
        mode = "none" if progress == "auto" and sys.stdout.isatty() else progress
        with late_progress(mode, "searching", "names", view.counters.inodes) as advance:
            for place in places:
                root = resolve(view, place.inside, place.shown).ino
                for met, attr in finding.find(view, root, place.shown, wanted, advance):
                    if frame.json:
                        fields = path_fields(met.path) | attr_fields(met.ino, attr)
                        say_json(fields | {"sha256": _sha256(view, attr)})
                    elif null:
                        sys.stdout.write(os.fsdecode(met.path) + "\0")
                    else:
                        say(show_name(met.path))


def _size(flag: str, text: str | None) -> int | None:
    try:
        return None if text is None else parse_size(text)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


def _age(flag: str, text: str | None, now_ns: int) -> int | None:
    """The time that lies so long before now, in ns since 1970."""
    try:
        return None if text is None else now_ns - round(parse_duration(text) * 1e9)
    except ValueError as error:
        raise UsageError(f"{flag}: {error}") from None


COMMANDS = [ls, du, find]
