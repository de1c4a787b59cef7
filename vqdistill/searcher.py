"""Searcher: queries in, hits out; loads NumPy and the native extension, nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from vqdistill.config import SearchParams
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.reader import IndexReader, open_index
from vqdistill.types import Hits, Metric, as_f32_rows, unit_rows

_STATS = ("lists_probed", "codes_scanned", "candidates", "dense_rows", "dense_bytes")


class Searcher:
    """Searches one index; safe under concurrent use by threads.

    Parameters
    ----------
    reader : an open index, which stays open as long as the searcher is used
    io : how dense rows are read, one of auto, map, pread, uring; see `IndexReader.engine`
    """

    def __init__(self, reader: IndexReader, io: str = "auto") -> None:
        self.reader = reader
        """The index."""
        self._engine = reader.engine(io)

    def search(
        self, queries: Any, k: int = 10, *, nprobe: int | None = None, refine: int | None = None, threads: int = 1
    ) -> Hits:
        """Find the k rows most similar to each query.

        Parameters
        ----------
        queries : (q, d) or (d,), any real dtype; scaled to unit norm under cosine
        k : results per query, 1..n
        nprobe : lists visited, 1..nlist; None = the calibrated default of the index. More: better recall, more work.
        refine : candidates verified with dense rows from disk, 0 (rank by code only) or at least k; None = the default
            of the index, or k if that is more
        threads : threads over the queries; results do not depend on it

        Returns
        -------
        Hits
            Unpacks as `scores, ids`, best first. With refine > 0 scores are exact similarities to the stored rows.
            Missing results (fewer than k rows in the visited lists): score -inf, id -1 (or "").

        Raises
        ------
        InvalidInput
            If a query has another dimension, NaN, infinity, or is zero under cosine, or an option is out of range.
        VqdistillError
            If the dense file cannot be read.
        """
        manifest = self.reader.manifest
        params = self._params(k, nprobe, refine, threads)
        rows = as_f32_rows(queries, "queries", manifest.d)
        if manifest.metric is Metric.COSINE:
            rows = unit_rows(rows, "queries")
        try:
            scores, positions, stats = self._engine.search(
                rows, k=k, nprobe=params.nprobe, refine=params.refine, threads=threads
            )
        except OSError as error:
            raise VqdistillError(f"{self.reader.path}: dense rows cannot be read: {error.strerror}") from error
        counts = dict(zip(_STATS, stats.tolist(), strict=True))
        found = self.reader.rows_of(positions)
        ids = found if manifest.ids == "rows" else self.reader.ids_of(positions)
        return Hits(scores, ids, found, counts)

    def _params(self, k: int, nprobe: int | None, refine: int | None, threads: int) -> SearchParams:
        manifest = self.reader.manifest
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= manifest.n:
            raise InvalidInput(f"k must be an integer in 1..{manifest.n}, the rows of the index, got {k!r}")
        default = manifest.search["refine"]
        params = SearchParams(
            nprobe=manifest.search["nprobe"] if nprobe is None else nprobe,
            refine=(max(default, k) if default else 0) if refine is None else refine,
            threads=threads,
        )
        if params.nprobe > manifest.nlist:
            raise InvalidInput(f"nprobe must be in 1..{manifest.nlist}, the lists of the index, got {params.nprobe}")
        if 0 < params.refine < k:
            raise InvalidInput(f"refine must be 0 or at least k = {k}, got {params.refine}")
        if params.refine and manifest.dense == "none":
            raise InvalidInput(f"refine must be 0 for an index without dense rows, got {params.refine}")
        return params


def open(path: str | Path, verify: str = "headers", io: str = "auto") -> Searcher:
    """Open the index at `path` for searching.

    See `IndexReader.open` for the checks and errors, and `IndexReader.engine` for `io`.
    """
    return Searcher(open_index(path, verify), io)
