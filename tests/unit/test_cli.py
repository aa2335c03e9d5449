"""The program as a whole, without a mount: help, errors, exit codes, and what STORE means."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from cafs import config
from cafs.cli import main as program
from cafs.cli.frame import Frame, resolve_path, resolve_store
from cafs.config import StoreParams
from cafs.errors import (
    MEANINGS,
    DiskFullError,
    NotFoundError,
    StoreExistsError,
    StoreMissingError,
    UsageError,
)
from cafs.index.layout import FORMAT_VERSION
from cafs.lock import StoreLock
from cafs.log import LineFormatter
from cafs.mount import mountpoint as where
from cafs.storefile import NAME, StoreFile, read, render
from tests.conftest import ROOT, RunCafs


def _store(path: Path, version: int = FORMAT_VERSION) -> Path:
    """What says that a directory is a store; enough for whoever only looks."""
    path.mkdir()
    (path / NAME).write_bytes(render(StoreFile(bytes(16), version, StoreParams())))
    return path


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = program.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def mounted(monkeypatch: pytest.MonkeyPatch) -> list[where.Mount]:
    """The mount table that the commands see."""
    table: list[where.Mount] = []
    monkeypatch.setattr(where, "mounts", lambda: list(table))
    return table


def _mount(path: str | Path, store: str | Path) -> where.Mount:
    return where.Mount(Path(path), where.FSTYPE, str(store), "0:99")


COMMANDS = sorted(program.cafs.commands)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help_with_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert re.search(rf"Example:\n +cafs {name}|Example:\n(.*\n)* +.*cafs {name}", out)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_each_command_takes_the_common_options(name: str) -> None:
    found = {option for item in program.cafs.commands[name].params for option in item.opts}
    assert {"--json", "--config"} <= found


def test_help_lists_every_command_once(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = _run(capsys, "--help")
    for name in COMMANDS:
        assert len(re.findall(rf"^  {name} ", out, re.MULTILINE)) == 1


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    script = (
        "import sys; from cafs.cli.main import main; main(['--help'])\n"
        "print(*[name for name in ('trio', 'pyfuse3', 'lmdb', 'rich', 'zstandard', 'socket')"
        " if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stderr.strip() == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, "--version")[1].startswith("cafs 0.")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, run_cafs: RunCafs) -> None:
    done = run_cafs("completion", shell)
    assert done.returncode == 0
    assert "_CAFS_COMPLETE" in done.stdout


def test_completion_answers(run_cafs: RunCafs) -> None:
    environment = {"_CAFS_COMPLETE": "bash_complete", "COMP_WORDS": "cafs u", "COMP_CWORD": "1"}
    done = run_cafs(env=environment)
    assert set(done.stdout.split()) == {"plain,umount", "plain,up"}


def test_a_wrong_command_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, "mont")
    assert (code, out) == (2, "")
    assert "there is no command 'mont'; did you mean mount?" in err


def test_a_wrong_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, "mount", "--nope", "--json")
    assert code == 2
    assert err == "cafs: no such option '--nope'\n  what to do: cafs mount --help\n"
    assert json.loads(out)["exit_code"] == 2


def test_an_error_on_both_channels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _run(capsys, "status", tmp_path, "--json")
    assert code == 4
    message = f"{tmp_path}: there is no store, and none is mounted there"
    assert err == f"cafs: {message}\n  what to do: make one with: cafs init STORE\n"
    assert json.loads(out) == {
        "error": "StoreMissingError",
        "message": message,
        "advice": "make one with: cafs init STORE",
        "exit_code": 4,
    }
    assert _run(capsys, "status", tmp_path)[1] == ""
    # Before the command it means the same.
    assert _run(capsys, "--json", "status", tmp_path)[1] == out


def test_a_wrong_setting_names_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "cafs.toml"
    file.write_text("[mount]\ngrase = 1\n")
    for arguments in (("status", "--config", file), ("--config", file, "status")):
        code, _, err = _run(capsys, *arguments)
        assert code == 2
        assert f"{file}: mount.grase: there is no such setting; did you mean grace?" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("init", ""),
        ("compact", ""),
        ("umount", ""),
        ("age", "--path", ""),
        ("ls", "--store", ""),
        ("stat", ""),
        ("status", "--config", ""),
    ],
)
def test_an_empty_path_is_not_the_current_directory(
    arguments: tuple[str, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = _run(capsys, *arguments)
    assert (code, "the path is empty" in err) == (2, True), err
    assert list(tmp_path.iterdir()) == []


def test_what_a_store_cannot_be_made_in_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    for place in (file, file / "below"):
        code, _, err = _run(capsys, "init", place)
        assert (code, f"{file} is not a directory" in err) == (4, True), err


def test_a_settings_file_that_is_a_directory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _run(capsys, "status", "--config", tmp_path)
    assert (code, f"{tmp_path}: the settings file is not a file" in err) == (2, True), err


def test_what_click_says_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    _, _, err = _run(capsys, "completion")
    assert "Choose from: bash, zsh, fish\n" in err


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "completion"])
def test_a_settings_file_that_is_named_is_checked_by_every_command(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "cafs.toml"
    file.write_text("[mount]\ngrace = 1\n")
    needed = [
        "x"
        for item in program.cafs.commands[name].params
        if isinstance(item, click.Argument) and item.required
    ]
    said = f"cafs: {file}: mount.grace: "
    code, _, err = _run(capsys, name, tmp_path, *needed[1:], "--config", file)
    assert (code, err[: len(said)]) == (2, said)
    monkeypatch.setenv(config.FILE_VARIABLE, str(file))
    code, _, err = _run(capsys, name, tmp_path, *needed[1:])
    assert (code, err[: len(said)]) == (2, said)


def test_the_machines_settings_file_does_not_keep_one_from_unmounting(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    mounted: list[where.Mount],
) -> None:
    monkeypatch.setattr(config, "DEFAULT_FILE", tmp_path / "cafs.toml")
    config.DEFAULT_FILE.write_text("not TOML")
    code, _, err = _run(capsys, "umount", tmp_path)
    assert code == 7
    assert f"{tmp_path} is not a mountpoint" in err
    assert _run(capsys, "mount", tmp_path)[0] == 2


def test_a_wrong_flag_is_refused_before_anything_happens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = _run(capsys, "init", tmp_path / "new", "--chunk-avg", "48KiB")
    assert code == 2
    assert "power of two" in err
    code, _, err = _run(capsys, "up", tmp_path / "new", tmp_path, "--ingest-threads", "99")
    assert code == 2
    assert "1 to 16" in err
    code, _, err = _run(capsys, "up", tmp_path / "new", tmp_path, "--ingest-threads", "9" * 5000)
    assert code == 2
    assert "a whole number (1 to 16)" in err
    assert not (tmp_path / "new").exists()


def test_durations_and_sizes_beyond_all_bounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mounted: list[where.Mount]
) -> None:
    store = _store(tmp_path / "store")
    large = "1" + "0" * 400
    for option, text, part in (
        ("--older", f"{large}d", "--older: '1000"),
        ("--newer", "100001d", "100000d is the most"),
        ("--larger", f"{large}MiB", "sizes are below"),
    ):
        code, _, err = _run(capsys, "find", store, option, text)
        assert (code, part in err) == (2, True), err
    code, _, err = _run(capsys, "umount", store, "--timeout", "21d")
    assert (code, "--timeout: 20d is the most" in err) == (2, True), err
    code, _, err = _run(capsys, "scrub", store, "--rate", f"{large}MiB/s")
    assert (code, "sizes are below" in err) == (2, True), err


def test_a_defect_gets_an_id_and_a_trace(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(Frame, "settings", broken)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    code, out, err = _run(capsys, "status", "--json")
    assert code == program.EXIT_DEFECT
    match = re.fullmatch(r"cafs: a defect of cafs, id (\w+): .*boom \(trace: (.*)\)\n", err)
    assert match is not None
    assert match[1] in match[2]
    assert "RuntimeError: boom" in Path(match[2]).read_text()
    assert json.loads(out)["exit_code"] == program.EXIT_DEFECT
    monkeypatch.setenv("CAFS_DEBUG", "1")
    with pytest.raises(RuntimeError, match="boom"):
        _run(capsys, "status")


def test_a_defect_of_a_command_that_logs_leaves_no_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("boom")

    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(LineFormatter())
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    monkeypatch.setattr(Frame, "settings", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, _, err = _run(capsys, "status")
    assert code == program.EXIT_DEFECT
    match = re.fullmatch(r"cafs: a defect of cafs, id (\w+): .*boom \(trace: the log\)\n", err)
    assert match is not None
    assert f"id={match[1]}" in written.getvalue()
    assert "    RuntimeError: boom" in written.getvalue()
    assert not list(tmp_path.iterdir())


def test_ctrl_c(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Frame, "settings", interrupted)
    code, _, err = _run(capsys, "status")
    assert code == 130
    assert err == "\ncafs: interrupted\n"


def test_a_reader_that_goes_away_is_no_news(run_cafs: RunCafs) -> None:
    done = subprocess.run(
        f"{sys.executable} -m cafs.cli.main completion bash | :; echo ${{PIPESTATUS[0]}}",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stderr == ""
    # The script may fit the pipe before the reader is gone.
    assert done.stdout.strip() in ("0", str(program.EXIT_BROKEN_PIPE))


@pytest.mark.parametrize("stderr", ["/dev/full", "a pipe that nobody reads"])
def test_what_cannot_be_said_changes_nothing(stderr: str, tmp_path: Path) -> None:
    if stderr == "/dev/full":
        writer = os.open(stderr, os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "cafs.cli.main", "status", tmp_path, "--json"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=writer, text=True, check=False,
        )  # fmt: skip
    finally:
        os.close(writer)
    assert done.returncode == MEANINGS[StoreMissingError].exit_code
    assert json.loads(done.stdout)["error"] == "StoreMissingError"


def test_a_full_output_is_a_clear_error() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cafs.cli.main", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            check=False,
        )
    assert done.returncode == MEANINGS[DiskFullError].exit_code
    assert "write the output: No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


# -- which store ---------------------------------------------------------------------------------


def test_a_store_is_its_directory(tmp_path: Path, mounted: list[where.Mount]) -> None:
    store = _store(tmp_path / "store")
    (tmp_path / "link").symlink_to("store")
    assert resolve_store(tmp_path / "link", Frame()) == store.resolve()


def test_a_mountpoint_stands_for_its_store(mounted: list[where.Mount]) -> None:
    mounted += [_mount("/mnt/a", "/srv/a"), _mount("/mnt/b", "/srv/b")]
    assert resolve_store(Path("/mnt/b"), Frame()) == Path("/srv/b")


def test_the_only_mounted_store_is_meant(mounted: list[where.Mount]) -> None:
    with pytest.raises(UsageError, match="no store was named, and none is mounted"):
        resolve_store(None, Frame())
    mounted.append(_mount("/mnt/a", "/srv/a"))
    assert resolve_store(None, Frame()) == Path("/srv/a")
    # Twice the same store is still only one.
    mounted.append(_mount("/mnt/a2", "/srv/a"))
    assert resolve_store(None, Frame()) == Path("/srv/a")
    mounted.append(_mount("/mnt/b", "/srv/b"))
    with pytest.raises(UsageError, match="several are mounted: /srv/a, /srv/b"):
        resolve_store(None, Frame())


def test_the_environment_beats_the_settings_and_both_beat_the_mounted(
    tmp_path: Path, mounted: list[where.Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    mounted.append(_mount("/mnt/a", "/srv/a"))
    one, two = _store(tmp_path / "one"), _store(tmp_path / "two")
    frame = Frame()
    frame.config_file = tmp_path / "cafs.toml"
    frame.config_file.write_text(f'[default]\nstore = "{one}"\n')
    assert resolve_store(None, frame) == one.resolve()
    monkeypatch.setenv(config.STORE_VARIABLE, str(two))
    assert resolve_store(None, frame) == two.resolve()
    assert resolve_store(one, frame) == one.resolve()
    monkeypatch.setenv(config.STORE_VARIABLE, str(tmp_path / "missing"))
    with pytest.raises(StoreMissingError):
        resolve_store(None, frame)


def test_a_path_below_a_mountpoint(
    tmp_path: Path, mounted: list[where.Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    mount = tmp_path.resolve() / "mnt"
    mount.mkdir()
    mounted += [_mount(mount, "/srv/a"), _mount(mount / "in", "/srv/b")]
    assert resolve_path(mount / "x" / ".." / "y", Frame()) == (Path("/srv/a"), mount, b"/y")
    assert resolve_path(mount, Frame()) == (Path("/srv/a"), mount, b"/")
    assert resolve_path(mount / "in/z", Frame()) == (Path("/srv/b"), mount / "in", b"/z")
    monkeypatch.chdir(mount)
    assert resolve_path(b"name\xff", Frame()).inside == b"/name\xff"


def test_a_link_leads_into_the_mount_but_is_not_followed_at_the_end(
    tmp_path: Path, mounted: list[where.Mount]
) -> None:
    mount = tmp_path.resolve() / "mnt"
    mount.mkdir()
    (mount / "link").symlink_to("/etc")
    (tmp_path / "way").symlink_to(mount)
    mounted.append(_mount(mount, "/srv/a"))
    assert resolve_path(tmp_path / "way" / "link", Frame()).inside == b"/link"


def test_a_path_from_the_root_of_a_named_store(
    tmp_path: Path, mounted: list[where.Mount], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _store(tmp_path / "store").resolve()
    assert resolve_path("/a/../b/./c", Frame(), store) == (store, None, b"/b/c")
    assert resolve_path("//b", Frame(), store).inside == b"/b"
    assert resolve_path("b", Frame(), store).inside == b"/b"
    with pytest.raises(NotFoundError, match="no store is mounted there"):
        resolve_path("/b", Frame())
    monkeypatch.setenv(config.STORE_VARIABLE, str(store))
    assert resolve_path("/b", Frame()) == (store, None, b"/b")


# -- init, mount, umount -------------------------------------------------------------------------


def test_init_and_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = tmp_path / "store"
    code, out, err = _run(capsys, "init", store, "--chunk-avg", "32KiB", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["store"] == str(store)
    assert read(store).params.chunk_avg == 32768
    assert read(store).id.hex() == json.loads(out)["id"]
    code, out, err = _run(capsys, "init", store)
    assert code == MEANINGS[StoreExistsError].exit_code
    code, out, _ = _run(capsys, "status", store, "--json")
    answer = json.loads(out)
    assert (answer["store"], answer["mounted"], answer["files_count"]) == (str(store), False, 0)
    code, out, _ = _run(capsys, "status", store)
    assert re.search(r"^files +0$", out, re.MULTILINE)


def test_status_without_a_daemon_says_so_where_a_monitor_looks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mounted: list[where.Mount]
) -> None:
    store = tmp_path / "store"
    _run(capsys, "init", store)
    health = json.loads(_run(capsys, "status", store, "--json")[1])["health"]
    assert (health["state"], health["problem"]) == ("stopped", "no daemon serves the store")
    assert f"cafs mount {store} MOUNTPOINT" in health["what_to_do"]
    mounted.append(_mount(tmp_path / "other", tmp_path / "other store"))
    mounted.append(_mount("/mnt/a b", store))
    health = json.loads(_run(capsys, "status", store, "--json")[1])["health"]
    assert (health["state"], health["problem"]) == (
        "trouble",
        "the daemon died: its mount on /mnt/a b is dead",
    )
    assert f"cafs mount {store} '/mnt/a b'" in health["what_to_do"]


def test_no_store_is_made_in_a_mount_of_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mounted: list[where.Mount]
) -> None:
    mounted.append(_mount(tmp_path, "/var/store"))
    for path in (tmp_path, tmp_path / "below"):
        code, _, err = _run(capsys, "init", path)
        assert (code, "in the mount of the store /var/store" in err) == (4, True), err
    assert list(tmp_path.iterdir()) == []


def test_init_says_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = _run(capsys, "init", tmp_path / "a" / "b")
    assert code == 4
    assert f"mkdir -p {tmp_path / 'a'}" in err
    (tmp_path / "file").write_text("x")
    assert _run(capsys, "init", tmp_path)[0] == 4
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("command", ["mount", "up"])
def test_what_is_wrong_with_a_mountpoint(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _store(tmp_path / "store")
    before = sorted(store.iterdir())
    (tmp_path / "file").write_text("x")
    for mountpoint, part in (
        (tmp_path / "missing", "there is no such directory"),
        (tmp_path / "file", "is not a directory"),
        (store, "is the store itself"),
        (tmp_path, "contains the store"),
        (_store(tmp_path / "other"), "is a store itself"),
    ):
        code, out, err = _run(capsys, command, store, mountpoint)
        assert (code, out) == (7, "")
        assert part in err
        assert "what to do" in err
    assert sorted(store.iterdir()) == before


def test_up_makes_no_store_when_it_cannot_mount(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, _ = _run(capsys, "up", tmp_path / "new", tmp_path / "missing")
    assert code == 7
    assert list(tmp_path.iterdir()) == []


def test_a_store_of_a_newer_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _store(tmp_path / "store", FORMAT_VERSION + 1)
    # A newer file may hold anything else, too.
    with (store / NAME).open("a") as file:
        file.write("[unheard]\nof = 1\n")
    (tmp_path / "mnt").mkdir()
    for command in (
        ("mount", store, tmp_path / "mnt"),
        ("up", store, tmp_path / "mnt"),
        ("check", store),
        ("check", store, "--repair"),
    ):
        code, _, err = _run(capsys, *command)
        assert code == 6
        assert f"has format {FORMAT_VERSION + 1}, this cafs knows up to {FORMAT_VERSION}" in err
    assert [entry.name for entry in store.iterdir()] == [NAME]


def test_a_store_that_is_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _store(tmp_path / "store")
    (tmp_path / "mnt").mkdir()
    lock = StoreLock(store, Path("/mnt/x"))
    code, _, err = _run(capsys, "mount", store, tmp_path / "mnt")
    lock.release()
    assert code == 5
    assert f"is in use by process {os.getpid()}, mounted on /mnt/x" in err


def test_what_mount_cannot_guess(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mounted: list[where.Mount]
) -> None:
    store = _store(tmp_path / "store")
    assert "no store was named" in _run(capsys, "mount")[2]
    assert "no mountpoint was named" in _run(capsys, "mount", store)[2]
    assert "two directories are expected" in _run(capsys, "mount", store, store, store)[2]
    code, _, err = _run(capsys, "mount", tmp_path / "nothing", tmp_path)
    assert code == 4
    assert "there is no store" in err


def test_umount_of_what_is_no_mount(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mounted: list[where.Mount]
) -> None:
    code, _, err = _run(capsys, "umount")
    assert code == 2
    assert "no store is mounted" in err
    code, _, err = _run(capsys, "umount", tmp_path)
    assert code == 7
    assert f"{tmp_path} is not a mountpoint" in err
    code, _, err = _run(capsys, "umount", _store(tmp_path / "store"))
    assert code == 7
    assert f"the store {tmp_path / 'store'} is not mounted" in err
    mounted.append(where.Mount(tmp_path, "tmpfs", "tmpfs", "0:99"))
    code, _, err = _run(capsys, "umount", tmp_path)
    assert code == 7
    assert f"use: umount {tmp_path}" in err
