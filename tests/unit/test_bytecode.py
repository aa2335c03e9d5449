"""Bytecode of one module, installed twice, has to be cut where its two files differ."""

from __future__ import annotations

import importlib.util
import itertools
import os
import py_compile
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from cafs.archives.bytecode import HEADER, varying
from tests.unit.archived import age, content, droplet, opened, put, sources

SOURCES = {
    "a module": "import os\n\nclass A:\n    def f(self):\n        return [x for x in os]\n",
    "no functions": "X = 1\n",
    "nothing": "",
    "a path in it": "P = '/usr/lib/x.py'\n\ndef f():\n    return P\n",
}


def installed(directory: Path, source: str, when: int) -> bytes:
    directory.mkdir(parents=True)
    module = directory / "module.py"
    module.write_text(source)
    os.utime(module, (when, when))
    made = py_compile.compile(
        str(module), str(module) + "c", invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP
    )
    assert made is not None
    return Path(made).read_bytes()


def between(data: bytes) -> list[bytes]:
    edges = [0, *itertools.chain.from_iterable(varying(data)), len(data)]
    return [data[low:high] for low, high in zip(edges[::2], edges[1::2], strict=True)]


@pytest.mark.parametrize("source", SOURCES.values(), ids=list(SOURCES))
def test_what_is_left_of_two_installations_is_the_same(tmp_path: Path, source: str) -> None:
    one = installed(tmp_path / "contents1" / "site-packages", source, 10**9)
    other = installed(tmp_path / "contents23456.pyz" / "site-packages", source, 10**9 + 77)
    assert one != other
    assert between(one) == between(other)
    path = os.fsencode(tmp_path / "contents1" / "site-packages" / "module.py")
    assert bytes([len(path)]) + path in [one[start:end] for start, end in varying(one)]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"#!/usr/bin/env python\r\n",
        importlib.util.MAGIC_NUMBER,
        importlib.util.MAGIC_NUMBER + bytes(HEADER - 4),
        importlib.util.MAGIC_NUMBER + bytes(HEADER - 4) + b"not code",
        importlib.util.MAGIC_NUMBER + b"\x09\0\0\0" + bytes(8) + b"\xe3 other flags",
    ],
)
def test_other_content_is_not_cut(data: bytes) -> None:
    assert varying(data) == []


@given(st.binary(max_size=200), st.booleans())
def test_ranges_lie_inside_in_order(tail: bytes, module: bool) -> None:
    data = importlib.util.MAGIC_NUMBER + bytes(12) + b"\xe3" + tail if module else tail
    edges = list(itertools.chain.from_iterable(varying(data)))
    assert edges == sorted(edges)
    assert all(0 <= edge <= len(data) for edge in edges)
    if module:
        assert edges[:2] == [0, HEADER]


def test_a_second_staging_of_the_same_modules_adds_little(tmp_path: Path) -> None:
    stagings: list[dict[str, bytes]] = []
    for when in (10**9, 10**9 + 77):
        directory = tmp_path / f"contents{when}"
        made = {}
        for name, source in sources(("email", "unittest")).items():
            where = directory / name.replace("/", "-")
            made[f"{name}c"] = installed(where, source.decode(), when)
        stagings.append(made)
    size = sum(map(len, stagings[0].values()))
    assert size > 300_000

    async def run() -> None:
        async with opened(tmp_path / "store") as store:
            grown = []
            for number, files in enumerate(stagings):
                data = droplet(10**9 + number, files)
                ino = await put(store, b"droplet%d" % number, data)
                before = store.counters.raw_bytes
                await age(store, ino)
                grown.append(store.counters.raw_bytes - before)
                assert await content(store, ino) == data
            # The headers, and the plain chunks of the archive that are not swept yet.
            assert grown[0] > size
            assert grown[1] < size / 3

    trio.run(run)
