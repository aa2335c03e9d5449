"""The overlay beside a plain sorted dictionary, over a real LMDB, with commits in between."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cafs.index import layout
from cafs.index.env import Environment
from cafs.index.overlay import Overlay
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock

RANGED, PLAIN = layout.ENTRIES, layout.INODES
_prefixes = itertools.count(1)


class Index(NamedTuple):
    environment: Environment
    writer: IndexWriter


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Index]:
    path = tmp_path_factory.mktemp("overlay")
    (path / "index").mkdir()
    lock = StoreLock(path)
    writer = IndexWriter(path / "index", lock.fd)
    writer.write([{} for _ in layout.DATABASES])
    environment = Environment(path / "index")
    yield Index(environment, writer)
    environment.close()
    writer.close()
    lock.release()


class Op(NamedTuple):
    kind: str
    key: int = 0
    value: bytes = b""


_keys = st.integers(0, 15)
ops = st.lists(
    st.one_of(
        st.builds(Op, st.just("put"), _keys, st.binary(max_size=4)),
        st.builds(Op, st.just("delete"), _keys),
        st.sampled_from([Op("freeze"), Op("thaw"), Op("fail")]),
    ),
    max_size=40,
)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(sequence=ops, database=st.sampled_from([RANGED, PLAIN]))
def test_reads_as_a_dictionary_does(index: Index, sequence: list[Op], database: int) -> None:
    prefix = next(_prefixes).to_bytes(4, "big")

    def key(number: int) -> bytes:
        return prefix + (number * 0x1001).to_bytes(2, "big")

    overlay = Overlay(index.environment)
    model: dict[bytes, bytes] = {}
    for op in sequence:
        if op.kind == "put":
            overlay.put(database, key(op.key), op.value)
            model[key(op.key)] = op.value
        elif op.kind == "delete":
            overlay.delete(database, key(op.key))
            model.pop(key(op.key), None)
        elif op.kind == "freeze":
            overlay.freeze()
            assert overlay.frozen
        elif op.kind == "thaw" and overlay.frozen:
            index.writer.write(overlay.freeze())
            overlay.thaw()
            assert not overlay.frozen
        elif op.kind == "fail" and overlay.frozen:
            # A commit that failed is begun again with the very same layer.
            assert overlay.freeze() is overlay.freeze()
        _compare(overlay, database, model, prefix, key)
    for _ in range(2):
        index.writer.write(overlay.freeze())
        overlay.thaw()
    assert overlay.pending == 0 and not overlay.dirty
    _compare(overlay, database, model, prefix, key)
    overlay.close()


def _compare(
    overlay: Overlay, database: int, model: dict[bytes, bytes], prefix: bytes, key: object
) -> None:
    assert callable(key)
    for number in range(16):
        wanted = model.get(key(number))
        assert overlay.get(database, key(number)) == wanted
        assert overlay.get_anywhere(database, [key(number)]) == [wanted]
    keys = [key(number) for number in range(16)]
    assert overlay.get_anywhere(database, keys) == [model.get(each) for each in keys]
    if database not in layout.RANGED:
        return
    inside = sorted(model.items())
    assert list(overlay.scan(database, prefix, prefix)) == inside
    for number in (0, 3, 7, 15):
        start = key(number)
        assert list(overlay.scan(database, start, prefix)) == [
            pair for pair in inside if pair[0] >= start
        ]
        below = [found for found, _ in inside if found <= start]
        assert overlay.floor(database, start, prefix) == (below[-1] if below else None)
        between = start[:-1] + bytes([start[-1] ^ 0x80])
        below = [found for found, _ in inside if found <= between]
        assert overlay.floor(database, between, prefix) == (below[-1] if below else None)


def test_a_scan_may_end_early_and_another_begin(index: Index) -> None:
    overlay = Overlay(index.environment)
    prefix = next(_prefixes).to_bytes(4, "big")
    for number in range(10):
        overlay.put(RANGED, prefix + bytes([number]), b"v")
    first = overlay.scan(RANGED, prefix, prefix)
    assert next(first)[0] == prefix + b"\0"
    assert len(list(overlay.scan(RANGED, prefix + b"\5", prefix))) == 5
    assert next(first)[0] == prefix + b"\1"
    overlay.close()


def test_pending_counts_what_no_commit_has_yet(index: Index) -> None:
    overlay = Overlay(index.environment)
    prefix = next(_prefixes).to_bytes(4, "big")
    overlay.put(RANGED, prefix, b"1")
    layer = overlay.freeze()
    overlay.put(RANGED, prefix + b"2", b"2")
    assert overlay.pending == 2
    index.writer.write(layer)
    overlay.thaw()
    assert overlay.pending == 1
    assert overlay.dirty
    overlay.close()
