"""``cafs up``, ``init``, ``mount``, ``umount`` and ``status``: a store's life.

Only looks, asks and prints: mounting is :mod:`cafs.mount.run`, making a store is
:mod:`cafs.newstore`.  Invariant: whatever can be foreseen to fail is checked before anything is
changed.

Imports that are slow lie within the functions that need them: help is to come at once.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from shlex import quote
from typing import Any, Final

import click

from cafs import lock, storefile
from cafs.cli.frame import (
    PATH_TYPE,
    Frame,
    command,
    configured_store,
    overrides,
    resolve_store,
    setting_options,
    store_argument,
    store_at,
)
from cafs.cli.output import say, say_json, tree
from cafs.config import Settings
from cafs.errors import (
    ConfigError,
    DaemonAbsentError,
    DaemonError,
    MountpointError,
    StoreExistsError,
    StoreMissingError,
    UsageError,
)
from cafs.mount import mountpoint as where
from cafs.units import duration_text, parse_duration, size_text

LOG_NAME: Final = "cafs.log"
"""Where a daemon logs, in the store's directory."""
TIMEOUT_MAX_S: Final = 20 * 86400.0
"""What poll(2) can wait for is a little more."""


def _program() -> str:
    """How this program can be called again, for hints that one can paste."""
    called = Path(sys.argv[0])
    found = shutil.which("cafs")
    if called.name != "cafs" or (found and os.path.realpath(found) == os.path.realpath(called)):
        return "cafs"
    return quote(str(called))


@command("init", example="cafs init /var/lib/cafs/blobs\ncafs init /srv/store --chunk-avg 32KiB")
@store_argument
@setting_options("store")
def init(frame: Frame, store: Path | None, **values: object) -> None:
    """Make an empty store in directory STORE.

    The directory is made, too; its parent must be there. How the store cuts files into chunks
    is fixed from then on.
    """
    settings = frame.settings(overrides("store", values))
    path = where.canonical(_named_store(frame, store))
    _create(path, settings)
    made = storefile.read(path)
    if frame.json:
        say_json({"store": str(path), "id": made.id.hex(), "format_version": made.format_version})
    else:
        say(f"made a store in {path}, chunks of about {size_text(made.params.chunk_avg)}")
        say(f"mount it with: {_program()} mount {quote(str(path))} MOUNTPOINT --daemon")


def _named_store(frame: Frame, given: Path | None) -> Path:
    path = given or configured_store(frame)
    if path is None:
        raise UsageError("no store was named", advice="name the directory: cafs init STORE")
    return path


def _create(path: Path, settings: Settings) -> None:
    for mount in where.mounts_of_cafs():
        if path == mount.path or mount.path in path.parents:
            raise StoreExistsError(
                f"{path} lies in the mount of the store {mount.store}, and a store cannot",
                advice="choose an empty directory beside it",
            )
    if not path.parent.is_dir():
        if os.path.lexists(path.parent):
            raise StoreExistsError(f"{path}: {path.parent} is not a directory")
        raise StoreMissingError(
            f"{path}: the directory {path.parent} is not there, so no store can be made in it",
            advice=f"make it: mkdir -p {quote(str(path.parent))}",
        )
    import cafs.newstore

    cafs.newstore.create(path, settings.store)


@command(
    "mount",
    example="cafs mount /var/lib/cafs/blobs /var/vcap/store/shared --daemon\n"
    "cafs mount /srv/store /mnt --commit-interval 250ms --log-level debug",
)
@click.argument("where_", metavar="[STORE] [MOUNTPOINT]", nargs=-1, type=PATH_TYPE)
@click.option("--daemon", is_flag=True, help="Return when the mount answers; log to STORE/cafs.log")
@setting_options("mount")
def mount(frame: Frame, where_: tuple[Path, ...], daemon: bool, **values: object) -> None:
    """Mount STORE on MOUNTPOINT and serve it until it is unmounted.

    In the foreground, logging to stderr (or to the journal), unless --daemon is given. Either
    directory may be left out where the settings name it.
    """
    from cafs.cli.mounting import check, serve_here, serve_in_background

    settings = frame.settings(overrides("mount", values))
    store, mountpoint = both(frame, where_, settings)
    store = store_at(store)
    mountpoint = where.canonical(mountpoint)
    options = check(store, mountpoint, settings)
    if daemon:
        pid = serve_in_background(store, mountpoint, options, settings, store / LOG_NAME)
        if frame.json:
            say_json({"store": str(store), "mountpoint": str(mountpoint), "pid": pid})
        else:
            say(f"mounted {store} on {mountpoint}, process {pid}")
        return

    def ready() -> None:
        if frame.json:
            say_json({"store": str(store), "mountpoint": str(mountpoint), "pid": os.getpid()})
            sys.stdout.flush()

    serve_here(store, mountpoint, options, settings, ready)


