"""From two directories to a mount that answers: the checks, then the daemon.

Invariant: everything that can be known to go wrong is checked in :func:`check`, which changes
nothing but what a daemon of the same store left behind that is dead.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from shlex import quote

from cafs import lock, log, secrecy, storefile
from cafs.cli import background
from cafs.cli.output import note, warn
from cafs.config import MountOptions, Settings
from cafs.errors import AccessError, MountpointError
from cafs.index import pending, warm
from cafs.index.reads import path_beside
from cafs.mount import mountpoint as where
from cafs.mount.unmount import unmount
from cafs.serve import rundir


def check(store: Path, mountpoint: Path, settings: Settings) -> MountOptions:
    """Check that *store* can be mounted on *mountpoint* (both canonical) by this user.

    A store that is not there yet is fine.  Takes a stale mount of this very store away, and what
    else a daemon that was killed has left; warns of what will be hidden, and returns the options
    to mount with.  Raises what is in the way.
    """
    if storefile.is_store(store):
        storefile.read(store)
        _check_access(store)
        _check_owner(store)
    where.check_apart(store, mountpoint)
    options = _allow_other(settings)
    where.check_fuse(options.allow_other)
    if where.check_free(store, mountpoint):
        note(f"{mountpoint} was left behind by a daemon that died; taking it away")
        unmount(mountpoint, lazy=True)
    if storefile.is_store(store):
        clear_leftovers(store, settings)
    hidden = where.check_directory(mountpoint)
    if storefile.is_store(mountpoint):
        raise MountpointError(
            f"{mountpoint} is a store itself, which would vanish below the mount",
            advice="the store comes first: STORE MOUNTPOINT",
        )
    if hidden is not None:
        warn(f"{mountpoint} is not empty; while it is mounted these are hidden: {hidden}")
    if settings.http.serve or settings.http.listen is not None:
        for text in secrecy.exposed(settings.http, settings.serve):
            warn(text)
    return options


def clear_leftovers(store: Path, settings: Settings) -> None:
    """Take away what a daemon or a `cafs serve` that was killed left outside of the store.

    That is the pending file and what lies beside it, when nobody has the store open, and nginx's
    files with the links' secret, when the `cafs serve` that wrote them is dead.
    """
    usual = pending.default_path(storefile.read(store).id)
    with lock.kept_free(store) as nobody:
        for path in {usual, settings.mount.pending_file or usual} if nobody else set():
            pending.withdraw(path)
            path_beside(path).unlink(missing_ok=True)
    usual = rundir.default(store)
    for path in {usual, settings.serve.run_dir or usual}:
        if rundir.clear_dead(path):
            note(f"took {path} away, which a `cafs serve` that died had left behind")


def _check_access(store: Path) -> None:
    read_only = bool(os.statvfs(store).f_flag & os.ST_RDONLY)
    # On a read-only disk nobody may write, but the store can still be read.
    if not read_only and not os.access(store, os.R_OK | os.W_OK | os.X_OK):
        raise AccessError(f"{store}: this user may not write to the store")


def _check_owner(store: Path) -> None:
    owner = lock.other_owner(store)
    if owner is not None:
        warn(
            f"{store} belongs to user {owner}, and what this daemon writes will be root's: before "
            f"that user can serve it again: chown -R {owner.lstrip('#')} {quote(str(store))}"
        )


def _allow_other(settings: Settings) -> MountOptions:
    """Only root may let others in, unless fuse.conf says else; then the default gives way.

    A user who trusts the default gets a mount of their own and is told; one who asked for it
    gets the error of :func:`~cafs.mount.mountpoint.check_fuse`.
    """
    options = settings.mount
    asked = "mount.allow_other" in settings.explicit
    if asked or not options.allow_other or os.geteuid() == 0 or where.user_allow_other():
        return options
    note(
        "only you will see this mount: to let others in, run as root, "
        f"or add user_allow_other to {where.FUSE_CONF}"
    )
    return dataclasses.replace(options, allow_other=False)


def serve_here(
    store: Path,
    mountpoint: Path,
    options: MountOptions,
    settings: Settings,
    ready: Callable[[], None],
) -> None:
    """Serve in this process until the mount is gone; logs to stderr.

    *options* are what became of ``settings.mount``.
    """
    log.to_stream(options.log_level, sys.stderr)
    _serve(store, mountpoint, options, settings, ready)


def serve_in_background(
    store: Path, mountpoint: Path, options: MountOptions, settings: Settings, log_file: Path
) -> int:
    """Start a daemon that serves and logs to *log_file*; returns its pid when the mount answers.

    Raises the error that kept the daemon from mounting.
    """
    serve = functools.partial(_serve, store, mountpoint, options, settings)
    return background.start(serve, log_file, options.log_level)


def _serve(
    store: Path,
    mountpoint: Path,
    options: MountOptions,
    settings: Settings,
    ready: Callable[[], None],
) -> None:
    warm.start(store / "index")
    # Slow to import: it brings trio and pyfuse3.
    from cafs.mount.run import run

    beside = []
    http = settings.http
    if http.serve or http.listen is not None:
        # And this brings h11 and starlette.
        from cafs.http.serve import serve

        beside.append(functools.partial(serve, http))
    run(store, mountpoint, options, ready, beside, settings.archives)
