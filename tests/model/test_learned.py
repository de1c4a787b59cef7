"""Learn queries that serve rows which come later: whom they rank, at which rank, and what the codes make of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vqdistill.config import IvfPqConfig
from vqdistill.data.relevance import Relevance
from vqdistill.distill.terms import QueryTerms
from vqdistill.kernels import additive as kernels
from vqdistill.kernels.ranking import NOT_RANKED
from vqdistill.model import learned as module
from vqdistill.model.codebooks import train_additive_start, train_query_coarse
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.learned import LearnQueries, TermFinder, rank_weights
from vqdistill.types import F32Rows, Metric

D = 6


def unit(seed: int, n: int, d: int = D) -> F32Rows:
    x = np.random.default_rng(seed).standard_normal((n, d))
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32)


def taught(queries: F32Rows, x: F32Rows, depth: int) -> Relevance:
    """What an exact teacher says of rows."""
    scores = queries @ x.T
    best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return Relevance.from_lists(list(best), list(np.take_along_axis(scores, best, axis=1)))


def test_scores_of_a_query_end_in_the_lowest_float() -> None:
    learned = LearnQueries.ranking(unit(0, 3), np.array([0, 2, 2, 5]), np.array([3, 1, 9, 8, 7], np.float32), True)
    lowest = np.finfo(np.float32).min
    assert learned.scores.tolist() == [[3, 1, lowest], [lowest] * 3, [9, 8, 7]]


def test_rows_of_the_teacher_get_the_terms_that_it_gave(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is ranked already stands where it stood, but for the last one, which a score must beat."""
    monkeypatch.setattr(module, "_FEWEST_LISTS", 4)
    x, queries = (np.random.default_rng(n).integers(-999, 999, (n, D)).astype(np.float32) for n in (60, 9))
    depth = 20
    relevance = taught(queries, x, depth)
    finder = TermFinder(
        LearnQueries.ranking(queries, relevance.offsets, relevance.scores, True), np.ascontiguousarray(x[:4]), None
    )
    found = finder.find(x, np.arange(len(x), dtype=np.int32) % 4)
    but_last = taught(queries, x, depth - 1)
    known = QueryTerms.from_relevance(queries, but_last)
    wanted = known.take(np.arange(len(x)))
    assert np.array_equal(found.queries, wanted.queries)
    for row in range(len(x)):
        pairs = [
            dict(zip(terms.lists[row][real := terms.lists[row] >= 0].tolist(), terms.weights[row][real], strict=True))
            for terms in (found, wanted)
        ]
        assert pairs[0] == pytest.approx(pairs[1])


def test_a_query_is_tried_in_its_best_lists_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FEWEST_LISTS", 1)
    coarse = np.eye(4, D, dtype=np.float32)
    queries = np.asarray(coarse[[2, 0]] + 0.1 * unit(0, 2), np.float32)
    learned = LearnQueries(queries, np.full((2, 3), np.finfo(np.float32).min, np.float32), True)
    found = TermFinder(learned, coarse, None).find(unit(1, 4), np.arange(4, dtype=np.int32))
    assert found.lists[:, 0].tolist() == [1, -1, 0, -1]


def test_weights_fall_with_the_rank() -> None:
    weights = rank_weights(100, np.array([0, 10, NOT_RANKED]))
    assert weights.dtype == np.float32
    assert weights[:2].tolist() == pytest.approx([1.0, 0.5]) and 0 < weights[2] < 1e-6


def test_later_rows_are_coded_for_their_queries(sample: F32Rows) -> None:
    """Their scores, for the queries that rank them, are kept better than without; lists follow the queries too."""
    old, new = sample[:1000], sample[1000:]
    queries = np.asarray(sample[::5] + 0.02 * unit(5, len(sample[::5]), sample.shape[1]), np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    relevance = taught(queries, old, 100)
    terms = QueryTerms.from_relevance(queries, relevance)
    coarse = train_query_coarse(old, terms.take(np.arange(len(old))), 8, 0)
    shape = IvfPqConfig(nlist=8, m=16, codes="additive")
    model = train_additive_start(old, coarse, shape, Metric.COSINE, residual=True)
    model = replace(model, learned=LearnQueries.ranking(queries, relevance.offsets, relevance.scores, True))
    served, plain = model.encode_new(new), model.encode(new)
    ranked = model.learned.scores[:, -1] < (queries @ new.T).T
    errors = [_score_errors(model, codes.lists, codes.codes, new, queries)[ranked] for codes in (served, plain)]
    assert (errors[0] ** 2).mean() < 0.9 * (errors[1] ** 2).mean()
    assert (served.lists != plain.lists).any()
    only_lists = replace(model, learned=replace(model.learned, codes=False)).encode_new(new)
    assert np.array_equal(only_lists.lists, served.lists)
    assert np.array_equal(only_lists.codes, model.quantize(new, served.lists))


def _score_errors(model: IvfPqModel, lists: np.ndarray, codes: np.ndarray, x: F32Rows, queries: F32Rows) -> np.ndarray:
    left = x - model.coarse[lists] - kernels.decode(codes, model.doc_codewords)
    return np.asarray(left @ queries.T)
