"""Search requests from their bytes to their responses; equal ones that wait at the same time are one search."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from starlette.responses import Response

from vqdistill.errors import InvalidInput, SearchTimeout
from vqdistill.searcher import Searcher
from vqdistill.server.answers import encode
from vqdistill.server.batcher import Batcher, Job
from vqdistill.server.bodies import Asked, parse_search
from vqdistill.server.config import Limits
from vqdistill.server.fleet import FleetSearcher
from vqdistill.server.metrics import Metrics
from vqdistill.types import F32Rows, Hits, as_f32_rows

_STEPS = 8
"""Values that the timeout of a search may take: the searcher remembers options that come again."""


@dataclass(frozen=True)
class Question:
    """A search request as it came."""

    name: str
    """of the index"""
    content_type: str | None
    parameters: Mapping[str, str]
    """of the URL"""
    body: bytes
    kind: str
    """representation of the response"""


_Job = Job[Question, Response]


class Searches:
    """Answers the search requests of a process in threads."""

    def __init__(
        self,
        indexes: Mapping[str, Searcher | FleetSearcher],
        limits: Limits,
        metrics: Metrics,
        threads: ThreadPoolExecutor,
    ) -> None:
        self._indexes, self._limits, self._metrics = indexes, limits, metrics
        self._batcher = Batcher(self._answer, threads, limits.concurrency)

    async def ask(self, question: Question) -> Response:
        """Return the response to a request.

        Raises
        ------
        Problem
            If the body is none (400, 415), or asks what it must not (422).
        InvalidInput, SearchTimeout, ShardsLost, VqdistillError
            As `Searcher.search`; SearchTimeout also if its time is over before it begins; and InvalidInput for ids that
            the index does not have.
        """
        return await self._batcher.ask(question, len(question.body), self._limits.timeout_s)

    def _answer(self, jobs: Sequence[_Job]) -> Iterator[Sequence[_Job]]:
        alike: dict[Any, list[tuple[_Job, Asked]]] = {}
        for job in jobs:
            question = job.request
            try:
                asked = parse_search(question.content_type, question.body, question.parameters, self._limits)
            except Exception as error:  # the route answers what it is
                job.error = error
                yield [job]
                continue
            shared = asked.ids is None and asked.allow is None
            key = (question.name, *sorted(asked.options.items())) if shared else id(job)
            alike.setdefault(key, []).append((job, asked))
        for group in alike.values():
            if len(group) == 1 or not self._together(group):
                for job, asked in group:
                    self._alone(job, asked)
                    yield [job]
            else:
                yield [job for job, _ in group]

    def _alone(self, job: _Job, asked: Asked) -> None:
        name = job.request.name
        searcher = self._indexes[name]
        try:
            queries = asked.queries if asked.ids is None else stored_rows(searcher, asked.ids)
            hits = searcher.search(queries, allow=asked.allow, timeout_s=self._left_s([job]), **asked.options)
            self._finish(job, hits)
        except Exception as error:  # the route answers what it is
            job.error = error

    def _together(self, group: Sequence[tuple[_Job, Asked]]) -> bool:
        """Search for all at once; False if that fails, for whatever is wrong with one of them."""
        jobs = [job for job, _ in group]
        searcher, options = self._indexes[jobs[0].request.name], group[0][1].options
        try:
            rows = [as_f32_rows(asked.queries, "queries", searcher.reader.manifest.d) for _, asked in group]
            hits = searcher.search(np.concatenate(rows), timeout_s=self._left_s(jobs), **options)
        except Exception:  # each is told its own when it is alone
            return False
        first = 0
        for job, part in zip(jobs, rows, strict=True):
            one = slice(first, first := first + len(part))
            self._finish(job, Hits(hits.scores[one], hits.ids[one], hits.rows[one], hits.work[one], hits.searched))
        return True

    def _finish(self, job: _Job, hits: Hits) -> None:
        self._metrics.searched(job.request.name, hits)
        job.outcome = encode(hits, job.request.kind)

    def _left_s(self, jobs: Sequence[_Job]) -> float:
        """Seconds left to all of these."""
        return left_s(min(job.end for job in jobs), self._limits.timeout_s)


def left_s(end: float, timeout_s: float) -> float:
    """Return the seconds until `end`, a value of time.monotonic(), rounded up to one of a few values.

    Raises
    ------
    SearchTimeout
        If it is over.
    """
    left = math.ceil((end - time.monotonic()) / timeout_s * _STEPS) / _STEPS
    if left <= 0:
        raise SearchTimeout(f"the search waited longer than {timeout_s:g} s")
    return left * timeout_s


def stored_rows(searcher: Searcher | FleetSearcher, ids: Any) -> F32Rows:
    """Return the rows (b, d) that the index stores for external ids (b,).

    Raises
    ------
    InvalidInput
        If it does not have one of them, or stores no rows.
    """
    reader = searcher.reader
    positions = reader.positions_of(ids.tolist() if reader.manifest.ids == "str" else ids)
    if (positions < 0).any():
        unknown = ids[int(np.flatnonzero(positions < 0)[0])].item()
        raise InvalidInput(f"ids must be ids of the index, got {unknown!r}, which it does not have")
    return reader.dense_rows(positions)
