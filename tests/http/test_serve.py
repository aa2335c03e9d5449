"""``cafs serve`` and ``cafs nginx-config`` with real processes: start, watch, reload, stop."""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cafs.mount.mountpoint import mount_at
from tests.conftest import ROOT, RunCafs
from tests.http.stocknginx import need_nginx
from tests.http.wire import free_ports

pytestmark = [
    pytest.mark.skipif(not os.path.exists("/dev/fuse"), reason="there is no /dev/fuse"),
    pytest.mark.skipif(os.geteuid() != 0, reason="cleans up with umount2(2), which root may call"),
]

PATIENCE_S = 30.0
_MNT_DETACH = 2
_PR_SET_CHILD_SUBREAPER = 36
KEY = "admin/cc-packages/ab/cd/abcd-1"


class Served:
    """A store, a mountpoint, settings, and one ``cafs serve`` in the foreground."""

    def __init__(self, run: RunCafs) -> None:
        need_nginx()
        self.base = Path(tempfile.mkdtemp(prefix="cafs-serve-"))
        self.store = self.base / "store"
        self.mountpoint = self.base / "mnt"
        self.settings = self.base / "cafs.toml"
        self.log = self.base / "log"
        self.mountpoint.mkdir()
        self.ports = free_ports(3)
        self.configure()
        assert run("init", self.store).returncode == 0
        self.process: subprocess.Popen[bytes] | None = None

    def configure(self, **changes: Any) -> None:
        """Write the settings file."""
        values = {
            "run_dir": str(self.base / "run"),
            "listen_address": "127.0.0.1",
            "internal_port": self.ports[0],
            "public_tls_port": 0,
            "public_port": self.ports[1],
            "workers": 1,
            **changes,
        }
        lines = [f"{name} = {json.dumps(value)}" for name, value in values.items()]
        self.settings.write_text("[serve]\n" + "\n".join(lines) + "\n")

    def launch(self, *flags: str) -> subprocess.Popen[bytes]:
        """Start it, without waiting."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "cafs.cli.main", "serve", "--json", "--dev"),
                    *("--config", str(self.settings), str(self.store), str(self.mountpoint)),
                    *flags,
                ],
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        return self.process

    def start(self, *flags: str) -> dict[str, Any]:
        """Start it, and return what it says when it answers."""
        process = self.launch(*flags)
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
        line = process.stdout.readline() if ready else b""
        assert line, self.log.read_text()
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def curl(self, path: str, *flags: str, port: int = 0) -> tuple[int, bytes]:
        """Status and body of one request to the internal server."""
        done = subprocess.run(
            [
                *("curl", "-sS", "-K", str(self.store / "dev" / "curl"), "-w", "\n%{http_code}"),
                *flags,
                f"https://localhost:{port or self.ports[0]}/{path}",
            ],
            capture_output=True,
            check=False,
            timeout=PATIENCE_S,
        )
        body, _, status = done.stdout.rpartition(b"\n")
        return int(status or 0), body

    def put(self, data: bytes, path: str = KEY) -> None:
        """Store a blob."""
        source = self.base / "source"
        source.write_bytes(data)
        status, body = self.curl(path, "-T", str(source))
        assert status in (201, 204), body

    def children(self, name: str) -> list[int]:
        """Children whose command line holds *name*."""
        assert self.process is not None
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [pid for pid in map(int, listed.split()) if name in _command_line(pid)]

    def await_log(self, text: str) -> None:
        """Wait until the log says it."""
        await_(lambda: text in self.log.read_text(), lambda: self.log.read_text())

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        assert mount_at(self.mountpoint) is None
        return code

    def close(self) -> None:
        """Leave nothing, whatever state it is in."""
        process = self.process
        if process is not None:
            pids = [process.pid, *descendants(process.pid)] if process.poll() is None else []
            for pid in pids:
                _kill(pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
            assert process.stdout is not None
            process.stdout.close()
        for pid in _mentioning(str(self.base)):
            _kill(pid, signal.SIGKILL)
        while mount_at(self.mountpoint) is not None:
            if ctypes.CDLL(None).umount2(os.fsencode(self.mountpoint), _MNT_DETACH):
                break
        print(self.log.read_text() if self.log.exists() else "")
        shutil.rmtree(self.base, ignore_errors=True)


def await_(condition: Callable[[], bool], told: Callable[[], str]) -> None:
    """Wait for a condition that nothing announces."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, told()
        time.sleep(0.02)


