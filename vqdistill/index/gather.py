"""A search whose rows lie in parts, in processes of their own: what each part finds, and what all together found.

The results are those of one index of all rows: lists are chosen once, by the rows of the whole, each part gives its
best candidates by code, and of the best of all those rows are read that the one index would have read.
"""

from __future__ import annotations

import math
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
PLAN = ("offsets", "lists", "terms", "tables", "scales", "luts", "count")
"""What is planned of queries: what `Engine.plan` gives, and how many candidates each part is asked for."""
Plan = dict[str, Any]
"""Arrays by these names, or None, and a number."""


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


class Planner:
    """What there is to know of queries before any row is looked at, worked out once for all parts.

    Parameters
    ----------
    reader : of all shards; need not have their codes
    """

    def __init__(self, reader: ShardedReader) -> None:
        self.reader = reader
        self._engine = reader.planner()

    def plan(
        self, queries: F32Rows, options: dict[str, Any], *, allow: Any = None, timeout_s: float = math.inf
    ) -> Plan:
        """Plan a search.

        Parameters
        ----------
        queries : (q, d), prepared
        options : of `Engine.search`
        allow : external ids that may be found; None = all
        """
        planned: dict[str, Any] = {name: options[name] for name in ("nprobe", "lift", "temperature") if name in options}
        if allow is not None:
            planned["allow"] = (np.empty(0, np.uint32), prepare_allow(self.reader, allow).per_list)
        found = self._engine.plan(queries, rescore=not options["refine"], timeout_s=timeout_s, **planned)
        count = candidate_count(options["k"], options["refine"], self.reader.manifest.n)
        return dict(zip(PLAN, (*found, count), strict=True))


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

    def find(self, plan: Plan, *, allow: Any = None, **options: Any) -> Candidates:
        """Find the best rows by code.

        Parameters
        ----------
        allow : external ids that may be found; None = all
        options : `threads` and `timeout_s` of `Engine.candidates`
        """
        scores, rescored, positions, lists, work = self._engine.candidates(
            **plan, **options, allow=self._allowed(allow)
        )
        whole = np.where(positions < 0, -1, positions + self.reader.shifts[lists])
        return Candidates(scores, rescored, positions, whole, work)

    def search(self, queries: F32Rows, *, allow: Any = None, **options: Any) -> tuple[F32Rows, I64, I64]:
        """Search, where these are all shards: scores (q, k), positions in the whole (q, k) and the work (q, 7).

        Parameters
        ----------
        queries : (q, d), prepared
        allow : external ids that may be found; None = all
        options : of `Engine.search`
        """
        return self._engine.search(queries, **options, allow=self._allowed(allow))

    def score(self, queries: F32Rows, positions: I64, reads: I64, **options: Any) -> tuple[F32Rows, I64]:
        """Exact scores (q, count) of the first `reads` (q,) of the rows at `positions`, and the work (q, 7)."""
        return self._engine.score(queries, positions, reads, **options)

    def _allowed(self, allow: Any) -> Any:
        if allow is None:
            return None
        prepared = prepare_allow(self.reader, allow)
        return prepared.blocks, prepared.per_list


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
