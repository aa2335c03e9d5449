"""One test, many servers: the contract's cases run wherever they apply.

Invariant: a case runs on plain ext4 under stock nginx first, unless it says why that cannot be
asked of it; so an expectation is proven on what cafs stands in for before cafs is held to it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

from tests.http.stocknginx import need_nginx
from tests.http.targets import TARGETS, Area, Target

_numbers = itertools.count(1)
_broken: set[str] = set()
"""Targets that did not start once; nobody waits for them again."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "on(*targets, why): the only targets on which a case is run, and why"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "target" not in metafunc.fixturenames:
        return
    names = list(TARGETS)
    for mark in metafunc.definition.iter_markers("on"):
        assert mark.kwargs.get("why"), "say why the others are left out"
        names = [name for name in names if name in mark.args]
    metafunc.parametrize("target", names, indirect=True, scope="session")


@pytest.fixture(scope="session", autouse=True)
def _usual_umask() -> Iterator[None]:
    old = os.umask(0o022)
    yield
    os.umask(old)


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A running server, shared by all tests that want this one."""
    need_nginx()
    if request.param in _broken:
        pytest.fail(f"{request.param} did not start: see the first of these errors")
    try:
        running = TARGETS[request.param]()
    except Exception:
        _broken.add(request.param)
        raise
    try:
        yield running
        running.close_well()
    finally:
        running.close()


@pytest.fixture
def area(target: Target) -> Iterator[Area]:
    """A type directory of this test's own, not there yet."""
    area = Area(target, f"cc-{next(_numbers)}")
    yield area
    area.close()
