"""Builds the benchmarks' input from the package registries: ``python -m bench corpus DIR``.

Owns the list of versions, and the layout of DIR:

- ``tree/``: whole installed trees, several versions each: site-packages and node_modules.
- ``releases/APP/VERSION/``: ten successive releases of each app, unpacked.
- ``zips/``: each release as ``cf push`` packs it.  ``droplets/``: each as ``tar -czf``.
- ``resources/ab/cd/SHA1``: the releases' files of 64 KiB and more, each content once, as Cloud
  Controller's resource cache lays them out.
- ``corpus.json``: what there is, with counts and digests, so that two results can be compared.

Invariant: a directory or archive under its final name is whole, so an interrupted run is gone
on with by running it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple

from bench.fetch import CorpusError, Fetcher, say

RESOURCE_MINIMUM = 64 * 1024
"""Bytes; Cloud Controller matches no smaller files as resources."""


class App(NamedTuple):
    """An app whose successive releases are stored next to each other."""

    name: str
    client: str
    """Which registry has it: ``pip`` or ``npm``."""
    versions: tuple[str, ...]


APPS = (
    App("Django", "pip", tuple(f"4.2.{n}" for n in range(1, 11))),
    App("jupyterlab", "pip", tuple(f"4.0.{n}" for n in range(1, 11))),
    App(
        "npm",
        "npm",
        (
            *("10.1.0", "10.2.0", "10.2.1", "10.2.2", "10.2.3"),
            *("10.2.4", "10.2.5", "10.3.0", "10.4.0", "10.5.0"),
        ),
    ),
)

_PYTHON_COMMON = (
    *("djangorestframework==3.14.0", "asgiref==3.7.2", "sqlparse==0.4.4", "celery==5.3.4"),
    *("kombu==5.3.3", "requests==2.31.0", "urllib3==2.0.7", "idna==3.4", "certifi==2023.7.22"),
    *("beautifulsoup4==4.12.2", "django-filter==23.3", "django-taggit==4.0.0", "click==8.1.7"),
    *("openpyxl==3.1.2", "Jinja2==3.1.2", "pytz==2023.3", "tzdata==2023.3", "sympy==1.12"),
    *("networkx==3.2", "pygments==2.16.1", "docutils==0.20.1", "Sphinx==7.2.6", "babel==2.13.0"),
)
PYTHON_TREES = {
    "python-a": ("Django==4.2.1", "wagtail==5.2.1", *_PYTHON_COMMON),
    "python-b": ("Django==4.2.6", "wagtail==5.2.2", *_PYTHON_COMMON),
    "python-c": ("Django==4.2.10", "wagtail==5.2.3", *_PYTHON_COMMON),
}

_NODE_COMMON = {
    **{"express": "4.18.2", "react": "18.2.0", "react-dom": "18.2.0", "lodash": "4.17.21"},
    **{"@babel/core": "7.23.9", "@babel/preset-env": "7.23.9", "date-fns": "2.30.0"},
    **{"rxjs": "7.8.1", "webpack-cli": "5.1.4"},
}
NODE_TREES = {
    "node-a": {
        **_NODE_COMMON,
        **{"axios": "1.6.0", "webpack": "5.89.0", "eslint": "8.52.0", "jest": "29.6.4"},
    },
    "node-b": {
        **_NODE_COMMON,
        **{"axios": "1.6.2", "webpack": "5.90.0", "eslint": "8.54.0", "jest": "29.7.0"},
    },
}


def build(root: Path) -> dict[str, Any]:
    """Make or complete the corpus in *root* and return what ``corpus.json`` says.

    Raises:
        CorpusError: a package could not be fetched; what was fetched is kept.
    """
    root.mkdir(parents=True, exist_ok=True)
    fetcher = Fetcher(root)
    for name, requirements in PYTHON_TREES.items():
        fetcher.site_packages(root / "tree" / name, requirements)
    for name, dependencies in NODE_TREES.items():
        fetcher.node_modules(root / "tree" / name, dependencies)
    for app in APPS:
        for version in app.versions:
            _release(fetcher, root, app, version)
    _resources(root)
    fetcher.finish()
    return _describe(root)


def load(root: Path) -> dict[str, Any]:
    """What ``corpus.json`` in *root* says.

    Raises:
        CorpusError: there is no finished corpus.
    """
    try:
        described: dict[str, Any] = json.loads((root / "corpus.json").read_text())
    except FileNotFoundError:
        raise CorpusError(
            f"there is no corpus in {root}; build it with: python -m bench corpus {root}"
        ) from None
    return described


def _release(fetcher: Fetcher, root: Path, app: App, version: str) -> None:
    unpacked = root / "releases" / app.name / version
    if not unpacked.exists():
        made = fetcher.work / "release"
        shutil.rmtree(made, ignore_errors=True)
        if app.client == "pip":
            unpack_wheel(fetcher.wheel(app.name, version), made)
        else:
            unpack_tgz(fetcher.npm_pack(app.name, version), made)
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        made.replace(unpacked)
    zipped = root / "zips" / f"{app.name}-{version}.zip"
    if not zipped.exists():
        zipped.parent.mkdir(exist_ok=True)
        zip_as_pushed(unpacked, fetcher.work / "package.zip")
        (fetcher.work / "package.zip").replace(zipped)
    droplet = root / "droplets" / f"{app.name}-{version}.tgz"
    if not droplet.exists():
        droplet.parent.mkdir(exist_ok=True)
        made = fetcher.work / "droplet.tgz"
        # Sorted, because the order in which a directory is read differs from disk to disk.
        subprocess.run(
            ["tar", "--sort=name", "-czf", str(made), "-C", str(unpacked), "."], check=True
        )
        made.replace(droplet)


def unpack_wheel(archive: Path, target: Path) -> None:
    """Unpack with the times that the members have."""
    with zipfile.ZipFile(archive) as opened:
        for member in opened.infolist():
            path = opened.extract(member, target)
            when = time.mktime((*member.date_time, 0, 0, -1))
            os.utime(path, (when, when))


def unpack_tgz(archive: Path, target: Path) -> None:
    """Unpack with the times that the members have."""
    with tarfile.open(archive) as opened:
        opened.extractall(target, filter="data")


class _Stream:
    """A file that cannot seek: zipfile then leaves each size to a data descriptor.

    Go's writer, which ``cf push`` uses, does that always.
    """

    def __init__(self, inner: IO[bytes]) -> None:
        self._inner = inner

    def write(self, data: bytes) -> int:
        return self._inner.write(data)

    def flush(self) -> None:
        self._inner.flush()


def zip_as_pushed(source: Path, target: Path) -> None:
    """Pack *source* as the cf command line does: walked in order, deflated, streamed."""
    with (
        target.open("wb") as raw,
        zipfile.ZipFile(_Stream(raw), "w", zipfile.ZIP_DEFLATED) as archive,  # type: ignore[call-overload]
    ):
        for path in sorted(source.rglob("*")):
            if not path.is_symlink():
                archive.write(path, path.relative_to(source))


def _resources(root: Path) -> None:
    target = root / "resources"
    if target.exists():
        return
    made = root / "unfinished" / "resources"
    for path in _files(root / "releases"):
        if path.lstat().st_size >= RESOURCE_MINIMUM:
            sha1 = hashlib.sha1(path.read_bytes(), usedforsecurity=False).hexdigest()
            place = made / sha1[:2] / sha1[2:4] / sha1
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
    made.replace(target)


def _files(root: Path) -> Iterator[Path]:
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted(files):
            path = Path(directory, name)
            if stat.S_ISREG(path.lstat().st_mode):
                yield path


def _describe(root: Path) -> dict[str, Any]:
    said = root / "corpus.json"
    parts: dict[str, Any] = json.loads(said.read_text())["parts"] if said.exists() else {}
    for name in ("tree", "releases", "zips", "droplets", "resources"):
        if name in parts:
            continue
        say(f"counting {name}")
        digest = hashlib.sha256()
        files = size = 0
        for path in _files(root / name):
            content = path.read_bytes()
            digest.update(os.fsencode(path.relative_to(root)) + b"\0")
            digest.update(hashlib.sha256(content).digest())
            files += 1
            size += len(content)
        parts[name] = {"files": files, "bytes": size, "sha256": digest.hexdigest()}
    described = {
        "apps": {app.name: list(app.versions) for app in APPS},
        "trees": {**{k: list(v) for k, v in PYTHON_TREES.items()}, **NODE_TREES},
        "parts": parts,
    }
    said.write_text(json.dumps(described, indent=2) + "\n")
    return described
