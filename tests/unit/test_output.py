"""What commands print: units by key, tables that can be searched, JSON that can be read."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cafs.cli import output
from cafs.cli.progress import progress


@pytest.mark.parametrize(
    ("key", "value", "label", "text"),
    [
        ("stored_bytes", 1536, "stored", "1.50 KiB"),
        ("rate_bytes_per_s", 1 << 20, "rate", "1.00 MiB/s"),
        ("requests_per_s", 1234.5, "requests", "1,234.5/s"),
        ("files_count", 1234567, "files", "1,234,567"),
        ("took_s", 0.25, "took", "250 ms"),
        ("age_ns", 1_500_000, "age", "1.50 ms"),
        ("dedup_ratio", 2.3456, "dedup", "2.35"),
        ("ratio", 2.3456, "ratio", "2.35"),
        ("used_percent", 12.0, "used", "12 %"),
        ("pid", 16384, "pid", "16384"),
        ("allow_other", True, "allow other", "yes"),
        ("last_bytes", None, "last", "-"),
        ("problem", "", "problem", "-"),
        ("_bytes", 1, " bytes", "1"),
    ],
)
def test_a_key_tells_its_unit(key: str, value: object, label: str, text: str) -> None:
    assert output.label_and_value(key, value) == (label, text)


def test_a_tree_of_values(capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {
        "store": "/s",
        "logical_bytes": 2048,
        "none": {},
        "pending": {"changes_count": 3, "of_which": {"chunks_count": 1}},
        "packs": [{"number": 1, "size_bytes": 1024}, "odd"],
    }
    output.tree(values)
    assert capsys.readouterr().out.splitlines() == [
        "store    /s",
        "logical  2.00 KiB",
        "none     -",
        "",
        "pending:",
        "  changes  3",
        "  of which:",
        "    chunks  1",
        "",
        "packs:",
        "  number 1, size 1.00 KiB",
        "  odd",
    ]


def test_a_table_is_aligned_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "x" * 300
    output.table(["size", "path"], [[5, "a"], [1000, long]], right=["size"])
    assert capsys.readouterr().out.splitlines() == ["SIZE  PATH", "   5  a", f"1000  {long}"]
    output.table(["size"], [])
    assert capsys.readouterr().out == "SIZE\n"


def test_names_in_json_are_exact() -> None:
    assert output.json_name("name", "ü".encode()) == {"name": "ü"}
    odd = output.json_name("name", b"a\xff")
    assert odd["name"] == "a\N{REPLACEMENT CHARACTER}"
    assert base64.b64decode(odd["name_b64"]) == b"a\xff"


def test_json_knows_paths_and_digests(capsys: pytest.CaptureFixture[str]) -> None:
    output.say_json({"store": Path("/s"), "sha256": b"\x01\xff"})
    assert json.loads(capsys.readouterr().out) == {"store": "/s", "sha256": "01ff"}
    with pytest.raises(TypeError, match="has no JSON form"):
        output.say_json(object())


def test_names_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    name = b"a\x1b[31m\xffb"
    assert os.fsencode(output.show_name(name)) == name
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    shown = output.show_name(name)
    # As a shell would read it back.
    assert shown == "$'a\\e[31m\\xffb'"
    assert output.show_name(b"plain name") == "plain name"


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def now_ns(self) -> int:
        return int(self.seconds * 1e9)

    def monotonic(self) -> float:
        return self.seconds


def test_progress_as_json_at_most_ten_times_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    clock = _Clock()
    with progress("json", "scrub", "bytes", 1000, clock) as advance:
        for done in range(0, 1001, 10):
            clock.seconds += 0.01
            advance(done)
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [json.loads(line) for line in captured.err.splitlines()]
    assert 8 <= len(lines) <= 12
    # The end is told whenever it comes.
    assert lines[-1] == {"progress": "scrub", "done": 1000, "total": 1000, "unit": "bytes"}


@pytest.mark.parametrize("mode", ["auto", "none"])
def test_progress_is_quiet_without_a_terminal(
    mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress(mode, "scrub", "bytes") as advance:
        advance(1, 10)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("unit", ["bytes", "records"])
def test_progress_on_a_terminal(unit: str) -> None:
    """In a process of its own, whose stderr is a terminal."""
    script = (
        "import sys; from cafs.cli.progress import progress\n"
        "with progress('auto', 'scrub', sys.argv[1]) as advance:\n"
        "    advance(1, 2); advance(2)\n"
    )
    reader, terminal = os.openpty()
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, unit],
            stderr=terminal,
            stdout=subprocess.PIPE,
            check=True,
        )
        os.close(terminal)
        shown = os.read(reader, 65536).decode()
    finally:
        os.close(reader)
    assert done.stdout == b""
    assert "scrub" in shown
