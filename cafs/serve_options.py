"""Section ``serve`` of the settings: nginx in front of a store.

Who may do what, bodies and time-outs stand in section ``http``: they hold for the daemon, too.
Only the table; what becomes of it is :mod:`cafs.serve.nginx_config`.  Invariant: as for all
sections, a value that left this module is inside its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cafs.errors import ConfigError
from cafs.setting import (
    check_values,
    count_setting,
    duration_setting,
    name_setting,
    path_setting,
    size_setting,
    yes_no_setting,
)

_MIB, _TIB = 1 << 20, 1 << 40
PORT_MAX = 65535


@dataclass(frozen=True)
class ServeOptions:
    """Section ``serve``: the servers and locations that nginx has before a store."""

    nginx: Path | None = path_setting("The nginx program, when it is not the one in PATH.")
    nginx_module: Path | None = path_setting(
        "The module that answers from the index, when it is not among nginx's modules."
    )
    run_dir: Path | None = path_setting(
        "For nginx's configuration, pid and temporary files; /run/cafs-ID when not given."
    )
    workers: int = count_setting(0, 0, 256, "nginx's worker processes; 0: one for each core.")
    worker_user: str | None = name_setting(
        None,
        "Whom nginx's workers run as in `cafs nginx-config`; the daemon must, too.",
    )
    listen_address: str = name_setting("*", "The address that nginx's servers listen on.")
    internal_port: int = count_setting(
        4443, 1, PORT_MAX, "Port of the internal server: TLS, /admin/, /sign and links."
    )
    public_tls_port: int = count_setting(
        8081, 0, PORT_MAX, "Port of the public TLS server, for links only; 0: none."
    )
    public_port: int = count_setting(
        8080, 0, PORT_MAX, "Port of the public server without TLS, for links only; 0: none."
    )
    public_certificate: Path | None = path_setting(
        "Certificate of the public TLS server, when it is not http.certificate; a PEM file."
    )
    public_certificate_key: Path | None = path_setting("That certificate's key.")
    public_name: str | None = name_setting(
        None, "The public servers' host name; others get 404. Every name when not given."
    )
    public_max_upload: int = size_setting(
        _MIB, 0, 16 * _TIB, "Largest body on the public servers; 0: any size."
    )
    answer_timeout: float = duration_setting(
        600.0, 10.0, 86400.0, "How long the daemon may take for an answer; then 504."
    )
    keepalive_requests: int = count_setting(
        1000, 1, 10_000_000, "Requests after which a connection is closed."
    )
    nginx_log: Path | None = path_setting("Access log of nginx; none is written when not given.")
    verify: bool = yes_no_setting(
        True, "Compare what nginx sends with its checksum; off: sendfile, and damage is not seen."
    )

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` when a value is out of bounds, or ports are the same."""
        check_values("serve", self)
        if (self.public_certificate is None) != (self.public_certificate_key is None):
            raise ConfigError(
                "serve.public_certificate and serve.public_certificate_key need each other"
            )
        ports = [self.internal_port, self.public_tls_port, self.public_port]
        used = [port for port in ports if port]
        if len(set(used)) != len(used):
            raise ConfigError(
                "serve.internal_port, serve.public_tls_port and serve.public_port must differ, "
                f"but they are {ports[0]}, {ports[1]} and {ports[2]}"
            )
