"""Resource matching: Cloud Controller's requests and its rules."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from cafs.http.resources import RESOURCES_MAX, RefusedError, answer

SHA1 = "A" * 40


def entry(sha1: str = SHA1, size: int = 100_000, **more: Any) -> dict[str, Any]:
    return {"checksum": {"value": sha1}, "size_in_bytes": size, "mode": "644", "path": "p"} | more


def asked(body: object, known: bool = True) -> tuple[Any, list[tuple[bytes, int]]]:
    seen: list[tuple[bytes, int]] = []

    def all_known(names: Sequence[bytes], sizes: Sequence[int]) -> list[bool]:
        seen.extend(zip(names, sizes, strict=True))
        return [known] * len(names)

    return json.loads(answer(json.dumps(body).encode(), all_known)), seen


def test_the_answer_has_the_request_s_shape() -> None:
    whole = entry(path="a/b", mode="0755", more="dropped")
    bare = {"checksum": {"value": "b" * 40}, "size_in_bytes": 70_000, "mode": "600"}
    found, seen = asked({"resources": [whole, bare]})
    assert found == {
        "resources": [
            {
                "checksum": {"value": SHA1},
                "size_in_bytes": 100_000,
                "path": "a/b",
                "mode": "0755",
            },
            {
                "checksum": {"value": "b" * 40},
                "size_in_bytes": 70_000,
                "path": None,
                "mode": "600",
            },
        ]
    }
    # The store has lower-case keys only.
    assert seen == [(b"a" * 40, 100_000), (b"b" * 40, 70_000)]
    assert asked({"resources": [whole]}, known=False)[0] == {"resources": []}


@pytest.mark.parametrize(
    ("size", "mode", "eligible"),
    [
        (65_536, "644", False),
        (65_537, "644", True),
        (536_870_911, "644", True),
        (536_870_912, "644", False),
        (100_000, "600", True),
        (100_000, "0600", True),
        (100_000, "577", False),
        (100_000, "400", False),
        (100_000, None, False),
    ],
)
def test_sizes_and_modes(size: int, mode: str | None, eligible: bool) -> None:
    found, seen = asked({"resources": [entry(size=size, mode=mode)]})
    assert bool(seen) == bool(found["resources"]) == eligible
    old, _ = asked([{"sha1": SHA1, "size": size, "mode": mode, "fn": "x"}])
    assert bool(old) == eligible


def test_the_older_shape_is_answered_in_kind() -> None:
    first = {"sha1": SHA1, "size": 100_000, "fn": "x", "mode": "644", "more": [1]}
    assert asked([first, {"sha1": "short", "size": 100_000, "mode": "644"}])[0] == [first]
    assert asked([])[0] == []
    # Anything that is no mode is as if there were none.
    assert asked([first | {"mode": 644}, first | {"mode": "rw"}])[0] == []


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"resources": {}},
        {"resources": []},
        {"resources": [1]},
        {"resources": [entry(checksum="x")]},
        {"resources": [entry(checksum={"value": 1})]},
        {"resources": [entry(sha1="a" * 39)]},
        {"resources": [entry() | {"size_in_bytes": "1"}]},
        {"resources": [entry(size=-1)]},
        {"resources": [entry(mode=644)]},
        {"resources": [entry(mode="88")]},
        {"resources": [entry(mode="64444")]},
        {"resources": [entry()] * (RESOURCES_MAX + 1)},
        [1],
        [{"sha1": 1, "size": 1}],
        "text",
        None,
    ],
)
def test_what_is_refused(body: object) -> None:
    with pytest.raises(RefusedError):
        asked(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"\xff",
        b'{"resources": [' * 50_000,
        b'{"resources": [{"checksum": {"value": "\xff"}}]}',
        b'[{"sha1": "\xff"}]',
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(RefusedError):
        answer(body, lambda names, sizes: [False] * len(names))


def test_a_refusal_is_short_whatever_was_sent() -> None:
    resource = {"checksum": {"value": "a" * 40}, "size_in_bytes": 70_000, "mode": "x" * 100_000}
    with pytest.raises(RefusedError) as refused:
        asked({"resources": [resource]})
    assert len(str(refused.value)) < 100
