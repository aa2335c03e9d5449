"""``cafs serve``: what the disk or an early signal does to it."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from cafs import config
from cafs.config import Settings
from cafs.durable import Disk
from cafs.errors import ConfigError, DiskFullError, NginxError
from cafs.http.serve import Certificate
from cafs.http_options import HttpOptions
from cafs.serve import nginx_process, nginx_program, plan, supervisor
from cafs.serve.nginx_program import Nginx
from cafs.serve.plan import Plan
from cafs.serve.supervisor import Service, _Supervisor
from cafs.serve_options import ServeOptions
from tests.http.stocknginx import make_certificate

NGINX = Nginx(Path("/usr/sbin/nginx"), "1.22.1", "", Path("/none"), None)
NO_NAME = Path("/" + "x" * 300)
"""Asked for it, the kernel says neither that it is there nor that it is not."""


def test_a_file_that_cannot_be_looked_at_is_a_wrong_setting() -> None:
    with pytest.raises(ConfigError, match="File name too long"):
        config.find_file(NO_NAME)
    with pytest.raises(ConfigError, match=r"http\.certificate = .*: File name too long"):
        plan._credentials(ServeOptions(), HttpOptions(certificate=NO_NAME, users_file=NO_NAME))
    with pytest.raises(NginxError, match="cannot be looked at"):
        nginx_program.index_module(NGINX, NO_NAME)
    assert NGINX._replace(modules_dir=NO_NAME).module("x") is None
    assert nginx_program.parse(
        Path("/n"), f"nginx version: nginx/1.22.1\nconfigure arguments: --conf-path={NO_NAME}/x"
    )


def test_files_that_could_not_all_be_written_are_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nginx_process, "test", lambda _: None)
    old = Plan(NGINX, tmp_path / "run", "old", "old secret", None)
    nginx_process.replace(old)
    write_file = Disk.write_file

    def full(self: Disk, path: Path, data: bytes, *rest: Any, **more: Any) -> None:
        if data == b"new":
            raise DiskFullError("no room")
        write_file(self, path, data, *rest, **more)

    monkeypatch.setattr(Disk, "write_file", full)
    with pytest.raises(DiskFullError):
        nginx_process.replace(Plan(NGINX, tmp_path / "run", "new", "new secret", None))
    assert old.include is not None
    assert (old.config.read_text(), old.include.read_text()[-11:]) == ("old", "old secret"[-11:])
    assert old.include.stat().st_mode & 0o777 == 0o600


def test_an_error_of_the_disk_changes_nothing_on_hangup(caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> Plan:
        raise OSError(5, "Input/output error")

    first = Plan(NGINX, Path("/none"), "", None, None)
    one = _Supervisor(Service(Path("/s"), Path("/m"), Settings(), fail), first)
    one._nginx = SimpleNamespace()  # type: ignore[assignment]
    trio.run(one._reload, "SIGHUP")
    assert "SIGHUP: nothing was changed" in caplog.text
    assert one.plan is first


class _Starting:
    """An nginx that has only begun to start."""

    def __init__(self, _: Plan) -> None:
        self.listens = trio.Event()
        self.got: list[str] = []
        self.child = SimpleNamespace(
            wait=trio.sleep_forever, process=SimpleNamespace(poll=lambda: None)
        )

    async def ready(self) -> None:
        await self.listens.wait()

    async def log_output(self) -> None:
        pass

    async def reload(self) -> None:
        self.got.append("HUP")

    def reopen_logs(self) -> None:
        self.got.append("USR1")


def test_an_nginx_that_does_not_listen_yet_gets_no_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(supervisor, "NginxProcess", _Starting)
    monkeypatch.setattr(nginx_process, "replace", lambda _: None)
    first = Plan(NGINX, Path("/none"), "", None, None)
    one = _Supervisor(Service(Path("/s"), Path("/m"), Settings(), lambda: first), first)
    got: list[str] = []

    async def until(condition: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not condition():
                await trio.sleep(0.001)

    async def no_mount() -> None:
        pass

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.serve, lambda: None)
            await until(lambda: one._nginx is not None)
            nginx: Any = one._nginx
            for number in (signal.SIGUSR1, signal.SIGHUP):
                os.kill(os.getpid(), number)
            # Both have been received when the receiver waits again.
            await until(lambda: one._changing.statistics().tasks_waiting == 2 or nginx.got)
            assert not nginx.got
            nginx.listens.set()
            await until(lambda: len(nginx.got) == 2)
            got.extend(nginx.got)
            nursery.cancel_scope.cancel()

    for name in ("_start_mount", "_stop"):
        monkeypatch.setattr(one, name, no_mount)
    monkeypatch.setattr(one, "_watch_mount", trio.sleep_forever)
    trio.run(main)
    assert sorted(got) == ["HUP", "USR1"]


def test_a_certificate_that_is_gone_is_not_told_with_every_connection(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = make_certificate(tmp_path)
    certificate = Certificate(HttpOptions(certificate=made.certificate, certificate_key=made.key))
    made.certificate.unlink()
    with caplog.at_level(logging.WARNING):
        for _ in range(100):
            certificate.context()
    told = [each for each in caplog.records if str(made.certificate) in each.getMessage()]
    assert 1 <= len(told) <= 10
