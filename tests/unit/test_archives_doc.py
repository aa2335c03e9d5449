"""docs/archives.md has each reason to leave an archive; docs/operations.md each file of a store."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from cafs.operate import passed_over

ROOT = Path(__file__).parents[2]
MESSAGES = (ROOT / "docs" / "archives.md").read_text().partition("## What messages mean")[2]
FILES = (
    (ROOT / "docs" / "operations.md").read_text().partition("## Files in a store's directory")[2]
)
NAMED = (
    (ROOT / "docs" / "format.md").read_text().partition("## Files of a store")[2].partition("\n## ")
)[0]
REASONS = ("LeftError", "UnmadeError", "_OddError")


def reasons() -> set[str]:
    """What comes before the first colon in each reason, as reports count them."""
    found: set[str] = set()
    for path in (ROOT / "cafs" / "archives").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in REASONS:
                texts = [each for each in ast.walk(node.args[0]) if _is_text(each)]
                found.add(_start(texts[0]))
            # As in: reason, lasting = "...", True
            elif (
                path.name == "take_apart.py"
                and isinstance(node, ast.Assign)
                and "reason" in ast.unparse(node.targets[0])
            ):
                found.update(map(_start, filter(_is_text, ast.walk(node.value))))
    return found - {""}


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _start(node: ast.AST) -> str:
    assert isinstance(node, ast.Constant)
    return str(node.value).partition(":")[0]


def test_reasons_are_found() -> None:
    assert {"no engine makes this stream", "members overlap", "it has holes"} <= reasons()


@pytest.mark.parametrize("reason", sorted(reasons()))
def test_each_reason_is_explained(reason: str) -> None:
    assert _explained(reason)


def _explained(text: str) -> bool:
    return f"`{text}`" in MESSAGES or f": {text}`" in MESSAGES


def test_each_reason_to_pass_a_file_over_is_explained() -> None:
    source = ast.parse(Path(passed_over.__file__).read_text())
    texts = {str(each.value) for each in ast.walk(source) if isinstance(each, ast.Constant)}
    for text in sorted(text for text in texts if text.startswith("it is ")):
        assert _explained(text), text


@pytest.mark.parametrize("name", re.findall(r"^\| `([^`]+)`", NAMED, re.MULTILINE))
def test_each_file_of_a_store_is_in_the_operators_table(name: str) -> None:
    name = name.replace("index.damaged-<n>/", "index.damaged-N/").replace("packs/", "packs/*.pack")
    assert f"`{name}`" in FILES
