"""What Prometheus is told: requests, commits, and how the store is.

Numbers of the store are read when they are asked for; only requests and commits are counted as
they happen.  Invariant: labels have a bounded number of values, whatever clients send.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cafs import latency
from cafs.store import Store

METHODS = frozenset({"GET", "HEAD", "PUT", "DELETE", "COPY", "PROPFIND", "POST"})
REQUEST_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10, 60, 120)
UNUSABLE = frozenset({"lost", "refused"})
COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10, 30)

# A second series for each, which nobody asked for.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Requests:
    """Counts what was asked and answered, and how long commits take."""

    def __init__(self, store: Store) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "cafs_http_requests",
            "Requests by location, method and status.",
            ("location", "method", "status"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "cafs_http_request_seconds",
            "Time from the request's head to the answer's end.",
            ("method",),
            registry=self.registry,
            buckets=REQUEST_SECONDS,
        )
        self._received = Counter(
            "cafs_http_received_bytes", "Bytes of bodies that came.", registry=self.registry
        )
        self._sent = Counter(
            "cafs_http_sent_bytes", "Bytes of bodies that went.", registry=self.registry
        )
        self._commits = Histogram(
            "cafs_commit_seconds",
            "Time that a commit takes.",
            registry=self.registry,
            buckets=COMMIT_SECONDS,
        )
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}
        self.registry.register(_StoreFigures(store))
        self._store = store
        store.committer.thawed.append(self._committed)

    def _committed(self) -> None:
        self._commits.observe(self._store.committer.last_seconds)

    def count(
        self,
        location: str,
        method: str,
        status: int,
        took_s: float,
        received_bytes: int,
        sent_bytes: int,
    ) -> None:
        """One request has been answered, or its client went away."""
        if method not in METHODS:
            method = "other"
        key = (location, method, status)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(location, method, str(status))
        counter.inc()
        histogram = self._histograms.get(method)
        if histogram is None:
            histogram = self._histograms[method] = self._seconds.labels(method)
        histogram.observe(took_s)
        self._store.latency.requests += 1
        if method == "HEAD":
            # It waits for nothing but its turn.
            self._store.latency.note(latency.HTTP, took_s)
        if received_bytes:
            self._received.inc(received_bytes)
        if sent_bytes:
            self._sent.inc(sent_bytes)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value)


class _StoreFigures(Collector):
    """The figures of ``cafs status``, at the moment they are asked for."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def describe(self) -> Iterator[Metric]:
        """Nothing: the names are known when they are collected."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """See prometheus_client.registry.Collector."""
        store = self._store
        status: dict[str, Any] = store.status()
        pending, disk = status["pending"], status["disk"]
        yield _gauge("cafs_files", "Files that have a name.", status["files_count"])
        yield _gauge("cafs_inodes", "Inodes that have a name.", status["inodes_count"])
        yield _gauge("cafs_blobs", "Blobs that a file refers to.", status["blobs_count"])
        yield _gauge("cafs_chunks", "Chunks.", status["chunks_count"])
        yield _gauge("cafs_logical_bytes", "Sum of the files' sizes.", status["logical_bytes"])
        yield _gauge("cafs_blob_bytes", "Sum of the blobs' sizes.", status["blob_bytes"])
        yield _gauge("cafs_unique_bytes", "Sum of the chunks' sizes.", status["unique_bytes"])
        yield _gauge("cafs_stored_bytes", "What the chunks take in packs.", status["stored_bytes"])
        yield _gauge("cafs_index_bytes", "Size of the index.", status["index_file_bytes"])
        yield _gauge(
            "cafs_pending_changes",
            "Index changes that wait for a commit.",
            pending["changes_count"],
        )
        yield _gauge(
            "cafs_pending_bytes", "Bytes that wait to become chunks.", pending["content_bytes"]
        )
        yield _gauge(
            "cafs_files_being_written", "Files being written.", pending["files_being_written_count"]
        )
        yield _gauge("cafs_disk_free_bytes", "Room for files on the disk.", disk["free_bytes"])
        yield _gauge("cafs_disk_total_bytes", "Size of the disk.", disk["total_bytes"])
        yield _gauge(
            "cafs_healthy",
            "1 when everything can be read and written, 0 when there is trouble.",
            float(status["health"]["state"] == "ok"),
        )
        if "archives" in status:
            yield from archive_metrics(status["archives"])
        yield CounterMetricFamily(
            "cafs_generation", "Commits so far, in the store's whole life.", status["generation"]
        )
        yield CounterMetricFamily(
            "cafs_chunks_read", "Chunks read from packs, not memory.", store.reader.fetched
        )
        yield CounterMetricFamily(
            "cafs_damaged_reads", "Requests of HTTP that found damage.", store.damaged_reads
        )


def archive_metrics(archives: dict[str, Any]) -> Iterator[Metric]:
    """The section ``archives`` of a status."""
    yield _gauge(
        "cafs_ageing_working", "1 while archives are taken apart.", archives["state"] == "working"
    )
    yield _gauge("cafs_ageing_paused", "1 while ageing is paused.", archives["state"] == "paused")
    yield _gauge("cafs_ageing_queue", "Archives that are to be tried.", archives["queue_count"])
    yield _gauge(
        "cafs_ageing_share",
        "Part of its time that ageing may work, 0 to 1.",
        archives["share_percent"] / 100,
    )
    yield _gauge(
        "cafs_archive_cache_bytes",
        "Size of the cache of archives that were made again.",
        archives["cache_bytes"],
    )
    yield _gauge(
        "cafs_engines_unusable",
        "Programs that archives need, and that are missing, or make other bytes.",
        sum(each["state"] in UNUSABLE for each in archives["engines"]),
    )
    for name, key, text in (
        ("taken_apart", "taken_apart_count", "Archives taken apart, in the store's whole life."),
        ("taken_apart_bytes", "taken_apart_bytes", "Their sizes."),
        ("work_seconds", "worked_s", "Time that this took."),
        ("rebuilds", "rebuilds_count", "Archives that were made again to be read."),
        ("rebuilds_failed", "rebuilds_failed_count", "Those that could not be."),
        ("rebuilt_bytes", "rebuilt_bytes", "Bytes that were made again."),
        ("thawed", "thawed_count", "Archives that were stored plain again."),
        ("reads", "reads_count", "Uses of archives that are taken apart."),
        ("cache_hits", "cache_hits_count", "Reads that the cache could answer."),
    ):
        yield CounterMetricFamily(f"cafs_archives_{name}", text, archives[key])
    # It may sink: the first archive of its kind takes more than it saves.
    yield _gauge(
        "cafs_archives_gained_bytes",
        "Stored bytes that archives taken apart save, as they were counted then.",
        archives["gained_bytes"],
    )
    left = CounterMetricFamily(
        "cafs_archives_left", "Archives that stay as they are, by the reason.", labels=["reason"]
    )
    for reason, count in archives["left"].items():
        left.add_metric([reason], count)
    yield left
