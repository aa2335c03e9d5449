"""What clients send that no client should: each is refused with a reason, and changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from cafs.types import TIME_MAX_NS
from tests.unit.site_client import Client, ask

KEY = "/admin/cc-x/ab/cd/abcd-1"


def test_a_date_beyond_the_index_becomes_its_last_one(tmp_path: Path) -> None:
    async def work(asking: Client) -> None:
        for status in (201, 204):
            answer = await asking("PUT", KEY, b"x", date="Fri, 31 Dec 9999 23:59:59 GMT")
            assert answer.status == status, answer
        answer = await asking("HEAD", KEY)
        assert answer.status == 200
        assert answer.headers["last-modified"] == "Fri, 11 Apr 2262 23:47:16 GMT"

    assert TIME_MAX_NS // 10**9 == 9223372036
    ask(tmp_path / "store", work)


def test_a_link_is_signed_for_its_own_location_only(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cr3t\n")

    async def work(asking: Client) -> None:
        for path in ("/../write/x", "%2e%2e/write/x", "/a/../../admin/x", "/../read", "/../../x"):
            answer = await asking("GET", f"/sign?expires=9999999999&path={path}")
            assert answer.status == 400, (path, answer)
        for path in ("/a/../x", "x", "//x"):
            answer = await asking("GET", f"/sign?expires=9999999999&path={path}")
            assert answer.status == 200, (path, answer)

    ask(tmp_path / "store", work, secret_file=secret)


@pytest.mark.parametrize(
    "path", ["/admin/../../etc/passwd", "/admin/%00", "/admin/%zz", "/%2e%2e/"]
)
def test_a_path_that_makes_no_sense_is_refused_in_words_for_http(tmp_path: Path, path: str) -> None:
    async def work(asking: Client) -> None:
        answer = await asking("GET", path)
        assert answer.status == 400
        assert answer.text.count("\n") == 1
        assert "--help" not in answer.text

    ask(tmp_path / "store", work)
