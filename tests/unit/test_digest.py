"""Digests of whole contents, and what computing them must not do to others."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Sequence
from typing import cast

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs import _digest, priority
from cafs.blobs.stream import IngestStream
from cafs.errors import CafsError

pieces_of = st.lists(st.one_of(st.binary(max_size=300), st.integers(1, 100_000).map(os.urandom)))


@settings(deadline=None)
@given(pieces_of, st.booleans())
def test_digests_are_those_of_the_whole(pieces: list[bytes], idle: bool) -> None:
    both = _digest.Both()
    seen = b""
    for piece in pieces:
        both.update([memoryview(piece)], idle and priority.may_idle())
        seen += piece
        # Asking changes nothing.
        assert both.digests() == (hashlib.sha256(seen).digest(), hashlib.sha1(seen).digest())
    at_once = _digest.Both()
    at_once.update(tuple(pieces))
    assert at_once.digests() == both.digests()


@settings(deadline=None)
@given(pieces_of)
def test_xxh3_of_each(pieces: list[bytes]) -> None:
    assert _digest.xxh3_each(pieces) == [xxhash.xxh3_64_intdigest(piece) for piece in pieces]


@pytest.mark.parametrize("bad", [5, None, [5], [b"good", None], ["text"]])
def test_what_is_no_buffer_is_refused_and_changes_nothing(bad: Sequence[bytes]) -> None:
    both = _digest.Both()
    both.update([b"before"])
    before = both.digests()
    with pytest.raises(TypeError):
        both.update(bad)
    assert both.digests() == before
    with pytest.raises(TypeError):
        _digest.xxh3_each(bad)


def test_two_threads_at_once_are_refused() -> None:
    both = _digest.Both()
    data = bytes(200 << 20)
    refused: list[str] = []

    def update(piece: bytes) -> None:
        try:
            both.update([piece])
        except ValueError as error:
            refused.append(str(error))

    hashing = threading.Thread(target=update, args=(data,))
    hashing.start()
    while hashing.is_alive() and not refused:
        update(b"x")
    hashing.join()
    assert "another thread" in refused[0]


def _classes_seen(work: threading.Thread) -> set[int]:
    work.start()
    seen = set()
    while work.is_alive():
        try:
            seen.add(os.sched_getscheduler(work.native_id or 0))
        except ProcessLookupError:
            break
        time.sleep(0.0005)
    work.join()
    return seen


@pytest.mark.skipif(not priority.may_idle(), reason="may not leave the idle class")
def test_the_idle_class_is_for_hashing_only() -> None:
    both = _digest.Both()
    # Not much: beside other tests there is little time left for the idle class.
    data = bytes(8 << 20)
    after: list[int] = []

    def work() -> None:
        both.update([data], True)
        after.append(os.sched_getscheduler(0))

    assert os.SCHED_IDLE in _classes_seen(threading.Thread(target=work))
    assert after == [os.SCHED_OTHER]
    # Nor does it reach the thread that asked whether it may.
    assert os.sched_getscheduler(0) == os.SCHED_OTHER
    plain = threading.Thread(target=both.update, args=([data],))
    assert _classes_seen(plain) <= {os.SCHED_OTHER}


def test_what_could_not_be_hashed_is_not_missing_in_silence() -> None:
    stream = IngestStream()
    stream.hash([b"one"], 0, lambda: False)
    assert stream.digests() == (hashlib.sha256(b"one").digest(), hashlib.sha1(b"one").digest())
    with pytest.raises(TypeError):
        stream.hash([cast("bytes", None)], 3, lambda: False)
    stream.hash([b"three"], 6, lambda: False)
    with pytest.raises(CafsError, match="could not be hashed"):
        stream.digests()
