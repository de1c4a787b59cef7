"""Which learn queries rank which documents: what the codes of each document must serve."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqdistill.data.relevance import Relevance
from vqdistill.model.additive import RowTerms, directions
from vqdistill.model.learned import DEPTH, PER_ROW, rank_weights
from vqdistill.types import F32Rows


@dataclass(frozen=True)
class QueryTerms:
    """Rows of document -> queries, best rank first, of the documents that queries rank."""

    docs: npt.NDArray[np.int64]
    """(r,) numbers of these documents, rising"""
    offsets: npt.NDArray[np.int64]
    """(r + 1,)"""
    lists: npt.NDArray[np.int32]
    """(nnz,) query numbers"""
    weights: F32Rows
    """(nnz,)"""
    queries: F32Rows
    """(q, d) unit directions, seen from the mean of the queries"""

    @classmethod
    def from_relevance(cls, queries: F32Rows, relevance: Relevance, share: float = 1.0) -> QueryTerms:
        """Turn the teacher's lists around.

        Parameters
        ----------
        queries : (q, d) float32
        relevance : their documents
        share : of the documents that are known; ranks among all are those among the known ones, divided by it
        """
        best = relevance.top(DEPTH)
        rank = np.arange(best.nnz) - np.repeat(best.offsets[:-1], best.counts)
        order = np.lexsort((rank, best.docs))
        docs = best.docs[order]
        place = np.arange(best.nnz) - np.searchsorted(docs, docs)
        kept = order[place < PER_ROW]
        ranks = (rank[kept] + 0.5) / share - 0.5
        weights = rank_weights(queries.shape[1], ranks)
        ranked, starts = np.unique(best.docs[kept], return_index=True)
        offsets = np.append(starts, len(kept))
        seen = (
            directions(queries - queries.mean(axis=0)) if len(queries) else np.zeros((1, queries.shape[1]), np.float32)
        )
        return cls(ranked, offsets, best.query_of_entries()[kept].astype(np.int32), weights, seen)

    def take(self, rows: npt.NDArray[np.int64]) -> RowTerms:
        """Terms of the given documents, padded to the same number for each."""
        found = np.searchsorted(self.docs, rows)
        known = np.append(self.docs, -1)[found] == rows
        counts = np.where(known, np.append(np.diff(self.offsets), 0)[found], 0)
        place = np.arange(int(counts.max(initial=0)))
        real = place < counts[:, None]
        at = (self.offsets[found, None] + place)[real]
        lists, weights = np.full(real.shape, -1, np.int32), np.zeros(real.shape, np.float32)
        lists[real], weights[real] = self.lists[at], self.weights[at]
        return RowTerms(lists, weights, self.queries)
