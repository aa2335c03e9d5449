"""``cafs serve``: a daemon and an nginx, started, watched and stopped in the right order.

The daemon comes first and goes last, because nginx hands requests to it.  A child that dies is
started again; nginx goes on answering from the index while the daemon is away.  Invariant: when
:func:`run` returns or raises, neither child runs and nothing is mounted that it mounted.
"""

from __future__ import annotations

import dataclasses
import logging
import resource
import signal
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import trio

from cafs import lock, log
from cafs.config import Settings
from cafs.errors import CafsError, ConfigError, DaemonError, NginxError, first_foreseen
from cafs.index import warm
from cafs.mount import mountpoint as where
from cafs.mount.unmount import unmount
from cafs.serve import nginx_process, rundir
from cafs.serve.child import how_it_ended
from cafs.serve.mount_child import MountProcess
from cafs.serve.nginx_process import NginxProcess
from cafs.serve.plan import Plan

RESTARTS: Final = 5
RESTARTS_WITHIN_S: Final = 60.0
"""A child that dies more often than that within this time is not started again."""

PATIENCE_S: Final = 30.0
"""How often a final commit that takes long is spoken of."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Service:
    """What is to run."""

    store: Path
    mountpoint: Path
    settings: Settings
    """What the daemon gets; later changes of the file reach nginx alone."""
    plan: Callable[[], Plan] | None
    """Makes nginx's configuration from the settings as they are now; None: no nginx."""
    log_file: Path | None = None
    """Of the daemon; None: stderr."""


def run(service: Service, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT, or until somebody unmounts; SIGHUP reloads nginx.

    Calls *ready* once, when both answer.  Raises what kept it from that, and the error of a
    child that dies again and again.
    """
    warm.start(service.store / "index")
    # A connection through nginx takes three descriptors; what may be had is inherited.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    plan = None if service.plan is None else service.plan()
    # Before anything in it is written: another one may be at work there.
    claim = None if plan is None else rundir.Claim(plan.run_dir)
    try:
        if plan is not None:
            nginx_process.replace(plan)
        trio.run(_Supervisor(service, plan).serve, ready)
    except BaseExceptionGroup as group:
        raise first_foreseen(group) from group
    finally:
        if plan is not None and claim is not None:
            _leave(plan.run_dir, claim)


def _leave(run_dir: Path, claim: rundir.Claim) -> None:
    try:
        rundir.clear(run_dir)
        claim.release()
    except OSError as error:
        _logger.warning("%s, with the links' secret, is left behind: %s", run_dir, error.strerror)


class _Restarts:
    """How often one child was started again of late."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._times: list[float] = []

    async def one_more(self, reason: str, error: type[CafsError]) -> None:
        """Wait a little, longer each time; raises *error* when it was too often."""
        now = trio.current_time()
        self._times = [time for time in self._times if now - time < RESTARTS_WITHIN_S]
        if len(self._times) >= RESTARTS:
            raise error(f"{self._name} {reason}, {RESTARTS + 1} times in a short while")
        self._times.append(now)
        _logger.error("%s %s; starting it again", self._name, reason)
        await trio.sleep(0.05 * 4 ** (len(self._times) - 1))


class _Supervisor:
    def __init__(self, service: Service, plan: Plan | None) -> None:
        self.service = service
        self.plan = plan
        self._mount: MountProcess | None = None
        self._nginx: NginxProcess | None = None
        self._changing = trio.Lock()
        """nginx's files, and what runs with them, change together."""

    async def serve(self, ready: Callable[[], None]) -> None:
        with trio.open_signal_receiver(
            signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1
        ) as signals:
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._obey, signals, nursery)
                    await self._start_mount()
                    if self.plan is not None:
                        async with self._changing:
                            await self._start_nginx(nursery)
                    where_ = self.service.mountpoint
                    _logger.info("serving %s on %s", self.service.store, where_)
                    ready()
                    if self.plan is not None:
                        nursery.start_soon(self._watch_nginx, nursery)
                    await self._watch_mount()
                    nursery.cancel_scope.cancel()
            finally:
                with trio.CancelScope(shield=True):
                    await self._stop()

    async def _obey(self, signals: AsyncIterator[int], nursery: trio.Nursery) -> None:
        async for number in signals:
            name = signal.Signals(number).name
            if number == signal.SIGHUP:
                # It takes a while, and whoever ends us meanwhile does not wait for it.
                nursery.start_soon(self._reload, name)
            elif number == signal.SIGUSR1:
                nursery.start_soon(self._reopen_logs)
            else:
                _logger.info("%s: stopping", name)
                nursery.cancel_scope.cancel()

    async def _reopen_logs(self) -> None:
        # A signal ends an nginx that has only begun to start: its handlers are not there yet.
        async with self._changing:
            if self._nginx is not None:
                self._nginx.reopen_logs()

    async def _reload(self, why: str) -> None:
        """Settings that are wrong, or that nginx refuses or cannot follow, change nothing."""
        if self.service.plan is None or self.plan is None or self._nginx is None:
            _logger.warning("%s: there is no nginx to be reloaded", why)
            return
        async with self._changing:
            try:
                plan = self.service.plan()
                _must_stay(self.plan, plan)
                # nginx -t takes a while, and reads certificates.
                await trio.to_thread.run_sync(nginx_process.replace, plan)
                done = await self._follow(self._nginx, self.plan)
            except (CafsError, OSError) as error:
                advice = log.fields(advice=getattr(error, "advice", None))
                _logger.error("%s: nothing was changed: %s", why, error, extra=advice)
                return
            for text in plan.warnings:
                _logger.warning("%s", text)
            self.plan = plan
        _logger.info("%s: %s", why, done)

    async def _follow(self, nginx: NginxProcess, old: Plan) -> str:
        """Have nginx take the files that are there; if it does not, those of *old* are again.

        Returns what was done.
        """
        if nginx.child.process.poll() is not None:
            return "nginx will read its configuration when it is started again"
        try:
            await nginx.reload()
        except CafsError:
            await trio.to_thread.run_sync(old.write)
            raise
        return "nginx has read its configuration again"

    async def _start_mount(self) -> None:
        service = self.service
        self._mount = MountProcess(
            service.store, service.mountpoint, service.settings, service.log_file
        )
        await self._mount.ready()

    async def _start_nginx(self, nursery: trio.Nursery) -> None:
        assert self.plan is not None
        self._nginx = NginxProcess(self.plan)
        nursery.start_soon(self._nginx.log_output)
        await self._nginx.ready()

    async def _watch_mount(self) -> None:
        """Return when it was unmounted in good order; start it again when it died."""
        restarts = _Restarts("the daemon")
        while True:
            assert self._mount is not None
            status = await self._mount.child.wait()
            if status == 0:
                _logger.info("%s was unmounted: stopping", self.service.mountpoint)
                return
            reason = how_it_ended(status)
            while True:
                await restarts.one_more(reason, DaemonError)
                await self._mount.close()
                await trio.to_thread.run_sync(_clear_away, self.service)
                try:
                    await self._start_mount()
                    break
                except CafsError as error:
                    reason = f"could not start: {error}"
            _logger.info("the daemon serves %s again", self.service.mountpoint)

    async def _watch_nginx(self, nursery: trio.Nursery) -> None:
        restarts = _Restarts("nginx")
        while True:
            assert self._nginx is not None
            reason = how_it_ended(await self._nginx.child.wait())
            while True:
                await restarts.one_more(reason, NginxError)
                try:
                    async with self._changing:
                        await self._nginx.close()
                        await self._start_nginx(nursery)
                    break
                except CafsError as error:
                    reason = f"could not start: {error}"
            _logger.info("nginx listens again")

    async def _stop(self) -> None:
        """nginx first: what it has accepted it finishes with the daemon."""
        if self._nginx is not None:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._nginx.log_output)
                await self._nginx.stop()
                await self._nginx.close()
            _logger.info("nginx has ended")
        if self._mount is None:
            return
        if self._mount.child.process.poll() is not None:
            await self._mount.close()
            _clear_away(self.service)
            return
        if self._mount.error is None:
            self._mount.child.send(signal.SIGTERM)
        # Else it is about to end: it has told why, and commits what it may have.
        status = None
        while status is None:
            with trio.move_on_after(PATIENCE_S):
                status = await self._mount.child.wait()
            if status is None:
                _logger.info("waiting for the final commit of %s", self.service.store)
        await self._mount.close()
        if status != 0:
            _clear_away(self.service)
        if self._mount.error is None and status != 0:
            _logger.error("the daemon %s while it stopped", how_it_ended(status))


def _must_stay(old: Plan, new: Plan) -> None:
    """Raise ConfigError for what cannot be changed while the daemon runs on."""
    before = {"serve.run_dir": old.run_dir, **dict(old.shared)}
    for name, value in {"serve.run_dir": new.run_dir, **dict(new.shared)}.items():
        if value != before[name]:
            raise ConfigError(
                f"another {name} takes a restart",
                advice="restart cafs serve, or let the setting be what it was",
            )


def _clear_away(service: Service) -> None:
    """Take the mount away that a dead daemon has left, and let its last commit end."""
    mount = where.mount_at(service.mountpoint)
    if mount is not None and mount.store == service.store and where.is_stale(mount):
        unmount(service.mountpoint, lazy=True)
    lock.wait_until_free(service.store, where.LAST_WRITE_S)


def without_nginx(settings: Settings) -> Settings:
    """*settings* with a daemon that listens where nginx's internal server would.

    Raises :class:`ConfigError` if passwords would come there in the clear, as nginx's plan does.
    """
    if settings.http.listen is not None:
        return settings
    if settings.http.certificate is None:
        raise ConfigError(
            "http.certificate is not set, and the daemon is to listen where nginx would with TLS",
            advice='set it, or say where it may answer without: http.listen = "127.0.0.1:8080", '
            "or try things out with: cafs serve --no-nginx --dev",
        )
    address = settings.serve.listen_address
    listen = f"{'0.0.0.0' if address == '*' else address}:{settings.serve.internal_port}"
    return dataclasses.replace(settings, http=dataclasses.replace(settings.http, listen=listen))
