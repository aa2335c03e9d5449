"""The program ``cafs``: gathers the commands, and says what went wrong in one way.

Invariant: a foreseeable fault ends with one sentence, advice and the exit code of
:data:`cafs.errors.MEANINGS`; only a defect of cafs gets a correlation id and a trace, in the log
where the command keeps one and in a file else.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from cafs import __version__
from cafs.cli import (
    age_commands,
    care_commands,
    check_commands,
    list_commands,
    look_commands,
    match_commands,
    serve_commands,
    store_commands,
)
from cafs.cli.frame import Frame, config_option, json_option
from cafs.cli.output import note, tell
from cafs.errors import CafsError, UsageError, from_os_error
from cafs.setting import nearest

GROUPS: Final[Mapping[str, Sequence[click.Command]]] = {
    "A store's life": store_commands.COMMANDS,
    "Over HTTP": [*serve_commands.COMMANDS, *match_commands.COMMANDS],
    "Looking inside": [*look_commands.COMMANDS, *list_commands.COMMANDS],
    "Keeping it well": [
        *check_commands.COMMANDS,
        *care_commands.COMMANDS,
        *age_commands.COMMANDS,
    ],
}
"""What ``cafs --help`` lists, in this order."""

EXIT_DEFECT: Final = 70
"""EX_SOFTWARE of sysexits(3): a defect of cafs itself."""
EXIT_INTERRUPTED: Final = 130
EXIT_BROKEN_PIPE: Final = 141

_COMPLETE_VARIABLE: Final = "_CAFS_COMPLETE"


class _Program(click.Group):
    """Lists its commands under headings, and knows what was probably meant."""

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands of each group, in the order in which they were given."""
        width = formatter.width - 6 - max(len(name) for name in self.commands)
        for heading, commands in [*GROUPS.items(), ("The program", [completion])]:
            with formatter.section(heading):
                formatter.write_dl(
                    [(item.name or "", item.get_short_help_str(width)) for item in commands]
                )

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Which command *arguments* mean; raises :class:`UsageError` with the nearest one."""
        name = arguments[0]
        # While a shell completes a word, a wrong one is no mistake yet.
        if self.get_command(context, name) is None and not context.resilient_parsing:
            near = nearest(name, self.commands)
            if name.startswith("-"):
                raise click.NoSuchOption(name, ctx=context)
            raise UsageError(
                f"there is no command {name!r}" + (f"; did you mean {near}?" if near else "")
            )
        return super().resolve_command(context, arguments)


@click.group(
    cls=_Program,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Each command has an example: cafs COMMAND --help",
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@config_option
@json_option
def cafs() -> None:
    """A content-addressed, deduplicating filesystem for blobstores.

    The store comes first in every command. It may be left out where CAFS_STORE or the settings
    name it, or when only one store is mounted; a mountpoint is accepted in its place.
    """


@click.command(
    "completion",
    epilog="\b\nExample:\n  cafs completion bash > /etc/bash_completion.d/cafs\n"
    '  eval "$(cafs completion zsh)"',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script that makes SHELL complete cafs commands."""
    from click.shell_completion import get_completion_class

    cls = get_completion_class(shell)
    assert cls is not None
    click.echo(cls(cafs, {}, "cafs", _COMPLETE_VARIABLE).source())


for _commands in GROUPS.values():
    for _command in _commands:
        cafs.add_command(_command)
cafs.add_command(completion)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, having said what went wrong."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_what_is_closed()
    # A name may hold bytes that are not UTF-8: they go out as they came in.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="surrogateescape")
    try:
        code = _run(given)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read has enough.
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        _drop_output()
        return _fail(from_os_error(error, "write the output"), as_json=False)
    return code


def _open_what_is_closed() -> None:
    """Put /dev/null where the caller closed stdin, stdout or stderr.

    Else the next file or pipe that is opened takes that number: what is said would go into it,
    and a daemon would close it when it lets go of the caller's terminal.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # In this order each gets the number that is missing.
            stream = open(os.devnull, mode)  # noqa: SIM115
            os.set_inheritable(stream.fileno(), True)
            setattr(sys, name, stream)


def _drop_output() -> None:
    # Python would complain again when it flushes what is left at exit.
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def _run(given: list[str]) -> int:
    frame = Frame()
    asked = os.environ.get(_COMPLETE_VARIABLE)
    if asked:
        from click.shell_completion import shell_complete

        return shell_complete(cafs, {"obj": frame}, "cafs", _COMPLETE_VARIABLE, asked)
    try:
        # Not cafs.main(): that has ideas of its own about broken pipes and exit codes.
        with cafs.make_context("cafs", given or ["--help"], obj=frame) as context:
            cafs.invoke(context)
    except click.exceptions.Exit as done:
        return done.exit_code
    except CafsError as error:
        return _fail(error, frame.json)
    except click.UsageError as error:
        # Parsing ended before it came to --json, perhaps.
        path = error.ctx.command_path if error.ctx else "cafs"
        told = UsageError(_sentence(error.format_message()), advice=f"{path} --help")
        return _fail(told, frame.json or "--json" in given)
    except click.ClickException as error:
        return _fail(CafsError(_sentence(error.format_message())), frame.json)
    except KeyboardInterrupt:
        tell("\ncafs: interrupted\n")
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename is not None:
            return _fail(from_os_error(error, os.fsdecode(error.filename)), frame.json)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
            # Of no file that was opened by name, so of stdout.
            _drop_output()
            return _fail(from_os_error(error, "write the output"), as_json=False)
        return _defect(error, frame.json)
    except Exception as error:
        return _defect(error, frame.json)
    return 0


def _sentence(text: str) -> str:
    # click writes lists of choices below each other.
    text = " ".join(text.split()).removesuffix(".")
    return text[:1].lower() + text[1:]


# The imports within these two are slow, and only failures need them.


def _fail(error: CafsError, as_json: bool) -> int:
    from cafs.control import error_fields

    fields = error_fields(error)
    note(fields["message"])
    if fields["advice"]:
        tell(f"  what to do: {fields['advice']}\n")
    if as_json:
        _say_error(fields)
    return error.meaning.exit_code


def _defect(error: Exception, as_json: bool) -> int:
    if os.environ.get("CAFS_DEBUG") == "1":
        raise error
    from cafs.log import correlation_id

    name = correlation_id()
    place = _keep_trace(error, name)
    message = f"a defect of cafs, id {name}: {type(error).__name__}: {error}"
    note(f"{message} (trace: {place})")
    if as_json:
        _say_error(
            {
                "error": "Defect",
                "message": message,
                "advice": f"report it with {place}",
                "exit_code": EXIT_DEFECT,
            }
        )
    return EXIT_DEFECT


def _keep_trace(error: Exception, name: str) -> str:
    """Write the traceback where it can be found; returns what to call that place."""
    import logging
    import tempfile
    import traceback

    from cafs import log

    if log.is_kept():
        # A command that serves may be started again and again, and each time would leave one
        # more file; its log is where people look, and somebody cleans it up.
        logger = logging.getLogger(__name__)
        logger.error("ended by a defect", exc_info=error, extra=log.fields(id=name))
        return "the log"
    try:
        handle, path = tempfile.mkstemp(prefix=f"cafs-{name}-", suffix=".trace")
        with os.fdopen(handle, "w", errors="backslashreplace") as stream:
            stream.write("".join(traceback.format_exception(error)))
    except OSError:
        return "nowhere, for want of a place to write"
    return path


def _say_error(fields: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")


if __name__ == "__main__":
    sys.exit(main())
