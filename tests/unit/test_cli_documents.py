"""README.md and docs/cli.md say what the program does."""

from __future__ import annotations

import re

from cafs.cli import main as program
from cafs.errors import MEANINGS
from tests.conftest import ROOT


def test_the_documented_exit_codes_are_those_of_the_table() -> None:
    documented: dict[int, set[str]] = {}
    for line in (ROOT / "docs" / "cli.md").read_text().splitlines():
        match = re.match(r"\| (\d+) \| (.*?) \|", line)
        if match:
            documented[int(match[1])] = set(re.findall(r"`(\w+)`", match[2]))
    expected: dict[int, set[str]] = {
        0: set(),
        program.EXIT_DEFECT: set(),
        program.EXIT_INTERRUPTED: set(),
        program.EXIT_BROKEN_PIPE: set(),
    }
    for cls, meaning in MEANINGS.items():
        expected.setdefault(meaning.exit_code, set()).add(cls.__name__)
    assert documented == expected


def test_every_documented_command_exists() -> None:
    documents = [ROOT / "README.md", ROOT / "docs" / "cli.md"]
    for document in documents:
        for name in re.findall(r"(?:^|`|\n|bin/)cafs ([a-z]+(?:-[a-z]+)*)", document.read_text()):
            assert name in program.cafs.commands, f"{document.name}: cafs {name}"


def test_the_readme_has_the_command_that_the_checks_run() -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- command: test -->\n```sh\n(.*)\n```", text)
    assert match is not None
    assert match[1].endswith(" && .venv/bin/python -m pytest")
