"""What Prometheus learns: requests, the work of searches, and what the served indexes are."""

from __future__ import annotations

import math
import os
import resource
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from vqdistill.index.reader import IndexReader
from vqdistill.types import Hits

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable that makes several processes count together, read when prometheus_client is loaded."""
CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_ROWS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Metrics:
    """The metrics of one process, or of all workers of a server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Histogram(
            "vqdistill_request_seconds",
            "Time from the head of a request to the last byte of its response.",
            ("endpoint", "status"),
            registry=registry,
            buckets=_SECONDS,
        )
        self.refused = Counter(
            "vqdistill_refused", "Requests refused, by reason.", ("reason",), registry=registry
        )  # reasons: full, stopping, key
        self._queries = Counter("vqdistill_queries", "Queries answered.", ("index",), registry=registry)
        names = {"lists_probed": "lists", "codes_scanned": "codes", "dense_rows": "rows", "dense_pages": "pages"}
        self._work = {
            name: Counter(f"vqdistill_{short}", f"{name} of all queries.", ("index",), registry=registry)
            for name, short in names.items()
        }
        self._reads = Histogram(
            "vqdistill_rows_per_query",
            "Rows read from disk a query, the mean of each request.",
            ("index",),
            registry=registry,
            buckets=_ROWS,
        )
        self._degraded = Counter(
            "vqdistill_degraded", "Requests answered without shards that were lost.", ("index",), registry=registry
        )
        self._swaps = Counter(
            "vqdistill_refreshes",
            "Looks for a new generation that found one or failed.",
            ("index", "outcome"),
            registry=registry,
        )
        facts: tuple[tuple[str, str, Literal["livesum", "livemax", "livemin"]], ...] = (
            ("index_resident_bytes", "Bytes that the index holds in memory, in all workers.", "livesum"),
            ("index_rows", "Rows that a search may find.", "livemax"),
            ("index_generation", "Generation that is served; of several workers, the oldest.", "livemin"),
            ("certificate_stale", "Whether rows changed since the certificate was measured.", "livemax"),
        )
        self._facts = {
            name: Gauge(f"vqdistill_{name}", text, ("index",), registry=registry, multiprocess_mode=mode)
            for name, text, mode in facts
        }
        self._rungs = {
            bound: Gauge(
                f"vqdistill_certificate_{bound}",
                f"{text} of the certified search for a target recall.",
                ("index", "target"),
                registry=registry,
                multiprocess_mode="livemin",
            )
            for bound, text in (("recall", "Recall"), ("low", "Lower bound of the recall"))
        }
        self._targets: dict[str, set[str]] = {}
        self._memory = Gauge(
            "vqdistill_process_resident_bytes",
            "Resident memory of all workers.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.busy = Gauge(
            "vqdistill_requests_in_hand",
            "Requests that hold a place, waiting or at work.",
            registry=registry,
            multiprocess_mode="livesum",
        )

        # Finding the child of a metric takes longer than counting.
        self._of = lru_cache(256)(_child)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request and its time."""
        self._of(self._requests, endpoint, str(status)).observe(seconds)

    def searched(self, index: str, hits: Hits) -> None:
        """Count the work of a search."""
        count, stats = len(hits.scores), hits.stats
        self._of(self._queries, index).inc(count)
        for name, counter in self._work.items():
            self._of(counter, index).inc(stats[name])
        if hits.searched < 1:
            self._of(self._degraded, index).inc()
        if count:
            self._of(self._reads, index).observe(stats["dense_rows"] / count)

    def refreshed(self, index: str, outcome: str) -> None:
        """Count a new generation ("swapped") or one that could not be opened ("failed")."""
        self._swaps.labels(index, outcome).inc()

    def describe(self, index: str, reader: IndexReader) -> None:
        """Say what an index is now."""
        manifest, certificate = reader.manifest, reader.manifest.certificate
        facts = {
            "index_resident_bytes": reader.resident_bytes,
            "index_rows": manifest.live,
            "index_generation": manifest.generation,
            "certificate_stale": math.nan if certificate is None else float(certificate.stale),
        }
        for name, value in facts.items():
            self._facts[name].labels(index).set(value)
        rungs = {} if certificate is None else {f"{rung.target:g}": rung for rung in certificate.rungs}
        targets = self._targets[index] = self._targets.get(index, set()) | rungs.keys()
        for target in targets:
            for bound, gauge in self._rungs.items():
                # Where rows were deleted until nothing is certified any more, no old promise may stand.
                gauge.labels(index, target).set(getattr(rungs[target], bound) if target in rungs else math.nan)

    def measure_process(self) -> None:
        """Say how much memory this process has."""
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        self._memory.set(pages * resource.getpagesize())

    def render(self) -> bytes:
        """Return the metrics in Prometheus' text format; those of all workers, if there are several."""
        directory = os.environ.get(DIRECTORY)
        if directory is None:
            return generate_latest(self._registry)
        _forget_dead(Path(directory))
        together = CollectorRegistry()
        MultiProcessCollector(together, directory)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _child(metric: Any, *labels: str) -> Any:
    return metric.labels(*labels)


def _forget_dead(directory: Path) -> None:
    """Drop the gauges of workers that ended; what they counted stays."""
    for pid in {path.stem.rpartition("_")[2] for path in directory.glob("gauge_live*.db")}:
        if not Path(f"/proc/{pid}").exists():
            mark_process_dead(int(pid), str(directory))  # type: ignore[no-untyped-call]