@command(
    "up",
    example="cafs up /var/lib/cafs/blobs /var/vcap/store/shared\ncafs up ~/demo/store ~/demo/mnt",
)
@click.argument("where_", metavar="[STORE] [MOUNTPOINT]", nargs=-1, type=PATH_TYPE)
@setting_options("store")
@setting_options("mount")
def up(frame: Frame, where_: tuple[Path, ...], **values: object) -> None:
    """Make STORE if it is not there, and mount it on MOUNTPOINT in the background.

    Does nothing when the store is mounted there already.
    """
    from cafs.cli.mounting import check, serve_in_background

    settings = frame.settings(overrides("store", values) | overrides("mount", values))
    named_store, mountpoint = both(frame, where_, settings)
    mountpoint = where.canonical(mountpoint)
    store = where.canonical(named_store)
    mounted = where.mount_at(mountpoint)
    is_up = mounted is not None and mounted.store == store and not where.is_stale(mounted)
    made = False
    pid = 0
    if is_up:
        held_by = lock.holder(store)
        pid = held_by.pid if held_by else 0
    else:
        # All checks come first: a mountpoint that is missing must not leave a new store behind.
        made = not storefile.is_store(store)
        options = check(store, mountpoint, settings)
        if made:
            _create(store, settings)
        pid = serve_in_background(store, mountpoint, options, settings, store / LOG_NAME)
    if frame.json:
        answer = {"store": str(store), "mountpoint": str(mountpoint), "pid": pid, "made": made}
        say_json(answer)
        return
    program = _program()
    state = "was mounted already" if is_up else "is mounted"
    say(f"{'new store' if made else 'store'} {store} {state} on {mountpoint} (process {pid})")
    there, its_store = quote(str(mountpoint)), quote(str(store))
    say(f"  try:   cp -a /usr/share/doc {there}/ && {program} status {its_store}")
    say(f"  look:  {program} --help")
    say(f"  log:   {store / LOG_NAME}")
    say(f"  stop:  {program} umount {there}")


def both(frame: Frame, given: tuple[Path, ...], settings: Settings) -> tuple[Path, Path]:
    """The store and the mountpoint that *given* and *settings* name between them.

    Raises :class:`UsageError` when one of the two is missing.
    """
    if len(given) > 2:
        raise UsageError(f"two directories are expected, not {len(given)}: STORE MOUNTPOINT")
    store, mountpoint = configured_store(frame), settings.default.mountpoint
    if len(given) == 2:
        store, mountpoint = given
    elif len(given) == 1 and (store is None or storefile.is_store(given[0])):
        store = given[0]
    elif len(given) == 1:
        mountpoint = given[0]
    if store is None:
        raise UsageError("no store was named", advice="name both: STORE MOUNTPOINT")
    if mountpoint is None:
        raise UsageError(
            f"no mountpoint was named for the store {store}", advice="name both: STORE MOUNTPOINT"
        )
    return store, mountpoint