def descendants(pid: int) -> list[int]:
    try:
        listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [one for child in map(int, listed) for one in (child, *descendants(child))]


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def _mentioning(text: str) -> list[int]:
    own = os.getpid()
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if pid != own and text in _command_line(pid)]


def _kill(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


@pytest.fixture
def served(run_cafs: RunCafs) -> Iterator[Served]:
    served = Served(run_cafs)
    try:
        yield served
    finally:
        served.close()


def test_it_serves_and_stops_in_good_order(served: Served) -> None:
    answer = served.start()
    assert answer["url"] == f"https://localhost:{served.ports[0]}/"
    served.put(b"some content")
    assert served.curl(KEY) == (200, b"some content")
    assert (served.mountpoint / "cc-packages/ab/cd/abcd-1").read_bytes() == b"some content"
    # What the reference serves to everybody: nobody gets it here.
    assert served.curl(KEY.removeprefix("admin/"))[0] == 404
    done = subprocess.run(
        ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-k", f"{answer['url']}{KEY}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "401"
    assert served.stop() == 0
    assert "waiting" not in served.log.read_text()
    assert not (served.base / "run").exists()
    assert not _mentioning(str(served.base))


def test_a_health_check_need_not_name_a_host(served: Served) -> None:
    """Balancers ask in HTTP/1.0, which has no Host."""
    served.start()
    assert served.curl("healthz", "--http1.0", "-H", "Host:")[0] == 200
    served.put(b"content")
    flags = ("--http1.0", "-H", "Host:", "-X", "PROPFIND", "-H", "Depth: 0")
    assert served.curl(KEY, *flags)[0] == 207
    assert served.curl("healthz", "-H", "Host:")[0] == 400, "HTTP/1.1 must"
    assert served.stop() == 0


def test_no_secret_is_on_a_command_line_or_readable_by_others(served: Served) -> None:
    served.start()
    secret = (served.store / "dev" / "secret").read_text().strip()
    assert served.process is not None
    for pid in (served.process.pid, *descendants(served.process.pid)):
        assert secret not in _command_line(pid)
    holding = [
        path
        for base in (served.base / "run", served.store / "dev")
        for path in base.rglob("*")
        if path.is_file() and secret in path.read_text()
    ]
    assert len(holding) == 2
    assert all(path.stat().st_mode & 0o077 == 0 for path in holding)
    assert served.stop() == 0


def test_a_child_that_is_killed_is_started_again(served: Served) -> None:
    served.start()
    served.put(b"kept")
    (daemon,) = served.children("mount_child")
    os.kill(daemon, signal.SIGKILL)
    served.await_log("the daemon serves")
    assert served.curl(KEY) == (200, b"kept")
    (master,) = served.children("nginx")
    os.kill(master, signal.SIGKILL)
    served.await_log("nginx listens again")
    assert served.curl(KEY) == (200, b"kept")
    assert served.stop() == 0


def test_hangup_takes_new_settings_and_refuses_wrong_ones(served: Served) -> None:
    served.start()
    served.put(b"kept")
    assert served.process is not None
    served.configure(internal_port=served.ports[2])
    served.process.send_signal(signal.SIGHUP)
    await_(lambda: served.curl(KEY, port=served.ports[2])[0] == 200, served.log.read_text)
    served.settings.write_text("[serve]\nworkers = 9999\n")
    served.process.send_signal(signal.SIGHUP)
    served.await_log("nothing was changed")
    assert served.curl(KEY, port=served.ports[2])[0] == 200
    assert served.stop() == 0


def test_hangup_takes_a_new_secret_for_both(served: Served) -> None:
    """One signs links with it and the other checks them."""
    served.start()
    served.put(b"kept")
    assert served.process is not None
    path = KEY.removeprefix("admin/")
    sign = f"sign?expires={int(time.time()) + 600}&path=/{path}"

    def linked() -> tuple[int, str]:
        status, link = served.curl(sign)
        assert status == 200, link
        url = link.decode().partition("://")[2].partition("/")[2]
        return served.curl(url)[0], url

    status, before = linked()
    assert status == 200
    (served.store / "dev" / "secret").write_text("an0ther s3cr3t\n")
    served.process.send_signal(signal.SIGHUP)
    await_(lambda: linked()[0] == 200, served.log.read_text)
    assert linked()[1] != before
    assert served.curl(before)[0] == 403
    assert served.stop() == 0


@pytest.mark.parametrize(
    "line", ['[http]\nsecret_file = "{}"', '[http]\nsocket = "{}"', '[mount]\npending_file = "{}"']
)
def test_what_the_daemon_must_have_too_takes_a_restart(served: Served, line: str) -> None:
    served.start()
    served.put(b"kept")
    assert served.process is not None
    other = served.base / "other"
    other.write_text("an0ther s3cr3t\n")
    before = (served.base / "run" / "nginx.conf").read_text()
    with served.settings.open("a") as settings:
        settings.write(line.format(other) + "\n")
    served.process.send_signal(signal.SIGHUP)
    served.await_log("takes a restart")
    assert (served.base / "run" / "nginx.conf").read_text() == before
    assert served.curl(KEY)[0] == 200
    assert served.stop() == 0


def test_what_nginx_refuses_is_not_reloaded(served: Served) -> None:
    served.start()
    served.put(b"kept")
    assert served.process is not None
    broken = served.base / "broken.pem"
    broken.write_text("no certificate")
    before = (served.base / "run" / "nginx.conf").read_text()
    served.configure(public_certificate=str(broken), public_certificate_key=str(broken))
    served.settings.write_text(
        served.settings.read_text().replace(
            "public_tls_port = 0", f"public_tls_port = {served.ports[2]}"
        )
    )
    served.process.send_signal(signal.SIGHUP)
    served.await_log("nginx refuses its configuration")
    assert (served.base / "run" / "nginx.conf").read_text() == before
    assert served.curl(KEY)[0] == 200
    assert served.stop() == 0


def test_unmounting_ends_it(served: Served, run_cafs: RunCafs) -> None:
    served.start()
    done = run_cafs("umount", served.mountpoint)
    assert done.returncode == 0, done.stderr
    assert served.process is not None
    assert served.process.wait(PATIENCE_S) == 0
    assert not _mentioning(str(served.base))


def test_children_end_with_a_parent_that_is_killed(served: Served, run_cafs: RunCafs) -> None:
    served.start()
    assert served.process is not None
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(PATIENCE_S)
    await_(lambda: not _mentioning(str(served.base)), lambda: str(_mentioning(str(served.base))))
    await_(lambda: mount_at(served.mountpoint) is None, lambda: "still mounted")
    # The next start of the same store, whatever it is, takes the copy of the secret away.
    assert (served.base / "run" / "link-secret.conf").exists()
    config = ("--config", served.settings)
    done = run_cafs("mount", served.store, served.mountpoint, "--daemon", *config)
    assert done.returncode == 0, done.stderr
    assert run_cafs("umount", served.mountpoint).returncode == 0
    assert not (served.base / "run").exists()


def test_a_port_that_is_taken_is_told_and_leaves_nothing(served: Served) -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", served.ports[1]))
        taken.listen()
        process = served.launch()
        assert process.wait(PATIENCE_S) == 15
    assert process.stdout is not None
    told = json.loads(process.stdout.read())
    assert told["error"] == "AddressError"
    assert f":{served.ports[1]} failed" in told["message"], "which port it is"
    assert "serve.public_port" in told["advice"]
    assert "Address already in use" in served.log.read_text()
    assert mount_at(served.mountpoint) is None
    assert not (served.base / "run").exists()


def test_a_port_that_is_taken_is_told_by_the_daemon(served: Served) -> None:
    with socket.create_server(("127.0.0.1", served.ports[0])):
        process = served.launch("--no-nginx")
        assert process.wait(PATIENCE_S) == 15
    assert process.stdout is not None
    told = json.loads(process.stdout.read())
    assert told["error"] == "AddressError"
    assert f"127.0.0.1:{served.ports[0]}" in told["message"]
    assert f"ss -ltnp 'sport = :{served.ports[0]}'" in told["advice"]
    # It ended by itself, and nobody speaks of a signal.
    assert "SIGTERM" not in served.log.read_text()
    assert mount_at(served.mountpoint) is None


def test_without_nginx_the_daemon_answers(served: Served) -> None:
    told = served.start("--no-nginx")
    assert told["url"] in [
        f"https://{host}:{served.ports[0]}/" for host in ("localhost", "127.0.0.1")
    ]
    served.put(b"by the daemon")
    assert served.curl(KEY) == (200, b"by the daemon")
    assert not served.children("nginx")
    assert served.stop() == 0


def test_without_credentials_it_says_what_to_do(served: Served, run_cafs: RunCafs) -> None:
    done = run_cafs("serve", served.store, served.mountpoint, "--config", served.settings)
    assert done.returncode == 2
    assert "http.certificate is not set" in done.stderr
    assert "--dev" in done.stderr
    assert mount_at(served.mountpoint) is None


def test_without_nginx_passwords_are_not_taken_in_the_clear(
    served: Served, run_cafs: RunCafs
) -> None:
    """Where nginx would listen, it would want a certificate; so does the daemon."""
    flags = (served.store, served.mountpoint, "--no-nginx", "--config", served.settings)
    done = run_cafs("serve", *flags)
    assert done.returncode == 2
    assert "http.certificate is not set" in done.stderr
    for way_out in ("http.listen", "--dev"):
        assert way_out in done.stderr
    assert mount_at(served.mountpoint) is None


def test_in_the_background(served: Served, run_cafs: RunCafs) -> None:
    done = run_cafs(
        *("serve", served.store, served.mountpoint, "--dev", "--daemon"),
        *("--config", served.settings, "--json"),
    )
    assert done.returncode == 0, done.stderr
    pid = json.loads(done.stdout)["pid"]
    served.put(b"behind")
    assert (served.mountpoint / "cc-packages/ab/cd/abcd-1").read_bytes() == b"behind"
    pidfd = os.pidfd_open(pid)
    try:
        os.kill(pid, signal.SIGTERM)
        assert select.select([pidfd], [], [], PATIENCE_S)[0], "it does not end"
    finally:
        os.close(pidfd)
    assert mount_at(served.mountpoint) is None
    assert "nginx has ended" in (served.store / "serve.log").read_text()
    assert "unmounted from" in (served.store / "cafs.log").read_text()


@pytest.mark.parametrize("flags", [(), ("--classic",)])
def test_the_printed_configuration_passes_nginx(
    served: Served, run_cafs: RunCafs, flags: tuple[str, ...]
) -> None:
    from cafs.config import load
    from cafs.serve.development import fill_in

    http = fill_in(load().http, served.store)
    with served.settings.open("a") as stream:
        stream.write("[http]\n")
        for name in ("certificate", "certificate_key", "users_file", "secret_file"):
            stream.write(f'{name} = "{getattr(http, name)}"\n')
    where = served.base / "written"
    classic = [*flags, str(served.mountpoint)] if flags else []
    done = run_cafs(
        *("nginx-config", served.store, "--write", where, "--config", served.settings, *classic)
    )
    assert done.returncode == 0, done.stderr
    config = where / "nginx.conf"
    assert http.secret_file is not None
    assert http.secret_file.read_text().strip() not in config.read_text()
    assert ("dav_methods" in config.read_text()) == bool(flags)
    tested = subprocess.run(
        [shutil.which("nginx") or "nginx", "-t", "-p", str(where), "-e", "stderr", "-c", config],
        capture_output=True,
        text=True,
        check=False,
    )
    assert tested.returncode == 0, tested.stderr
    assert "[warn]" not in tested.stderr
    printed = run_cafs("nginx-config", served.store, "--config", served.settings)
    assert printed.returncode == 0
    assert "--write makes it" in printed.stderr
    assert "warning" not in printed.stderr
    # Everybody may enter the directory, too.
    for each in (served.base, served.store, http.secret_file.parent):
        each.chmod(0o755)
    http.secret_file.chmod(0o644)
    printed = run_cafs("nginx-config", served.store, "--config", served.settings)
    assert (
        f"every user of this machine can read it; keep them out with: chmod o-rwx "
        f"{http.secret_file}" in printed.stderr
    )


def test_the_lines_of_the_readme_work_as_pasted(served: Served, tmp_path: Path) -> None:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"<!-- command: http -->\n```sh\n(.*?)\n```", text, re.S)
    assert match is not None
    demo = served.base / "cafs-demo"
    demo.mkdir()
    program = tmp_path / "cafs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m cafs.cli.main "$@"\n')
    program.chmod(0o755)
    one, two, three = served.ports
    settings = tmp_path / "cafs.toml"
    settings.write_text(
        f"[serve]\ninternal_port = {one}\npublic_tls_port = {two}\npublic_port = {three}\n"
        f'run_dir = "{served.base / "run"}"\n'
    )
    lines = match[1].replace("~/cafs-demo", str(demo)).replace(".venv/bin/cafs", str(program))
    lines = lines.replace("localhost:4443", f"localhost:{one}")
    served.mountpoint = demo / "mnt"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", lines],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CAFS_CONFIG": str(settings)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HTTP/1.1 200 OK" in done.stdout
    assert mount_at(demo / "mnt") is None
    # nginx lets its connections end first; killed before that it would leave its workers behind.
    await_(lambda: not _mentioning(str(served.base)), lambda: str(_mentioning(str(served.base))))
