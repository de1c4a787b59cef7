"""Relevance: for each query the documents that count and how much, as sparse rows."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data.flat import READ_ERRORS
from vqdistill.errors import InvalidInput

IntRows = npt.NDArray[np.int64]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Relevance:
    """Sparse rows of query -> (documents, scores); in each, score descending, equal scores by document ascending.

    Raises
    ------
    InvalidInput
        If the arrays are no such rows: shapes, dtypes, offsets, order, a document twice, a negative document, or a
        score that is NaN or infinite.
    """

    offsets: IntRows
    """(q + 1,) entries of query i are offsets[i] .. offsets[i + 1]."""
    docs: IntRows
    """(nnz,) row numbers of documents."""
    scores: F32
    """(nnz,) larger is better."""

    def __post_init__(self) -> None:
        for name, dtype in (("offsets", np.int64), ("docs", np.int64), ("scores", np.float32)):
            array = getattr(self, name)
            if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype != dtype:
                got = f"{getattr(array, 'shape', type(array).__name__)} {getattr(array, 'dtype', '')}".rstrip()
                raise InvalidInput(f"relevance {name} must be one-dimensional {np.dtype(dtype).name}, got {got}")
        if not _offsets_fit(self.offsets, self.nnz) or len(self.scores) != self.nnz:
            raise InvalidInput(
                f"relevance offsets must rise from 0 to the number of docs and of scores, got {self.nnz} docs, "
                f"{len(self.scores)} scores and {len(self.offsets)} offsets"
            )
        if self.nnz and (int(self.docs.min()) < 0 or not np.isfinite(self.scores).all()):
            raise InvalidInput("relevance must have documents of at least 0 and finite scores")
        rows = self.query_of_entries()
        same = rows[1:] == rows[:-1]
        falls = self.scores[1:] < self.scores[:-1]
        ties = (self.scores[1:] == self.scores[:-1]) & (self.docs[1:] > self.docs[:-1])
        if (same & ~(falls | ties)).any():
            query = int(rows[1:][same & ~(falls | ties)][0])
            raise InvalidInput(f"relevance of query {query} must be sorted by score, then document")
        pairs = np.lexsort((self.docs, rows))
        again = same & (self.docs[pairs][1:] == self.docs[pairs][:-1])
        if again.any():
            at = pairs[1:][again][0]
            raise InvalidInput(f"relevance of query {rows[at]} names document {self.docs[at]} twice")

    @property
    def n_queries(self) -> int:
        """Queries, those without any document included."""
        return len(self.offsets) - 1

    @property
    def nnz(self) -> int:
        """Entries of all queries together."""
        return len(self.docs)

    @property
    def counts(self) -> IntRows:
        """(q,) number of documents of each query."""
        return np.diff(self.offsets)

    def query_of_entries(self) -> IntRows:
        """(nnz,) the query that each entry belongs to."""
        return np.repeat(np.arange(self.n_queries), self.counts)

    def padded(self, k: int) -> tuple[IntRows, F32]:
        """Best k of each query as (q, k) documents and scores; -1 and -inf where a query has fewer."""
        docs = np.full((self.n_queries, k), -1, np.int64)
        scores = np.full((self.n_queries, k), -np.inf, np.float32)
        rank, rows = self._ranks(), self.query_of_entries()
        keep = rank < k
        docs[rows[keep], rank[keep]] = self.docs[keep]
        scores[rows[keep], rank[keep]] = self.scores[keep]
        return docs, scores

    def top(self, k: int) -> Relevance:
        """Keep the best k documents of each query."""
        if k < 0:
            raise InvalidInput(f"k must be at least 0, got {k}")
        return self._keep(self._ranks() < k)

    def merged(self, other: Relevance, k: int) -> Relevance:
        """Best k documents of each query in either of two, whose documents differ."""
        queries = np.concatenate([self.query_of_entries(), other.query_of_entries()])
        docs, scores = np.concatenate([self.docs, other.docs]), np.concatenate([self.scores, other.scores])
        return Relevance.from_pairs(queries, docs, scores, self.n_queries).top(k)

    def restrict(self, rows: npt.NDArray[Any]) -> Relevance:
        """Keep only entries whose document is among `rows`; documents keep their numbers."""
        return self._keep(np.isin(self.docs, rows))

    def select(self, queries: npt.NDArray[Any]) -> Relevance:
        """Entries of the given queries (q',) int, which become queries 0, 1, ... in that order."""
        wanted = np.asarray(queries, dtype=np.int64)
        if wanted.ndim != 1 or (wanted.size and not 0 <= wanted.min() <= wanted.max() < self.n_queries):
            raise InvalidInput(f"queries must be row numbers in 0..{self.n_queries - 1}, got {queries!r}")
        counts = self.counts[wanted]
        offsets = _offsets_of(counts)
        entries = np.arange(offsets[-1]) + np.repeat(self.offsets[wanted] - offsets[:-1], counts)
        return Relevance(offsets, self.docs[entries], self.scores[entries])

    def require_docs_below(self, n: int, name: str = "relevance") -> None:
        """Refuse documents that a source of n rows does not have."""
        bad = np.flatnonzero(self.docs >= n)
        if bad.size:
            raise InvalidInput(f"{name} names document {self.docs[bad[0]]}, but there are only rows 0..{n - 1}")

    def save(self, path: str | Path) -> None:
        """Write to a .npz file, which appears whole or not at all."""
        path = Path(path)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                np.savez(file, offsets=self.offsets, docs=self.docs, scores=self.scores)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise

    @classmethod
    def load(cls, path: str | Path) -> Relevance:
        """Read what `save` wrote.

        Raises
        ------
        InvalidInput
            If there is no such file, or it is damaged.
        """
        try:
            with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls(arrays["offsets"], arrays["docs"], arrays["scores"])
        except READ_ERRORS as error:
            raise InvalidInput(f"{path} is no readable relevance file: {error}") from None

    @classmethod
    def from_pairs(
        cls, queries: npt.NDArray[Any], docs: npt.NDArray[Any], scores: npt.NDArray[Any], n_queries: int
    ) -> Relevance:
        """Make relevance of unordered entries.

        Parameters
        ----------
        queries, docs, scores : (nnz,) query and document row numbers, and scores
        n_queries : queries 0..n_queries exist, also those without entries

        Raises
        ------
        InvalidInput
            If a query is outside this range, a document is negative or is named twice for a query, a score is not
            finite in float32, or the lengths differ.
        """
        queries, docs = np.asarray(queries, np.int64), np.asarray(docs, np.int64)
        with np.errstate(over="ignore"):
            scores = np.asarray(scores, np.float32)
        if not queries.shape == docs.shape == scores.shape or queries.ndim != 1:
            raise InvalidInput(
                f"queries, docs and scores must be (nnz,), got {queries.shape}, {docs.shape}, {scores.shape}"
            )
        if queries.size and not 0 <= queries.min() <= queries.max() < n_queries:
            raise InvalidInput(f"queries must be in 0..{n_queries - 1}, got {queries.min()}..{queries.max()}")
        if not np.isfinite(scores).all():
            at = int(np.argmin(np.isfinite(scores)))
            raise InvalidInput(f"scores must be finite, got {scores[at]} for query {queries[at]}, document {docs[at]}")
        order = np.lexsort((docs, -scores, queries))
        return cls(_offsets_of(np.bincount(queries, minlength=n_queries)), docs[order], scores[order])

    @classmethod
    def from_lists(cls, docs: Sequence[Any], scores: Sequence[Any]) -> Relevance:
        """Make relevance of one list of documents and one of scores for each query, in any order."""
        if len(docs) != len(scores) or any(len(d) != len(s) for d, s in zip(docs, scores, strict=False)):
            raise InvalidInput("docs and scores must be lists of the same lengths, query by query")
        queries = np.repeat(np.arange(len(docs)), [len(d) for d in docs])
        flat_docs = np.concatenate([np.empty(0, np.int64), *(np.asarray(d, np.int64) for d in docs)])
        flat_scores = np.concatenate([np.empty(0, np.float32), *(np.asarray(s, np.float32) for s in scores)])
        return cls.from_pairs(queries, flat_docs, flat_scores, len(docs))

    @classmethod
    def from_padded(cls, docs: npt.NDArray[Any], scores: npt.NDArray[Any] | None = None) -> Relevance:
        """Make relevance of (q, L) documents, padded with -1, and their scores (None: all 1)."""
        queries, columns = np.nonzero(docs != -1)
        values = np.ones(len(queries), np.float32) if scores is None else scores[queries, columns]
        return cls.from_pairs(queries, docs[queries, columns], values, len(docs))

    def _ranks(self) -> IntRows:
        return np.arange(self.nnz) - np.repeat(self.offsets[:-1], self.counts)

    def _keep(self, mask: npt.NDArray[np.bool_]) -> Relevance:
        counts = np.bincount(self.query_of_entries()[mask], minlength=self.n_queries)
        return Relevance(_offsets_of(counts), self.docs[mask], self.scores[mask])


def _offsets_of(counts: npt.NDArray[Any]) -> IntRows:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _offsets_fit(offsets: IntRows, nnz: int) -> bool:
    return bool(len(offsets) >= 1 and offsets[0] == 0 and offsets[-1] == nnz and (offsets[1:] >= offsets[:-1]).all())
