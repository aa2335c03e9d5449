"""Settings that ``cafs serve`` cannot start with: what it says, and that what it names is there."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from cafs.config import load
from cafs.mount.mountpoint import mount_at
from cafs.serve import nginx_program
from cafs.serve.development import fill_in
from tests.conftest import RunCafs
from tests.http.served import NEEDED, PATIENCE_S, Served

pytestmark = NEEDED

# What nginx looks at before it takes a module, as in its ngx_module.h.
_MODULE = """
static struct {{
    unsigned long ctx_index, index;
    const char *name;
    unsigned long spare0, spare1, version;
    const char *signature;
    void *more[24];
}} module = {{.ctx_index = -1, .index = -1, .version = {version}, .signature = "{signature}"}};
void *ngx_modules[] = {{&module, 0}};
const char *ngx_module_names[] = {{"ngx_http_cafs_module", 0}};
"""


def refused(served: Served) -> tuple[str, str]:
    """Start it in vain; the message and what it says is to be done."""
    process = served.launch()
    assert process.wait(PATIENCE_S) == 14
    assert process.stdout is not None
    told = json.loads(process.stdout.read())
    assert told["error"] == "NginxError"
    assert mount_at(served.mountpoint) is None
    run_dir = served.base / "run"
    assert not run_dir.exists()
    for text in (told["message"], told["advice"]):
        assert str(run_dir) not in text, "it is not there any more"
    return told["message"], told["advice"]


def build(directory: Path, version: int, signature: str) -> Path:
    """A module that nginx finds to be one, but not one of its own."""
    module = directory / nginx_program.MODULE
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", module],
        input=_MODULE.format(version=version, signature=signature).encode(),
        check=True,
    )
    return module


@pytest.mark.parametrize(("newer", "reason"), [(1, "instead of"), (0, "not binary compatible")])
def test_a_module_of_another_nginx_is_to_be_built_again(
    served: Served, newer: int, reason: str
) -> None:
    program = nginx_program.find()
    major, minor, patch = map(int, program.version.split("."))
    version = (major * 1000 + minor) * 1000 + patch + newer
    module = build(served.base, version, "8,4,8,another")
    served.configure(nginx_module=str(module))
    message, advice = refused(served)
    assert str(module) in message
    assert f"another nginx than {program.version}" in message
    assert reason in message
    command = f"native/nginx/build.sh --nginx {program.program} --install {module.parent}"
    assert advice == f"build it again: {command}"


def test_a_line_that_nginx_refuses_is_quoted(served: Served) -> None:
    served.configure(listen_address="no-such-host.invalid")
    message, advice = refused(served)
    assert "host not found" in message
    line = f"listen no-such-host.invalid:{served.ports[0]} ssl default_server;"
    assert message.endswith(f'in the line "{line}"')
    assert "cafs nginx-config" in advice


def test_a_certificate_that_is_none_is_named(served: Served) -> None:
    broken = served.base / "broken.pem"
    broken.write_text("no certificate")
    served.configure(
        public_certificate=str(broken),
        public_certificate_key=str(broken),
        public_tls_port=served.ports[2],
    )
    message, _ = refused(served)
    assert re.search(rf'cannot load certificate "{broken}"', message)


def test_workers_that_could_read_nothing_are_refused(served: Served, run_cafs: RunCafs) -> None:
    """The daemon runs as root here, and nobody else may read what it writes."""
    served.configure(worker_user="www-data")
    flags = ("--config", served.settings)
    done = run_cafs("serve", served.store, served.mountpoint, "--dev", *flags)
    assert done.returncode == 2
    assert "serve.worker_user = www-data: " in done.stderr
    assert "run cafs serve as www-data" in done.stderr
    assert mount_at(served.mountpoint) is None
    # Of the daemon behind this one nothing is known yet.
    http = fill_in(load().http, served.store)
    with served.settings.open("a") as settings:
        settings.write(f'[http]\ncertificate = "{http.certificate}"\n')
        settings.write(f'certificate_key = "{http.certificate_key}"\n')
        settings.write(f'users_file = "{http.users_file}"\n')
    printed = run_cafs("nginx-config", served.store, *flags)
    assert "\nuser www-data www-data;\n" in printed.stdout
