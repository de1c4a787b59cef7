"""Search requests from their bytes to their responses; equal ones that wait at the same time are one search."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from starlette.responses import Response

from vqdistill.errors import InvalidInput, SearchTimeout
from vqdistill.index.view import Call
from vqdistill.searcher import Searcher
from vqdistill.server.answers import encode
from vqdistill.server.batcher import Batcher, Job
from vqdistill.server.bodies import Asked, parse_search
from vqdistill.server.books import Books
from vqdistill.server.config import Limits
from vqdistill.server.fleet import FleetSearcher
from vqdistill.server.metrics import Metrics
from vqdistill.server.pool import SearchPool
from vqdistill.types import Hits, as_f32_rows

T = TypeVar("T")
_SMALL_BODY, _SMALL_RESULT = 32 << 10, 256
"""Bytes of a request and hits of a response with which the loop deals itself: handing them to a thread takes longer."""
_STEPS = 8
"""Values that the timeout of a search may take: the searcher remembers options that come again."""


@dataclass(frozen=True)
class Question:
    """A search request as it came."""

    name: str
    """of the index"""
    content_type: str | None
    query_string: bytes
    """of the URL"""
    body: bytes
    kind: str
    """representation of the response"""


_Job = Job[Question, Response]


class Searches:
    """Answers the search requests of a process: of open indexes by a `SearchPool`, of fleets in threads."""

    def __init__(
        self,
        indexes: Mapping[str, Searcher | FleetSearcher],
        limits: Limits,
        metrics: Metrics,
        books: Books,
        threads: ThreadPoolExecutor,
        loop_core: int | None,
    ) -> None:
        self._indexes, self._limits, self._metrics, self._threads = indexes, limits, metrics, threads
        self._books = books
        self._pool = SearchPool(limits.concurrency, loop_core)
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
        searcher = self._indexes[question.name]
        if not isinstance(searcher, Searcher):
            return await self._batcher.ask(question, len(question.body), self._limits.timeout_s)
        call = await self._call(searcher, question)
        found = await self._pool.run(call)

        if found[0].size > _SMALL_RESULT:
            return await self._aside(lambda: self._respond(question, call.hits(found)))
        hits = call.hits(found)
        self._books.note(self._metrics.searched, question.name, hits)
        return encode(hits, question.kind)

    async def _call(self, searcher: Searcher, question: Question) -> Call:
        """Return what a request asks, read and checked."""
        end = time.monotonic() + self._limits.timeout_s

        def prepare(asked: Asked) -> Call:
            left = left_s(end, self._limits.timeout_s)
            return searcher.call(_queries(searcher, asked), allow=asked.allow, timeout_s=left, **asked.options)

        if len(question.body) > _SMALL_BODY:
            return await self._aside(lambda: prepare(self._parse(question)))
        asked = self._parse(question)
        return prepare(asked) if asked.plain else await self._aside(partial(prepare, asked))

    async def _aside(self, work: Callable[[], T]) -> T:
        """Call in a thread what would hold up the loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _parse(self, question: Question) -> Asked:
        return parse_search(question.content_type, question.body, question.query_string, self._limits)

    def _respond(self, question: Question, hits: Hits) -> Response:
        self._metrics.searched(question.name, hits)
        return encode(hits, question.kind)

    def close(self) -> None:
        """Wait for the searches under way."""
        self._pool.close()

    def _answer(self, jobs: Sequence[_Job]) -> Iterator[Sequence[_Job]]:
        alike: dict[Any, list[tuple[_Job, Asked]]] = {}
        for job in jobs:
            try:
                asked = self._parse(job.request)
            except Exception as error:  # the route answers what it is
                job.error = error
                yield [job]
                continue
            key = (job.request.name, *sorted(asked.options.items())) if asked.plain else id(job)
            alike.setdefault(key, []).append((job, asked))
        for group in alike.values():
            if len(group) == 1 or not self._together(group):
                for job, asked in group:
                    self._alone(job, asked)
                    yield [job]
            else:
                yield [job for job, _ in group]

    def _alone(self, job: _Job, asked: Asked) -> None:
        searcher = self._indexes[job.request.name]
        try:
            queries, left = _queries(searcher, asked), self._left_s([job])
            hits = searcher.search(queries, allow=asked.allow, timeout_s=left, **asked.options)
            job.outcome = self._respond(job.request, hits)
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
        for job, own in zip(jobs, rows, strict=True):
            one = slice(first, first := first + len(own))
            part = Hits(hits.scores[one], hits.ids[one], hits.rows[one], hits.work[one], hits.searched)
            job.outcome = self._respond(job.request, part)
        return True

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


def _queries(searcher: Searcher | FleetSearcher, asked: Asked) -> Any:
    """Return what to search for: of ids, the rows (b, d) that the index stores for them.

    Raises
    ------
    InvalidInput
        If it does not have one of them, or stores no rows.
    """
    reader, ids = searcher.reader, asked.ids
    if ids is None:
        return asked.queries
    positions = reader.positions_of(ids.tolist() if reader.manifest.ids == "str" else ids)
    if (positions < 0).any():
        unknown = ids[int(np.flatnonzero(positions < 0)[0])].item()
        raise InvalidInput(f"ids must be ids of the index, got {unknown!r}, which it does not have")
    return reader.dense_rows(positions)
