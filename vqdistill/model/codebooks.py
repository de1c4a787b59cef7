"""The undistilled start: coarse k-means, OPQ rotation and 4-bit product quantization, all seeded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB, IvfPqConfig
from vqdistill.kernels import jit
from vqdistill.kernels.threads import matmul_t, one_library_thread
from vqdistill.model.additive import METRIC_ROUNDS, RowTerms, fit_metric, row_metric, train_euclidean
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.kmeans import kmeans, nearest
from vqdistill.model.lists import WARM_ITERATIONS, assign, list_means, train_anchors
from vqdistill.types import F32Rows, Metric

_OPQ_ROWS = 32_768
_OPQ_ROUNDS = 30
_ADDITIVE_ROWS = 40_960
_PQ_ROWS = 65_536
_PQ_ROUNDS = 12


@dataclass(frozen=True)
class Coarse:
    """Lists of a corpus: centroids (nlist, d) float32, the list of each training row (n,) int32, and what rows are
    assigned by if not by the nearest centroid (see `IvfPqModel.anchors`).
    """

    centroids: F32Rows
    lists: npt.NDArray[np.int32]
    anchors: F32Rows | None = None


@one_library_thread()
def train_coarse(x: F32Rows, nlist: int, seed: int, start: F32Rows | None = None) -> Coarse:
    """Cluster training rows (n, d) into `nlist` lists, a little from centroids (nlist, d) if there are any."""
    iterations = 10 if start is None else WARM_ITERATIONS
    centroids = kmeans(x, nlist, seed=seed, iterations=iterations, start=start)
    return Coarse(centroids, nearest(x, centroids))


@one_library_thread()
def train_query_coarse(x: F32Rows, terms: RowTerms, nlist: int, seed: int, start: F32Rows | None = None) -> Coarse:
    """Cluster training rows (n, d) into `nlist` lists, each drawn to the rows that its queries rank.

    Centroids are the means of the lists, so that residuals, and scores of lists, are what they are for other lists.
    """
    mean = corpus_mean(x)
    anchors = train_anchors(x, mean, terms, nlist, seed, start)
    lists = assign(x, mean, terms, anchors)
    return Coarse(list_means(x, lists, nlist, mean), lists, anchors)


@one_library_thread()
def train_start(
    x: F32Rows,
    coarse: Coarse,
    config: IvfPqConfig,
    metric: Metric,
    *,
    residual: bool,
    most_rows: int | None = None,
) -> IvfPqModel:
    """Train rotation and codewords to reconstruct the rows, or their residuals.

    Parameters
    ----------
    x : (n, d) float32 training rows, prepared
    coarse : their lists
    most_rows : rows that are looked at; None = as many as help

    Returns
    -------
    IvfPqModel
        Undistilled product codes: `router` equals `coarse`, `codewords` equals `doc_codewords`.

    References
    ----------
    Ge, He, Ke, Sun: Optimized product quantization, CVPR 2013, section 3.2 (the non-parametric solution).
    """
    rng = np.random.default_rng([config.seed, 1])
    mean = corpus_mean(x)
    rows = _sample(len(x), _PQ_ROWS, most_rows, rng)
    y = _targets(x, rows, coarse, mean, residual)
    rotation, codewords = _train_opq(y[:_OPQ_ROWS], config.m, rng)
    codewords = _lloyd(matmul_t(y, rotation), codewords, _PQ_ROUNDS)
    centroids = coarse.centroids
    return IvfPqModel(
        metric=metric,
        residual=residual,
        mean=mean,
        coarse=centroids,
        router=centroids,
        rotation=rotation,
        codewords=codewords,
        doc_codewords=codewords,
        anchors=coarse.anchors,
    )


@one_library_thread()
def train_additive_start(
    x: F32Rows,
    coarse: Coarse,
    config: IvfPqConfig,
    metric: Metric,
    *,
    residual: bool,
    most_rows: int | None = None,
) -> IvfPqModel:
    """Train additive codebooks to reconstruct the rows, or their residuals; parameters as for `train_start`.

    Returns
    -------
    IvfPqModel
        Undistilled: `router` equals `coarse`, `codewords` equals `doc_codewords`.
    """
    rng = np.random.default_rng([config.seed, 3])
    mean = corpus_mean(x)
    rows = _sample(len(x), _ADDITIVE_ROWS, most_rows, rng)
    y = _targets(x, rows, coarse, mean, residual)
    codewords = train_euclidean(y, config.m, rng)
    start = IvfPqModel(
        metric=metric,
        residual=residual,
        mean=mean,
        coarse=coarse.centroids,
        router=coarse.centroids,
        rotation=np.empty((0, x.shape[1]), np.float32),
        codewords=codewords,
        doc_codewords=codewords,
        anchors=coarse.anchors,
    )
    return serve_rows(start, x, coarse, None, config.seed, most_rows)


@one_library_thread()
def serve_rows(
    model: IvfPqModel,
    x: F32Rows,
    coarse: Coarse,
    terms: RowTerms | None,
    seed: int,
    most_rows: int | None = None,
    rounds: int = METRIC_ROUNDS,
) -> IvfPqModel:
    """Fit additive codebooks to the errors that matter for each row: along itself, and to the queries that rank it.

    Parameters
    ----------
    model : additive codes to start from
    x : (n, d) float32 training rows, prepared
    coarse : their lists
    terms : their queries; None = the row's own direction alone
    most_rows : rows that are looked at; None = as many as help
    rounds : of `fit_metric`
    """
    rows = _sample(len(x), _ADDITIVE_ROWS, most_rows, np.random.default_rng([seed, 4]))
    y = _targets(x, rows, coarse, model.mean, model.residual)
    metric = row_metric(x[rows], model.mean, None if terms is None else terms.take(rows))
    codewords = fit_metric(y, metric, model.doc_codewords, rounds)
    return replace(model, codewords=codewords, doc_codewords=codewords)


def _sample(n: int, rows: int, most: int | None, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted numbers of `rows` of n rows at random, `most` of them at most."""
    return np.sort(rng.permutation(n)[: rows if most is None else min(rows, most)])


