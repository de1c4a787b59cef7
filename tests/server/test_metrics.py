"""Metrics count the work that hits tell of, say what is served, and do not grow with what clients invent."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import vqdistill
from tests.searching import N, write_index
from tests.server.support import Local

PATH = "/v1/indexes/{name}/search"


def samples(local: Local) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return every sample by name and labels."""
    text = local.ask("GET", "/metrics").text
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def value(local: Local, name: str, **labels: str) -> float:
    return samples(local)[f"vqdistill_{name}", frozenset(labels.items())]


@pytest.fixture
def fresh(shelf: dict[str, Path]) -> Any:
    server = Local(shelf)
    yield server
    server.service.close()


def test_work_is_that_of_the_hits(fresh: Local, queries: Any) -> None:
    searcher, message = fresh.service.indexes["rows"], {"queries": queries.tolist()}
    once = searcher.search(queries).stats
    for _ in range(2):
        assert fresh.search("rows", message).status_code == 200
    assert fresh.search("rows", message | {"k": -1}).status_code == 422
    assert value(fresh, "queries_total", index="rows") == 2 * len(queries)
    for name, key in (("lists", "lists_probed"), ("codes", "codes_scanned"), ("rows", "dense_rows")):
        assert value(fresh, f"{name}_total", index="rows") == 2 * once[key]
    assert value(fresh, "rows_per_query_sum", index="rows") == pytest.approx(2 * once["dense_rows"] / len(queries))
    assert value(fresh, "request_seconds_count", endpoint=PATH, status="200") == 2
    assert value(fresh, "request_seconds_count", endpoint=PATH, status="422") == 1
    assert 0 < value(fresh, "request_seconds_sum", endpoint=PATH, status="200") < 60


def test_what_is_served_is_told(fresh: Local) -> None:
    reader = fresh.service.indexes["rows"].reader
    assert value(fresh, "index_resident_bytes", index="rows") == reader.resident_bytes
    assert (value(fresh, "index_rows", index="rows"), value(fresh, "index_generation", index="rows")) == (N, 1)
    assert value(fresh, "certificate_stale", index="rows") == 0
    assert math.isnan(value(fresh, "certificate_stale", index="bare"))
    assert reader.manifest.certificate is not None
    for rung in reader.manifest.certificate.rungs:
        assert value(fresh, "certificate_recall", index="rows", target=f"{rung.target:g}") == rung.recall
        assert value(fresh, "certificate_low", index="rows", target=f"{rung.target:g}") == rung.low
    assert value(fresh, "process_resident_bytes") > 1 << 20


def test_no_promise_outlives_its_certificate(tmp_path: Path, shelf: dict[str, Path]) -> None:
    path = Path(shutil.copytree(shelf["rows"], tmp_path / "rows.vqd"))
    server = Local({"rows": path})
    rung = server.service.indexes["rows"].reader.manifest.certificate.rungs[0]  # type: ignore[union-attr]
    vqdistill.open(path).delete(range(1))
    assert server.ask("POST", "/v1/indexes/rows/refresh").status_code == 200
    assert value(server, "certificate_stale", index="rows") == 1
    assert value(server, "certificate_low", index="rows", target=f"{rung.target:g}") == rung.low
    writer = vqdistill.open(path)
    writer.delete(range(N - 5))  # which leaves fewer rows than the certificate counts neighbours
    writer.compact()
    assert server.ask("POST", "/v1/indexes/rows/refresh").status_code == 200
    assert math.isnan(value(server, "certificate_stale", index="rows"))
    assert math.isnan(value(server, "certificate_low", index="rows", target=f"{rung.target:g}"))
    server.service.close()


def test_invented_paths_are_one_series(fresh: Local) -> None:
    for path in ("/a", "/b", "/v2/indexes", "/v1/indexes/rows/delete"):
        assert fresh.ask("GET", path).status_code == 404
    assert value(fresh, "request_seconds_count", endpoint="other", status="404") == 4
    endpoints = {dict(labels).get("endpoint") for _, labels in samples(fresh)}
    assert endpoints <= {None, "other", "/metrics"}


def test_two_servers_of_a_process_count_apart(tmp_path: Path, queries: Any) -> None:
    write_index(tmp_path / "a.vqd")
    one, two = (Local({"a": tmp_path / "a.vqd"}) for _ in range(2))
    one.search("a", {"queries": queries[:3].tolist()})
    assert one.metric("vqdistill_queries_total", index="a") == 3
    assert two.metric("vqdistill_queries_total", index="a") == 0
    for server in (one, two):
        server.service.close()
