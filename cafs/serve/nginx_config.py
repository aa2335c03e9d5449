"""The text of nginx's configuration: the servers and locations of a Cloud Foundry blobstore.

A pure function of what it is given: :func:`render`.  The same servers can stand before three
things (:mod:`cafs.serve.backend`): the index and the daemon, the daemon alone (there is no
module), and a plain directory with nginx's own dav modules (a mount of cafs, or the ext4 that it
is compared with).

Invariant: no location serves a blob that nobody signed or authenticated for; and no secret is in
the text: they come from files, the MD5 one through :func:`secret_include`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cafs.errors import ConfigError
from cafs.http_options import HttpOptions
from cafs.serve import nginx_cut
from cafs.serve.backend import GRACE_S, Credentials, Directory, Indexed
from cafs.serve.nginx_program import DAV_EXT_MODULE, HEADERS_MODULE, Nginx
from cafs.serve.rundir import PID_FILE, SECRET_INCLUDE, TEMPORARY
from cafs.serve_options import ServeOptions

SOCKET_PATH_MAX: Final = 107
"""Longest path of a unix socket in bytes (unix(7))."""

_METHODS: Final = {"read": "GET|HEAD", "write": "PUT", "signed": "GET|HEAD|PUT"}
# ECDSA first: its handshake costs a tenth of RSA's, and generation B of the clients makes one
# for each request.  RSA and DHE as the reference offers them.
_CIPHERS: Final = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:"
    "DHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384"
)


def render(
    options: ServeOptions,
    http: HttpOptions,
    nginx: Nginx,
    credentials: Credentials,
    backend: Indexed | Directory,
    run_dir: Path,
) -> str:
    """The whole configuration; nginx keeps its pid and temporary files in *run_dir*.

    Raises :class:`ConfigError` for a path that nginx could not take.
    """
    if isinstance(backend, Indexed) and len(bytes(backend.socket)) > SOCKET_PATH_MAX:
        raise ConfigError(
            f"{backend.socket}: longer than the {SOCKET_PATH_MAX} bytes that a socket may have",
            advice="give the store a shorter path, or name another http socket in the settings",
        )
    writer = _Writer(options, http, nginx, credentials, backend, run_dir)
    return "\n".join([*writer.head(), *writer.http()]) + "\n"


def secret_include(secret: str) -> str:
    """The file :data:`~cafs.serve.rundir.SECRET_INCLUDE`, which nobody but nginx's master may read.

    nginx knows no other way to give its MD5 links a secret than a configuration file.
    """
    # The values of geo are taken as they stand: elsewhere a $ would begin a variable.
    escaped = secret.replace("\\", "\\\\").replace('"', '\\"')
    return f'geo $cafs_link_secret {{ default "{escaped}"; }}\n'


def quoted(path: Path | str) -> str:
    """*path* as a word of nginx's configuration; raises :class:`ConfigError`."""
    text = str(path)
    if "$" in text or "\n" in text:
        raise ConfigError(f"{text!r}: nginx takes no path with a dollar sign or a line break")
    if text.isascii() and not set(text) & set(" \t;{}\"'\\#"):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class _Writer:
    """Lines of the configuration, from the outside in."""

    def __init__(
        self,
        options: ServeOptions,
        http: HttpOptions,
        nginx: Nginx,
        credentials: Credentials,
        backend: Indexed | Directory,
        run_dir: Path,
    ) -> None:
        self.options = options
        self.limits = http
        self.nginx = nginx
        self.credentials = credentials
        self.backend = backend
        self.run_dir = run_dir

    def head(self) -> list[str]:
        """The main context."""
        options = self.options
        lines = [
            "# nginx before a cafs blobstore, written by `cafs nginx-config`; do not edit.",
            "#",
            "# Unlike Cloud Foundry's own configuration there is no unauthenticated way to a blob:",
            "# what is not below one of the locations here is 404, on every server.",
        ]
        if isinstance(self.backend, Indexed) and self.backend.module is None:
            lines += [
                "#",
                "# The module that answers HEAD and GET from the index is not built, so the daemon",
                "# answers everything: right, but slower. Build it with native/nginx/build.sh.",
            ]
        if self.credentials.secret is not None:
            lines += [
                "#",
                f"# {SECRET_INCLUDE} has the secret of the MD5 links, mode 0600: nginx can take",
                "# it from nowhere but a configuration. `cafs serve` makes it, and so does",
                "# `cafs nginx-config --write`.",
            ]
        lines.append("")
        if self.credentials.worker is not None:
            lines.append(f"user {self.credentials.worker};")
        lines += [
            f"worker_processes {options.workers or 'auto'};",
            f"pid {quoted(self.run_dir / PID_FILE)};",
            "error_log stderr warn;",
            *[f"load_module {quoted(path)};" for path in self._modules()],
            "",
            "events {",
            "    worker_connections 8192;",
            "}",
            "",
        ]
        return lines

    def _modules(self) -> list[Path]:
        found = []
        if isinstance(self.backend, Indexed):
            if self.backend.module is not None:
                found.append(self.backend.module)
        else:
            dav_ext = self.nginx.module(DAV_EXT_MODULE)
            if dav_ext is not None:
                found.append(dav_ext)
        headers = self.nginx.module(HEADERS_MODULE)
        return found if headers is None else [*found, headers]

    def http(self) -> list[str]:
        """The http context with all its servers."""
        options, run_dir = self.options, self.run_dir
        lines = ["http {"]
        if self.nginx.mime_types is not None:
            lines.append(f"    include {quoted(self.nginx.mime_types)};")
        lines += [
            "    default_type text/html;",
            "    # A request's own time, and the daemon's part of it; for `timed_combined`.",
            *_log_format("timed_combined", "$status"),
            f"    access_log {self._access_log('timed_combined')};",
            "    log_not_found off;",
            "    server_tokens off;",
        ]
        if self.nginx.module(HEADERS_MODULE) is not None:
            lines.append("    more_clear_headers Server;")
        keepalive = f"{_seconds(self.limits.keepalive)} 20s"
        client = _seconds(self.limits.client_timeout)
        lines += [
            "    sendfile on;",
            "    sendfile_max_chunk 1m;",
            "    tcp_nopush on;",
            "    tcp_nodelay on;",
            "    gzip off;",
            f"    keepalive_timeout {keepalive};",
            f"    keepalive_requests {options.keepalive_requests};",
            f"    client_header_timeout {client};",
            f"    client_body_timeout {client};",
            f"    send_timeout {client};",
            *[f"    {name}_temp_path {quoted(run_dir / name)};" for name in TEMPORARY],
            "",
            "    ssl_protocols TLSv1.2 TLSv1.3;",
            f"    ssl_ciphers {_CIPHERS};",
            "    ssl_session_cache shared:cafs_tls:10m;",
            "    ssl_session_timeout 10m;",
            "",
        ]
        if self.credentials.secret is not None:
            lines += [f"    include {quoted(run_dir / SECRET_INCLUDE)};", ""]
        if isinstance(self.backend, Indexed):
            lines += [*self._upstream(self.backend), ""]
            if self.backend.module is None:
                lines += [*nginx_cut.maps(), *_log_format("timed_cut", nginx_cut.STATUS), ""]
        lines += self._internal()
        if options.public_tls_port:
            lines += ["", *self._public(options.public_tls_port, tls=True)]
        if options.public_port:
            lines += ["", *self._public(options.public_port, tls=False)]
        return [*lines, "}"]

    def _access_log(self, form: str) -> str:
        path = self.options.nginx_log
        return "off" if path is None else f"{quoted(path)} {form}"

    def _upstream(self, backend: Indexed) -> list[str]:
        server = quoted(Path(f"unix:{backend.socket}"))
        return [
            "    upstream cafs_daemon {",
            f"        server {server} max_fails=0;",
            "        keepalive 32;",
            "        # Shorter than the daemon's own: it never closes what a request goes to.",
            f"        keepalive_timeout {_seconds(min(2.0, self.limits.keepalive / 2))};",
            "    }",
            "    # Bodies pass through, unstored, both ways.",
            "    proxy_http_version 1.1;",
            "    proxy_request_buffering off;",
            "    # What the daemon's socket takes at once: each piece costs both of them a turn.",
            "    client_body_buffer_size 256k;",
            "    proxy_buffering off;",
            "    # Read in larger pieces than a page: a third less work for listings.",
            "    proxy_buffer_size 64k;",
            "    proxy_buffers 4 64k;",
            "    proxy_next_upstream off;",
            "    proxy_connect_timeout 5s;",
            f"    proxy_read_timeout {_seconds(self.options.answer_timeout)};",
            f"    proxy_send_timeout {_seconds(self.options.answer_timeout)};",
            "    # HTTP/1.0 need not name a host, and health checks of balancers do not; 1.1 must.",
            "    map $http_host $cafs_host {",
            "        '' $host;",
            "        default $http_host;",
            "    }",
            "    proxy_set_header Host $cafs_host;",
            '    proxy_set_header Connection "";',
            "    proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;",
            "    proxy_set_header X-Forwarded-Proto $scheme;",
        ]

    def _internal(self) -> list[str]:
        options, limits = self.options, self.limits
        body = [
            f"listen {_listen(options.listen_address, options.internal_port)} ssl default_server;",
            f"server_name {limits.link_host};",
            *_certificate(self.credentials.certificate, self.credentials.certificate_key),
            f"client_max_body_size {limits.max_upload};",
            *[f"allow {network};" for network in limits.access],
            "deny all;",
            "",
            *_location("/admin/", [*self._basic("Blobstore Admin"), *self._tree("/admin/")]),
        ]
        if isinstance(self.backend, Indexed):
            signing = [*self._basic("Blobstore Signing"), "proxy_pass http://cafs_daemon;"]
            body += [
                "",
                "# /sign and /sign_for_put",
                *_location("/sign", signing),
                "",
                *_location("= /resource_matches", signing),
                "",
                *_location("= /metrics", [*self._basic("Blobstore Metrics"), signing[-1]]),
            ]
            if self.backend.module is not None:
                status = [*self._basic("Blobstore Metrics"), "cafs_status;"]
                body += [
                    "",
                    "# What the module itself has counted.",
                    *_location("= /metrics/nginx", status),
                ]
            for name in ("/healthz", "/readyz"):
                body += ["", *_location(f"= {name}", [f"proxy_pass http://cafs_daemon{name};"])]
        return _server([*body, *self._links(), *self._rest()], "Internal: Cloud Controller, cells")

    def _public(self, port: int, tls: bool) -> list[str]:
        options, credentials = self.options, self.credentials
        listen = f"listen {_listen(options.listen_address, port)}{' ssl' if tls else ''}"
        certificate = (
            _certificate(credentials.public_certificate, credentials.public_certificate_key)
            if tls
            else []
        )
        body = [
            f"{listen}{'' if options.public_name else ' default_server'};",
            f"server_name {options.public_name or '_'};",
            *certificate,
            f"client_max_body_size {options.public_max_upload};",
            *self._links(),
            *self._rest(),
        ]
        server = _server(body, "Public, behind the router: links only")
        if options.public_name is None:
            return server
        other = [f"{listen} default_server;", *certificate, "return 404;"]
        return [*_server(other, "Other host names"), "", *server]

    def _basic(self, realm: str) -> list[str]:
        return [
            f'auth_basic "{realm}";',
            f"auth_basic_user_file {quoted(self.credentials.users)};",
        ]

    def _links(self) -> list[str]:
        """``/read/``, ``/write/`` and ``/signed/``: the method first, then the link."""
        lines: list[str] = []
        if self.credentials.secret is not None:
            for name in ("read", "write"):
                lines += [
                    "",
                    *_location(f"/{name}/", [*_only(name), *_MD5_LINK, *self._link(name)]),
                ]
        # nginx itself cannot check HMAC links: our module and the daemon do.
        if self.credentials.secret is not None and isinstance(self.backend, Indexed):
            lines += ["", *_location("/signed/", [*_only("signed"), *self._link("signed")])]
        return lines

    def _link(self, name: str) -> list[str]:
        if isinstance(self.backend, Directory):
            dav = ["dav_methods PUT;", "create_full_put_path on;"] if name == "write" else []
            return [*dav, f"alias {quoted(f'{self.backend.root}/')};"]
        if name == "write":
            return ["proxy_pass http://cafs_daemon;"]
        return self._tree(f"/{name}/")

    def _tree(self, location: str) -> list[str]:
        """What answers for the tree of blobs in *location*."""
        backend = self.backend
        if isinstance(backend, Directory):
            dav = ["dav_methods PUT DELETE COPY;", "create_full_put_path on;"]
            if self.nginx.module(DAV_EXT_MODULE) is not None:
                dav.append("dav_ext_methods PROPFIND;")
            return [*dav, f"alias {quoted(f'{backend.root}/')};"]
        if backend.module is None:
            return ["proxy_pass http://cafs_daemon;", *nginx_cut.GET]
        lines = [f"cafs {quoted(backend.store)};", "cafs_fallback @daemon;"]
        if backend.pending is not None:
            lines.append(f"cafs_pending {quoted(backend.pending)};")
        if backend.grace_s != GRACE_S:
            lines.append(f"cafs_grace {int(backend.grace_s * 1000)}ms;")
        if not self.options.verify:
            lines.append("cafs_verify off;")
        if location == "/signed/" and self.credentials.secret is not None:
            lines.append(f"cafs_signed_secret_file {quoted(self.credentials.secret)};")
        return lines

    def _rest(self) -> list[str]:
        lines = ["", *_location("/", ["return 404;"])]
        if isinstance(self.backend, Indexed) and self.backend.module is not None:
            lines += ["", *_location("@daemon", ["proxy_pass http://cafs_daemon;"])]
        elif isinstance(self.backend, Indexed):
            log = f"access_log {self._access_log('timed_cut')};"
            lines += ["", "# After each GET.", *_location(nginx_cut.AFTER, [log, *nginx_cut.CHECK])]
        return lines


