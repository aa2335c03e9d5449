"""The benchmarks over HTTP: a generator that takes errors for answers praises broken servers."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bench.http import report
from bench.http.load import Ask, Load, LoadError
from bench.http.measures import MEASURES
from bench.http.run import HttpResult
from bench.http.servers import Server
from bench.result import Sample
from tests.http.stocknginx import need_nginx
from tests.http.wire import free_ports


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    return Load(tmp_path_factory.mktemp("load"))


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, str, int]]

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        self.seen.append((self.command, self.path, len(body)))
        assert self.headers["X-Given"] == "yes"
        if self.path == "/chunked":
            self.send_response(207)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for piece in (b"a" * 70_000, b"b" * 5):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        if self.path == "/short":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"only this")
            self.close_connection = True
            return
        self.send_response(404 if self.path == "/missing" else 201 if length else 200)
        content = b"x" * 1000 if self.command in ("GET", "HEAD") else b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD = do_PUT = do_PROPFIND = answer

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Handler.seen = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("mode", ["keep", "fresh"])
def test_every_request_is_sent_once_and_counted(
    load: Load, server: ThreadingHTTPServer, tmp_path: Path, mode: str
) -> None:
    body = tmp_path / "body"
    body.write_bytes(b"y" * 300_000)
    asks = [
        *[Ask("GET", f"/{n}", 200) for n in range(20)],
        Ask("HEAD", "/missing", 404),
        Ask("PUT", "/there", 201, body),
        Ask("PROPFIND", "/chunked", 207, None, "Depth: 1"),
    ]
    timing = load(
        server.server_port,
        asks,
        ["Host: localhost", "X-Given: yes"],
        tls=False,
        connections=3,
        mode="keep" if mode == "keep" else "fresh",
    )
    assert timing.operations == len(asks)
    assert timing.bytes == 20 * 1000 + 300_000 + 70_005
    assert 0 < timing.p50_s <= timing.p99_s <= timing.max_s <= timing.seconds
    sent = [(ask.method, ask.path, 300_000 if ask.body else 0) for ask in asks]
    assert sorted(Handler.seen) == sorted(sent)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (Ask("GET", "/missing", 200), "status 404, expected 200"),
        (Ask("GET", "/short", 200), "a short body"),
    ],
)
def test_a_wrong_answer_ends_the_run(
    load: Load, server: ThreadingHTTPServer, ask: Ask, said: str
) -> None:
    with pytest.raises(LoadError, match=said):
        load(server.server_port, [ask], ["X-Given: yes"], tls=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_the_reference_serves_and_leaves_nothing(load: Load, tmp_path: Path) -> None:
    need_nginx()
    side = Server(tmp_path / "side", load, Path("/nonexistent"), free_ports(1)[0])
    side.ports["clear"] = free_ports(1)[0]
    body = tmp_path / "body"
    body.write_bytes(b"z" * 5000)
    side.prepare()
    try:
        side.start()
        side.ask([Ask("PUT", "cc-x/ab/cd/abcd", 201, body), Ask("HEAD", "cc-x/nothing", 404)])
        assert (side.root / "cc-x/ab/cd/abcd").read_bytes() == body.read_bytes()
        for tls in (True, False):
            timing = side.ask([Ask("GET", "cc-x/ab/cd/abcd", 200)] * 5, tls=tls, connections=2)
            assert timing.bytes == 25_000
        assert side.usage().processes == 2
    finally:
        side.stop()
    shutil.rmtree(side.home)


def test_the_report_names_every_target_and_its_verdict() -> None:
    machine = {"cpu": "c", "cores": 2, "memory_bytes": 1 << 30, "filesystem": "ext4"}
    machine |= {"load_before": 0.0, "system": "s", "kernel": "k"}
    samples = [
        Sample("head_hit", 0, {"cafs": 30_000.0, "ext4": 20_000.0}),
        Sample("head_hit.p50", 0, {"cafs": 30.0, "ext4": 45.0}),
        Sample("put_1mb_new", 0, {"cafs": 100.0, "ext4": 400.0}),
        Sample("bulk_time", 0, {"cafs": 0.02}),
    ]
    result = HttpResult("c", "t", 1, False, machine, {}, "abc", {"keys": 50_000}, samples)
    text = report.section(result, "bench/results/r.json")
    title = MEASURES["head_hit"].title
    assert f"| {title} | 20,000/s | 30,000/s | 1.50 | >= 1 | met |" in text
    assert "| 45 us | 30 us | 1.50 |" in text
    assert "| 400 MB/s | 100 MB/s | 0.25 | >= 0.5 | missed |" in text
    assert "| 20.0 ms |  | <= 25.0 ms | met |" in text
    assert f"Not measured in this run: {MEASURES['head_hit_cold'].title}" in text
