"""``cafs scrub``, ``sweep`` and ``compact``: keeping a store well.

Only asks and prints: the work is done in :mod:`cafs.operate`, by the daemon where one runs.
Invariant: what was found not clean ends with exit code 8, after all of it was said.

Imports that are slow lie within the functions that need them: help is to come at once.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from cafs.cli.frame import Frame, command, resolve_store, store_argument
from cafs.cli.output import note, say, say_json
from cafs.cli.progress import progress, progress_option
from cafs.errors import (
    CheckFailedError,
    DaemonAbsentError,
    UsageError,
    first_foreseen,
)
from cafs.units import (
    duration_text,
    human_duration,
    human_size,
    parse_duration,
    parse_size,
)

GRACE_MAX_S: Final = 30 * 86400.0
"""As in the settings: who asks for more waits for ever."""
WORTH_TELLING_S: Final = 5.0
"""A wait that is told of beforehand."""


rate_option = click.option(
    "--rate", metavar="SIZE/s", help="Read no faster than this, as in 20MiB/s."
)


@command(
    "scrub",
    example="cafs scrub /var/lib/cafs/blobs\ncafs scrub /srv/store --rate 20MiB/s --json",
)
@store_argument
@rate_option
@click.option("--resume", "go_on", is_flag=True, help="Only go on with one that was interrupted.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever was read already.")
@progress_option
def scrub(
    frame: Frame, store: Path | None, rate: str | None, go_on: bool, restart: bool, progress: str
) -> None:
    """Read all content of STORE back and compare it with its checksums.

    Goes on where an interrupted scrub stopped. Works while the store is mounted. What is damaged
    is named with every path that has it, and marked: the same bytes, written again, heal it.
    A random sample of the archives that were taken apart is made again and compared, and of the
    programs that this takes the copies in STORE are read.
    Exit code 0: all is well; 8: something is damaged.
    """
    from cafs.cli.scrubbing import NOT_CLEAN, run, say_report

    if go_on and restart:
        raise UsageError("--resume and --restart exclude each other")
    path = resolve_store(store, frame)
    report = run(path, _rate(rate), resume=go_on, restart=restart, mode=progress)
    if frame.json:
        say_json(report)
    else:
        say_report(path, report)
    if any(report[count] for count in NOT_CLEAN):
        raise click.exceptions.Exit(CheckFailedError("").meaning.exit_code)


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    if not text.endswith("/s"):
        raise UsageError(f"--rate {text!r} is not a rate; write it as in 20MiB/s")
    try:
        rate = parse_size(text.removesuffix("/s"))
    except ValueError as error:
        raise UsageError(f"--rate: {error}") from None
    if rate <= 0:
        raise UsageError("--rate must be above 0")
    return rate


@command("sweep", example="cafs sweep /var/lib/cafs/blobs")
@store_argument
@progress_option
def sweep(frame: Frame, store: Path | None, progress: str) -> None:
    """Take out of STORE what nothing refers to, now.

    A mounted store does this by itself. The space in packs comes back with compaction.
    """
    from cafs.operate import give_back

    path = resolve_store(store, frame)
    answer = _order(frame, path, "sweep", progress, give_back.sweep_offline)
    if frame.json:
        say_json({"store": str(path)} | answer)
        return
    dead = human_size(answer["dead_bytes"])
    say(f"{path}: {answer['swept_count']} blobs and chunks taken out; {dead} in packs are dead")
    if answer["dead_bytes"]:
        say("  compaction gives that space back in time; now: cafs compact")


@command("compact", example="cafs compact /var/lib/cafs/blobs\ncafs compact /srv/store --grace 0s")
@store_argument
@click.option(
    "--grace",
    metavar="DURATION",
    help="How long an emptied pack stays, because another process may be reading it "
    "[default: mount.grace of the settings; 0s when the store is not mounted].",
)
@progress_option
def compact(frame: Frame, store: Path | None, grace: str | None, progress: str) -> None:
    """Give the space of all that is dead in STORE back to the disk, now.

    Sweeps, rewrites each pack with something dead in it, and shrinks the index. A mounted store
    does the most of it by itself, in the background.
    Exit code 8: something that is alive in a pack cannot be read, and so the pack stays.
    """
    from cafs.operate import give_back

    path = resolve_store(store, frame)
    try:
        grace_s = None if grace is None else parse_duration(grace)
    except ValueError as error:
        raise UsageError(f"--grace: {error}") from None
    if grace_s is not None and grace_s > GRACE_MAX_S:
        raise UsageError(f"--grace {grace}: it must be at most {duration_text(GRACE_MAX_S)}")

    def offline(path: Path, options: Any, on_progress: Any) -> Any:
        return give_back.compact_offline(path, options, grace_s or 0.0, on_progress)

    answer = _order(frame, path, "compact", progress, offline, grace_s=grace_s)
    if frame.json:
        say_json({"store": str(path)} | answer)
        _exit_if_left(answer)
        return
    for each in answer.get("left_packs", []):
        say(f"pack {each['pack']} is left as it is: {each['why']}")
    packs, index = human_size(answer["freed_bytes"]), human_size(answer["freed_index_bytes"])
    say(f"{path}: {packs} of packs and {index} of the index given back")
    if answer.get("left_packs_count"):
        say("  what to do: cafs scrub names the files that are damaged; copy them in again")
    _exit_if_left(answer)


def _exit_if_left(answer: dict[str, Any]) -> None:
    # A daemon of an older cafs does not say.
    if answer.get("left_packs_count"):
        raise click.exceptions.Exit(CheckFailedError("").meaning.exit_code)


def _order(
    frame: Frame, path: Path, name: str, mode: str, offline: Any, **arguments: Any
) -> dict[str, Any]:
    """Let the daemon do it, or do it here when there is none."""
    from cafs import control

    waits = False

    def on_progress(done: float, total: float, /, waiting_s: float = 0.0) -> None:
        nonlocal waits
        advance(done, total)
        if waiting_s >= WORTH_TELLING_S and not waits:
            waits = True
            note(
                f"waiting for at most {human_duration(waiting_s)}: another process may be reading "
                "from a pack that is to go (--grace 0s does not wait)"
            )

    with progress(mode, name, "packs") as advance:
        try:
            return control.call(
                path,
                name,
                on_progress=lambda at: on_progress(
                    at.get("done", 0), at.get("total", 0), at.get("waiting_s", 0.0)
                ),
                **arguments,
            )
        except DaemonAbsentError:
            pass
        import functools

        import trio

        options = frame.settings().mount
        work = functools.partial(offline, path, options, on_progress)
        try:
            answer: dict[str, Any] = trio.run(work)
        except BaseExceptionGroup as group:
            raise first_foreseen(group) from group
        return answer


COMMANDS: list[click.Command] = [scrub, sweep, compact]