_MD5_LINK: Final = [
    "secure_link $arg_md5,$arg_expires;",
    'secure_link_md5 "$secure_link_expires$uri $cafs_link_secret";',
    'if ($secure_link = "") {',
    "    return 403;",
    "}",
    'if ($secure_link = "0") {',
    "    return 410;",
    "}",
]


def _log_format(name: str, status: str) -> list[str]:
    start = f"    log_format {name} "
    more = " " * len(start)
    return [
        f"{start}'$remote_addr - $remote_user [$time_local] '",
        f"{more}'\"$request\" {status} $body_bytes_sent '",
        f'{more}\'"$http_referer" "$http_user_agent" \'',
        f"{more}'$request_time $upstream_response_time $pipe';",
    ]


def _only(name: str) -> list[str]:
    return [f"if ($request_method !~ ^({_METHODS[name]})$) {{", "    return 405;", "}"]


def _location(where: str, lines: list[str]) -> list[str]:
    return [f"location {where} {{", *[f"    {line}" for line in lines], "}"]


def _server(body: list[str], title: str) -> list[str]:
    inner = [f"        {line}".rstrip() for line in body]
    return [f"    # {title}", "    server {", *inner, "    }"]


def _certificate(certificate: Path, key: Path) -> list[str]:
    return [f"ssl_certificate {quoted(certificate)};", f"ssl_certificate_key {quoted(key)};"]


def _listen(address: str, port: int) -> str:
    plain = ":" in address and not address.startswith("[")
    return f"[{address}]:{port}" if plain else f"{address}:{port}"


def _seconds(value: float) -> str:
    return f"{value:g}s" if value >= 1 and value == int(value) else f"{round(value * 1000)}ms"
