"""``python -m bench``: run, http, archives, report, plot, corpus, main-job.

Only reads arguments and prints; exit code 0 done, 1 failed, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from bench import corpus, main_job, plot, report
from bench import run as runner
from bench.archives import corpus as archives_corpus
from bench.archives import main_job as archives_main_job
from bench.archives import report as archives_report
from bench.archives import run as archives_run
from bench.archives.blobs import UnlikeError
from bench.client import ClientError
from bench.fetch import CorpusError
from bench.http import report as http_report
from bench.http import run as http_run
from bench.http.load import LoadError
from bench.result import Result, ResultError
from bench.sides import SideError
from bench.work import WORKLOADS
from cafs.errors import CafsError

_DIRECTORY = Path("/var/tmp/cafs-bench")
_FAULTS = (
    *(CorpusError, SideError, ClientError, runner.BenchError, plot.PlotError),
    *(main_job.MainJobError, ResultError, LoadError, UnlikeError, CafsError),
)


def main(arguments: list[str] | None = None) -> int:
    """Do what the command line asks for and return the exit code."""
    given = _parser().parse_args(arguments)
    try:
        return int(given.call(given))
    except _FAULTS as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Compare a cafs mount with plain ext4 on real input.",
        epilog="First build the input: python -m bench corpus /var/tmp/cafs-bench/corpus",
    )
    parser.set_defaults(call=_run)
    names = ", ".join(workload.name for workload in WORKLOADS)
    parser.add_argument(
        "--only", action="append", default=[], metavar="NAME", help=f"only this one of: {names}"
    )
    parser.add_argument("--quick", action="store_true", help="small input, under 3 minutes")
    parser.add_argument(
        "--dir",
        type=Path,
        default=_DIRECTORY,
        help="where the corpus is and both sides work; an ext4 (default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the result there")
    parser.add_argument("--repeat", type=int, metavar="N", help="repetitions (default: 5, quick 3)")
    parser.add_argument("--seed", type=int, default=1, help="of generated data and orders")
    parser.add_argument("--files", type=int, metavar="N", help="files for the memory measurement")
    commands = parser.add_subparsers(title="commands")

    command = commands.add_parser("corpus", help="build the input from the package registries")
    command.add_argument("directory", type=Path, metavar="DIR")
    command.set_defaults(call=_corpus)

    command = commands.add_parser("http", help="compare cafs serve with nginx on plain ext4")
    http_run.add_arguments(command)
    command.set_defaults(call=_http)

    command = commands.add_parser("archives", help="measure archives that are taken apart")
    archives_run.add_arguments(command)
    command.set_defaults(call=_archives)

    command = commands.add_parser("report", help="write docs/benchmarks.md from a result")
    command.add_argument("result", type=Path, metavar="RESULT.json")
    command.add_argument("--http", type=Path, metavar="RESULT.json", help="of bench http")
    command.add_argument("--archives", type=Path, metavar="RESULT.json", help="of bench archives")
    command.add_argument("--out", type=Path, default=Path("docs/benchmarks.md"))
    command.set_defaults(call=_report)

    command = commands.add_parser("plot", help="draw a result (needs matplotlib)")
    command.add_argument("result", type=Path, metavar="RESULT.json")
    command.add_argument(
        "--out",
        type=Path,
        metavar="PNG",
        help="default: beside the result; docs/benchmarks.png is shown by the report",
    )
    command.set_defaults(call=_plot)

    command = commands.add_parser("main-job", help="copy a real tree in, compare, kill, verify")
    main_job.add_arguments(command, _DIRECTORY)
    command.set_defaults(call=main_job.main)
    return parser


def _run(given: argparse.Namespace) -> int:
    with _progress() as progress:
        result = runner.run(
            given.dir,
            only=given.only,
            quick=given.quick,
            repetitions=given.repeat,
            seed=given.seed,
            files=given.files,
            progress=progress,
            save=functools.partial(_save, given.json),
        )
    report.terminal(result, _wide_console())
    if given.json:
        print(f"{given.json} written", file=sys.stderr)
    return 0


def _http(given: argparse.Namespace) -> int:
    with _progress() as progress:
        result = http_run.run(
            given.dir,
            only=given.only,
            quick=given.quick,
            repetitions=given.repeat,
            seed=given.seed,
            keys=given.keys,
            progress=progress,
            save=functools.partial(_save, given.json),
        )
    http_report.terminal(result, _wide_console())
    if given.json:
        print(f"{given.json} written", file=sys.stderr)
    return 0


def _archives(given: argparse.Namespace) -> int:
    if given.corpus:
        blobs = archives_corpus.build(given.dir / "archives", quick=given.quick)
        for name, part in archives_run.described(blobs).items():
            print(f"{name:16} {part['files']:6,} files {part['bytes'] / 1e6:8,.0f} MB")
        return 0
    if given.main_job:
        archives_main_job.run(
            given.dir, quick=given.quick, kills=given.kills, seed=given.seed, keep=given.keep
        )
        return 0
    with _progress() as progress:
        result = archives_run.run(
            given.dir,
            quick=given.quick,
            repetitions=given.repeat,
            seed=given.seed,
            progress=progress,
            save=functools.partial(_save, given.json),
        )
    archives_report.terminal(result, _wide_console())
    if given.json:
        print(f"{given.json} written", file=sys.stderr)
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str], None]]:
    console = Console(stderr=True)
    start = time.monotonic()
    with console.status("starting") as status:

        def progress(message: str) -> None:
            status.update(message)
            if not console.is_terminal:
                print(f"{time.monotonic() - start:6.1f} s {message}", file=sys.stderr, flush=True)

        yield progress


def _save(path: Path | None, result: Result) -> None:
    if path is not None:
        result.save(path)


def _wide_console() -> Console:
    # A log has no width of its own; 80 columns would break every title into five lines.
    return Console() if sys.stdout.isatty() else Console(width=160)


def _corpus(given: argparse.Namespace) -> int:
    for name, part in corpus.build(given.directory)["parts"].items():
        print(f"{name:10} {part['files']:8,} files {part['bytes'] / 1e6:8,.0f} MB")
    return 0


def _report(given: argparse.Namespace) -> int:
    result = Result.load(given.result)
    picture = given.out.with_suffix(".png")
    plotted = picture.name if picture.exists() else ""
    more = ""
    if given.http is not None:
        over_http = http_run.HttpResult.load(given.http)
        drawn = given.out.with_name(f"{given.out.stem}-http.png")
        assert isinstance(over_http, http_run.HttpResult)
        name = given.http.as_posix()
        more = http_report.section(over_http, name, drawn.name if drawn.exists() else "")
    if given.archives is not None:
        aged = archives_run.ArchivesResult.load(given.archives)
        assert isinstance(aged, archives_run.ArchivesResult)
        section = archives_report.section(aged, given.archives.as_posix())
        more = f"{more}\n{section}" if more else section
    given.out.write_text(report.markdown(result, given.result.as_posix(), plotted, more))
    print(f"{given.out} written")
    return 0


def _plot(given: argparse.Namespace) -> int:
    path = given.out or given.result.with_suffix(".png")
    result = Result.load(given.result)
    if http_run.is_http(result):
        result = http_run.HttpResult.load(given.result)
    plot.draw(result, path)
    print(f"{path} written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
