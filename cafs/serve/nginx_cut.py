"""nginx's configuration, where there is no module of ours: an answer cut short is not ended well.

The daemon cuts an answer that it cannot finish, as one with a damaged chunk.  nginx by itself then
ends its own in good order, and there are clients that take this for success.  So after each GET,
by ``post_action``, it looks whether the body is the one that it announced; if not, 444 has it
reset the connection, or end TLS without close-notify.
Invariant: what comes after a GET sends nothing, and does not touch a connection that is well.
"""

from __future__ import annotations

from typing import Final

AFTER: Final = "@cut"
"""The location that a GET ends in."""
STATUS: Final = "$cafs_answered"
"""What was answered, for the log: in that location $status is its own."""
GET: Final = (
    "if ($request_method = GET) {",
    "    proxy_pass http://cafs_daemon;",
    f"    post_action {AFTER};",
    "}",
)
"""Where GET is handed to the daemon.  Other methods have no body that could be cut unseen."""
CHECK: Final = (
    "reset_timedout_connection on;",
    f"set {STATUS} $cafs_status;",
    "if ($cafs_short) {",
    "    return 444;",
    "}",
    "return 204;",
)
"""What that location does."""


def maps() -> list[str]:
    """What it needs beside the servers."""
    sent = "$request_completion $status $sent_http_content_length $body_bytes_sent"
    return [
        "    # Whether less than the body that was announced has been sent.",
        f'    map "{sent}" $cafs_short {{',
        '        "~^OK 304 " "";',
        '        "~^OK [0-9]+  " "";',
        '        "~^OK [0-9]+ ([0-9]+) \\1$" "";',
        "        default 1;",
        "    }",
        "    # 009 is what nginx calls none: the client went away before.",
        "    map $status $cafs_status {",
        "        ~^00 499;",
        "        default $status;",
        "    }",
    ]
