"""Spaces keep every score, and weigh errors as their metric says; models move between them unchanged."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from vqdistill.config import IvfPqConfig
from vqdistill.errors import InvalidInput
from vqdistill.model.codebooks import train_additive_start, train_coarse
from vqdistill.model.space import Space, isotropy, sphering
from vqdistill.types import F32Rows, Metric

N, D = 400, 12


def rows(seed: int, n: int = N) -> F32Rows:
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((n, D)) * np.geomspace(1, 10, D) + 3).astype(np.float32)


@pytest.mark.parametrize("space", [sphering(rows(1), 0.4), isotropy(rows(0))], ids=["sphering", "isotropy"])
def test_scores_stay(space: Space) -> None:
    x, q = rows(0), rows(1)
    np.testing.assert_allclose(space.queries(q) @ space.docs(x).T, q @ x.T, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(space.forward @ space.inverse, np.eye(D), atol=1e-5)
    assert np.array_equal(space.forward, space.forward.T)


def test_the_metric_of_sphering() -> None:
    """Squared lengths are (1 - trust) |e|^2 + trust E (q e)^2, on one scale for any queries."""
    q, e = rows(1).astype(np.float64), rows(2).astype(np.float64)
    trust = 0.4 * N / (N + D)
    moment = q.T @ q * D / (q**2).sum()
    wanted = (1 - trust) * (e**2).sum(axis=1) + trust * np.einsum("nd,de,ne->n", e, moment, e)
    got = (sphering(rows(1), 0.4).docs(e.astype(np.float32)) ** 2).sum(axis=1)
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    np.testing.assert_allclose(sphering(5 * rows(1), 0.4).forward, sphering(rows(1), 0.4).forward, atol=1e-5)


def test_few_queries_count_for_little() -> None:
    one = sphering(rows(1, 1), 0.5)
    assert np.abs(one.forward - np.eye(D)).max() < np.abs(sphering(rows(1), 0.5).forward - np.eye(D)).max()
    np.testing.assert_allclose(sphering(rows(1, 0), 0.5).forward, np.eye(D), atol=1e-6)
    np.testing.assert_allclose(sphering(np.zeros((50, D), np.float32), 0.5).forward @ np.ones(D), 1, atol=1e-6)


def test_isotropic_documents_vary_alike() -> None:
    x = isotropy(rows(0)).docs(rows(0))
    variances = np.linalg.eigvalsh(np.cov(x.T))
    assert variances[-1] / variances[0] < 1.6  # but for the ridge; it is 100 in the rows' own coordinates


def test_a_space_out_of_its_forward_matrix() -> None:
    space = sphering(rows(1), 0.4)
    again = Space.of_forward(space.forward)
    assert again is not None and np.array_equal(again.inverse, space.inverse)
    assert Space.of_forward(np.eye(D, dtype=np.float32)) is None
    for bad in (np.zeros((D, D), np.float32), np.triu(np.ones((D, D), np.float32)), -np.eye(D, dtype=np.float32)):
        with pytest.raises(InvalidInput, match="symmetric and positive definite"):
            Space.of_forward(bad)


@pytest.mark.parametrize("residual", [False, True])
def test_a_model_encodes_rows_as_the_model_of_their_space_does(residual: bool) -> None:
    x, q = rows(0), rows(1)
    space = sphering(q, 0.4)
    docs = space.docs(x)
    inner = train_additive_start(
        docs, train_coarse(docs, 4, 0), IvfPqConfig(nlist=4, m=4), Metric.IP, residual=residual
    )
    outer = inner.in_rows_space(space)
    codes, wanted = outer.encode(x), inner.encode(docs)
    assert (codes.lists == wanted.lists).mean() > 0.99 and (codes.codes == wanted.codes).mean() > 0.99
    np.testing.assert_allclose(space.docs(outer.decode(wanted)), inner.decode(wanted), atol=1e-3)
    for name in ("router", "coarse", "codewords"):
        table = getattr(inner, name).reshape(-1, D)
        moved = getattr(outer, name).reshape(-1, D)
        np.testing.assert_allclose(q @ moved.T, space.queries(q) @ table.T, rtol=1e-4, atol=1e-2)
    assert inner.in_rows_space(None) is inner
    assert np.array_equal(outer.doc_space, space.forward) and np.array_equal(inner.doc_space, np.eye(D))


def test_spaces_that_do_not_fit_a_model() -> None:
    x = rows(0)
    model = train_additive_start(x, train_coarse(x, 4, 0), IvfPqConfig(nlist=4, m=4), Metric.IP, residual=True)
    with pytest.raises(InvalidInput, match="agree in nlist, d, m"):
        replace(model, space=Space(np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)))
