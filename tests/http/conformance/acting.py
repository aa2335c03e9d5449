"""Acting on a tree as an operator, a job or nginx's own user would.

Invariant: a command that fails, fails the test, with what it printed.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

As = Callable[[Callable[[], Any]], Any]
"""Runs a call as somebody."""


def shell(command: str, timeout_s: float = 60) -> str:
    """What a command line prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout
