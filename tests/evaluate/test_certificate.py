"""Certificates are tuned on some queries, measured once on others, and can be measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.searching import CALIBRATED, NLIST, PLAIN, N, embeddings, exact_scores, write_index
from vqdistill.errors import InvalidInput
from vqdistill.evaluate.certificate import Provenance, certify, check_certificate
from vqdistill.evaluate.ladder import TARGETS, QuerySet, Setting, attempt, probings, tune, verifications
from vqdistill.index.policy import SearchPolicy
from vqdistill.index.reader import IndexReader
from vqdistill.searcher import Searcher

PROVEN = Provenance(real_queries=True)
LADDER = ((0.8, 5.0), (0.9, 3.0), (0.95, 1.5), (0.99, 0.5))
POLICIES = {"calibrated": replace(CALIBRATED, rungs=LADDER, temperature=20.0), "plain": PLAIN}


def asked(seed: int, count: int) -> QuerySet:
    rng, rows = np.random.default_rng(seed), embeddings(0)[0]
    queries = rows[rng.integers(0, N, count)] + rng.standard_normal((count, rows.shape[1])).astype(np.float32)
    best = np.argsort(-exact_scores("ip", queries, rows), axis=1, kind="stable")[:, :20]
    return QuerySet(queries.astype(np.float32), best)


TUNING, RESERVED = asked(1, 150), asked(2, 120)


@pytest.fixture(scope="module", params=POLICIES)
def searcher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Searcher:
    return write_index(tmp_path_factory.mktemp("ladder") / "a.vqd", search=POLICIES[request.param], additive=True)


def test_a_rung_is_the_cheapest_setting_that_surely_reaches_its_target(searcher: Searcher) -> None:
    manifest = searcher.reader.manifest
    grid = [
        attempt(searcher, TUNING, Setting(**lists, **rows), 10)
        for lists in probings(manifest)
        for rows in verifications(manifest.search, 10, N)
    ]
    found = tune(searcher, TUNING, 10, (0.8, 0.9, 0.97))
    assert [target for target, _ in found] == [0.8, 0.9, 0.97]
    for target, trial in found:
        assert trial.interval[0] >= target
        best = min(other.work["cost"] for other in grid if other.interval[0] >= target)
        assert trial.work["cost"] == pytest.approx(best, rel=0.02)  # the border is not quite monotonous


def test_what_no_setting_reaches_becomes_the_most_there_is(tmp_path: Path) -> None:
    index = write_index(tmp_path / "a.vqd", search=SearchPolicy(nprobe=3, refine=0), dense="none")
    found = tune(index, TUNING, 10)
    reached, most = [target for target, _ in found[:-1]], found[-1]
    assert reached == [target for target in TARGETS if target <= most[1].interval[0]]
    assert most[1].setting == Setting(nprobe=NLIST, refine=0)
    assert most[0] <= most[1].interval[0] < most[0] + 0.001


def test_a_certificate_says_what_the_reserved_queries_found(searcher: Searcher) -> None:
    certificate, timings = certify(searcher.reader, TUNING, RESERVED, 10, PROVEN, seed=3)
    assert certificate == certify(searcher.reader, TUNING, RESERVED, 10, PROVEN, threads=2, seed=3)[0]
    assert (certificate.k, certificate.queries, certificate.tuned_on) == (10, 120, 150)
    assert [timing["target"] for timing in timings] == [rung.target for rung in certificate.rungs]
    assert all(0 < timing["p50_ms"] <= timing["p99_ms"] for timing in timings)
    for rung in certificate.rungs:
        hits = searcher.search(RESERVED.queries, 10, **rung.options)
        truth = RESERVED.neighbors[:, :10]
        found = np.mean([len(np.intersect1d(f, t)) for f, t in zip(hits.rows, truth, strict=True)]) / 10
        assert rung.recall == pytest.approx(found, abs=1e-6)
        assert rung.low < rung.recall <= rung.high
        assert rung.codes == pytest.approx(hits.stats["codes_scanned"] / 120, abs=1e-3)
        assert rung.rows == pytest.approx(hits.stats["dense_rows"] / 120, abs=1e-3)
        assert 0 < rung.pages <= 2 * rung.rows


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the certified index a.vqd, and set.h5 with other test queries."""
    place = tmp_path_factory.mktemp("certified")

    def proof(reader: IndexReader) -> Any:
        return reader.manifest.search, certify(reader, TUNING, RESERVED, 10, PROVEN)[0]

    write_index(place / "a.vqd", search=PLAIN, additive=True, certify=proof)
    write_index(place / "b.vqd", search=PLAIN)
    test = asked(3, 90)
    with h5py.File(place / "set.h5", "w") as file:
        file["train"], file["test"], file["neighbors"] = embeddings(0)[0], test.queries, test.neighbors
    return place


def test_a_stored_certificate_is_measured_again(certified: Path) -> None:
    checked = check_certificate(certified / "a.vqd", certified / "set.h5")
    assert (checked["k"], checked["queries"], checked["certified_on"]) == (10, 90, 120)
    assert checked["of"] == len(checked["rungs"])
    assert len({rung["test_recall"] for rung in checked["rungs"]}) >= 4
    for rung in checked["rungs"]:
        assert rung["test_low"] <= rung["test_recall"] <= rung["test_high"]
        assert rung["contained"] == (rung["low"] <= rung["test_recall"] <= rung["high"])
        assert rung["holds"] or not rung["contained"]
    assert checked["contained"] == sum(rung["contained"] for rung in checked["rungs"])
    assert checked["hold"] >= checked["of"] - 1
    with pytest.raises(InvalidInput, match="must have a certificate to check, got none"):
        check_certificate(certified / "b.vqd", certified / "set.h5")


def test_a_search_by_recall_takes_the_rung(certified: Path) -> None:
    index = Searcher(IndexReader.open(certified / "a.vqd"))
    rung = index.rung(0.9)
    by_rung, by_recall = index.search(RESERVED.queries, **rung.options), index.search(RESERVED.queries, recall=0.9)
    assert np.array_equal(by_rung.ids, by_recall.ids) and np.array_equal(by_rung.work[:, :4], by_recall.work[:, :4])
    fewer = index.search(RESERVED.queries, 3, recall=0.9)
    assert np.array_equal(fewer.ids, by_recall.ids[:, :3]) and np.array_equal(fewer.scores, by_recall.scores[:, :3])
    for options, message in (
        ({"recall": 0.9, "nprobe": 3}, "recall must be None where nprobe say how to search, got 0.9"),
        ({"recall": 0.9, "allow": np.ones(N, np.bool_)}, "recall must be None with allow"),
        ({"recall": 1.5}, "recall must be a number between 0 and 1, got 1.5"),
        ({"recall": 0.9999}, "recall must be at most 0.9"),
        ({"recall": 0.9, "k": 11}, "k must be at most 10 with recall"),
    ):
        with pytest.raises(InvalidInput, match=message):
            index.search(RESERVED.queries, **options)
    with pytest.raises(InvalidInput, match="recall needs an index with a certificate, got 0.9"):
        Searcher(IndexReader.open(certified / "b.vqd")).search(RESERVED.queries, recall=0.9)
