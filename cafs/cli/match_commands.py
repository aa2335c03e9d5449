"""``cafs match``: what of an app a store has already.

Prints only; what is found out is :mod:`cafs.operate.match`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cafs.cli.frame import TEXT_PATH_TYPE, Frame, command, resolve_store, store_option
from cafs.cli.looking import late_progress, looking
from cafs.cli.output import json_name, say, say_json, show_name, table
from cafs.cli.progress import progress_option
from cafs.units import human_size, plural

if TYPE_CHECKING:
    from cafs.operate.match import AppFile, Matched


@command(
    "match",
    example="cafs match ./my-app --store /var/lib/cafs/blobs\n"
    "cafs match . --json | jq .known_count",
)
@click.argument("directory", metavar="DIR", type=TEXT_PATH_TYPE)
@store_option
@progress_option
def match(frame: Frame, directory: str, store: Path | None, progress: str) -> None:
    """Show which files of the app in DIR the blobstore has already, so that cf push need not
    upload them.

    Files are hashed and judged as the cf command line and Cloud Controller do: of more than
    64 KiB and less than 512 MiB, with permissions of at least 0600. What cf push leaves out of
    any app is left out here; a .cfignore is not read. Works with and without a daemon.
    """
    from cafs.operate.match import app_files
    from cafs.operate.match import match as match_files

    options = frame.settings().http
    found = resolve_store(store, frame)
    root = os.fsencode(directory)
    files = app_files(root)
    total = sum(file.size for file in files if file.eligible)
    with looking(found) as view, late_progress(progress, "hashing", "bytes", total) as advance:
        matched = list(match_files(view, root, files, options.resource_directory, advance))
    if frame.json:
        say_json({"store": found, "directory": directory} | _fields(files, matched))
    else:
        _show(files, matched)


def _fields(files: list[AppFile], matched: list[Matched]) -> dict[str, Any]:
    known = [each for each in matched if each.known]
    return {
        "files_count": len(files),
        "files_bytes": sum(file.size for file in files),
        "eligible_count": len(matched),
        "eligible_bytes": sum(each.file.size for each in matched),
        "known_count": len(known),
        "known_bytes": sum(each.file.size for each in known),
        "eligible": [
            json_name("path", each.file.path)
            | {
                "size_bytes": each.file.size,
                "mode": f"{each.file.mode:04o}",
                "sha1": each.sha1,
                "known": each.known,
            }
            for each in matched
        ],
    }


def _show(files: list[AppFile], matched: list[Matched]) -> None:
    if matched:
        table(
            ("there", "size", "sha1", "path"),
            [
                (
                    "yes" if each.known else "no",
                    human_size(each.file.size),
                    each.sha1,
                    show_name(each.file.path),
                )
                for each in matched
            ],
            right=("size",),
        )
        say()
    fields = _fields(files, matched)
    sizes = f"{human_size(fields['known_bytes'])} of {human_size(fields['eligible_bytes'])}"
    say(f"{fields['known_count']} of {plural(len(matched), 'file')} are there ({sizes})")
    rest = len(files) - len(matched)
    if rest:
        others = human_size(fields["files_bytes"] - fields["eligible_bytes"])
        say(f"{plural(rest, 'other file')} ({others}) are never matched: size or permissions")


COMMANDS = [match]
