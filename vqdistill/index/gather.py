"""A search whose rows lie in parts, in processes of their own: what each part finds, and what all together found.

The results are those of one index of all rows: lists are chosen by the rows of the whole, each part gives its best
candidates by code, and of the best of all those rows are read that the one index would have read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.index.allow import prepare_allow
from vqdistill.index.rows import I64
from vqdistill.index.sharded import ShardedReader
from vqdistill.kernels import candidate_count, choose_results, merge_candidates
from vqdistill.types import WORK, F32Rows

_ONCE = [WORK.index("lists_probed")]
"""Columns of work that every part has done alike."""


@dataclass(frozen=True)
class Candidates:
    """Best rows of a part by code."""

    scores: F32Rows
    """(q, count) by 8-bit tables, falling; -inf behind the last"""
    rescored: F32Rows
    """(q, count) by float tables; (q, 0) where rows are read"""
    positions: I64
    """(q, count) in the part"""
    whole: I64
    """(q, count) in the whole"""
    work: I64
    """(q, 7)"""


class Part:
    """Some shards of an index, open for searching.

    Parameters
    ----------
    reader : of these shards
    io : see `IndexReader.engine`
    """

    def __init__(self, reader: ShardedReader, io: str = "auto") -> None:
        self.reader = reader
        self._engine = reader.engine(io)

    def find(self, queries: F32Rows, *, allow: Any = None, per_list: I64 | None = None, **options: Any) -> Candidates:
        """Find the best rows by code.

        Parameters
        ----------
        queries : (q, d), prepared
        allow : external ids that may be found; None = all
        per_list : (nlist,) how many rows of the whole these are in each list
        options : of `Engine.candidates`
        """
        filtered: dict[str, Any] = {}
        if allow is not None:
            filtered["allow"] = (prepare_allow(self.reader, allow).blocks, per_list)
        scores, rescored, positions, lists, work = self._engine.candidates(queries, **filtered, **options)
        whole = np.where(positions < 0, -1, positions + self.reader.shifts[lists])
        return Candidates(scores, rescored, positions, whole, work)

    def score(self, queries: F32Rows, positions: I64, reads: I64, **options: Any) -> tuple[F32Rows, I64]:
        """Exact scores (q, count) of the first `reads` (q,) of the rows at `positions`, and the work (q, 7)."""
        return self._engine.score(queries, positions, reads, **options)


def find_options(options: dict[str, Any], n: int) -> dict[str, Any]:
    """Options of `Part.find` for a search in an index of n rows.

    Parameters
    ----------
    options : of `Engine.search`
    """
    probing = {name: options[name] for name in ("nprobe", "lift", "temperature") if name in options}
    count = candidate_count(options["k"], options["refine"], n)
    return probing | {"count": count, "rescore": not options["refine"]}


class Gathering:
    """The candidates of parts, merged.

    Parameters
    ----------
    found : scores (q, count), rescored, positions in the whole and work of each part
    """

    def __init__(self, found: Sequence[tuple[F32Rows, F32Rows, I64, I64]]) -> None:
        scores, self._rescored, ids, work = zip(*found, strict=True)
        self._origins, reads = merge_candidates(scores, ids)
        self.reads: list[I64] = [np.ascontiguousarray(column) for column in reads.T]
        """(q,) of each part: candidates to read, its first ones"""
        self._code = self._taken(scores, -np.inf)
        self._ids = self._taken(ids, -1)
        self.work: I64 = np.sum(work, axis=0)
        """(q, 7) of all parts"""
        self.work[:, _ONCE] = np.max(work, axis=0)[:, _ONCE]
        self.work[:, WORK.index("candidates")] = reads.sum(axis=1)

    def choose(
        self, exact: Sequence[F32Rows] | None, k: int, misses: float = 0.0, error: float = 0.0
    ) -> tuple[F32Rows, I64]:
        """Return the scores and positions (q, k) of the results.

        Parameters
        ----------
        exact : (q, count) of each part; None = those of the float tables decide
        k, misses, error : of `Engine.search`
        """
        scores = self._taken(self._rescored if exact is None else exact, -np.inf)
        found, positions, _ = choose_results(self._code, scores, self._ids, k=k, misses=misses, error=error)
        return found, positions

    def _taken(self, columns: Sequence[npt.NDArray[Any]], missing: float) -> npt.NDArray[Any]:
        """Values of the merged candidates, out of those of each part."""
        values = np.take_along_axis(np.concatenate(columns, axis=1), np.maximum(self._origins, 0), axis=1)
        values[self._origins < 0] = missing
        return values
