"""Dense similarity of pairs against its definition, whatever the blocks, with padding."""

from __future__ import annotations

import numpy as np
import pytest

from vqdistill.data import pairs
from vqdistill.data.pairs import pair_scores
from vqdistill.data.sources import open_source
from vqdistill.data.teacher import query_rows
from vqdistill.types import Metric

RNG = np.random.default_rng(0)
X, Q = RNG.standard_normal((50, 7)).astype(np.float32), RNG.standard_normal((6, 7)).astype(np.float32)


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("size", [1, 4 * 7 * 3, 1 << 20])
def test_definition(metric: Metric, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairs, "_ROW_BYTES", size)
    monkeypatch.setattr(pairs, "_PAIR_BYTES", size)
    src = open_source(X, metric=metric)
    queries, docs = query_rows(Q, src), RNG.integers(-1, 50, (6, 9))
    seen: list[int] = []
    got = pair_scores(src, queries, docs, seen.append)
    x, q = (rows.astype(np.float64) for rows in (src.take(np.arange(50)), queries))
    want = -((q[:, None] - x) ** 2).sum(axis=2) if metric is Metric.L2 else q @ x.T
    want = np.where(docs >= 0, np.take_along_axis(want, np.maximum(docs, 0), 1), -np.inf)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert sum(seen) == len(np.unique(docs[docs >= 0]))


def test_nothing_but_padding() -> None:
    docs = np.full((6, 2), -1)
    assert np.isneginf(pair_scores(open_source(X), Q, docs)).all()
    assert pair_scores(open_source(X), Q, docs[:, :0]).shape == (6, 0)
