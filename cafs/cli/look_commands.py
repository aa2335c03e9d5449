"""``cafs blob`` and ``cafs stat``: what one blob is, and what one file is.

Only looks and prints: what is found out is :mod:`cafs.operate.look` and its neighbours.
Invariant: ``--cat`` writes no byte of a chunk that is not what was stored.
"""

from __future__ import annotations

import os
import stat
import sys
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cafs.cli.frame import TEXT_PATH_TYPE, Frame, command, store_option
from cafs.cli.looking import (
    TYPE_NAMES,
    Place,
    attr_fields,
    blob_fields,
    blob_rows,
    group_name,
    late_progress,
    looking,
    pairs,
    path_fields,
    place_of,
    size_and_bytes,
    the_store,
    time_text,
    user_name,
)
from cafs.cli.output import json_name, note, say, say_json, show_name, table
from cafs.cli.progress import progress_option
from cafs.errors import MEANINGS, CafsError, ChunkDamagedError, UsageError
from cafs.units import human_count, human_size, plural

if TYPE_CHECKING:
    from cafs.operate.look import FileLook, PlacedChunk, Verdict
    from cafs.types import BlobNo
    from cafs.view import View

CHUNKS_SHOWN: Final = 20


@command(
    "blob",
    example="cafs blob 3a5f0c\n"
    "cafs blob sha1:da39a3ee5e6b --store /var/lib/cafs/blobs --verify\n"
    "cafs blob 3a5f0c --cat > droplet.tgz",
)
@click.argument("sha")
@store_option
@click.option(
    "--chunks", "all_chunks", is_flag=True, help="List all chunks, not only the first 20."
)
@click.option("--verify", is_flag=True, help="Read it back and compare every checksum.")
@click.option("--cat", is_flag=True, help="Write its bytes to stdout, and nothing else.")
@progress_option
def blob(
    frame: Frame,
    sha: str,
    store: Path | None,
    all_chunks: bool,
    verify: bool,
    cat: bool,
    progress: str,
) -> None:
    """Show the blob with digest SHA: its chunks, where they lie, and every path that has it.

    SHA is a SHA-256 or a SHA-1, or the first digits (at least 4) if no other blob has them;
    sha1: or sha256: before it says which is meant. Works with and without a daemon.

    With --verify or --cat the exit code is 8 if a chunk is damaged.
    """
    if cat and (verify or frame.json or all_chunks):
        raise UsageError("--cat writes the blob and nothing else", advice="leave the others out")
    from cafs.operate import digests

    with looking(the_store(frame, store)) as view:
        number = digests.find(view, sha)
        if cat:
            _cat(view, number)
            return
        verdict = _verified(view, number, progress) if verify else None
        _show_blob(frame, view, number, all_chunks, verdict, progress)
    if verdict is not None and verdict.damages:
        click.get_current_context().exit(MEANINGS[ChunkDamagedError].exit_code)


def _cat(view: View, number: BlobNo) -> None:
    out = sys.stdout.buffer
    done = 0
    try:
        for piece in view.content(number):
            out.write(piece)
            done += len(piece)
    except CafsError as error:
        out.flush()
        raise type(error)(f"{error}; the output ends before it, at byte {done}") from error
    out.flush()


def _verified(view: View, number: BlobNo, mode: str) -> Verdict:
    from cafs.operate.look import verify

    size = view.blobs.get(number).size
    with late_progress(mode, "reading back", "bytes", size) as advance:
        return verify(view, number, advance)


def _show_blob(
    frame: Frame,
    view: View,
    number: BlobNo,
    all_chunks: bool,
    verdict: Verdict | None,
    mode: str,
) -> None:
    from cafs.operate.look import look_at_blob, placed_chunks
    from cafs.operate.paths import paths_of_blobs
    from cafs.operate.sharing import sharers

    look = look_at_blob(view, number)
    with late_progress(mode, "who shares it", "blobs", view.counters.blobs) as advance:
        others = len(sharers(view, number, look.use, advance))
    with late_progress(mode, "its paths", "records", 2 * view.counters.inodes) as advance:
        paths = paths_of_blobs(view, [number], advance)[number]
    limit = None if all_chunks else CHUNKS_SHOWN
    chunks = list(islice(placed_chunks(view, number), limit))
    total = sum(1 for _ in placed_chunks(view, number))
    if frame.json:
        fields = {"store": view.path} | blob_fields(look) | {"sharing_blobs_count": others}
        fields["chunks"] = [_chunk_fields(each) for each in chunks]
        fields["paths"] = [path_fields(path) for path in paths]
        if verdict is not None:
            fields["verify"] = _verdict_fields(verdict)
        say_json(fields)
        if verdict is not None and verdict.damages:
            note(f"blob {look.record.sha256.hex()} is damaged")
        return
    names = plural(len(paths), "path")
    files = plural(look.record.refs, "file")
    rows = blob_rows(look, others)
    rows.insert(2, ("size", size_and_bytes(look.record.size)))
    rows.append(("used by", files if len(paths) == look.record.refs else f"{files}, {names}"))
    if verdict is not None:
        text = f"all {human_size(verdict.read_bytes)} are what was stored"
        if verdict.damages:
            text = f"DAMAGED in {plural(len(verdict.damages), 'place')}, see below"
        rows.append(("verified", text))
    pairs(rows)
    if chunks:
        _show_chunks(chunks, total, inner=look.aged is not None)
    if verdict is not None and verdict.damages:
        say("\ndamage:")
        for damage in verdict.damages:
            end = damage.offset + damage.length
            say(f"  bytes {damage.offset} to {end} of the blob: {damage.problem}")
    say("\npaths:")
    for path in paths:
        say(f"  {show_name(path)}")
    if not paths:
        # A file without a name is one that was deleted while open.
        why = "a file that was deleted is still open" if look.record.refs else "waits for the sweep"
        say(f"  none: {why}")


