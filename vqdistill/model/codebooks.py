"""The undistilled start: coarse k-means, OPQ rotation and 4-bit product quantization, all seeded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from vqdistill.config import KSUB, IvfPqConfig
from vqdistill.kernels.threads import matmul_t, one_library_thread
from vqdistill.model.additive import METRIC_ROUNDS, RowTerms, fit_metric, metric_error, own_directions, row_metric
from vqdistill.model.euclidean import train_euclidean
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.kmeans import kmeans, nearest
from vqdistill.model.lists import WARM_ITERATIONS, assign_rows, list_means, train_anchors
from vqdistill.model.product import lloyd, train_opq
from vqdistill.types import F32Rows, Metric

_OPQ_ROWS = 32_768
_ADDITIVE_ROWS, _ROWS_PER_WORD = 40_960, 40
"""Rows that additive codebooks are fitted to, at least so many for each codeword: with 20 for each of 2,048 they leave
2 % more error on other rows than with 48."""
_JUDGED_ROWS = 4096
"""Rows, the last of those that codebooks would be fitted to, by which they are compared."""
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
    lists = assign_rows(x, mean, terms, anchors)
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
    rotation, codewords = train_opq(y[:_OPQ_ROWS], config.m, rng)
    codewords = lloyd(matmul_t(y, rotation), codewords, _PQ_ROUNDS)
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
    rows = _sample(len(x), _additive_rows(config.m), most_rows, rng)
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
    rows = _sample(len(x), _additive_rows(model.m), most_rows, np.random.default_rng([seed, 4]))
    y = _targets(x, rows, coarse, model.mean, model.residual)
    metric = row_metric(own_directions(x[rows], model.mean), None if terms is None else terms.take(rows))
    codewords = fit_metric(y, metric, model.doc_codewords, rounds)
    return replace(model, codewords=codewords, doc_codewords=codewords)


def refit_rows(
    model: IvfPqModel,
    x: F32Rows,
    coarse: Coarse,
    terms: RowTerms | None,
    seed: int,
    most_rows: int | None,
    rounds: int,
) -> tuple[IvfPqModel, bool]:
    """As `serve_rows`, but the model stays as it is unless the errors of other rows get smaller; also return whether
    they did.
    """
    fitted = serve_rows(model, x, coarse, terms, seed, most_rows, rounds)
    rng = np.random.default_rng([seed, 4])
    others = np.sort(rng.permutation(len(x))[::-1][:_JUDGED_ROWS])
    y = _targets(x, others, coarse, model.mean, model.residual)
    metric = row_metric(own_directions(x[others], model.mean), None if terms is None else terms.take(others))
    before, after = (metric_error(y, metric, codebooks.doc_codewords) for codebooks in (model, fitted))
    return (fitted, True) if after < before else (model, False)


def _additive_rows(m: int) -> int:
    return max(_ADDITIVE_ROWS, _ROWS_PER_WORD * KSUB * m)


def _sample(n: int, rows: int, most: int | None, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted numbers of `rows` of n rows at random, `most` of them at most."""
    return np.sort(rng.permutation(n)[: rows if most is None else min(rows, most)])


def _targets(x: F32Rows, rows: npt.NDArray[np.int64], coarse: Coarse, mean: F32Rows, residual: bool) -> F32Rows:
    """What the codes of rows stand for: their residuals, or how they differ from the mean."""
    return np.asarray(x[rows] - (coarse.centroids[coarse.lists[rows]] if residual else mean))


def corpus_mean(x: F32Rows) -> F32Rows:
    """Mean of rows (n, d), (d,) float32."""
    return np.asarray(x.mean(axis=0, dtype=np.float64), dtype=np.float32)
