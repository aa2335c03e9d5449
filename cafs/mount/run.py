"""Serving a mount: from opening the store to the final commit."""

from __future__ import annotations

import errno
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from shlex import quote

import pyfuse3
import trio

from cafs.archive_options import ArchiveOptions
from cafs.config import MountOptions
from cafs.errors import MountError, first_foreseen
from cafs.mount import mountpoint as where
from cafs.mount.control import ControlServer, ControlSocket
from cafs.mount.damage import DamageReporter
from cafs.mount.ending import Signals, end_in_order, end_of_answers
from cafs.mount.farewell import Farewell
from cafs.mount.handlers import Handlers
from cafs.mount.invalidate import Invalidator
from cafs.mount.kernel import CONNECTIONS, Tuning, mount_options, tune
from cafs.mount.known import Known
from cafs.mount.loop import requests_at_once
from cafs.mount.memory import give_back_when_idle, tune_allocator
from cafs.store import DEFAULT_ARCHIVES, Store, open_store

log = logging.getLogger(__name__)

SWITCH_INTERVAL_S = 0.0005
"""How long the event loop may keep the interpreter from a worker that wants it back."""

Beside = Callable[..., Awaitable[None]]
"""What serves the same store in the same event loop: called with the store and ``task_status``
(trio.Nursery.start), and cancelled when the mount is to end, or gone."""


def run(
    store: Path,
    mountpoint: Path,
    options: MountOptions,
    ready: Callable[[], None],
    beside: Sequence[Beside] = (),
    archives: ArchiveOptions = DEFAULT_ARCHIVES,
) -> None:
    """Serve *store* on *mountpoint* until it is unmounted; then commit and return.

    Calls *ready* once, when the mount answers and all that is *beside* it has started.  SIGTERM,
    SIGINT and SIGHUP unmount, and none of them cuts the final commit short.  Raises StoreError,
    MountError and their kin if it does not come to that, and MountError after the commit if the
    kernel cut the connection and left a dead mount.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.set_threshold(50_000, 20, 50)
    tune_allocator()
    logging.getLogger("pyfuse3").addFilter(_quiet_aborted_requests)
    with Signals() as signals, Farewell() as farewell:
        try:
            serve = partial(
                _serve, store, mountpoint, options, ready, beside, archives, farewell, signals
            )
            left = trio.run(serve)
        except BaseExceptionGroup as group:
            raise first_foreseen(group) from group
        finally:
            sys.setswitchinterval(0.005)
    # Whoever unmounts by force cuts it first, and takes the mount away a moment later.
    if left is not None and left in where.mounts():
        # The dead mount stays on purpose: it is an error for who writes, and the directory below it
        # would take what nobody sees again.
        raise MountError(
            f"the connection to the mount on {mountpoint} was cut (umount -f, or abort below "
            f"{CONNECTIONS}); all that was acknowledged is in the store",
            advice=f"put a new mount in its place with: cafs mount {quote(str(store))} "
            f"{quote(str(mountpoint))} --daemon",
        )
    log.info("unmounted from %s", mountpoint)


async def _serve(
    path: Path,
    mountpoint: Path,
    options: MountOptions,
    ready: Callable[[], None],
    beside: Sequence[Beside],
    archives: ArchiveOptions,
    farewell: Farewell,
    signals: Signals,
) -> where.Mount | None:
    """The mount, if it is still there because the connection was cut."""
    async with open_store(path, options, mountpoint, archives=archives) as store:
        damage, known = DamageReporter(store), Known(store.tree)
        store.nameless.is_directory_in_use = known.has
        invalidator = Invalidator(known)
        handlers = Handlers(store, damage, known, invalidator)
        # Before anybody can see the mount.
        with ControlSocket(path) as control:
            try:
                pyfuse3.init(handlers, str(mountpoint), mount_options(path, options))
            except RuntimeError as error:
                raise MountError(f"cannot mount on {mountpoint}: {error}") from error
            try:
                async with trio.open_nursery() as nursery:
                    serving = trio.CancelScope()
                    signals.arm(serving)
                    nursery.start_soon(store.keep, partial(give_back_when_idle, store))
                    nursery.start_soon(store.keep, damage.run)
                    nursery.start_soon(store.keep, invalidator.run)
                    attend = partial(
                        _attend, store, control, damage, invalidator, mountpoint, farewell
                    )
                    attend = partial(attend, options, ready, beside, nursery)
                    nursery.start_soon(_attend_until, serving, invalidator, attend)
                    try:
                        with requests_at_once():
                            await _answer_requests()
                    finally:
                        end_of_answers(invalidator, path, mountpoint)
                    nursery.cancel_scope.cancel()
            finally:
                pyfuse3.close(unmount=True)
            # As long as the store is locked nobody else can have mounted it.
            left = where.mount_at(mountpoint)
            return left if left is not None and left.store == path else None


async def _answer_requests() -> None:
    try:
        await pyfuse3.main()
    except* ConnectionAbortedError:
        # The end of a connection, as the kernel may say it to who reads at that moment; libfuse
        # takes only ENODEV for that.
        log.info("the kernel closed the connection while it was read from")


async def _attend_until(
    serving: trio.CancelScope, invalidator: Invalidator, attend: Callable[[], Awaitable[None]]
) -> None:
    with serving:
        await attend()
    # Requests are still answered: that is what those who end here may wait for.
    await end_in_order(invalidator)


async def _attend(
    store: Store,
    control: ControlSocket,
    damage: DamageReporter,
    invalidator: Invalidator,
    mountpoint: Path,
    farewell: Farewell,
    options: MountOptions,
    ready: Callable[[], None],
    beside: Sequence[Beside],
    nursery: trio.Nursery,
) -> None:
    # The first request that is answered is proof that the handshake with the kernel is over;
    # it has to come from another thread, because this one is to answer it.
    await trio.to_thread.run_sync(os.stat, mountpoint, abandon_on_cancel=True)
    mount = where.mount_at(mountpoint)
    tuning: list[Tuning] = tune(mount.device, options) if mount is not None else []
    for each in tuning:
        if each.problem:
            log.info("could not set %s: %s", each.name, each.problem)
    server = ControlServer(store, mountpoint, tuning, damage, farewell)
    nursery.start_soon(server.run, control)
    for work in (server.sweeper, server.compactor, server.copier, server.ageing):
        nursery.start_soon(store.keep, work.run)
    store.notices.register(invalidator.tell)
    store.notices.register_for_damage(damage.notice)
    async with trio.open_nursery() as guests:
        for task in beside:
            await guests.start(task, store)
        await trio.lowlevel.checkpoint_if_cancelled()
        log.info("mounted %s on %s", store.path, mountpoint)
        ready()
        await trio.sleep_forever()


def _quiet_aborted_requests(record: logging.LogRecord) -> bool:
    """pyfuse3 logs an error when nobody waits for an answer any more (a killed caller)."""
    return os.strerror(errno.ENOENT) not in record.getMessage()
