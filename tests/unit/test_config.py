"""Settings: where they come from, what is refused, and that the document tells the same."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cafs import config
from cafs.config import Defaults, MountOptions, StoreParams, load, table
from cafs.errors import ConfigError
from cafs.setting import (
    BOOL,
    CHOICE,
    COUNT,
    PATH,
    Setting,
    check_value,
    parse_section,
    parse_value,
    toml_lines,
)
from tests.conftest import ROOT


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "cafs.toml"


def test_defaults_are_inside_their_bounds() -> None:
    for row in table():
        check_value(row, row.default)


def test_names_are_unique_across_sections() -> None:
    # `cafs up` has the flags of two sections.
    names = [row.name for row in table() if row.section != "default"]
    assert len(names) == len(set(names))


def test_without_a_file_the_defaults_hold() -> None:
    settings = load()
    assert settings.file is None
    assert settings.explicit == frozenset()
    assert settings.mount == MountOptions()
    assert settings.store == StoreParams()
    assert settings.default == Defaults(None, None)


def test_a_flag_beats_the_file_and_the_file_beats_the_default(file: Path) -> None:
    file.write_text('[mount]\ncommit_interval = "2s"\ngrace = "5s"\n[default]\nstore = "/s"\n')
    settings = load(file, {"mount.grace": "7s"})
    assert settings.mount.commit_interval == 2.0
    assert settings.mount.grace == 7.0
    assert settings.mount.ingest_threads == 2
    assert settings.default.store == Path("/s")
    assert settings.explicit == {"mount.commit_interval", "mount.grace", "default.store"}
    assert settings.file == file


def test_the_environment_names_the_file_and_an_argument_beats_it(
    file: Path, tmp_path: Path
) -> None:
    file.write_text('[mount]\ngrace = "5s"\n')
    other = tmp_path / "other.toml"
    other.write_text('[mount]\ngrace = "6s"\n')
    environ = {config.FILE_VARIABLE: str(file)}
    assert load(environ=environ).mount.grace == 5
    assert load(other, environ=environ).mount.grace == 6


def test_the_usual_file_is_read_when_it_is_there(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("[mount]\ningest_threads = 5\n")
    monkeypatch.setattr(config, "DEFAULT_FILE", file)
    assert load().mount.ingest_threads == 5


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('[mount]\ncommit_intervall = "1s"', ["mount.commit_intervall", "mean commit_interval?"]),
        ("[mount]\nxyzzy = 1", ["mount.xyzzy", "known are", "ingest_threads"]),
        ("[mout]\n", ["[mout]", "did you mean mount?"]),
        ("store = 1", ["store must be a section"]),
        ('[mount]\ncommit_interval = "2min"', ["mount.commit_interval", "50ms to 1min"]),
        ("[mount]\ncommit_interval = 1", ["mount.commit_interval", "has no unit", "50ms"]),
        ('[mount]\npending_bytes = "64"', ["mount.pending_bytes", "has no unit", "8MiB to 4GiB"]),
        ('[mount]\ncompact_rate = "1KiB/s"', ["mount.compact_rate", "1MiB/s to 64GiB/s"]),
        ("[mount]\ningest_threads = 17", ["mount.ingest_threads = 17", "1 to 16"]),
        ("[mount]\ningest_threads = true", ["mount.ingest_threads", "a whole number"]),
        ('[mount]\ningest_threads = "2"', ["mount.ingest_threads", "a whole number"]),
        ("[mount]\nallow_other = 1", ["mount.allow_other", "true or false"]),
        ('[mount]\natime = "strictatime"', ["mount.atime", "relatime or noatime"]),
        ("[mount]\nlog_level = []", ["mount.log_level", "choice in quotes"]),
        ('[default]\nstore = "here"', ["default.store", "absolute path"]),
        ('[default]\nstore = "/a\\u0000b"', ["default.store = /a\\0b", "NUL"]),
        ('[http]\nresource_directory = "a\\u0000b"', ["http.resource_directory", "NUL"]),
        ('[mount]\ngrace = "1' + "0" * 400 + 'd"', ["mount.grace", "is too long", "0 to 30d"]),
        ('[mount]\nreserve = "1' + "0" * 400 + 'B"', ["mount.reserve", "too large", "1MiB to"]),
        ("[mount]\ningest_threads = 1" + "0" * 5000, ["is not TOML", "digits"]),
        ("x = " + "[" * 5000, ["is not TOML"]),
        ('[store]\nchunk_avg = "48KiB"', ["store.chunk_avg", "power of two"]),
        ('[store]\nchunk_min = "128KiB"', ["store.chunk_min <= store.chunk_avg", "128KiB"]),
        ('[store]\npack_size = "1MiB"\nchunk_max = "1MiB"', ["store.pack_size", "twice"]),
        ("[store\n", ["is not TOML"]),
    ],
)
def test_a_wrong_file_is_refused_by_key_bounds_and_file(
    file: Path, text: str, parts: list[str]
) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    for part in [*parts, str(file)]:
        assert part in str(caught.value)
    assert caught.value.meaning.exit_code == 2


def test_a_wrong_flag_is_refused_by_its_name() -> None:
    with pytest.raises(ConfigError, match=r"--grace: mount\.grace: '5' has no unit"):
        load(overrides={"mount.grace": "5"})
    with pytest.raises(ConfigError, match=r"--ingest-threads: mount\.ingest_threads = 99"):
        load(overrides={"mount.ingest_threads": 99})


def test_a_file_that_was_asked_for_must_be_there(file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file}: there is no such settings file")):
        load(file)
    with pytest.raises(ConfigError, match="there is no such settings file"):
        load(environ={config.FILE_VARIABLE: str(file)})


def test_values_made_in_code_are_held_to_the_bounds_too() -> None:
    with pytest.raises(ConfigError, match="commit_interval"):
        MountOptions(commit_interval=0.001)
    with pytest.raises(ConfigError, match="chunk_max"):
        StoreParams(chunk_max=1 << 30)


def test_store_parameters_read_back_from_their_own_lines() -> None:
    import tomllib

    params = StoreParams(chunk_min=4096, chunk_avg=32768, chunk_max=65536, zip_members=False)
    raw = tomllib.loads("\n".join(toml_lines("store", params)))
    assert parse_section("store", StoreParams, raw) == params


def test_mount_options_read_back_from_their_own_lines() -> None:
    import tomllib

    options = dataclasses.replace(MountOptions(), commit_interval=0.25, atime="noatime")
    raw = tomllib.loads("\n".join(toml_lines("mount", options)))
    assert parse_section("mount", MountOptions, raw) == options


def _documented() -> list[list[str]]:
    rows = []
    for line in (ROOT / "docs" / "settings.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 5:
            rows.append(cells)
    return rows


def test_the_document_has_the_same_table() -> None:
    assert _documented() == [
        [f"`{row.key}`", row.kind, f"`{row.text(row.default)}`" if row.default is not None else "",
         row.bounds, row.help]
        for row in table()
    ]  # fmt: skip


def test_the_example_in_the_document_is_valid(file: Path) -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    file.write_text(text.partition("```toml\n")[2].partition("```")[0])
    assert load(file).explicit


def test_every_kind_is_read() -> None:
    # A new kind without a parser would be refused whatever its value.
    for row in table():
        if row.default is not None:
            text = row.text(row.default)
            raw = {BOOL: row.default, COUNT: row.default}.get(row.kind, text)
            assert parse_value(row, raw) == row.default


def test_texts_of_bounds() -> None:
    def row(kind: str, low: object = None, high: object = None) -> Setting:
        return Setting("s", "n", kind, None, low, high, ("a", "b"), "")

    assert row(CHOICE).bounds == "a or b"
    assert row(PATH).bounds == "an absolute path"
    assert row(COUNT, 1, 2).bounds == "1 to 2"
