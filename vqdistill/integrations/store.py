"""LiveStore: documents and their vectors, searched exactly until there are enough for an index."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import RLock
from types import TracebackType
from typing import Any

import numpy as np

from vqdistill.documents.document import Document, Id
from vqdistill.documents.filters import as_filter
from vqdistill.documents.store import DocumentStore
from vqdistill.errors import InvalidInput, VqdistillError
from vqdistill.index.files import read_manifest
from vqdistill.index.manifest import Manifest
from vqdistill.integrations.locks import Busy, exclusive
from vqdistill.integrations.options import FEWEST, StoreOptions, options_of_index
from vqdistill.integrations.upkeep import compile_rows, remove_index, take_waiting
from vqdistill.integrations.view import Choice, Exact, Indexed, Match, View
from vqdistill.kernels.units import unit_rows
from vqdistill.searcher import open as open_searcher
from vqdistill.types import F32Rows, Metric, as_f32_rows

DOCUMENTS = "documents.sqlite3"
_LOCK = "lock"
_LOG = logging.getLogger(__name__)


class LiveStore:
    """Documents with vectors in one folder, found by similarity and by metadata; safe under threads and processes.

    The folder holds the documents (SQLite), and from `compile_at` rows on the index of their vectors. Before, vectors
    are in SQLite too, and every one is compared. Both ways take the same calls and give the same scores; an index finds
    what it is calibrated to find. Added rows join the index at once.

    A change is written to SQLite first, documents and what the index is to take in one transaction, then the index
    takes it, then SQLite notes that it has. Whatever stops between: documents are never lost, the index never has a row
    without its document, and the next change or opening lets the index take what it has not. The index is published
    at once or not at all, and taking the same rows twice changes nothing.

    Parameters
    ----------
    path : folder; made if it is not there
    options : see `StoreOptions`; None = as the folder has them, or the defaults
    index : directory of a compiled index to begin with, whose ids are those of the documents; it stays where it is,
        and is changed by this store only. `options` then say how it would be compiled anew
    wait_s : seconds to wait for another writer of the folder before a change is given up

    Raises
    ------
    InvalidInput
        If the folder has other options, or holds something else.
    CorruptIndex, FormatTooNew, FormatTooOld, VqdistillError
        As `searcher.open` and `DocumentStore`.
    """

    def __init__(
        self,
        path: str | Path,
        options: StoreOptions | None = None,
        *,
        index: str | Path | None = None,
        wait_s: float = 60.0,
    ) -> None:
        self.path = Path(path)
        self._wait_s = wait_s
        self._lock = RLock()
        self._view: View | None = None
        given = None if index is None else read_manifest(Path(index))
        if given is not None:
            options = options_of_index(options, given, Path(str(index)))
        try:
            self.path.mkdir(exist_ok=True)
        except OSError as error:
            raise InvalidInput(f"folder {path} of a store cannot be made: {error.strerror}") from None
        try:
            self._begin(options, None if index is None else Path(index), given)
        except BaseException:
            self.close()
            raise

    def _begin(self, options: StoreOptions | None, index: Path | None, given: Manifest | None) -> None:
        made = self.is_at(self.path) and index is None
        try:
            with exclusive(self.path / _LOCK, 0 if made else self._wait_s):
                self._open(options)
                if index is not None and given is not None:
                    self._adopt(index, given)
                self._recover()
        except Busy:
            if not made:
                raise
            self._open(options)  # to read: the other writer leaves nothing to recover

    def _open(self, options: StoreOptions | None) -> None:
        self.documents = DocumentStore(self.path / DOCUMENTS, None if options is None else options.kind)
        """Texts and metadata; change them by this store only."""
        if self.documents.setting("options") is None:
            options = options or StoreOptions(kind=self.documents.kind)
            self.documents.configure(options=options.to_json())
        elif options is not None:
            options.agreed(self.options, self.path)
        self.metric = self.options.metric
        """"ip", "cosine" or "l2"."""

    @staticmethod
    def is_at(path: str | Path) -> bool:
        """Whether a folder has a store."""
        return (Path(path) / DOCUMENTS).is_file()

    def close(self) -> None:
        """Close the documents and the index; closing twice is fine."""
        with self._lock:
            if hasattr(self, "documents"):
                self.documents.close()
            self._view = None

    def __enter__(self) -> LiveStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Documents, with vectors and without."""
        return len(self.documents)

    @property
    def options(self) -> StoreOptions:
        """As the store has them."""
        return StoreOptions.from_json(self.documents.setting("options"))

    @property
    def d(self) -> int | None:
        """Dimensions of the vectors; None before the first one."""
        d = self.documents.setting("d")
        return None if d is None else int(d)

    @property
    def index(self) -> Path | None:
        """Directory of the index; None as long as there is none."""
        name = self.documents.setting("index")
        return None if name is None else self.path / str(name)

    def put(self, documents: Sequence[Document], vectors: Any) -> list[Id]:
        """Write documents and vectors, replacing those with the same ids; on disk and found when this returns.

        The call by which there are `compile_at` rows compiles their index, which takes seconds to minutes.

        Parameters
        ----------
        documents : b of them; of two with one id, the last counts
        vectors : (b, d), any real dtype; scaled to unit norm under cosine. None, for all or for some in a list: found
            by metadata only

        Returns
        -------
        list
            Ids, each once.

        Raises
        ------
        InvalidInput
            If an id, text, metadata or vector is not usable; nothing is changed.
        VqdistillError
            If the disk refuses, or another writer goes on for too long; nothing is changed. Or if the documents were
            stored, but their index could not take them yet; the message says so.
        """
        documents = list(documents)
        given = [None] * len(documents) if vectors is None else vectors
        if len(given) != len(documents):
            raise InvalidInput(f"vectors must be one for each of {len(documents)} documents, got {len(given)}")
        with self._changing():
            last = {document.id: at for at, document in enumerate(documents)}
            order = sorted(last.values())
            bare = [at for at in order if given[at] is None]
            full = [at for at in order if given[at] is not None]
            rows = self._rows([given[at] for at in full]) if full else None
            if rows is not None and (index := self.index) is not None and read_manifest(index).ids == "rows":
                raise InvalidInput(f"rows of {index} are numbered and cannot be replaced: compile it with ids")
            with self.documents.change():
                if rows is not None:
                    self.documents.configure(d=rows.shape[1])
                    self.documents.put([documents[at] for at in full], rows)
                ids = self.documents.put([documents[at] for at in bare])
                self.documents.drop(ids, indexed=self.index is not None)
            self._settle()
        return [documents[at].id for at in order]

    def describe(self, documents: Iterable[Document]) -> list[Id]:
        """Write documents of rows that the index has already, or whose vectors stay, and return their ids."""
        with self._changing():
            return self.documents.put(documents)

    def delete(self, ids: Iterable[Id]) -> int:
        """Delete documents and vectors, and return how many documents there were; other ids are passed over.

        Raises
        ------
        InvalidInput, VqdistillError
            As `put`.
        """
        keys = list(ids)
        with self._changing():
            with self.documents.change():
                deleted = self.documents.delete(keys)
                self.documents.drop(keys, indexed=self.index is not None)
            self._settle()
        return deleted

    def search(
        self, queries: Any, k: int = 10, *, where: Any = None, ids: Iterable[Id] | None = None, **options: Any
    ) -> list[list[Match]]:
        """Find the k documents most similar to each query.

        Parameters
        ----------
        queries : (q, d) or (d,), any real dtype
        k : results per query, at least 1; fewer are returned where there are no more
        where : filter of metadata, see `documents.filters.as_filter`; None = all
        ids : of the documents that may be found; None = all
        options : of `Searcher.search`, such as `coverage`, `recall` or `timeout_s`; without an index all is exact. If
            the lists visited have fewer than k rows, all are visited

        Returns
        -------
        list of list of Match
            For each query (id, score), best first.

        Raises
        ------
        InvalidInput, SearchTimeout, VqdistillError
            As `Searcher.search`.
        """
        if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
            raise InvalidInput(f"k must be an integer of at least 1, got {k!r}")
        wanted = None if where is None else as_filter(where)
        view = self._current()
        if view is None:
            return [[] for _ in range(len(np.atleast_2d(np.asarray(queries))))]
        some = None if wanted is None and ids is None else Choice(wanted, ids, self.documents)
        return view.search(self._prepared(queries, "queries", view.d), int(k), some, options)

    def documents_of(self, matches: Iterable[Match]) -> list[tuple[Match, Document]]:
        """Return matches with their documents; of a row that nothing was written for, an empty one."""
        found = list(matches)
        documents = self.documents.get([match.id for match in found])
        return [(match, document or Document(match.id, "")) for match, document in zip(found, documents, strict=True)]

    def keys(self, ids: Iterable[str]) -> list[Id]:
        """Return ids as the store has them: strings, or the integers that they say.

        Raises
        ------
        InvalidInput
            If one should be an integer and is none.
        """
        if self.documents.kind == "str":
            return list(ids)
        try:
            return [int(text) for text in ids]
        except ValueError as error:
            raise InvalidInput(f"ids of {self.path} must be integers: {error}") from None

    def vectors(self, ids: Iterable[Id]) -> list[F32Rows | None]:
        """Return the vectors (d,) float32 under these ids as they are compared, None where there is none.

        Raises
        ------
        InvalidInput
            If the index keeps none.
        """
        view, keys = self._current(), list(ids)
        return [None] * len(keys) if view is None else view.vectors(keys)

    def require_vectors(self, ids: Iterable[Id]) -> list[F32Rows]:
        """As `vectors`, of ids that all have one.

        Raises
        ------
        InvalidInput
            If one has none, or the index keeps none.
        """
        keys = list(ids)
        found = [(key, vector) for key, vector in zip(keys, self.vectors(keys), strict=True) if vector is not None]
        if len(found) < len(keys):
            raise InvalidInput(f"{len(keys) - len(found)} of {len(keys)} results have no vector any more; search again")
        return [vector for _, vector in found]

    def compile(self, queries: Any = None, **changes: Any) -> dict[str, Any]:
        """Compile the index of all vectors, the first or a new one, and search it from now on.

        An index is compiled once by itself, of the rows that there are then. Where many have come since, or there are
        real queries to learn from, a new one finds more.

        Parameters
        ----------
        queries : learn queries, see `compiler.build.compile`; None = pseudo-queries made from the rows
        changes : other values for `ram`, `recall`, `dense`, `distill` or `seed` of the options; they stay

        Returns
        -------
        dict
            As `compiler.build.compile`.

        Raises
        ------
        InvalidInput, BudgetInfeasible, VqdistillError
            As `compiler.build.compile`; the store goes on as it was.
        """
        if extra := changes.keys() - {"ram", "recall", "dense", "distill", "seed"}:
            raise InvalidInput(f"compile changes ram, recall, dense, distill or seed, got {', '.join(sorted(extra))}")
        with self._changing():
            self._take()
            options = StoreOptions(**self.options.to_json() | changes)
            return self._compile(options, queries)

    # What follows is called by the one writer.

    def _changing(self) -> AbstractContextManager[None]:
        return exclusive(self.path / _LOCK, self._wait_s)

    def _adopt(self, index: Path, manifest: Manifest) -> None:
        name = str(index.resolve())
        if self.documents.setting("index") not in (None, name) or self.documents.waiting:
            raise InvalidInput(f"{self.path} must be empty to begin with an index, got one that has rows")
        self.documents.configure(index=name, d=manifest.d)

    def _rows(self, vectors: list[Any]) -> F32Rows:
        d = self.d
        try:
            rows = np.asarray([np.asarray(vector) for vector in vectors])
        except ValueError:
            raise InvalidInput(f"vectors must be of shape (rows, {d or 'd'}), got several lengths") from None
        return self._prepared(rows, "vectors", d)

    def _prepared(self, rows: Any, name: str, d: int | None) -> F32Rows:
        checked = as_f32_rows(rows, name, d)
        return unit_rows(checked, name) if self.metric == Metric.COSINE.value else checked

    def _recover(self) -> None:
        """Let the index take what a writer that stopped has left."""
        try:
            self._take()
        except VqdistillError as error:
            _LOG.warning("%s", error)  # there is still all to read, and the next change tries again

    def _settle(self) -> None:
        """Let the index take what was changed, or compile the first one where there are enough rows."""
        at = self.options.compile_at
        if self.index is not None:
            self._take()
        elif at is not None and self.documents.waiting >= at:
            try:
                self._compile(self.options, None)
            except VqdistillError as error:
                raise VqdistillError(
                    f"the documents of {self.path} are stored and found, but their index cannot be compiled: {error}"
                ) from error

    def _take(self) -> None:
        if self.index is None or not self.documents.waiting:
            return
        try:
            view = self._current()
            assert isinstance(view, Indexed), "the index that is named"
            take_waiting(self.documents, view.reader)
        except VqdistillError as error:
            raise VqdistillError(
                f"the documents of {self.path} are stored, but the index has not taken {self.documents.waiting} changes"
                f" yet, which it will at the next change or opening: {error}"
            ) from error

    def _compile(self, options: StoreOptions, queries: Any) -> dict[str, Any]:
        old, view = self.index, self._current()
        n = 0 if view is None else len(view)
        if view is None or n < FEWEST:
            raise InvalidInput(f"an index needs {FEWEST} vectors at least, got {n} in {self.path}")
        number = int(self.documents.setting("indexes") or 0) + 1
        target = self.path / f"index-{number}"
        done = compile_rows(target, view.all_rows(), (n, view.d), options, queries)
        with self.documents.change():
            self.documents.settle()
            self.documents.configure(index=target.name, indexes=number, options=options.to_json())
        if old is not None and old.parent == self.path:
            remove_index(old)
        return done

    # What follows is for readers.

    def _current(self) -> View | None:
        """What is searched now; None as long as there is no vector."""
        with self._lock:
            while True:
                try:
                    with self.documents.snapshot():
                        revision = self.documents.revision
                        if self._view is None or self._view.revision != revision:
                            self._view = self._opened(revision)
                    return self._view
                except VqdistillError:
                    # Another process may have replaced the index that the documents named.
                    if self.documents.revision == revision:
                        raise

    def _opened(self, revision: int) -> View | None:
        d, index = self.d, self.index
        if d is None:
            return None
        if index is None:
            return Exact(revision, d, self.options.metric, self.documents)
        old = self._view
        if isinstance(old, Indexed) and old.index == index:
            return old.newest(revision, self.documents)
        return Indexed(revision, index, open_searcher(index), self.documents)