def _show_chunks(chunks: list[PlacedChunk], total: int, *, inner: bool) -> None:
    say("\nchunks of what is inside:" if inner else "\nchunks:")
    rows = []
    for each in chunks:
        extent = each.record.extent
        cells = (each.offset, extent.raw_length, each.record.sha256.hex()[:16])
        place = (f"{extent.pack:08x}", extent.offset, extent.stored_length, each.codec)
        rows.append((*cells, *place, each.record.refs))
    columns = ("at", "length", "sha256", "pack", "offset", "stored", "codec", "refs")
    table(columns, rows, right=("at", "length", "offset", "stored", "refs"))
    if total > len(chunks):
        say(f"... and {human_count(total - len(chunks))} more (all of them with --chunks)")


def _chunk_fields(each: PlacedChunk) -> dict[str, Any]:
    extent = each.record.extent
    return {
        "at_bytes": each.offset,
        "raw_bytes": extent.raw_length,
        "sha256": each.record.sha256,
        "chunk": each.number,
        "pack": f"{extent.pack:08x}",
        "offset_bytes": extent.offset,
        "stored_bytes": extent.stored_length,
        "codec": each.codec,
        "refs_count": each.record.refs,
    }


def _verdict_fields(verdict: Verdict) -> dict[str, Any]:
    return {
        "ok": not verdict.damages,
        "read_bytes": verdict.read_bytes,
        "damages": [
            {
                "at_bytes": damage.offset,
                "length_bytes": damage.length,
                "chunk": _chunk_fields(damage.chunk) if damage.chunk else None,
                "problem": damage.problem,
            }
            for damage in verdict.damages
        ],
    }


@command(
    "stat",
    example="cafs stat /var/vcap/store/shared/cc-droplets/ab/cd/abcd\n"
    "cafs stat --store /var/lib/cafs/blobs /cc-droplets/ab/cd/abcd --json",
)
@click.argument("paths", metavar="PATH...", nargs=-1, required=True, type=TEXT_PATH_TYPE)
@store_option
def show_stat(frame: Frame, paths: tuple[str, ...], store: Path | None) -> None:
    """Show what the file at PATH is, and how its content is stored.

    PATH lies on a mount, or, with --store, begins at the store's root; the store need not be
    mounted then. A symbolic link at its end is not followed. With --json, one document for
    each PATH.
    """
    by_store: dict[Path, list[Place]] = {}
    for given in paths:
        found, place = place_of(frame, given, store)
        by_store.setdefault(found, []).append(place)
    first = True
    for each, places in by_store.items():
        with looking(each) as view:
            for place in places:
                if not first and not frame.json:
                    say()
                first = False
                _stat_one(frame, view, place)


def _stat_one(frame: Frame, view: View, place: Place) -> None:
    from cafs.operate.look import look_at_inode
    from cafs.operate.paths import resolve

    look = look_at_inode(view, resolve(view, place.inside, place.shown).ino)
    if frame.json:
        say_json({"store": view.path} | path_fields(place.inside) | _file_fields(look))
        return
    attr = look.attr
    links = plural(attr.nlink, "link")
    uid, gid = f"{user_name(attr.uid)} ({attr.uid})", f"{group_name(attr.gid)} ({attr.gid})"
    rows = [
        ("path", show_name(place.shown)),
        ("type", _type_text(look)),
        ("inode", f"{look.ino}, {links}"),
        ("mode", f"{stat.S_IMODE(attr.mode):04o} ({stat.filemode(attr.mode)})"),
        ("owner", f"{uid}, group {gid}"),
        ("modified", time_text(attr.mtime_ns)),
        ("changed", time_text(attr.ctime_ns)),
        ("accessed", time_text(attr.atime_ns)),
    ]
    if look.xattrs:
        rows.append(("xattrs", ", ".join(show_name(name) for name in look.xattrs)))
    if stat.S_ISREG(attr.mode):
        rows.insert(2, ("size", size_and_bytes(attr.size)))
    if look.blob is not None:
        rows += blob_rows(look.blob)
        others = look.blob.record.refs - 1
        if others:
            rows.append(("same in", plural(others, "other file")))
    pairs(rows)


def _type_text(look: FileLook) -> str:
    attr = look.attr
    kind = TYPE_NAMES.get(stat.S_IFMT(attr.mode), "unknown")
    if look.target is not None:
        return f"{kind} to {show_name(look.target)}"
    if stat.S_ISDIR(attr.mode):
        return f"{kind} of {human_count(attr.blob)} {'name' if attr.blob == 1 else 'names'}"
    if stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode):
        return f"{kind} {os.major(attr.aux)}:{os.minor(attr.aux)}"
    if stat.S_ISREG(attr.mode) and look.blob is None:
        return f"{kind}, empty" if not attr.size else f"{kind} (content is being written)"
    return kind


def _file_fields(look: FileLook) -> dict[str, Any]:
    attr = look.attr
    fields = attr_fields(look.ino, attr)
    if look.target is not None:
        fields |= json_name("target", look.target)
    if stat.S_ISDIR(attr.mode):
        fields["entries_count"] = attr.blob
    if stat.S_ISCHR(attr.mode) or stat.S_ISBLK(attr.mode):
        fields |= {"major": os.major(attr.aux), "minor": os.minor(attr.aux)}
    fields["xattrs"] = [json_name("name", name) for name in look.xattrs]
    fields["content"] = blob_fields(look.blob) if look.blob is not None else None
    return fields


COMMANDS = [blob, show_stat]
