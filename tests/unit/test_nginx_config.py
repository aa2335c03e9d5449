"""nginx's configuration as text: what stands in it, what must never."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from cafs.errors import ConfigError, NginxError
from cafs.http_options import HttpOptions
from cafs.serve import nginx_program
from cafs.serve.backend import Credentials, Directory, Indexed
from cafs.serve.nginx_config import SOCKET_PATH_MAX, quoted, render, secret_include
from cafs.serve.nginx_program import Nginx, index_module, parse
from cafs.serve.plan import read_secret
from cafs.serve_options import ServeOptions

NGINX = Nginx(Path("/usr/sbin/nginx"), "1.22.1", "--with-http_ssl_module", Path("/none"), None)
CREDENTIALS = Credentials(
    Path("/c/users"), Path("/c/in.pem"), Path("/c/in.key"), Path("/c/out.pem"), Path("/c/out.key"),
    "vcap vcap", Path("/c/secret"),
)  # fmt: skip
STORE = Indexed(Path("/s"), Path("/s/http.sock"), Path("/m/cafs.so"))
RUN = Path("/run/cafs-x")


def text_of(
    backend: Indexed | Directory = STORE,
    credentials: Credentials = CREDENTIALS,
    http: HttpOptions | None = None,
    **options: object,
) -> str:
    serve = ServeOptions(**options)  # type: ignore[arg-type]
    return render(serve, http or HttpOptions(), NGINX, credentials, backend, RUN)


def locations(text: str) -> dict[str, list[str]]:
    """Location -> its lines, over all servers."""
    found: dict[str, list[str]] = {}
    for match in re.finditer(r"^ {8}location (.+) \{\n((?: {9,}.*\n)*) {8}\}", text, re.M):
        found.setdefault(match[1], []).append(match[2])
    return found


@pytest.mark.parametrize(
    "backend",
    [STORE, dataclasses.replace(STORE, module=None), Directory(Path("/var/vcap/store/shared"))],
)
def test_every_location_asks_for_a_password_or_a_link(backend: Indexed | Directory) -> None:
    open_to_all = {"= /healthz", "= /readyz", "@daemon", "@cut"}
    found = locations(text_of(backend))
    assert {"/admin/", "/read/", "/write/", "/"} <= set(found)
    for name, bodies in found.items():
        for body in bodies:
            if name == "/":
                assert body.strip() == "return 404;"
            elif name in ("/read/", "/write/"):
                assert "return 403;" in body and "return 410;" in body
            elif name == "/signed/" and "cafs " in body:
                assert "cafs_signed_secret_file /c/secret;" in body
            elif name == "/signed/":
                assert "proxy_pass" in body
            elif name not in open_to_all:
                assert "auth_basic_user_file /c/users;" in body
    assert " root " not in text_of(backend)


def test_a_mountpoint_of_any_name_is_one_word() -> None:
    text = text_of(Directory(Path("/var/vcap/the blobs; all")))
    assert re.findall(r"alias (.+);", text)
    assert set(re.findall(r"alias (.+);", text)) == {'"/var/vcap/the blobs; all/"'}


def test_the_module_hears_of_another_grace() -> None:
    assert "cafs_grace" not in text_of()
    text = text_of(dataclasses.replace(STORE, grace_s=1.5))
    assert text.count("cafs_grace 1500ms;") == text.count("cafs /s;") > 0
    assert "cafs_grace" not in text_of(dataclasses.replace(STORE, grace_s=1.5, module=None))


def test_the_method_is_looked_at_before_the_link() -> None:
    for name, methods in (("/read/", "GET|HEAD"), ("/write/", "PUT")):
        for body in locations(text_of())[name]:
            assert body.index(f"^({methods})$") < body.index("405") < body.index("secure_link ")


def test_without_the_module_a_blob_that_is_cut_short_does_not_end_well() -> None:
    """Wherever there are blobs, in every server; with the module it is the module that does."""
    assert "post_action" not in text_of()
    internal, public = text_of(dataclasses.replace(STORE, module=None)).split("# Public", 1)
    assert {"/admin/", "/read/", "/signed/"} == {
        name for name, bodies in locations(internal).items() if "post_action @cut;" in bodies[0]
    }
    for server in (internal, *public.split("# Public")):
        assert "reset_timedout_connection on;" in locations(server)["@cut"][0]


def test_the_public_servers_have_links_only() -> None:
    text = text_of()
    internal, public = text.split("# Public", 1)
    assert "deny all;" in internal and "allow 10.0.0.0/8;" in internal
    assert set(locations(public)) == {"/read/", "/write/", "/signed/", "/", "@daemon"}
    assert "client_max_body_size 0;" in internal
    assert public.count("client_max_body_size 1048576;") == 2


def test_a_public_name_leaves_other_names_with_404() -> None:
    text = text_of(public_name="blobstore.example.com", public_tls_port=0)
    assert "listen *:8080 default_server;\n        return 404;" in text
    assert "server_name blobstore.example.com;" in text
    assert "8081" not in text


def test_without_a_secret_there_are_no_links() -> None:
    text = text_of(credentials=dataclasses.replace(CREDENTIALS, secret=None))
    assert not {"/read/", "/write/", "/signed/"} & set(locations(text))
    assert "secure_link" not in text


def test_the_limits_are_those_of_the_settings() -> None:
    http = HttpOptions(access=("192.0.2.0/24",), max_upload=1 << 30, client_timeout=5.5)
    text = text_of(http=http, listen_address="::1", workers=3, verify=False, answer_timeout=90.0)
    for line in (
        "allow 192.0.2.0/24;",
        "client_max_body_size 1073741824;",
        "client_body_timeout 5500ms;",
        "listen [::1]:4443 ssl default_server;",
        "worker_processes 3;",
        "cafs_verify off;",
        "proxy_read_timeout 90s;",
        "user vcap vcap;",
    ):
        assert line in text
    assert "allow 10." not in text


def test_the_same_braces_open_and_close() -> None:
    for backend in (STORE, Directory(Path("/x"))):
        text = re.sub(r"#.*", "", text_of(backend, public_name="n"))
        assert text.count("{") == text.count("}")


def test_a_secret_is_taken_as_it_stands() -> None:
    assert secret_include('a$b"c\\d') == 'geo $cafs_link_secret { default "a$b\\"c\\\\d"; }\n'


@pytest.mark.parametrize(
    ("path", "word"),
    [("/a/b-c_1.pem", "/a/b-c_1.pem"), ("/a b/c", '"/a b/c"'), ('/a";{}', '"/a\\";{}"')],
)
def test_paths_are_quoted_where_they_must(path: str, word: str) -> None:
    assert quoted(Path(path)) == word


def test_what_nginx_could_not_take_is_refused() -> None:
    with pytest.raises(ConfigError, match="dollar"):
        quoted(Path("/a$b"))
    long = dataclasses.replace(STORE, socket=Path("/" + "x" * SOCKET_PATH_MAX))
    with pytest.raises(ConfigError, match="107 bytes"):
        text_of(long)


def test_ports_must_differ_and_certificates_come_with_their_key() -> None:
    with pytest.raises(ConfigError, match="must differ"):
        ServeOptions(internal_port=8080)
    with pytest.raises(ConfigError, match="need each other"):
        ServeOptions(public_certificate=Path("/c"))
    assert ServeOptions(public_port=0, public_tls_port=0).internal_port == 4443


def test_nginx_tells_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "mime.types").touch()
    said = (
        "nginx version: nginx/1.30.1 (x)\nconfigure arguments: --prefix=/opt/n "
        f"--conf-path={tmp_path}/nginx.conf --with-http_dav_module --with-mail=dynamic"
    )
    nginx = parse(Path("/opt/n/sbin/nginx"), said)
    assert nginx.version == "1.30.1"
    assert nginx.modules_dir == Path("/opt/n/modules")
    assert nginx.mime_types == tmp_path / "mime.types"
    assert nginx.has("http_dav_module")
    assert not nginx.has("http_secure_link_module")
    assert index_module(nginx, None) is None
    with pytest.raises(NginxError, match="no such nginx module"):
        index_module(nginx, tmp_path / "absent.so")
    with pytest.raises(NginxError, match="is not nginx"):
        parse(Path("/bin/true"), "")
    with pytest.raises(NginxError, match="no such program"):
        nginx_program.find(tmp_path / "absent")


def test_a_secret_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    with pytest.raises(ConfigError, match=re.escape(str(secret))):
        read_secret(secret)
    for wrong in ("\n", "two\nlines\n"):
        secret.write_text(wrong)
        with pytest.raises(ConfigError, match="must have one line"):
            read_secret(secret)
    secret.write_text("s3cr3t \n")
    assert read_secret(secret) == "s3cr3t "
