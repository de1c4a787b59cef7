"""The teacher of corpora too large for exact search: an undistilled index, whose candidates the rows verify."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vqdistill.compiler.memory import LARGEST, Sizes
from vqdistill.config import IvfPqConfig
from vqdistill.data.pairs import pair_scores
from vqdistill.data.relevance import Relevance
from vqdistill.data.sources import EmbeddingSource
from vqdistill.data.teacher import query_rows
from vqdistill.errors import InvalidInput
from vqdistill.model.codebooks import train_coarse, train_start
from vqdistill.model.ivfpq import IvfPqModel
from vqdistill.model.scan import engine_over
from vqdistill.types import Codes, F32Rows, Metric

VERIFIED = 5
"""Candidates by code for each document wanted, all scored by their rows."""
_NPROBE_SHARE = 0.25
_DIMS_PER_CODE = 4
_CODES_BYTES = 1 << 30
_TRAIN_BYTES = 256 << 20
_QUERIES_AT_ONCE = 1024
_CODE_COPIES = 3
"""Bytes of a code while it is put into list order and packed."""
_ORDER_BYTES = 32
"""Bytes of a document's list and place meanwhile."""


class IndexTeacher:
    """Search of an undistilled index in memory: a quarter of the lists visited, candidates scored by their rows.

    Parameters
    ----------
    src : documents; its metric is the score
    seed : of every random choice
    threads : of the search; the result does not depend on it
    progress : called with the number of documents that are coded
    sizes : what may be in memory; documents whose codes are more than `index_bytes` are coded and searched part by part
    """

    kind: Literal["index"] = "index"

    def __init__(
        self,
        src: EmbeddingSource,
        seed: int = 0,
        threads: int = 1,
        progress: Callable[[int], None] | None = None,
        sizes: Sizes = LARGEST,
    ) -> None:
        self.src, self._sizes = src, sizes
        self._seed, self._threads, self._progress = seed, threads, progress

    def relevance(self, queries: Any, depth: int, exclude_self: npt.NDArray[Any] | None = None) -> Relevance:
        """See `ExactTeacher.relevance`: the same scores, but some documents may be missing."""
        if depth < 1:
            raise InvalidInput(f"depth must be at least 1, got {depth}")
        prepared = query_rows(queries, self.src)
        docs = self._candidates(prepared, min(VERIFIED * depth, self.src.n))
        if exclude_self is not None:
            docs[docs == np.asarray(exclude_self)[:, None]] = -1
        docs.sort(axis=1)  # so that equal scores go to the lower row
        scores = pair_scores(self.src, prepared, docs)
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return Relevance.from_padded(np.take_along_axis(docs, best, 1), np.take_along_axis(scores, best, 1))

    def _candidates(self, queries: F32Rows, k: int) -> npt.NDArray[np.int32]:
        """Documents (q, k) that codes rank first, -1 padding."""
        model = self._train()
        found = np.full((len(queries), k), -1, np.int32)
        best = np.full((len(queries), k), -np.inf, np.float32)
        nprobe = max(1, round(_NPROBE_SHARE * model.nlist))
        for first, codes in self._coded(model):
            engine, order = engine_over(model, codes)
            for at in range(0, len(queries), _QUERIES_AT_ONCE):
                some = slice(at, at + _QUERIES_AT_ONCE)
                scores, positions, _ = engine.search(queries[some], k=k, nprobe=nprobe, refine=0, threads=self._threads)
                docs = np.where(positions >= 0, first + order[positions], -1).astype(np.int32)
                docs, scores = np.concatenate([found[some], docs], 1), np.concatenate([best[some], scores], 1)
                kept = np.argsort(-scores, axis=1, kind="stable")[:, :k]
                found[some], best[some] = np.take_along_axis(docs, kept, 1), np.take_along_axis(scores, kept, 1)
        return found

    def _train(self) -> IvfPqModel:
        src = self.src
        rng = np.random.default_rng([self._seed, 6])
        limit = min(src.n, max(1, min(_TRAIN_BYTES, self._sizes.train_bytes) // (4 * src.dim)))
        x = src.take(np.sort(rng.choice(src.n, limit, replace=False)))
        nlist = max(1, min(round(4 * np.sqrt(src.n)), limit // 32))
        m = max(2, min(256, src.dim // _DIMS_PER_CODE, _CODES_BYTES // src.n) // 2 * 2)
        config = IvfPqConfig(nlist=nlist, m=m, codes="pq", seed=self._seed)
        coarse = train_coarse(x, nlist, self._seed)
        return train_start(x, coarse, config, src.metric, residual=src.metric is not Metric.L2)

    def _coded(self, model: IvfPqModel) -> Iterator[tuple[int, Codes]]:
        """Yield the codes of all documents, as many at a time as may be in memory, and the first document of each."""
        most = max(1, self._sizes.index_bytes // (_CODE_COPIES * model.m + _ORDER_BYTES))
        lists: list[npt.NDArray[np.int32]] = []
        codes: list[npt.NDArray[np.uint8]] = []
        waiting = first = 0
        for block in self.src.blocks(self._sizes.block_rows(self.src.dim)):
            if waiting and waiting + len(block.rows) > most:
                yield first, Codes(np.concatenate(lists), np.concatenate(codes))
                lists, codes, waiting, first = [], [], 0, block.start
            coded = model.encode(block.rows)
            lists.append(coded.lists)
            codes.append(coded.codes)
            waiting += len(block.rows)
            if self._progress is not None:
                self._progress(len(block.rows))
        yield first, Codes(np.concatenate(lists), np.concatenate(codes))


def list_recall(found: Relevance, wanted: Relevance) -> float:
    """Share of the documents wanted, over all queries, that were found."""
    n = 1 + max(int(found.docs.max(initial=0)), int(wanted.docs.max(initial=0)))
    known, asked = (relevance.query_of_entries() * n + relevance.docs for relevance in (found, wanted))
    return float(np.isin(asked, known).mean()) if wanted.nnz else 1.0
