"""Where rows are lost: every fate against brute force over what the engine says it did."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.searching import CALIBRATED, D, N, Q, embeddings, exact_scores, prepared, write_index
from vqdistill.errors import InvalidInput
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.trace import FOUND, PRECISION, QUANTIZATION, ROUTING, STOPPING, lists_of_rows
from vqdistill.searcher import Searcher

K = 10
SETTINGS: list[dict[str, Any]] = [{}, {"nprobe": 2, "refine": 15}, {"coverage": 0.5, "confidence": 0.5}, {"refine": 0}]


@pytest.fixture(scope="module", params=["ip", "cosine", "l2"])
def index(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Searcher, Any]:
    """A searcher with coarse stored rows, and the true neighbours of the queries."""
    path = tmp_path_factory.mktemp("trace") / "a.vqd"
    search = replace(CALIBRATED, error=1.0, confidence=0.9)
    searcher = write_index(path, request.param, search=search, dense="i8", ids=[f"d{i}" for i in range(N)])
    scores = exact_scores(request.param, embeddings(0)[1], embeddings(0)[0])
    return searcher, np.argsort(-scores, axis=1, kind="stable")[:, :K]


@pytest.mark.parametrize("setting", SETTINGS)
def test_every_fate_is_what_the_search_did(index: tuple[Searcher, Any], setting: dict[str, Any]) -> None:
    searcher, truth = index
    queries = embeddings(0)[1]
    trace = searcher.trace(queries, truth, K, **setting)
    hits = searcher.search(queries, K, **setting)
    assert np.array_equal(trace.visited, hits.query_stats["lists_probed"])
    assert np.array_equal(trace.read, hits.query_stats["dense_rows"])
    sizes = np.diff(searcher.reader.sets[0].list_offsets)
    lists = lists_of_rows(searcher.reader)
    for i in range(Q):
        # The lists that a query would visit first hold as many rows as it scanned.
        every = searcher.trace(queries[i], np.arange(N)[None], K, **setting)
        visited = np.unique(lists[every.list_ranks[0] < trace.visited[i]])
        assert sizes[visited].sum() == hits.query_stats["codes_scanned"][i]
        found = np.isin(truth[i], hits.rows[i])
        assert np.array_equal(trace.fates[i] == FOUND, found)
        assert np.array_equal(trace.fates[i] == ROUTING, ~found & ~np.isin(lists[truth[i]], visited))
        lost = trace.fates[i]
        if setting.get("refine") == 0:
            assert not np.isin(lost, (STOPPING, PRECISION)).any()
        for row in truth[i][lost == PRECISION]:  # read, but as many rows score at least as well as they are stored
            query = prepared(searcher.reader.manifest.metric.value, queries[i : i + 1])
            positions = np.arange(N)
            stored = searcher.reader.dense_rows(positions)
            # Stored unit rows are no longer quite of unit norm, and are scored as they are.
            metric = searcher.reader.manifest.metric.value.replace("cosine", "ip")
            scores = exact_scores(metric, query, stored)[0]
            position = np.flatnonzero(searcher.reader.rows_of(positions) == row)[0]
            assert (scores >= scores[position] - 1e-4).sum() >= K
    assert set(np.unique(trace.fates)) <= {FOUND, ROUTING, QUANTIZATION, STOPPING, PRECISION}


def test_padding_has_no_fate(index: tuple[Searcher, Any]) -> None:
    searcher, truth = index
    padded = np.concatenate([truth, np.full((Q, 2), -1)], axis=1)
    trace = searcher.trace(embeddings(0)[1], padded, K, lists=lists_of_rows(searcher.reader))
    assert (trace.fates[:, K:] == -1).all() and (trace.fates[:, :K] >= 0).all()


def test_one_query_is_explained_by_ids(index: tuple[Searcher, Any]) -> None:
    searcher, truth = index
    query = embeddings(0)[1][0]
    names = [f"d{row}" for row in truth[0]]
    fates = searcher.explain(query, names, nprobe=1, refine=K)
    found = set(searcher.search(query, K, nprobe=1, refine=K).ids[0].tolist())
    assert [fate.id for fate in fates] == names
    assert [fate.fate == "found" for fate in fates] == [name in found for name in names]
    assert all((fate.list_rank > 1) == (fate.fate == "routing") for fate in fates)
    assert {(fate.lists_visited, fate.rows_read) for fate in fates} == {(1, K)}
    for ids, message in ((["nobody"], "'nobody', which it does not have"), ([3], "expected_ids must be a list of ids")):
        with pytest.raises(InvalidInput, match=message):
            searcher.explain(query, ids)
    with pytest.raises(InvalidInput, match="query must be one, got 2"):
        searcher.explain(np.ones((2, D)), names)


def test_without_dense_rows_codes_decide(tmp_path: Path) -> None:
    searcher = write_index(tmp_path / "a.vqd", search=SearchPolicy(nprobe=12, refine=0), dense="none")
    truth = np.argsort(-exact_scores("ip", embeddings(0)[1], embeddings(0)[0]), axis=1)[:, :K]
    trace = searcher.trace(embeddings(0)[1], truth, K)
    assert set(np.unique(trace.fates)) == {FOUND, QUANTIZATION}
    assert (trace.gaps >= 0).all() and np.isfinite(trace.gaps).all()
