"""A generation of an index, open for searching, and what callers may ask of it."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.config import SearchParams
from vqdistill.errors import InvalidInput, SearchTimeout, VqdistillError
from vqdistill.index.allow import Allow, prepare_allow
from vqdistill.index.certificate import Certificate
from vqdistill.index.manifest import Manifest
from vqdistill.index.reader import IndexReader
from vqdistill.kernels.units import unit_rows
from vqdistill.types import F32Rows, Hits, Metric, as_f32_rows


class Options:
    """What a caller asks of one generation of an index, as options of the engine."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def of(
        self,
        k: Any,
        nprobe: Any = None,
        coverage: Any = None,
        refine: Any = None,
        confidence: Any = None,
        recall: Any = None,
        threads: Any = 1,
        timeout_s: Any = None,
    ) -> tuple[SearchParams, dict[str, Any]]:
        """Check what a search asks for, and turn it into options of the engine."""
        params = SearchParams(
            nprobe=nprobe,
            coverage=coverage,
            refine=refine,
            confidence=confidence,
            recall=recall,
            threads=threads,
            timeout_s=timeout_s,
        )
        if recall is not None:
            certificate = self.certificate(recall)
            rung, k = certificate.choose(recall, self.checked_k(k)), certificate.k
            params = replace(params, recall=None, **rung.options)
        results = self.checked_k(k)
        params = self._manifest.search.fill(params, results)
        return params, {"k": results} | self.probing(params) | self._verification(params, results)

    def certificate(self, recall: Any) -> Certificate:
        """Return what was proven of this generation, for a wanted recall."""
        certificate = self._manifest.certificate
        if certificate is None:
            raise InvalidInput(f"recall needs an index with a certificate, got {recall} for one without")
        return certificate

    def checked_k(self, k: Any) -> int:
        """Return how many results are wanted, within the rows that there are."""
        n = self._manifest.n
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= n:
            raise InvalidInput(f"k must be an integer in 1..{n}, the rows of the index, got {k!r}")
        return int(k)

    def probing(self, params: SearchParams) -> dict[str, Any]:
        """Options `nprobe`, `lift` and `temperature` of the engine."""
        nlist, policy = self._manifest.nlist, self._manifest.search
        if params.nprobe is not None and params.nprobe > nlist:
            raise InvalidInput(f"nprobe must be in 1..{nlist}, the lists of the index, got {params.nprobe}")
        coverage = params.coverage
        if coverage is None:
            return {"nprobe": params.nprobe}
        if not policy.rungs:
            raise InvalidInput(f"coverage needs an index that was calibrated, got {coverage}; say nprobe instead")
        if coverage > policy.rungs[-1][0]:
            raise InvalidInput(
                f"coverage must be at most {policy.rungs[-1][0]}, the last that the index was calibrated for, got"
                f" {coverage}; nprobe={nlist} visits all lists"
            )
        lift = policy.lift(coverage)
        return {"nprobe": params.nprobe or nlist, "lift": lift, "temperature": policy.temperature}

    def _verification(self, params: SearchParams, k: int) -> dict[str, Any]:
        """Options `refine`, `misses` and `error` of the engine."""
        refine, confidence, error = params.refine or 0, params.confidence, self._manifest.search.error
        if 0 < refine < k:
            raise InvalidInput(f"refine must be 0 or at least k = {k}, got {refine}")
        if refine and self._manifest.dense == "none":
            raise InvalidInput(f"refine must be 0 for an index without dense rows, got {refine}")
        if confidence is None:
            return {"refine": refine}
        if error is None:
            raise InvalidInput(f"confidence needs an index that was calibrated, got {confidence}; say refine instead")
        return {"refine": refine, "misses": (1.0 - confidence) * k, "error": error}


