"""What every command shares: its decorator, ``--json``, ``--config``, and what STORE means.

A command is a function under :func:`command`; its first argument is the :class:`Frame`.
Invariant: a store is found in one way by all commands, in :func:`resolve_store`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import click

from cafs import config, storefile
from cafs.errors import NotFoundError, StoreMissingError, UsageError
from cafs.mount.mountpoint import canonical, mount_at, mounts_of_cafs
from cafs.setting import BOOL, CHOICE, COUNT, Setting, rows_of


class Frame:
    """What the options common to all commands said."""

    def __init__(self) -> None:
        self.json = False
        self.config_file: Path | None = None

    def settings(self, overrides: Mapping[str, object] | None = None) -> config.Settings:
        """The settings of this run; raises :class:`~cafs.errors.ConfigError`."""
        return config.load(self.config_file, overrides)

    def check_named_file(self) -> None:
        """Raise :class:`~cafs.errors.ConfigError` for a settings file that was named and is wrong.

        Whether the command needs a setting or not: who names a file is told of a slip in it now.
        The file of the machine is not looked at for that: it must not keep one from unmounting.
        """
        if self.config_file is not None or os.environ.get(config.FILE_VARIABLE):
            self.settings()


class ResolvedPath(NamedTuple):
    """A path that a user gave, as the store sees it."""

    store: Path
    mountpoint: Path | None
    """None when the path was given as one inside the store, which need not be mounted."""
    inside: bytes
    """From the store's root, ``/`` first; no ``.`` or ``..`` in it."""


class _AnyPath(click.Path):
    """A path as it was given, and not looked at.

    click's own asks for its attributes, which never ends below a mount whose daemon hangs.
    Whether it can be read is found out by whoever reads it, with a better message, too.
    """

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> str | bytes | os.PathLike[str]:
        """The value as the type of path that was asked for; raises :class:`UsageError`.

        An empty one is not the current directory: a variable of a script was not set.
        """
        if not value and not (ctx and ctx.resilient_parsing):
            name = param.get_error_hint(ctx) if param is not None and ctx else "a path"
            raise UsageError(f"{name}: the path is empty", advice="name it, or leave it out")
        return self.coerce_path_result(value)


PATH_TYPE = _AnyPath(path_type=Path)
TEXT_PATH_TYPE = _AnyPath(path_type=str)
"""For what may be a path inside a store: a Path would drop a "/" at its end."""


def _set_json(context: click.Context, _option: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Frame).json = True


def _set_config(context: click.Context, _option: click.Parameter, value: Path | None) -> None:
    if value is not None:
        context.ensure_object(Frame).config_file = value


json_option: Callable[[Any], Any] = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_set_json,
    help="Print JSON for a program, errors included.",
)

config_option: Callable[[Any], Any] = click.option(
    "--config",
    type=PATH_TYPE,
    metavar="FILE",
    expose_value=False,
    callback=_set_config,
    help=f"Settings file; else {config.FILE_VARIABLE}, else {config.DEFAULT_FILE} if it exists.",
)

store_option: Callable[[Any], Any] = click.option(
    "--store",
    type=PATH_TYPE,
    metavar="STORE",
    help="The store, or where it is mounted.",
)
"""For commands whose argument is not the store; gives the function an argument ``store``."""

store_argument: Callable[[Any], Any] = click.argument(
    "store", required=False, type=PATH_TYPE, metavar="[STORE]"
)
"""For commands that take the store first; gives the function an argument ``store``."""


