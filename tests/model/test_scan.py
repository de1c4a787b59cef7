"""What the engine scores by code is what the model defines: the score of the decoded row, one list term and one sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vqdistill.config import KSUB
from vqdistill.kernels import pack_codes
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.scan import make_engine
from vqdistill.types import Metric

N, D, NLIST, M = 70, 10, 4, 4


def make(metric: Metric, codes: str, residual: bool) -> IvfPqModel:
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    additive = codes == "additive"
    words = normal(M, KSUB, D if additive else 3)
    return IvfPqModel(
        metric=metric,
        residual=residual,
        mean=normal(D),
        coarse=normal(NLIST, D),
        router=normal(NLIST, D),
        rotation=np.empty((0, D), np.float32) if additive else np.linalg.qr(normal(M * 3, D))[0],
        codewords=words,
        doc_codewords=words,
    )


@pytest.mark.parametrize(
    ("metric", "codes", "residual"),
    [
        (Metric.IP, "pq", False),
        (Metric.IP, "pq", True),
        (Metric.COSINE, "pq", True),
        (Metric.IP, "additive", False),
        (Metric.IP, "additive", True),
        (Metric.L2, "pq", False),
    ],
)
def test_scores_are_those_of_decoded_rows(metric: Metric, codes: str, residual: bool) -> None:
    model = make(metric, codes, residual)
    rng = np.random.default_rng(1)
    x, queries = rng.standard_normal((N, D), np.float32), rng.standard_normal((3, D), np.float32)
    coded = model.encode(x)
    order = np.argsort(coded.lists, kind="stable")
    offsets = np.searchsorted(coded.lists[order], np.arange(NLIST + 1)).astype(np.int64)
    engine = make_engine(model, offsets, pack_codes(np.ascontiguousarray(coded.codes[order])))
    scores, positions, _ = engine.search(queries, k=N, nprobe=NLIST, refine=0, threads=1)
    got = np.empty((3, N))
    np.put_along_axis(got, order[positions], scores, axis=1)
    decoded = model.decode(coded)
    if metric is Metric.L2:
        # The decoded row is the projection of what the codes stand for, from which the query is farther by a constant.
        z = (queries - model.mean) @ model.rotation.T
        words = model.codewords[np.arange(M), coded.codes].reshape(N, -1)
        want = -((z[:, None] - words) ** 2).sum(axis=2)
    else:
        want = queries @ decoded.T
    np.testing.assert_allclose(got, want, atol=1e-3)