@command("umount", example="cafs umount /var/vcap/store/shared\ncafs umount /mnt --lazy")
@click.argument("mountpoint", required=False, type=PATH_TYPE)
@click.option("--lazy", is_flag=True, help="Take it out of the tree now; it ends with its users.")
@click.option(
    "--force",
    is_flag=True,
    help="Cut off a daemon that hangs. Changes since the last commit may be lost.",
)
@click.option(
    "--timeout",
    default="10min",
    show_default=True,
    metavar="DURATION",
    help="How long to wait for the final commit.",
)
def umount(frame: Frame, mountpoint: Path | None, lazy: bool, force: bool, timeout: str) -> None:
    """Unmount MOUNTPOINT, and wait until everything is on disk and the daemon has ended.

    A store is accepted in place of its mountpoint, which may be left out when only one store is
    mounted. A mount that a dead daemon left behind is taken away without any flag.
    """
    try:
        timeout_s = parse_duration(timeout)
    except ValueError as error:
        raise UsageError(f"--timeout: {error}") from None
    if timeout_s > TIMEOUT_MAX_S:
        raise UsageError(f"--timeout: {duration_text(TIMEOUT_MAX_S)} is the most")
    from cafs.cli.unmounting import await_end, take_away
    from cafs.mount.unmount import unmount

    mount = _mount_of(mountpoint)
    store = mount.store
    assert store is not None
    stale = where.is_stale(mount)
    committed = False
    if lazy or stale:
        unmount(mount.path, lazy=True, force=force)
        held_by = lock.holder(store)
        # A lazy unmount lasts as long as its users; there is nothing that could be waited for.
        # Nor is there with a daemon that is well and serves the store elsewhere.
        if not lazy and held_by is not None and not held_by.alive:
            await_end(store, timeout_s)
    else:
        committed = take_away(mount, store, force=force, timeout_s=timeout_s)
    if stale:
        _clear_leftovers(store, frame)
    if frame.json:
        answer = {"store": str(store), "mountpoint": str(mount.path), "stale": stale}
        say_json(answer | {"ended": not lazy, "committed": committed})
    elif stale:
        say(f"took away {mount.path}, which a dead daemon of {store} had left behind")
    elif lazy:
        say(f"{mount.path} is out of the tree; the daemon of {store} ends with its last user")
    elif not force:
        say(f"unmounted {store} from {mount.path}; everything is on disk")
    elif committed:
        say(
            f"unmounted {store} from {mount.path} by force; all that had reached the daemon is on "
            "disk, what was under way is not"
        )
    else:
        say(
            f"unmounted {store} from {mount.path} by force; the daemon has ended and did not say "
            "whether it could commit: what programs had synced is on disk"
        )


def _clear_leftovers(store: Path, frame: Frame) -> None:
    from cafs.cli.mounting import clear_leftovers

    try:
        settings = frame.settings()
    except ConfigError:
        # A slip in the machine's file must not matter here.
        settings = Settings()
    if storefile.is_store(store):
        clear_leftovers(store, settings)


def _mount_of(given: Path | None) -> where.Mount:
    table = where.mounts()
    of_cafs = where.mounts_of_cafs(table)
    if given is None:
        if len(of_cafs) == 1:
            return of_cafs[0]
        paths = ", ".join(str(mount.path) for mount in of_cafs)
        raise UsageError(
            f"several stores are mounted: {paths}" if paths else "no store is mounted",
            advice="name the mountpoint" if paths else "there is nothing to unmount",
        )
    path = where.canonical(given)
    mount = where.mount_at(path, table)
    if mount is not None and mount.store:
        return mount
    if mount is not None:
        raise MountpointError(
            f"{path} is no mount of cafs, but {mount.fstype} of {mount.source}",
            advice=f"use: umount {quote(str(path))}",
        )
    of_store = [mount for mount in of_cafs if mount.store == path]
    if of_store:
        return of_store[-1]
    if storefile.is_store(path):
        raise MountpointError(f"the store {path} is not mounted", advice="there is nothing to do")
    raise MountpointError(
        f"{path} is not a mountpoint", advice="see what is mounted: findmnt -t fuse.cafs"
    )


@command("status", example="cafs status\ncafs status /var/lib/cafs/blobs --json")
@store_argument
def status(frame: Frame, store: Path | None) -> None:
    """Show what is in STORE, and how it is.

    Asks the daemon when the store is mounted, and reads the store otherwise. The state of its
    health is ok, trouble, or stopped: there is no daemon.
    """
    path = resolve_store(store, frame)
    answer = _status_of(path)
    if frame.json:
        say_json(answer)
    else:
        tree(answer)


def _status_of(store: Path) -> dict[str, Any]:
    from cafs import control

    head: dict[str, Any] = {"store": str(store)}
    try:
        return head | {"mounted": True} | control.call(store, "status")
    except DaemonAbsentError:
        held_by = lock.holder(store)
        if held_by is not None:
            raise DaemonError(
                f"{store} is in use by {held_by}, which does not answer",
                advice=f"see {store / LOG_NAME}",
            ) from None
    import cafs.figures
    import cafs.health

    left = [mount.path for mount in where.mounts_of_cafs() if mount.store == store]
    health = cafs.health.without_daemon(store, left[-1] if left else None)
    return head | {"mounted": False} | cafs.figures.offline_status(store) | {"health": health}


COMMANDS = [up, init, mount, umount, status]