def _targets(x: F32Rows, rows: npt.NDArray[np.int64], coarse: Coarse, mean: F32Rows, residual: bool) -> F32Rows:
    """What the codes of rows stand for: their residuals, or how they differ from the mean."""
    return np.asarray(x[rows] - (coarse.centroids[coarse.lists[rows]] if residual else mean))


def corpus_mean(x: F32Rows) -> F32Rows:
    """Mean of rows (n, d), (d,) float32."""
    return np.asarray(x.mean(axis=0, dtype=np.float64), dtype=np.float32)


def _train_opq(y: F32Rows, m: int, rng: np.random.Generator) -> tuple[F32Rows, F32Rows]:
    d = y.shape[1]
    dsub = -(-d // m)
    d_out = m * dsub
    rotation = np.linalg.qr(rng.standard_normal((d_out, d)))[0].astype(np.float32)
    z = matmul_t(y, rotation)
    picks = np.resize(rng.permutation(len(y)), KSUB)
    codewords = np.ascontiguousarray(z[picks].reshape(KSUB, m, dsub).transpose(1, 0, 2))
    codewords = _lloyd(z, codewords, 4)
    for _ in range(_OPQ_ROUNDS):
        codewords = _lloyd(z, codewords, 1)
        words = codewords[np.arange(m), jit.pq_assign(z, codewords)].reshape(len(y), d_out)
        # Orthogonal Procrustes: the rotation that brings the rows closest to what their codes stand for.
        u, _, vt = np.linalg.svd(words.T @ y, full_matrices=False)
        rotation = np.ascontiguousarray(u @ vt, dtype=np.float32)
        z = matmul_t(y, rotation)
    return rotation, codewords


def _lloyd(z: F32Rows, codewords: F32Rows, rounds: int) -> F32Rows:
    for _ in range(rounds):
        sums, counts = jit.subspace_sums(z, jit.pq_assign(z, codewords), KSUB)
        means = sums / np.maximum(counts, 1)[..., None]
        codewords = np.where(counts[..., None] > 0, means, codewords).astype(np.float32)
    return codewords
