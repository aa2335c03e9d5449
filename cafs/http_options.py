"""Section ``http`` of the settings: the blobstore protocol as the daemon itself speaks it.

Only the table; what becomes of it is in cafs.http.  Invariant: as for all sections, a value that
left this module is inside its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cafs.errors import ConfigError
from cafs.setting import (
    check_values,
    choice_setting,
    duration_setting,
    mode_setting,
    name_setting,
    networks_setting,
    path_setting,
    size_setting,
    tree_path_setting,
    yes_no_setting,
)

_TIB = 1 << 40


@dataclass(frozen=True)
class HttpOptions:
    """Section ``http``: how a daemon answers HTTP."""

    serve: bool = yes_no_setting(True, "Answer HTTP on a unix socket, for nginx on this machine.")
    socket: Path | None = path_setting("That socket; http.sock in the store when not given.")
    listen: str | None = name_setting(
        None, "Address and port to answer HTTP on without nginx, as 127.0.0.1:8080."
    )
    certificate: Path | None = path_setting("With it the daemon speaks TLS there; a PEM file.")
    certificate_key: Path | None = path_setting("The certificate's key, when it is another file.")
    users_file: Path | None = path_setting(
        "Who may use /admin/ and /sign, in nginx's formats (user:password, a line each)."
    )
    secret_file: Path | None = path_setting("The secret that links are signed with, in one line.")
    access: tuple[str, ...] = networks_setting(
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "::1", "fc00::/7"),
        "Who may use anything but links on http.listen; all others get 403.",
    )
    link_host: str = name_setting(
        "blobstore.service.cf.internal", "The host in links that /sign answers."
    )
    owner: str | None = name_setting(
        None, "Whom files belong to, user or user:group; the root's owner when not given."
    )
    file_mode: int = mode_setting(0o600, "Permissions of files that are uploaded.")
    directory_mode: int = mode_setting(0o700, "Permissions of directories made for them.")
    max_upload: int = size_setting(0, 0, 16 * _TIB, "Largest upload; 0: any size.")
    client_timeout: float = duration_setting(
        60.0, 1.0, 3600.0, "A client that neither sends nor takes a byte for this long is cut off."
    )
    keepalive: float = duration_setting(
        75.0, 0.1, 3600.0, "How long an idle connection is kept open."
    )
    access_log: Path | None = path_setting("Log of requests; none is written when not given.")
    propfind_depth: str = choice_setting(
        "0", ("0", "1"), "What a PROPFIND without Depth lists: the directory, or its entries too."
    )
    prune: bool = yes_no_setting(
        True, "Remove directories that a DELETE has emptied, but not those near the root."
    )
    resource_directory: str = tree_path_setting(
        "cc-resources/app_bits_cache", "Where resources lie that /resource_matches knows."
    )

    def __post_init__(self) -> None:
        """Raises :class:`ConfigError` when a value is out of bounds or makes no sense."""
        check_values("http", self)
        if self.listen is not None:
            try:
                host, _, port = self.listen.rpartition(":")
                good = bool(host) and 0 <= int(port) <= 65535
            except ValueError:
                good = False
            if not good:
                raise ConfigError(
                    f"http.listen = {self.listen} must be an address and a port: 127.0.0.1:8080"
                )
        if self.certificate_key is not None and self.certificate is None:
            raise ConfigError("http.certificate_key makes no sense without http.certificate")
