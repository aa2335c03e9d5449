"""``cafs serve`` and ``cafs nginx-config`` with real processes: start, watch, stop."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from cafs.mount.mountpoint import mount_at
from cafs.serve import nginx_program
from tests.conftest import ROOT, RunCafs
from tests.http.served import (
    KEY,
    NEEDED,
    PATIENCE_S,
    Served,
    await_,
    command_line,
    descendants,
    mentioning,
)
from tests.http.wire import basic

pytestmark = NEEDED


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
    assert not mentioning(str(served.base))


def test_a_health_check_need_not_name_a_host(served: Served) -> None:
    """Balancers ask in HTTP/1.0, which has no Host."""
    served.start()
    assert served.curl("healthz", "--http1.0", "-H", "Host:")[0] == 200
    served.put(b"content")
    flags = ("--http1.0", "-H", "Host:", "-X", "PROPFIND", "-H", "Depth: 0")
    assert served.curl(KEY, *flags)[0] == 207
    assert served.curl("healthz", "-H", "Host:")[0] == 400, "HTTP/1.1 must"
    assert served.stop() == 0


def test_no_secret_is_on_acommand_line_or_readable_by_others(served: Served) -> None:
    served.start()
    secret = (served.store / "dev" / "secret").read_text().strip()
    assert served.process is not None
    for pid in (served.process.pid, *descendants(served.process.pid)):
        assert secret not in command_line(pid)
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


def test_unmounting_ends_it(served: Served, run_cafs: RunCafs) -> None:
    served.start()
    done = run_cafs("umount", served.mountpoint)
    assert done.returncode == 0, done.stderr
    assert served.process is not None
    assert served.process.wait(PATIENCE_S) == 0
    assert not mentioning(str(served.base))


def test_children_end_with_a_parent_that_is_killed(served: Served, run_cafs: RunCafs) -> None:
    served.start()
    assert served.process is not None
    served.process.send_signal(signal.SIGKILL)
    served.process.wait(PATIENCE_S)
    await_(lambda: not mentioning(str(served.base)), lambda: str(mentioning(str(served.base))))
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
    await_(lambda: not mentioning(str(served.base)), lambda: str(mentioning(str(served.base))))


def test_without_the_module_nginx_goes_on_after_each_get(served: Served) -> None:
    """It looks behind each whether all was sent; who asks and who reads the log see nothing."""
    nginx = nginx_program.find()
    if nginx.module(nginx_program.MODULE) is not None:
        pytest.skip("the module is installed in this nginx")
    log = served.base / "access.log"
    served.configure(nginx_log=str(log))
    served.start()
    served.put(b"some content")
    context = ssl.create_default_context(cafile=served.store / "dev" / "certificate.pem")
    there = http.client.HTTPSConnection("localhost", served.ports[0], context=context)
    user, password = (served.store / "dev" / "users").read_text().strip().split(":{PLAIN}")
    known = {"Authorization": basic(user, password)}
    asked: list[tuple[str, str, dict[str, str], int]] = [
        ("GET", KEY, {}, 200),
        ("GET", KEY, {"Range": "bytes=2-5"}, 206),
        ("GET", KEY, {"Range": "bytes=99-"}, 416),
        ("GET", KEY, {"If-None-Match": "*"}, 304),
        ("HEAD", KEY, {}, 200),
        ("GET", f"{KEY}-2", {}, 404),
        ("GET", KEY, {}, 200),
    ]
    with contextlib.closing(there):
        there.connect()
        kept = there.sock
        for method, path, more, status in asked:
            there.request(method, f"/{path}", headers=known | more)
            answer = there.getresponse()
            answer.read()
            assert answer.status == status
            assert there.sock is kept, "it is still connected"
    assert served.stop() == 0
    lines = re.findall(r'"(\w+) /\S+ HTTP/1.1" (\d+) \d+ ', log.read_text())
    assert lines[1:] == [(method, str(status)) for method, _, _, status in asked]
