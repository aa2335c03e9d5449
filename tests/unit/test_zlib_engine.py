"""zlib as an engine: the bytes that Python's zlib makes, whichever copy is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cafs.archives import zlib_engine
from cafs.archives.engine import Params
from cafs.archives.program import Program
from cafs.archives.zlib_engine import STEP, ZlibEngine
from cafs.errors import EngineError
from tests.unit.engine_samples import run, text

DEFAULT = Params(6, 8).pack()


@pytest.fixture(scope="module")
def engine() -> ZlibEngine:
    return ZlibEngine.identify(Program.read(zlib_engine.machine_library()))


def python_stream(data: bytes, level: int, mem_level: int, strategy: int = 0) -> bytes:
    made = zlib.compressobj(level, zlib.DEFLATED, -15, mem_level, strategy)
    return made.compress(data) + made.flush()


def test_it_says_what_it_is(engine: ZlibEngine) -> None:
    assert engine.kind == "zlib"
    assert engine.version == f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
    assert engine.program.path.is_file()


@pytest.mark.parametrize("mem_level", range(1, 10))
@pytest.mark.parametrize("level", range(1, 10))
def test_every_level_and_memory(engine: ZlibEngine, level: int, mem_level: int) -> None:
    data = text(200_000, level * mem_level) + os.urandom(40_000) + bytes(100_000)
    params = Params(level, mem_level).pack()
    assert run(engine.compressor(params, background=True), data) == python_stream(
        data, level, mem_level
    )


@pytest.mark.parametrize("strategy", range(5))
def test_every_strategy(engine: ZlibEngine, strategy: int) -> None:
    data = text(100_000)
    params = Params(6, 8, strategy).pack()
    stream = run(engine.compressor(params, background=False), data)
    assert stream == python_stream(data, 6, 8, strategy)


@pytest.mark.parametrize(
    "size", [0, 1, 4096, 65274, 65535, 65536, STEP - 1, STEP, STEP + 1, 2 * STEP, 3 * STEP + 7]
)
def test_sizes_at_borders(engine: ZlibEngine, size: int) -> None:
    data = text(size, size)
    assert run(engine.compressor(DEFAULT, background=False), data) == python_stream(data, 6, 8)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 2 * STEP), max_size=8), st.sampled_from([bytes, bytearray]))
def test_how_it_is_fed_changes_nothing(
    engine: ZlibEngine, cuts: list[int], form: type[bytes | bytearray]
) -> None:
    data = text(3 * STEP // 2, 3) + bytes(STEP)
    compressor = engine.compressor(Params(1, 8).pack(), background=False)
    out = []
    at = 0
    for cut in cuts:
        out.append(compressor.feed(memoryview(form(data[at : at + cut]))))
        at = min(len(data), at + cut)
    out += [compressor.feed(form(data[at:])), compressor.finish()]
    compressor.close()
    assert b"".join(out) == python_stream(data, 1, 8)


def test_bytes_that_do_not_compress_and_bytes_that_do(engine: ZlibEngine) -> None:
    for data in (os.urandom(3 * STEP + 5), bytes(8 * STEP)):
        assert run(engine.compressor(DEFAULT, background=False), data) == python_stream(data, 6, 8)


@pytest.mark.parametrize("params", [0, 6, 8 << 4, 10 | 8 << 4, 6 | 10 << 4, 6 | 8 << 4 | 5 << 8])
def test_parameters_that_are_not_its_own(engine: ZlibEngine, params: int) -> None:
    with pytest.raises(EngineError):
        engine.compressor(params, background=False)


def test_a_compressor_that_is_closed(engine: ZlibEngine) -> None:
    compressor = engine.compressor(DEFAULT, background=False)
    compressor.feed(bytes(STEP))
    compressor.close()
    compressor.close()
    with pytest.raises(EngineError):
        compressor.feed(bytes(STEP))


@pytest.mark.parametrize("content", [b"\x7fELF and no more", b"text", Path("/bin/true")])
def test_what_is_no_zlib(tmp_path: Path, content: bytes | Path) -> None:
    path = tmp_path / "libz.so"
    path.write_bytes(content.read_bytes() if isinstance(content, Path) else content)
    with pytest.raises(EngineError, match=r"not zlib|no binary"):
        ZlibEngine.identify(Program.read(path))


def test_a_copy_is_used_though_another_is_loaded(engine: ZlibEngine, tmp_path: Path) -> None:
    """And no call of its own functions ends in that other one."""
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "fake.c"
    # deflateInit2_ answers what its own deflateReset says: 7 here, 0 in the real one.
    source.write_text(
        'const char *zlibVersion(void) { return "1.fake"; }\n'
        "int deflateReset(void *s) { (void)s; return 7; }\n"
        "int deflateInit2_(void *s, int a, int b, int c, int d, int e, const char *v, int n)\n"
        "{ (void)a, (void)b, (void)c, (void)d, (void)e, (void)v, (void)n;"
        " return deflateReset(s); }\n"
        "int deflate(void *s, int f) { (void)s, (void)f; return 0; }\n"
        "int deflateEnd(void *s) { (void)s; return 0; }\n"
    )
    library = tmp_path / "libz.so.1"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wl,-soname,libz.so.1", "-o", library, source], check=True
    )
    fake = ZlibEngine.identify(Program.read(library))
    assert fake.version == "zlib 1.fake"
    with pytest.raises(EngineError, match="says 7"):
        fake.compressor(DEFAULT, background=False)
    # The real one is what it was.
    data = text(10_000)
    assert run(engine.compressor(DEFAULT, background=False), data) == python_stream(data, 6, 8)


LIARS = {
    "leaves input behind": "z->avail_out -= 1; return 0;",
    "makes no end": "z->avail_in = 0; if (f) return 0; return 0;",
    "fails": "return -2;",
}


@pytest.mark.parametrize("how", LIARS)
def test_a_library_that_lies(tmp_path: Path, how: str) -> None:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    source = tmp_path / "liar.c"
    source.write_text(
        "struct z { const char *in; unsigned avail_in; unsigned long a; char *out;"
        " unsigned avail_out; };\n"
        'const char *zlibVersion(void) { return "1.liar"; }\n'
        "int deflateInit2_(struct z *z) { (void)z; return 0; }\n"
        f"int deflate(struct z *z, int f) {{ (void)f; {LIARS[how]} }}\n"
        "int deflateEnd(struct z *z) { (void)z; return 0; }\n"
    )
    library = tmp_path / "libz.so.1"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    engine = ZlibEngine.identify(Program.read(library))
    with pytest.raises(EngineError, match="deflate"):
        run(engine.compressor(DEFAULT, background=False), text(2 * STEP))
