"""The client's end of the control socket, against a socket that answers line by line."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cafs import control, errors
from cafs.control import call, error_fields, error_from
from cafs.errors import (
    ConfigError,
    DaemonAbsentError,
    DaemonError,
    FsError,
    NotFoundError,
)

Answer = Callable[[socket.socket, dict[str, Any]], None]


@contextmanager
def _listening(store: Path, answer: Answer) -> Iterator[None]:
    """One connection is accepted, one request read, and *answer* has the rest."""
    listener = socket.socket(socket.AF_UNIX)
    directory = os.open(store, os.O_PATH)
    listener.bind(f"/proc/self/fd/{directory}/{control.NAME}")
    os.close(directory)
    listener.listen()

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rb") as lines:
            answer(connection, json.loads(lines.readline()))

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        thread.join()
        listener.close()


def _line(connection: socket.socket, **values: object) -> None:
    connection.sendall(json.dumps(values).encode() + b"\n")


def test_a_question_and_its_answer(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []

    def answer(connection: socket.socket, request: dict[str, Any]) -> None:
        seen.append(request)
        _line(connection, ok=True, files_count=3)

    with _listening(tmp_path, answer):
        assert call(tmp_path, "status", deep=True) == {"files_count": 3}
    assert seen == [{"command": "status", "deep": True}]


def test_a_store_deeper_than_an_address_may_be_long(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 200)
    deep.mkdir()
    with _listening(deep, lambda connection, request: _line(connection, ok=True)):
        assert call(deep, "status") == {}


def test_progress_comes_before_the_answer(tmp_path: Path) -> None:
    def answer(connection: socket.socket, request: dict[str, Any]) -> None:
        # In pieces and several to a packet: lines are what counts.
        whole = b'{"progress": {"done": 1}}\n{"progress": {"done": 2}}\n{"ok": true, "n": 1}\n'
        connection.sendall(whole[:30])
        connection.sendall(whole[30:])

    seen: list[Mapping[str, Any]] = []
    with _listening(tmp_path, answer):
        assert call(tmp_path, "scrub", on_progress=seen.append) == {"n": 1}
    assert seen == [{"done": 1}, {"done": 2}]


def test_an_error_arrives_as_its_class(tmp_path: Path) -> None:
    original = NotFoundError("no blob begins with abc", advice="give more")

    def answer(connection: socket.socket, request: dict[str, Any]) -> None:
        _line(connection, ok=False, **error_fields(original))

    with _listening(tmp_path, answer), pytest.raises(NotFoundError) as caught:
        call(tmp_path, "blob")
    assert str(caught.value) == str(original)
    assert caught.value.advice == "give more"


def test_every_class_survives_the_way() -> None:
    for cls in errors.MEANINGS:
        original = FsError(errno.ENOENT, "x") if cls is FsError else cls("x")
        arrived = error_from(json.loads(json.dumps(error_fields(original))))
        assert type(arrived) is cls
        assert arrived.meaning == original.meaning
        assert arrived.advice == original.advice


@pytest.mark.parametrize(
    "answer",
    [{}, {"error": "OSError", "message": "m"}, {"error": "Meaning"}, {"error": 3}, {"ok": False}],
)
def test_an_error_of_no_known_class(answer: dict[str, object]) -> None:
    assert type(error_from(answer)) is DaemonError


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DaemonAbsentError, match="no daemon serves"):
        call(tmp_path, "status")
    with pytest.raises(DaemonAbsentError, match="no daemon serves"):
        call(tmp_path / "missing", "status")
    # What a killed daemon leaves behind.
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / control.NAME))
    with pytest.raises(DaemonAbsentError, match="no daemon serves"):
        call(tmp_path, "status")


def test_a_daemon_that_says_nothing(tmp_path: Path) -> None:
    done = threading.Event()

    def answer(connection: socket.socket, request: dict[str, Any]) -> None:
        # Bytes without an end of line are no sign of life.
        connection.sendall(b'{"ok"')
        done.wait(10)

    with _listening(tmp_path, answer):
        with pytest.raises(DaemonError, match=r"did not answer 'status' within 0\.05 s"):
            call(tmp_path, "status", timeout_s=0.05)
        done.set()


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (b"", "hung up"),
        (b'{"ok": true', "hung up"),
        (b"[]\n", "no JSON object"),
        (b"\xff\n", "no JSON object"),
        (b"ok\n", "no JSON object"),
    ],
)
def test_an_answer_that_makes_no_sense(tmp_path: Path, reply: bytes, part: str) -> None:
    with (
        _listening(tmp_path, lambda connection, request: connection.sendall(reply)),
        pytest.raises(DaemonError, match=part),
    ):
        call(tmp_path, "status")


def test_a_message_keeps_its_advice_when_it_has_none() -> None:
    assert error_from(error_fields(ConfigError("c", advice=""))).advice == ""
