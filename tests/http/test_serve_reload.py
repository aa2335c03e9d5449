"""``cafs serve`` on SIGHUP: what it takes, what it refuses, and that it goes on either way."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from tests.http.served import KEY, NEEDED, Served, await_

pytestmark = NEEDED


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


def test_a_hangup_that_nginx_cannot_follow_changes_nothing(served: Served) -> None:
    """A port that is taken shows only when nginx listens on it, not when it tests the settings."""
    served.start()
    served.put(b"kept")
    assert served.process is not None
    config = served.base / "run" / "nginx.conf"
    before = config.read_text()
    served.configure(public_port=served.ports[2])
    with socket.create_server(("127.0.0.1", served.ports[2])):
        served.process.send_signal(signal.SIGHUP)
        served.await_log("nothing was changed")
        log = served.log.read_text()
        assert f":{served.ports[2]} failed" in log, "which port it is"
        assert "serve.public_port" in log, "what to do"
        assert config.read_text() == before
        # And so it is with an nginx that has to be started again.
        (master,) = served.children("nginx")
        os.kill(master, signal.SIGKILL)
        served.await_log("nginx listens again")
        assert served.curl(KEY) == (200, b"kept")
    served.process.send_signal(signal.SIGHUP)
    served.await_log("nginx has read its configuration again")
    assert config.read_text() != before
    assert served.curl(KEY) == (200, b"kept")
    assert served.stop() == 0


def test_it_can_be_stopped_while_nginx_tries_to_follow(served: Served) -> None:
    served.start()
    assert served.process is not None
    served.configure(public_port=served.ports[2])
    with socket.create_server(("127.0.0.1", served.ports[2])):
        served.process.send_signal(signal.SIGHUP)
        served.await_log(f":{served.ports[2]} failed")
        assert served.stop() == 0
    assert "nothing was changed" not in served.log.read_text()
