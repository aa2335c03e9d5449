"""docs/durability.md names a test for each promise; each of them exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "durability.md"
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", DOCUMENT.read_text())))


@pytest.mark.parametrize(("file", "name"), NAMED)
def test_the_test_behind_a_promise_exists(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in tree.body if isinstance(node, functions)}


def test_each_promise_names_a_test() -> None:
    """A promise is an item of a list in a section about a kind of failure."""
    promises = DOCUMENT.read_text().split("\n## ")[2:]
    for section in promises:
        items = re.split(r"\n- ", section)[1:]
        assert items, f"{section.splitlines()[0]} promises nothing"
        for item in items:
            assert "`tests/" in item, item
