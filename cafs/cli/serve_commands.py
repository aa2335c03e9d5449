"""``cafs serve`` and ``cafs nginx-config``: a blobstore over HTTP.

Only reads what was asked for, and prints: what nginx gets is :mod:`cafs.serve.plan`'s business,
what runs is :mod:`cafs.serve.supervisor`'s.

Imports that are slow lie within the functions that need them: help is to come at once.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from cafs.cli.frame import (
    PATH_TYPE,
    Frame,
    command,
    overrides,
    resolve_store,
    setting_options,
    store_argument,
    store_at,
)
from cafs.cli.output import note, say, say_json, warn
from cafs.cli.store_commands import LOG_NAME, both
from cafs.config import Settings
from cafs.mount import mountpoint as where

SERVE_LOG: Final = "serve.log"
"""Where a `cafs serve` in the background logs what it and nginx have to say."""


@command(
    "serve",
    example="cafs serve /var/lib/cafs/blobs /var/vcap/store/shared\n"
    "cafs serve ~/demo/store ~/demo/mnt --dev --daemon",
)
@click.argument("where_", metavar="[STORE] [MOUNTPOINT]", nargs=-1, type=PATH_TYPE)
@click.option("--daemon", is_flag=True, help="Return when it answers; log to STORE/serve.log")
@click.option(
    "--dev", is_flag=True, help="Make a certificate, a user and a secret, where none is set."
)
@click.option("--no-nginx", is_flag=True, help="Let the daemon answer on the network by itself.")
@setting_options("serve")
@setting_options("mount")
def serve(
    frame: Frame,
    where_: tuple[Path, ...],
    daemon: bool,
    dev: bool,
    no_nginx: bool,
    **values: object,
) -> None:
    """Mount STORE on MOUNTPOINT and serve it over HTTP, with nginx in front.

    Runs in the foreground until SIGTERM or SIGINT, unless --daemon is given; SIGHUP reads the
    settings again for nginx, and SIGUSR1 opens its log anew. A child that dies is started again.
    """
    from cafs.cli import background
    from cafs.cli.mounting import check
    from cafs.serve import plan, supervisor

    flags = overrides("mount", values) | overrides("serve", values)
    settings = frame.settings(flags)
    named, mountpoint = both(frame, where_, settings)
    store, mountpoint = store_at(named), where.canonical(mountpoint)
    options = check(store, mountpoint, settings)
    filled = _development(settings, store) if dev else settings
    filled = dataclasses.replace(filled, mount=options)
    if no_nginx:
        filled = supervisor.without_nginx(filled)

    def now() -> plan.Plan:
        fresh = frame.settings(flags)
        return plan.make_own(store, _development(fresh, store) if dev else fresh)

    service = supervisor.Service(
        store,
        mountpoint,
        filled,
        None if no_nginx else now,
        store / LOG_NAME if daemon else None,
    )
    if not no_nginx:
        now()

    def run(ready: Callable[[], None]) -> None:
        supervisor.run(service, ready)

    level = options.log_level
    if daemon:
        _announce(frame, service, background.start(run, store / SERVE_LOG, level), dev)
        return
    from cafs import log

    def ready() -> None:
        if frame.json:
            _announce(frame, service, os.getpid(), dev)
            sys.stdout.flush()

    log.to_stream(level, sys.stderr)
    run(ready)


def _development(settings: Settings, store: Path) -> Settings:
    from cafs.serve import development

    return dataclasses.replace(settings, http=development.fill_in(settings.http, store))


def _curl_file(service: Any) -> Path | None:
    """What curl takes to be the development user, if the settings have no users of their own."""
    from cafs.serve import development

    file = development.curl_file(service.store)
    users: Path | None = service.settings.http.users_file
    return file if users is not None and users.parent == file.parent else None


def _announce(frame: Frame, service: Any, pid: int, dev: bool) -> None:
    settings: Settings = service.settings
    scheme, host, port = "https", "localhost", str(settings.serve.internal_port)
    if service.plan is None and settings.http.listen is not None:
        scheme = "https" if settings.http.certificate is not None else "http"
        where, _, port = settings.http.listen.rpartition(":")
        host = host if where in ("*", "0.0.0.0", "::", "[::]") else where
    url = f"{scheme}://{host}:{port}/"
    curl = _curl_file(service) if dev else None
    if frame.json:
        answer = {"store": service.store, "mountpoint": service.mountpoint, "pid": pid, "url": url}
        say_json(answer | ({"curl": curl} if curl else {}))
        return
    say(f"{service.store} is mounted on {service.mountpoint} and served at {url} (process {pid})")
    if curl is not None:
        say(f"  try:   curl -K {curl} -T FILE {url}admin/ab/cd/abcd-1")
    say(f"  logs:  {service.store / SERVE_LOG}, {service.store / LOG_NAME}")
    say(f"  stop:  kill {pid}")


@command(
    "nginx-config",
    example="cafs nginx-config /var/lib/cafs/blobs > /etc/nginx/nginx.conf\n"
    "cafs nginx-config /var/lib/cafs/blobs --write /var/vcap/jobs/blobstore/config",
)
@store_argument
@click.option(
    "--write",
    "directory",
    type=PATH_TYPE,
    metavar="DIR",
    help="Write nginx.conf and the include with the links' secret there; nginx's own files, too.",
)
@click.option(
    "--classic",
    type=PATH_TYPE,
    metavar="MOUNTPOINT",
    help="For an nginx that works on the mount with its own dav modules, as without cafs.",
)
@setting_options("serve")
def nginx_config(
    frame: Frame,
    store: Path | None,
    directory: Path | None,
    classic: Path | None,
    **values: object,
) -> None:
    """Print the configuration of an nginx in front of STORE.

    It is what `cafs serve` gives to its own nginx: ports, names, certificates and limits come
    from the settings.
    """
    from cafs.serve import plan, rundir

    settings = frame.settings(overrides("serve", values))
    path = resolve_store(store, frame)
    run_dir = None if directory is None else where.canonical(directory)
    if classic is None:
        made = plan.make(path, settings, run_dir=run_dir)
    else:
        there = where.canonical(classic)
        made = plan.make_classic(there, settings, run_dir or rundir.default(path))
    for text in made.warnings:
        warn(text)
    if run_dir is not None:
        made.write()
    if frame.json:
        say_json({"config": made.config, "include": made.include, "text": made.text})
    elif run_dir is not None:
        say(f"{made.config} written")
    else:
        say(made.text.rstrip("\n"))
        if made.include is not None and not made.include.exists():
            note(f"the include {made.include} is not there; --write makes it")


COMMANDS = [serve, nginx_config]
