"""Searcher: queries in, hits out; loads NumPy and the native extension, nothing else."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import SearchParams
from vqdistill.errors import InvalidInput
from vqdistill.index.allow import Allow, prepare_allow
from vqdistill.index.certificate import Rung
from vqdistill.index.opening import open_index
from vqdistill.index.reader import IndexReader
from vqdistill.index.trace import CAUSES, Fate, Trace, fates, gaps_of, list_ranks, lists_of_rows, rows_of_ids
from vqdistill.index.view import Call, View
from vqdistill.types import WORK, Hits, RangeHits

_TRACED = 10
"""Candidates by code looked at for each result where no rows are read, to see how close they are."""
_MARGIN_ERRORS = 4.0
"""Standard deviations of the codes' error by which a range search looks below its threshold."""


class Searcher:
    """Searches one index; safe under concurrent use by threads.

    Parameters
    ----------
    reader : an open index, which stays open as long as the searcher is used
    io : how dense rows are read, one of auto, map, pread, uring; see `IndexReader.engine`
    """

    def __init__(self, reader: IndexReader, io: str = "auto") -> None:
        self._io = io
        self._view = View(reader, io)

    @property
    def reader(self) -> IndexReader:
        """The generation of the index that is searched."""
        return self._view.reader

    def search(
        self,
        queries: Any,
        k: int = 10,
        *,
        nprobe: int | None = None,
        coverage: float | None = None,
        refine: int | None = None,
        confidence: float | None = None,
        recall: float | None = None,
        allow: Any = None,
        threads: int = 1,
        timeout_s: float | None = None,
    ) -> Hits:
        """Find the k rows most similar to each query.

        Parameters
        ----------
        queries : (q, d) or (d,), any real dtype; scaled to unit norm under cosine
        k : results per query, 1..n
        nprobe, coverage : lists visited: exactly `nprobe`; or those that are calibrated to hold the share `coverage` of
            the true neighbours, `nprobe` at most. Neither: the coverage that the index was compiled for.
        refine, confidence : candidates verified with dense rows from disk: exactly `refine` (0 = rank by code only, or
            at least k); or as many as it takes until the share `confidence` of the results is expected among those
            read, `refine` at most. Neither: the confidence that the index was compiled for.
        recall : instead of all these, the cheapest search that the index's certificate promises this recall of, by the
            lower bound of its interval; for k up to the certified one, and all rows
        allow : rows that may be found: a boolean mask of the source's rows, external ids, or what `prepare` made of
            either; None = all
        threads : threads over the queries, or over the lists of few; results do not depend on it
        timeout_s : seconds after which the call is given up; None = never

        Returns
        -------
        Hits
            Unpacks as `scores, ids`, best first. With refine > 0 scores are exact similarities to the stored rows.
            Missing results (fewer than k rows in the visited lists): score -inf, id -1 (or "").

        Raises
        ------
        InvalidInput
            If a query has another dimension, NaN, infinity, or is zero under cosine, an option is out of range, or
            nothing was certified that reaches `recall`.
        SearchTimeout
            If the time is over.
        VqdistillError
            If the dense file cannot be read.
        """
        call = self.call(
            queries,
            k,
            nprobe=nprobe,
            coverage=coverage,
            refine=refine,
            confidence=confidence,
            recall=recall,
            allow=allow,
            threads=threads,
            timeout_s=timeout_s,
        )
        with call.telling():
            return call.hits(call.engine("search"))

    def call(self, queries: Any, k: int = 10, *, allow: Any = None, **options: Any) -> Call:
        """Check what a search asks for, without searching; parameters and InvalidInput as of `search`."""
        view = self._view
        try:
            params, engine = view.known(k, **options)
        except TypeError:  # what cannot be a key is no option either; the check says so
            params, engine = view.options.of(k, **options)
        if allow is not None:
            if options.get("recall") is not None:
                recall = options["recall"]
                raise InvalidInput(f"recall must be None with allow: it was certified for all rows, got {recall}")
            engine = engine | view.filter(allow)
        return Call(view, view.prepared(queries), params, engine, k)

    def rung(self, recall: float, k: int = 10) -> Rung:
        """Return the certified way to search that `search(..., k, recall=recall)` takes, as `Certificate.choose`."""
        return self._view.options.certificate(recall).choose(recall, k)

    def explain(self, query: Any, expected_ids: Any, k: int = 10, **options: Any) -> list[Fate]:
        """Tell for each expected id whether a search finds it, and if not, where it is lost.

        Parameters
        ----------
        query : (d,)
        expected_ids : (e,) external ids that should be among the k results
        options : of `search`: nprobe, coverage, refine, confidence, recall, threads, timeout_s

        Returns
        -------
        list of Fate
            In the order of the ids.

        Raises
        ------
        InvalidInput
            As `search`; or if there is more than one query, or an id is none of the index.
        """
        rows = rows_of_ids(self.reader, expected_ids)[None]
        queries = self._view.prepared(query)
        if len(queries) != 1:
            raise InvalidInput(f"query must be one, got {len(queries)}")
        trace = self.trace(queries, rows, k, **options)
        columns = zip(expected_ids, trace.fates[0], trace.lists[0], trace.list_ranks[0], strict=True)
        visited, read = int(trace.visited[0]), int(trace.read[0])
        return [Fate(key, CAUSES[fate], int(at), int(rank) + 1, visited, read) for key, fate, at, rank in columns]

    def trace(
        self,
        queries: Any,
        rows: npt.NDArray[np.int64],
        k: int = 10,
        *,
        lists: npt.NDArray[np.int32] | None = None,
        nprobe: int | None = None,
        coverage: float | None = None,
        refine: int | None = None,
        confidence: float | None = None,
        recall: float | None = None,
        threads: int = 1,
        timeout_s: float | None = None,
    ) -> Trace:
        """Tell for each wanted row of each query whether a search finds it, and if not, where it is lost.

        Parameters
        ----------
        queries, k, nprobe, coverage, refine, confidence, recall, threads, timeout_s : as for `search`
        rows : (q, e) row numbers that should be among the k results, -1 padding
        lists : (n,) what `index.trace.lists_of_rows` knows, for many calls

        Raises
        ------
        InvalidInput, SearchTimeout, VqdistillError
            As `search`.
        """
        view = self._view
        params, engine = view.options.of(k, nprobe, coverage, refine, confidence, recall, threads, timeout_s)
        queries, reader, verified = view.prepared(queries), view.reader, engine["refine"] > 0
        _, positions, work = view.run("search", queries, params, **engine)
        # Every candidate read, none of them cut off: what stopping and the limit of k keep from the results.
        deep = min(reader.manifest.n, engine["refine"] or _TRACED * engine["k"])
        scores, candidates, _ = view.run("search", queries, params, **engine | {"k": deep, "misses": 0.0})
        returned, read = (reader.rows_of(found, checked=True) for found in (positions[:, :k], candidates))
        lists = lists_of_rows(reader) if lists is None else lists
        holding = np.where(rows < 0, -1, lists[rows]).astype(np.int64)
        ranks = list_ranks(reader, queries, engine["temperature"] if "lift" in engine else None)
        ranks = np.take_along_axis(ranks, np.maximum(holding, 0), axis=1)
        done = dict(zip(WORK, work.T, strict=True))
        fate = fates(rows, returned, read, ranks < done["lists_probed"][:, None], verified)
        return Trace(fate, holding, ranks, done["lists_probed"], done["dense_rows"], gaps_of(scores, k))

    def range_search(
        self,
        queries: Any,
        threshold: float,
        *,
        nprobe: int | None = None,
        coverage: float | None = None,
        verify: bool | None = None,
        allow: Any = None,
        threads: int = 1,
        timeout_s: float | None = None,
    ) -> RangeHits:
        """Find every row of the visited lists whose similarity to a query is at least `threshold`.

        With verification the candidates are the rows whose codes come within four standard deviations of the codes'
        error of the threshold, and those whose exact score reaches it are returned.

        Parameters
        ----------
        threshold : lowest score wanted, on the scale of `search`
        verify : whether dense rows decide; None = if the index has them. Otherwise scores are those of the codes.
        queries, nprobe, coverage, allow, threads, timeout_s : as for `search`

        Returns
        -------
        RangeHits
            Unpacks as `lims, scores, ids`: those of query i are lims[i] .. lims[i + 1], best first.

        Raises
        ------
        InvalidInput, SearchTimeout, VqdistillError
            As `search`; and InvalidInput if `threshold` is not a finite number.
        """
        params = SearchParams(nprobe=nprobe, coverage=coverage, threads=threads, timeout_s=timeout_s)
        view = self._view
        manifest = view.reader.manifest
        number = isinstance(threshold, (int, float, np.integer, np.floating)) and not isinstance(threshold, bool)
        if not number or not math.isfinite(threshold):
            raise InvalidInput(f"threshold must be a finite number, got {threshold!r}")
        if verify and manifest.dense == "none":
            raise InvalidInput("verify must be False for an index without dense rows, got True")
        verify = manifest.dense != "none" if verify is None else bool(verify)
        margin = _MARGIN_ERRORS * (manifest.search.error or 0.0) if verify else 0.0
        options = view.options.probing(manifest.search.fill(params, 1)) | ({} if allow is None else view.filter(allow))
        counts, scores, positions, work = view.run(
            "range_search",
            view.prepared(queries),
            params,
            threshold=float(threshold),
            margin=margin,
            verify=verify,
            **options,
        )
        lims = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return RangeHits(scores, *view.named(positions), work, lims)

    def prepare(self, allow: Any) -> Allow:
        """Turn a mask of rows, or external ids, into a filter for any number of searches of this generation.

        Parameters
        ----------
        allow : bool, one for each row number that the index has given; or external ids. Ids that the index does not
            have allow nothing

        Raises
        ------
        InvalidInput
            If it is neither.
        """
        return prepare_allow(self.reader, allow)

    def refresh(self) -> bool:
        """Search the newest generation of the index from now on; searches under way end with that which they began.

        Cheap: what both generations have is not read again.

        Returns
        -------
        bool
            Whether there was a newer one.

        Raises
        ------
        InvalidInput, CorruptIndex, VqdistillError
            As `IndexReader.newest`; the searcher goes on with the generation that it had.
        """
        newest = self.reader.newest()
        if newest is self.reader:
            return False
        self._view = View(newest, self._io)
        return True

    def add(self, vectors: Any, ids: Any = None, *, on_duplicate: str = "refuse") -> int:
        """Add rows to the index, on stable storage when this returns, and search them from now on.

        They are routed and encoded with the index's own model. One writer works at a time.

        Parameters
        ----------
        vectors : (b, d) or (d,), any real dtype; scaled to unit norm under cosine
        ids : (b,) external ids of the kind that the index has, no two equal; None where ids are row numbers: then rows
            get the next ones
        on_duplicate : what to do if the index has one of the ids: "refuse" all rows, or "replace" the row that has it

        Returns
        -------
        int
            Rows added.

        Raises
        ------
        InvalidInput
            If vectors or ids do not fit, an id repeats, or the index has it and nothing is to be replaced; nothing is
            changed.
        VqdistillError
            If another writer is at work, or the disk refuses; nothing is changed.
        """
        # Here, because it encodes, which searching need not load.
        from vqdistill.index.update import IndexUpdater

        if on_duplicate not in ("refuse", "replace"):
            raise InvalidInput(f"on_duplicate must be one of refuse, replace, got {on_duplicate!r}")
        rows = self._view.prepared(vectors, "vectors")
        with IndexUpdater(self.reader.path, sharing=self.reader) as updater:
            updater.add(ids, rows, replace=on_duplicate == "replace")
            updater.publish()
        self.refresh()
        return len(rows)

    def upsert(self, vectors: Any, ids: Any) -> int:
        """Add rows, replacing those that have the same ids; as `add` with on_duplicate "replace"."""
        return self.add(vectors, ids, on_duplicate="replace")

    def delete(self, ids: Any) -> int:
        """Delete rows from the index, on stable storage when this returns; they are found no more from now on.

        Parameters
        ----------
        ids : (b,) external ids of the kind that the index has; those that it does not have are passed over

        Returns
        -------
        int
            Rows deleted.

        Raises
        ------
        InvalidInput
            If ids are of another kind; nothing is changed.
        VqdistillError
            If another writer is at work, or the disk refuses; nothing is changed.
        """
        from vqdistill.index.update import IndexUpdater

        with IndexUpdater(self.reader.path, sharing=self.reader) as updater:
            deleted = updater.delete(ids)
            updater.publish()
        self.refresh()
        return deleted

    def compact(self) -> None:
        """Merge all that was added into one list order, without deleted rows; the disk is freed by `index.gc`.

        A compaction that was killed goes on where it ended, if nothing was changed since. Row numbers stay.

        Raises
        ------
        InvalidInput
            If every row is deleted.
        VqdistillError
            If another writer is at work, or the disk refuses; nothing is changed.
        """
        from vqdistill.index.update import IndexUpdater

        with IndexUpdater(self.reader.path, sharing=self.reader) as updater:
            updater.compact()
            updater.publish()
        self.refresh()


def open(path: str | Path, verify: str = "headers", io: str = "auto") -> Searcher:
    """Open the index at `path` for searching; see `IndexReader.open` and `IndexReader.engine` for checks and errors."""
    return Searcher(open_index(path, verify), io)
