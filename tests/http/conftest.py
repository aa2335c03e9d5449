"""What tests over HTTP share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import RunCafs
from tests.http.served import Served


@pytest.fixture
def served(run_cafs: RunCafs) -> Iterator[Served]:
    """A ``cafs serve`` that has not been started yet."""
    served = Served(run_cafs)
    try:
        yield served
    finally:
        served.close()
