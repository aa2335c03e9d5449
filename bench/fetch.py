"""Fetches exact package versions with the registries' ordinary clients, pip and npm.

Whatever was fetched once is kept and never asked for again; a file or directory appears
under its final name only when it is whole.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

TRIES = 3


class CorpusError(Exception):
    """Input could not be fetched or unpacked; says which and what to do."""


def say(message: str) -> None:
    """One line of progress, on stderr."""
    print(message, file=sys.stderr, flush=True)


def run_client(command: Sequence[str], what: str, env: dict[str, str], cwd: Path) -> None:
    """Run a registry client, again if it fails.

    Raises:
        CorpusError: the client is missing, or failed :data:`TRIES` times.
    """
    if shutil.which(command[0]) is None:
        raise CorpusError(f"{command[0]} is not installed, and {what} needs it")
    said = ""
    for attempt in range(1, TRIES + 1):
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, check=False
        )
        if done.returncode == 0:
            return
        said = (done.stderr or done.stdout).strip()
        say(f"{what}: try {attempt} of {TRIES} failed")
    tail = "\n  ".join(said.splitlines()[-4:])
    raise CorpusError(
        f"could not fetch {what}; is the package registry reachable from here?\n"
        f"  {tail}\n"
        "What was fetched before is kept: run the same command again to go on."
    )


class Fetcher:
    """Fetches into one directory, with the clients' caches beside it."""

    def __init__(self, root: Path) -> None:
        self.downloads = root / "downloads"
        self.work = root / "unfinished"
        self.downloads.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        self._pip = {
            "PIP_CACHE_DIR": str(root / "cache" / "pip"),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
            # A run as root warns about the owner of the cache, at length.
            "PIP_ROOT_USER_ACTION": "ignore",
        }
        self._npm = {
            "npm_config_cache": str(root / "cache" / "npm"),
            "npm_config_update_notifier": "false",
            "npm_config_audit": "false",
            "npm_config_fund": "false",
            "npm_config_ignore_scripts": "true",
            "npm_config_loglevel": "error",
        }

    def wheel(self, name: str, version: str) -> Path:
        """The pure-Python wheel of exactly that version."""
        return self._archive(
            f"{name}-{version}.whl",
            [
                *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
                *("--only-binary=:all:", "--dest", ".", f"{name}=={version}"),
            ],
            self._pip,
            "*.whl",
        )

    def npm_pack(self, name: str, version: str) -> Path:
        """The package archive of exactly that version."""
        return self._archive(
            f"{name}-{version}.tgz",
            ["npm", "pack", "--silent", f"{name}@{version}"],
            self._npm,
            "*.tgz",
        )

    def wheels(self, target: Path, requirements: Sequence[str], name: str) -> list[Path]:
        """The wheels of all *requirements* of *name*, kept in *target* beside others.

        They are for CPython 3.11 on x86-64, whatever asks for them.
        """
        say(f"fetching {len(requirements)} wheels of {name}")
        target.mkdir(parents=True, exist_ok=True)
        platforms = ("manylinux2014_x86_64", "manylinux_2_28_x86_64", "any")
        command = [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"),
            *("--only-binary=:all:", "--python-version", "3.11", "--implementation", "cp"),
            *(word for platform in platforms for word in ("--platform", platform)),
            *("--dest", str(target), *requirements),
        ]
        found = {_wheel_key(path.name): path for path in target.glob("*.whl")}
        wanted = [_wheel_key(one.replace("==", "-") + "-") for one in requirements]
        if not found.keys() >= set(wanted):
            run_client(command, f"wheels of {name}", self._pip, self.work)
            found = {_wheel_key(path.name): path for path in target.glob("*.whl")}
        return [found[key] for key in wanted]

    def site_packages(
        self, target: Path, requirements: Sequence[str | Path], *, compiled: bool = False
    ) -> None:
        """Make *target* an installed site-packages; does nothing where it is there.

        *compiled*: with the ``.pyc`` that pip makes by itself.
        """
        if target.exists():
            return
        say(f"installing {target.name}: {', '.join(map(_short, requirements))}")
        made = self._empty("site-packages")
        command = [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"),
            *("--compile" if compiled else "--no-compile", "--only-binary=:all:"),
            *("--target", str(made), *map(str, requirements)),
        ]
        run_client(command, target.name, self._pip, self.work)
        _into_place(made, target)

    def node_modules(self, target: Path, dependencies: dict[str, str], name: str = "") -> None:
        """Make *target* a project with its node_modules; does nothing where it is there.

        The project is called *name*, or as the directory is.  The direct dependencies are
        exact.  What they ask for themselves is resolved once and then pinned by the lock file,
        which is kept beside the downloads.
        """
        if target.exists():
            return
        name = name or target.name
        say(f"installing {name}: {len(dependencies)} packages and what they need")
        made = self._empty("node")
        package = {
            "name": name,
            "version": "1.0.0",
            "private": True,
            "dependencies": dependencies,
        }
        (made / "package.json").write_text(json.dumps(package, indent=2))
        lock = self.downloads / f"{name}-lock.json"
        if lock.exists():
            shutil.copy(lock, made / "package-lock.json")
        run_client(["npm", "install"], name, self._npm, made)
        shutil.copy(made / "package-lock.json", lock)
        _into_place(made, target)

    def finish(self) -> None:
        """Remove the scratch directory."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _archive(self, name: str, command: list[str], env: dict[str, str], pattern: str) -> Path:
        kept = self.downloads / name
        if not kept.exists():
            say(f"fetching {name}")
            made = self._empty("archive")
            run_client(command, name, env, made)
            (found,) = made.glob(pattern)
            found.replace(kept)
        return kept

    def _empty(self, name: str) -> Path:
        path = self.work / name
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        return path


def _into_place(made: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    made.replace(target)


def _short(requirement: str | Path) -> str:
    return requirement if isinstance(requirement, str) else requirement.name


def _wheel_key(name: str) -> tuple[str, str]:
    """What a wheel and the requirement that it meets have in common."""
    package, version = name.split("-")[:2] if name.endswith(".whl") else name[:-1].rsplit("-", 1)
    # A wheel may say 1.0 where the requirement says 1.0.0 or the other way round.
    return re.sub("[-_.]+", "-", package).lower(), re.sub(r"(\.0)+$", "", version)
