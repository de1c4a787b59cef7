"""VqdistillNeighbors: nearest neighbours as scikit-learn's NearestNeighbors has them, from a compiled index."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.integrations.exact import I64, nearest, within
from vqdistill.integrations.missing import missing
from vqdistill.integrations.options import FEWEST
from vqdistill.kernels.units import unit_rows
from vqdistill.searcher import Searcher
from vqdistill.searcher import open as open_searcher
from vqdistill.types import F64, F32Rows

try:
    from scipy.sparse import csr_matrix
    from sklearn.base import BaseEstimator
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise missing("scikit-learn", "sklearn", error) from None

METRICS = {"euclidean": "l2", "l2": "l2", "cosine": "cosine"}
_BATCH = 4096
"""Queries answered at a time."""


class VqdistillNeighbors(BaseEstimator):
    """Nearest neighbours by a compiled index; exact while there are few rows.

    Parameters
    ----------
    n_neighbors : neighbours of each query
    radius : largest distance of `radius_neighbors`
    metric : "euclidean" ("l2") or "cosine"
    compile_at : rows from which on `fit` compiles an index; fewer are kept and compared one by one
    ram : budget of the index, such as "32B/vec"; see `compile`
    recall : a certified recall to search with, see `Searcher.search`; None = the defaults of the index
    distill : whether codes are distilled; with "euclidean" they are product codes
    path : directory of the index, which must not exist; None = a temporary one that goes with the estimator
    random_state : seed of the compile
    n_jobs : threads of a search; None = 1

    Attributes
    ----------
    n_samples_fit_ : rows
    n_features_in_ : dimensions
    effective_metric_ : "euclidean" or "cosine"
    index_path_ : directory of the index; None while search is exact

    Notes
    -----
    Distances are exact to float32; which neighbours are found is not: see `recall`. `radius_neighbors` visits every
    list and verifies what comes near the radius by code.
    """

    def __init__(
        self,
        *,
        n_neighbors: int = 5,
        radius: float = 1.0,
        metric: str = "euclidean",
        compile_at: int = 4096,
        ram: str | None = None,
        recall: float | None = None,
        distill: bool = True,
        path: str | Path | None = None,
        random_state: int = 0,
        n_jobs: int | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.radius = radius
        self.metric = metric
        self.compile_at = compile_at
        self.ram = ram
        self.recall = recall
        self.distill = distill
        self.path = path
        self.random_state = random_state
        self.n_jobs = n_jobs

    def fit(self, X: Any, y: Any = None, *, queries: Any = None) -> VqdistillNeighbors:
        """Keep rows, or compile an index of them.

        Parameters
        ----------
        X : (n, d) rows
        y : ignored, as by NearestNeighbors
        queries : (q, d) that the index learns from; None = pseudo-queries made from the rows

        Raises
        ------
        InvalidInput
            If an option is not usable, or `path` exists.
        """
        if self.metric not in METRICS:
            raise InvalidInput(f"metric must be one of {', '.join(METRICS)}, got {self.metric!r}")
        if isinstance(self.compile_at, bool) or not isinstance(self.compile_at, int) or self.compile_at < FEWEST:
            raise InvalidInput(f"compile_at must be an integer of at least {FEWEST}, got {self.compile_at!r}")
        rows = self._prepared(validate_data(self, X, dtype=np.float32, order="C"), "X")
        self.effective_metric_ = "cosine" if METRICS[self.metric] == "cosine" else "euclidean"
        self.n_samples_fit_ = len(rows)
        self.index_path_: str | None = None
        self._rows: F32Rows | None = rows
        self._searcher: Searcher | None = None
        if len(rows) >= self.compile_at:
            self._compile(rows, queries)
        return self

    def kneighbors(
        self, X: Any = None, n_neighbors: int | None = None, return_distance: bool = True
    ) -> tuple[F64, I64] | I64:
        """Find the nearest rows of each query.

        Parameters
        ----------
        X : (q, d) queries; None = the rows themselves, none its own neighbour
        n_neighbors : neighbours of each query; None = as the estimator has it

        Returns
        -------
        distances, numbers
            (q, n_neighbors) float64, ascending, and int64; without `return_distance` the numbers only.

        Raises
        ------
        ValueError
            If `n_neighbors` is no positive integer, or more than there are.
        """
        check_is_fitted(self)
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InvalidInput(f"n_neighbors must be a positive integer, got {k!r}")
        others = self.n_samples_fit_ - (X is None)
        if k > others:
            raise InvalidInput(f"n_neighbors must be at most {others}, the rows to choose from, got {k}")
        scores, numbers = [], []
        for part, own in self._queries(X):
            found, at = self._nearest(part, k + (own is not None))
            if own is not None:
                found, at = _without(own, found, at)
            scores.append(found)
            numbers.append(at)
        all_numbers = np.concatenate(numbers)
        return (self._distances(np.concatenate(scores)), all_numbers) if return_distance else all_numbers

    def kneighbors_graph(self, X: Any = None, n_neighbors: int | None = None, mode: str = "connectivity") -> csr_matrix:
        """Return the graph of nearest rows, a sparse (q, n) matrix.

        Parameters
        ----------
        X, n_neighbors : as for `kneighbors`
        mode : what an edge holds: "connectivity" (1) or "distance"
        """
        if mode not in ("connectivity", "distance"):
            raise InvalidInput(f"mode must be one of connectivity, distance, got {mode!r}")
        distances, numbers = self.kneighbors(X, n_neighbors)
        q, k = numbers.shape
        weights = np.ones(q * k) if mode == "connectivity" else distances.reshape(-1)
        edges = (weights, numbers.reshape(-1), np.arange(0, q * k + 1, k))
        return csr_matrix(edges, shape=(q, self.n_samples_fit_))

    def radius_neighbors(
        self, X: Any = None, radius: float | None = None, return_distance: bool = True, sort_results: bool = False
    ) -> Any:
        """Find all rows within a distance of each query.

        Parameters
        ----------
        X : as for `kneighbors`
        radius : largest distance; None = as the estimator has it
        sort_results : asks for ascending distances, which they are anyway

        Returns
        -------
        distances, numbers
            (q,) objects, each an array (h,); without `return_distance` the numbers only.
        """
        check_is_fitted(self)
        if sort_results and not return_distance:
            raise InvalidInput("return_distance must be True if sort_results is, got False")
        limit = self.radius if radius is None else radius
        if isinstance(limit, bool) or not isinstance(limit, (int, float, np.number)) or not limit >= 0:
            raise InvalidInput(f"radius must be a number of at least 0, got {limit!r}")
        threshold = -(float(limit) ** 2) if self.effective_metric_ == "euclidean" else 1 - float(limit)
        distances, numbers = [], []
        for part, own in self._queries(X):
            for at, (scores, rows) in enumerate(self._within(part, threshold)):
                kept = slice(None) if own is None else rows != own[at]
                distances.append(self._distances(scores[kept]))
                numbers.append(rows[kept])
        return (_objects(distances), _objects(numbers)) if return_distance else _objects(numbers)

    def __getstate__(self) -> dict[str, Any]:
        if self.__dict__.get("_searcher") is not None and self.path is None:
            raise InvalidInput("an estimator whose index is temporary cannot be copied or pickled: fit one with path=")
        state: dict[str, Any] = super().__getstate__()
        return state | {"_searcher": None} if "_searcher" in state else state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if state.get("index_path_") is not None:
            self._searcher = open_searcher(state["index_path_"])

    def _compile(self, rows: F32Rows, queries: Any) -> None:
        # Here, because it loads what only training needs.
        from vqdistill.compiler.build import compile

        folder = Path(tempfile.mkdtemp(prefix="vqdistill-")) if self.path is None else None
        if folder is not None:
            weakref.finalize(self, shutil.rmtree, folder, True)
        path = Path(str(self.path)) if folder is None else folder / "index"
        compile(
            rows,
            path,
            queries="none" if queries is None else queries,
            metric=METRICS[self.metric],
            ram=self.ram,
            dense="f32",
            distill=self.distill,
            seed=self.random_state,
        )
        shutil.rmtree(f"{path}.cache", ignore_errors=True)
        self._searcher, self._rows, self.index_path_ = open_searcher(path), None, str(path.resolve())

    def _prepared(self, rows: F32Rows, name: str) -> F32Rows:
        return unit_rows(rows, name) if METRICS[self.metric] == "cosine" else rows

    def _queries(self, X: Any) -> Any:
        """Prepared queries some at a time, and where they are the rows themselves, their numbers."""
        if X is not None:
            checked = self._prepared(validate_data(self, X, dtype=np.float32, order="C", reset=False), "X")
            for begin in range(0, len(checked), _BATCH):
                yield checked[begin : begin + _BATCH], None
            return
        for begin in range(0, self.n_samples_fit_, _BATCH):
            own = np.arange(begin, min(begin + _BATCH, self.n_samples_fit_))
            if self._searcher is None:
                assert self._rows is not None, "one of both is there"
                yield self._rows[own], own
            else:
                reader = self._searcher.reader
                yield reader.dense_rows(reader.positions_of(own)), own

    def _nearest(self, queries: F32Rows, k: int) -> tuple[npt.NDArray[np.float32], I64]:
        metric = METRICS[self.metric]
        if self._searcher is None:
            assert self._rows is not None, "one of both is there"
            return nearest(metric, queries, self._rows, k)
        threads = self.n_jobs or 1
        hits = self._searcher.search(queries, k, recall=self.recall, threads=threads)
        scores, numbers = hits.scores, hits.rows
        # Where the visited lists have fewer rows than asked for, all are visited.
        if len(short := np.flatnonzero(numbers[:, -1] < 0)):
            nlist = self._searcher.reader.manifest.nlist
            full = self._searcher.search(queries[short], k, nprobe=nlist, refine=max(100, k), threads=threads)
            scores[short], numbers[short] = full.scores, full.rows
        return scores, numbers

    def _within(self, queries: F32Rows, threshold: float) -> list[tuple[npt.NDArray[np.float32], I64]]:
        if self._searcher is None:
            assert self._rows is not None, "one of both is there"
            return within(METRICS[self.metric], queries, self._rows, threshold)
        nlist = self._searcher.reader.manifest.nlist
        hits = self._searcher.range_search(queries, threshold, nprobe=nlist, threads=self.n_jobs or 1)
        spans = zip(hits.lims[:-1].tolist(), hits.lims[1:].tolist(), strict=True)
        return [(hits.scores[begin:end], hits.rows[begin:end]) for begin, end in spans]

    def _distances(self, scores: Any) -> F64:
        scores = np.asarray(scores, np.float64)
        if self.effective_metric_ == "euclidean":
            return np.asarray(np.sqrt(np.maximum(-scores, 0)))
        return np.asarray(np.maximum(1 - scores, 0))


def _without(own: I64, scores: Any, numbers: I64) -> tuple[Any, I64]:
    """Leave out of k + 1 results each query's own row, or the last where it is not among them."""
    at = np.argmax(numbers == own[:, None], axis=1)
    at[~(numbers == own[:, None]).any(axis=1)] = numbers.shape[1] - 1
    kept = np.arange(numbers.shape[1]) != at[:, None]
    return scores[kept].reshape(len(own), -1), numbers[kept].reshape(len(own), -1)


def _objects(arrays: list[Any]) -> npt.NDArray[Any]:
    out = np.empty(len(arrays), object)
    for at, array in enumerate(arrays):  # at once, arrays of one length would be taken for a table
        out[at] = array
    return out
