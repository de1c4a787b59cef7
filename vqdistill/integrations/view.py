"""What a live store searches at one moment: all rows as they are, or one generation of an index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vqdistill.config import SearchParams
from vqdistill.documents.document import Id, checked_id, id_dtype
from vqdistill.documents.filters import Filter
from vqdistill.documents.sql import to_sql
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import InvalidInput
from vqdistill.index.allow import Allow
from vqdistill.index.reader import IndexReader
from vqdistill.integrations.exact import nearest
from vqdistill.searcher import Searcher
from vqdistill.types import F32Rows

_FILTERS = 16
"""Filters of the last searches whose rows are remembered."""
_REFINED = 100
"""Candidates verified where all lists are visited."""
_ROWS = 8192
"""Rows read from an index at a time."""


class Match(NamedTuple):
    """One document found."""

    id: Id
    score: float
    """Similarity; larger is better."""


class Choice:
    """The documents that a search may find.

    Parameters
    ----------
    where : filter of metadata; None = all
    ids : those asked for; None = all
    documents : that the filter is of
    """

    def __init__(self, where: Filter | None, ids: Iterable[Id] | None, documents: DocumentStore) -> None:
        self._where, self._documents = where, documents
        self._ids = None if ids is None else {checked_id(key, documents.kind) for key in ids}
        self._sql = None if where is None else to_sql(where)

    @property
    def key(self) -> Any:
        """What two equal choices have in common; None where one is not to be remembered."""
        # Not the filter itself: 1 and True are equal, and ask for different things.
        return None if self._ids is not None or self._sql is None else (self._sql[0], tuple(self._sql[1]))

    def ids(self) -> npt.NDArray[Any]:
        """Return the ids, int64 or str."""
        if self._where is None:
            found: Iterable[Id] = self._ids or ()
        else:
            passing = self._documents.ids(self._where)
            if self._ids is None:
                return passing
            found = (key for key in passing.tolist() if key in self._ids)
        return np.array(list(found), id_dtype(self._documents.kind))


class Exact:
    """All rows, each compared with every query.

    Parameters
    ----------
    revision : of the documents, that this shows
    d : dimensions
    metric : of the rows, which are prepared for it
    documents : where they wait for an index
    """

    def __init__(self, revision: int, d: int, metric: str, documents: DocumentStore) -> None:
        self.revision, self.d, self._metric = revision, d, metric
        blocks = list(documents.waiting_rows(d))
        self._ids = [key for ids, _ in blocks for key in ids]
        self._place = {key: at for at, key in enumerate(self._ids)}
        self._rows = np.concatenate([np.zeros((0, d), np.float32), *(rows for _, rows in blocks)])

    def __len__(self) -> int:
        return len(self._ids)

    def search(self, queries: F32Rows, k: int, some: Choice | None, options: dict[str, Any]) -> list[list[Match]]:
        """See `LiveStore.search`."""
        SearchParams(**_known(options))
        at = None
        if some is not None:
            allowed = (self._place.get(key) for key in some.ids().tolist())
            at = np.array(sorted(place for place in allowed if place is not None), np.int64)
        scores, best = nearest(self._metric, queries, self._rows if at is None else self._rows[at], k)
        found = zip(scores.tolist(), (best if at is None else at[best]).tolist(), strict=True)
        return [[Match(self._ids[row], score) for score, row in zip(*pair, strict=True)] for pair in found]

    def vectors(self, ids: list[Id]) -> list[F32Rows | None]:
        """See `LiveStore.vectors`."""
        return [None if (at := self._place.get(key)) is None else self._rows[at] for key in ids]

    def all_rows(self) -> Iterator[tuple[list[Id], F32Rows]]:
        """Yield ids and rows (b, d), some at a time."""
        for begin in range(0, len(self._ids), _ROWS):
            yield self._ids[begin : begin + _ROWS], self._rows[begin : begin + _ROWS]


class Indexed:
    """One generation of an index.

    Parameters
    ----------
    revision : of the documents, that this shows
    index : its directory
    searcher : of this generation, for ever
    documents : which may know of rows that the index is still to delete
    """

    def __init__(self, revision: int, index: Path, searcher: Searcher, documents: DocumentStore) -> None:
        self.revision, self.index, self._searcher = revision, index, searcher
        self._gone = set(documents.waiting_deletes())
        self._filters: dict[Any, Allow] = {}

    def newest(self, revision: int, documents: DocumentStore) -> Indexed:
        """Return the same for the generation that is current now; its memory is shared."""
        reader = self.reader.newest()
        searcher = self._searcher if reader is self.reader else Searcher(reader)
        return Indexed(revision, self.index, searcher, documents)

    @property
    def reader(self) -> IndexReader:
        """The generation that is searched."""
        return self._searcher.reader

    @property
    def d(self) -> int:
        """Dimensions."""
        return self.reader.manifest.d

    def __len__(self) -> int:
        return self.reader.manifest.live

    def search(self, queries: F32Rows, k: int, some: Choice | None, options: dict[str, Any]) -> list[list[Match]]:
        """See `LiveStore.search`."""
        manifest = self.reader.manifest
        allow = None if some is None else self._allow(some)
        there = min(k, len(self) if allow is None else allow.count)
        deep = min(k + len(self._gone), manifest.n)
        found = self._matches(queries, deep, allow, _known(options))
        short = [at for at, matches in enumerate(found) if len(matches) < min(there, deep)]
        if short:
            # The lists visited have too few rows, so that all are: what is there is found, as without an index.
            kept = {name: options[name] for name in ("threads", "timeout_s") if name in options}
            everywhere = kept | {"nprobe": manifest.nlist, "refine": max(_REFINED, deep)}
            for at, matches in zip(short, self._matches(queries[short], deep, allow, everywhere), strict=True):
                found[at] = matches
        return [matches[:k] for matches in found]

    def _matches(self, queries: F32Rows, k: int, allow: Allow | None, options: dict[str, Any]) -> list[list[Match]]:
        scores, ids = self._searcher.search(queries, k, allow=allow, **options)
        return [
            [
                Match(key, score)
                for key, score in zip(keys, found, strict=True)
                if score > -np.inf and key not in self._gone
            ]
            for keys, found in zip(ids.tolist(), scores.tolist(), strict=True)
        ]

    def _allow(self, some: Choice) -> Allow:
        known = None if some.key is None else self._filters.get(some.key)
        if known is None:
            known = self._searcher.prepare(some.ids())
            if some.key is not None:
                if len(self._filters) >= _FILTERS:
                    self._filters = {}
                self._filters[some.key] = known
        return known

    def vectors(self, ids: list[Id]) -> list[F32Rows | None]:
        """See `LiveStore.vectors`."""
        reader = self.reader
        kind = "str" if reader.manifest.ids == "str" else "int64"
        keys = [checked_id(key, kind) for key in ids]
        positions = reader.positions_of(np.array(keys, id_dtype(kind)))
        there = np.array([at >= 0 and key not in self._gone for at, key in zip(positions, keys, strict=True)], bool)
        rows = iter(reader.dense_rows(positions[there]))
        return [next(rows) if found else None for found in there.tolist()]

    def all_rows(self) -> Iterator[tuple[list[Id], F32Rows]]:
        """Yield ids and rows (b, d), some at a time."""
        reader = self.reader
        for begin in range(0, reader.manifest.n, _ROWS):
            positions = np.arange(begin, min(begin + _ROWS, reader.manifest.n))
            positions = positions[reader.alive.of(positions)]
            yield reader.ids_of(positions).tolist(), reader.dense_rows(positions)


View = Exact | Indexed


def _known(options: dict[str, Any]) -> dict[str, Any]:
    names = SearchParams.__dataclass_fields__.keys()
    if extra := options.keys() - names:
        raise InvalidInput(f"options of a search must be among {', '.join(names)}, got {', '.join(sorted(extra))}")
    return options
