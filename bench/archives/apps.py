"""The apps whose droplets make up the corpus, and what each of their releases is made of.

Invariant: a release names every version that goes into it, in a lock file beside this module
(Python) or by its direct dependencies, whose own are pinned by the first build (Node.js).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

_LOCKS = Path(__file__).with_name("locks")


class PythonApp(NamedTuple):
    """An app that the Python buildpack stages: its packages lie in ``deps/0``."""

    name: str
    own: str
    """The package that plays the app's own code; the others are installed for it."""
    releases: tuple[str, ...]

    def requirements(self, release: str) -> tuple[list[str], str]:
        """What is installed for the app, and the version of its own package."""
        lines = (_LOCKS / f"{self.name}-{release}.txt").read_text().split()
        own = next(line for line in lines if line.startswith(f"{self.own}=="))
        return [line for line in lines if line != own], own.partition("==")[2]


class NodeApp(NamedTuple):
    """An app that the Node.js buildpack stages: node_modules in ``app``, Node.js in ``deps/0``."""

    name: str
    releases: tuple[str, ...]
    dependencies: tuple[dict[str, str], ...]
    """Of each release."""
    vendored: bool
    """Whether it is pushed with its node_modules."""


RUNTIMES = ("20.11.0", "20.11.0", "20.11.1", "20.11.1", "20.12.2", "20.12.2")
"""Node.js under each release: the buildpack brings another one now and then."""

PYTHON_APPS = (
    PythonApp("flask", "faker", ("r1", "r2", "r3", "r4", "r5", "r6")),
    PythonApp("wagtail", "wagtail", ("5.2.2", "5.2.3", "6.0", "6.0.1", "6.0.2", "6.1")),
)

_NODE_RED = ("3.1.3", "3.1.5", "3.1.7", "3.1.9", "3.1.11", "3.1.13")
_AWS = ("2.1634.0", "2.1640.0", "2.1650.0", "2.1660.0", "2.1670.0", "2.1680.0")
_MONGOOSE = ("8.24.0", "8.24.1", "8.24.2", "8.24.3", "8.24.4", "8.24.5")
_EXPRESS = {
    **{"express": "4.18.2", "lodash": "4.17.21", "moment": "2.30.1", "winston": "3.11.0"},
    **{"pg": "8.11.3", "sequelize": "6.35.2", "ioredis": "5.3.2", "joi": "17.11.0"},
    **{"date-fns": "2.30.0", "rxjs": "7.8.1", "axios": "1.6.2"},
}
NODE_APPS = (
    NodeApp("node-red", _NODE_RED, tuple({"node-red": v} for v in _NODE_RED), False),
    NodeApp(
        "express",
        ("r1", "r2", "r3", "r4", "r5", "r6"),
        tuple(
            {**_EXPRESS, "aws-sdk": aws, "mongoose": mongoose}
            for aws, mongoose in zip(_AWS, _MONGOOSE, strict=True)
        ),
        True,
    ),
)

QUICK = {"flask": 2, "node-red": 3}
"""What a quick run takes: the first releases of some apps, about 400 MB of droplets."""
