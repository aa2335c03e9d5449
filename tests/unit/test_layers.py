"""An import goes downward only: what lies below never knows what is built on it."""

from __future__ import annotations

import ast
from pathlib import Path

from tests.conftest import ROOT

PACKAGE = ROOT / "cafs"

LAYERS = (
    ("index",),
    ("blobs",),
    ("archives",),
    ("tree",),
    ("operate",),
    ("mount", "http"),
    ("serve",),
    ("cli",),
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imports_of(path: Path) -> set[str]:
    """The modules of cafs that a file imports at run time, as ``cafs.blobs.recipe``."""
    found: set[str] = set()

    def walk(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        for child in ast.iter_child_nodes(node):
            walk(child)

    walk(ast.parse(path.read_text()))
    return {name for name in found if name.startswith("cafs.")}


def package_of(module: str) -> str:
    """The package below cafs, or "" for a module beside the packages."""
    parts = module.split(".")
    return parts[1] if (PACKAGE / parts[1]).is_dir() else ""


def test_every_package_has_a_layer() -> None:
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert packages == set(LEVEL)


def test_no_package_imports_what_is_built_on_it() -> None:
    upward = []
    for path in sorted(PACKAGE.glob("*/*.py")):
        own = path.parent.name
        for module in sorted(imports_of(path)):
            other = package_of(module)
            if other and other != own and LEVEL[other] >= LEVEL[own]:
                upward.append(f"{path.relative_to(ROOT)} imports {module}")
    assert upward == []