def command(name: str, *, example: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a command of a function ``(frame, ...)``; *example* is shown below its help."""
    lines = "\n".join("  " + line for line in example.strip().splitlines())

    def decorate(function: Callable[..., None]) -> click.Command:
        @functools.wraps(function)
        def run(**arguments: Any) -> None:
            frame = click.get_current_context().ensure_object(Frame)
            frame.check_named_file()
            function(frame, **arguments)

        made = click.command(name, epilog=f"\b\nExample:\n{lines}")(json_option(config_option(run)))
        # The common ones last, whatever order the decorators came in.
        made.params.sort(key=lambda parameter: parameter.name in ("json", "config"))
        return made

    return decorate


def setting_options(section: str, names: Iterable[str] = ()) -> Callable[[Any], Any]:
    """Flags for the settings of *section* (all, or *names*); collect with :func:`overrides`."""
    wanted = set(names)
    rows = [
        row
        for row in rows_of(section, config.SECTIONS[section])
        if not wanted or row.name in wanted
    ]

    def decorate(function: Any) -> Any:
        for row in reversed(rows):
            function = _setting_option(row)(function)
        return function

    return decorate


def _setting_option(row: Setting) -> Callable[[Any], Any]:
    default = f"[default: {row.text(row.default) or 'none'}; {row.bounds}]"
    if row.kind == BOOL:
        names = f"{row.flag}/--no-{row.flag[2:]}"
        return click.option(names, row.name, default=None, help=f"{row.help} {default}")
    choice = click.Choice(row.choices) if row.kind == CHOICE else None
    return click.option(
        row.flag,
        row.name,
        type=choice,
        metavar=None if choice else row.kind.upper(),
        help=f"{row.help} {default}",
    )


def overrides(section: str, values: Mapping[str, object]) -> dict[str, object]:
    """Flags of :func:`setting_options` as keys of settings; counts become numbers."""
    found: dict[str, object] = {}
    for row in rows_of(section, config.SECTIONS[section]):
        value = values.get(row.name)
        # Python refuses to read a number of thousands of digits: it stays a text, and is refused.
        if isinstance(value, str) and row.kind == COUNT and value.isdecimal() and len(value) < 100:
            value = int(value)
        if value is not None:
            found[row.key] = value
    return found


def resolve_store(given: Path | None, frame: Frame) -> Path:
    """The store that a command means: *given* (or where it is mounted), ``CAFS_STORE``, the
    settings, or the only one that is mounted; absolute, without symbolic links.

    Raises :class:`StoreMissingError` when it is none, :class:`UsageError` when none was named
    and it is not clear which is meant.
    """
    if given is None:
        given = configured_store(frame)
    if given is not None:
        return store_at(given)
    mounted = sorted({str(mount.store) for mount in mounts_of_cafs()})
    if len(mounted) == 1:
        return Path(mounted[0])
    if mounted:
        raise UsageError(
            f"no store was named, and several are mounted: {', '.join(mounted)}",
            advice=f"name one, or set {config.STORE_VARIABLE}",
        )
    raise UsageError(
        "no store was named, and none is mounted",
        advice=f"name one, or set {config.STORE_VARIABLE}, or default.store in the settings",
    )


def configured_store(frame: Frame) -> Path | None:
    """The store that ``CAFS_STORE`` or the settings name."""
    from_environment = os.environ.get(config.STORE_VARIABLE)
    return Path(from_environment) if from_environment else frame.settings().default.store


def store_at(given: Path) -> Path:
    """The store in directory *given* or mounted on it; raises :class:`StoreMissingError`."""
    path = canonical(given)
    mount = mount_at(path)
    if mount is not None and mount.store:
        return mount.store
    if not storefile.is_store(path):
        raise StoreMissingError(f"{given}: there is no store, and none is mounted there")
    return path


def resolve_path(
    given: str | bytes | os.PathLike[str], frame: Frame, store: Path | None = None
) -> ResolvedPath:
    """What *given* is inside a store.

    Below a mountpoint of a store (of *store*, if that is named) it is the path from there.
    Else it is taken as a path from the root of the store that is named or configured.  A
    symbolic link at the end is not followed.  Raises :class:`NotFoundError` when no store is
    mounted above it and none was named.
    """
    text = os.fsencode(given)
    named = store_at(store) if store is not None else None
    absolute = Path(os.path.abspath(os.fsdecode(text)))
    # Links above the last part may lead into a mount; the last one may be what is asked about.
    path = Path(os.path.realpath(absolute.parent), absolute.name)
    for mount in reversed(mounts_of_cafs()):
        inside_mount = path == mount.path or mount.path in path.parents
        if mount.store and inside_mount and named in (None, mount.store):
            below = os.fsencode(path.relative_to(mount.path))
            inside = b"/" if below == b"." else b"/" + below
            return ResolvedPath(mount.store, mount.path, inside)
    if named is None:
        configured = configured_store(frame)
        if configured is None:
            raise NotFoundError(
                f"{os.fsdecode(text)}: no store is mounted there",
                advice="mount it, or name the store with --store and the path from its root",
            )
        named = store_at(configured)
    inside = os.path.normpath(b"/" + text)
    # POSIX gives two leading slashes a meaning of their own, so normpath keeps them.
    return ResolvedPath(named, None, b"/" + inside.lstrip(b"/"))