class View:
    """One generation of an index, open for searching."""

    def __init__(self, reader: IndexReader, io: str) -> None:
        self.reader = reader
        self.engine = reader.engine(io)
        # Calls repeat themselves, and checking takes longer than a small search. Typed: True is no k, but equals 1.
        self.options = Options(reader.manifest)
        self.known = lru_cache(maxsize=64, typed=True)(self.options.of)

    def run(self, method: str, rows: F32Rows, params: SearchParams, **options: Any) -> Any:
        """Call a method of the engine.

        Raises
        ------
        SearchTimeout
            If it takes too long.
        VqdistillError
            If the disk refuses.
        """
        with self.telling(len(rows), params):
            return self.call(method, rows, params, **options)

    def call(self, method: str, rows: F32Rows, params: SearchParams, **options: Any) -> Any:
        """Call a method of the engine, whose exceptions are still its own."""
        timeout_s = math.inf if params.timeout_s is None else params.timeout_s
        return getattr(self.engine, method)(rows, threads=params.threads, timeout_s=timeout_s, **options)

    def telling(self, queries: int, params: SearchParams) -> AbstractContextManager[None]:
        """Say what exceptions of the engine mean, as `run` does."""
        return _Telling(self.reader, queries, params)

    def prepared(self, rows: Any, name: str = "queries") -> F32Rows:
        """Return rows (b, d) float32 as the index scores them: unit rows under cosine."""
        return prepared(self.reader.manifest, rows, name)

    def filter(self, allow: Any) -> dict[str, Any]:
        """Option `allow` of the engine."""
        prepared = allow if isinstance(allow, Allow) else prepare_allow(self.reader, allow)
        manifest = self.reader.manifest
        if prepared.index_id != manifest.index_id:
            raise InvalidInput("allow must be prepared for the index that it filters, got that of another one")
        if prepared.generation != manifest.generation:
            raise InvalidInput(
                f"allow must be prepared for generation {manifest.generation} of the index, which it filters, got"
                f" {prepared.generation}; prepare it again"
            )
        return {"allow": (prepared.blocks, prepared.per_list)}

    def named(self, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
        """External ids and row numbers of positions."""
        return named(self.reader, positions)


class _Telling:
    """Says what exceptions of the engine mean; a class, as a generator takes three times as long."""

    def __init__(self, reader: IndexReader, queries: int, params: SearchParams) -> None:
        self._reader, self._queries, self._params = reader, queries, params

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, TimeoutError):
            limit = self._params.timeout_s
            raise SearchTimeout(f"the search of {self._queries} queries took longer than {limit} s") from None
        if isinstance(error, OSError):
            raise VqdistillError(f"{self._reader.path}: dense rows cannot be read: {error.strerror}") from error


@dataclass(frozen=True)
class Call:
    """A search of one generation, which stays open until it has its hits."""

    view: View
    queries: F32Rows
    params: SearchParams
    options: dict[str, Any]
    """of the engine"""
    k: int
    """results wanted; a certified search may find more"""

    def engine(self, method: str) -> Any:
        """Call `search` or `prepare_search` of the engine, whose exceptions are its own."""
        return self.view.call(method, self.queries, self.params, **self.options)

    def telling(self) -> AbstractContextManager[None]:
        """Say what exceptions of the engine mean, as `View.run`."""
        return self.view.telling(len(self.queries), self.params)

    def hits(self, found: tuple[npt.NDArray[Any], ...]) -> Hits:
        """Return what the engine found by external ids."""
        scores, positions, work = found
        if scores.shape[1] > self.k:
            scores, positions = (np.ascontiguousarray(each[:, : self.k]) for each in (scores, positions))
        return Hits(scores, *self.view.named(positions), work)


def prepared(manifest: Manifest, rows: Any, name: str = "queries") -> F32Rows:
    """Return rows (b, d) float32 as an index scores them: unit rows under cosine."""
    cosine = manifest.metric is Metric.COSINE
    checked = as_f32_rows(rows, name, manifest.d, finite=not cosine)
    return unit_rows(checked, name) if cosine else checked


def named(reader: IndexReader, positions: npt.NDArray[np.int64]) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    """External ids and row numbers of positions that an engine gave."""
    rows = reader.rows_of(positions, checked=True)
    return (rows if reader.manifest.ids == "rows" else reader.ids_of(positions)), rows
