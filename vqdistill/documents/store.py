"""DocumentStore: texts and metadata by external id, and the changes that an index has yet to take; one SQLite file."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.documents.document import KINDS, Document, Id, checked_id, checked_text, encode_metadata, id_dtype
from vqdistill.documents.filters import as_filter
from vqdistill.documents.sql import to_sql
from vqdistill.errors import CorruptIndex, InvalidInput, VqdistillError
from vqdistill.types import F32Rows

VERSION = 1
"""Of the tables below, kept as SQLite's user_version."""
_PAGE = 1000
"""Documents, or ids, read or looked up at a time."""
_BUSY_S = 60.0
"""Seconds to wait for a writer of another process, whose transactions take far less."""

_TABLES = (
    "CREATE TABLE settings (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE documents (seq INTEGER PRIMARY KEY AUTOINCREMENT, id {kind} NOT NULL UNIQUE, text TEXT NOT NULL,"
    " metadata TEXT NOT NULL)",
    # Rows of an index to come, or with a NULL those to go.
    "CREATE TABLE waiting (id {kind} PRIMARY KEY, vector BLOB) WITHOUT ROWID",
)


class DocumentStore:
    """Texts and metadata of documents, by the ids that an index has; safe under use by threads and by processes.

    A change is on disk when its call returns, and appears at once or not at all. `waiting` is where changes of an index
    are written first, in the same transaction as the documents, so that whatever stops between the two, the
    index can take them later.

    Parameters
    ----------
    path : SQLite file; made if it is not there. Beside it SQLite keeps FILE-wal and FILE-shm.
    kind : "str" or "int64"; None = as the file has it, or "str"

    Raises
    ------
    InvalidInput
        If the file is none of these, or has ids of another kind.
    VqdistillError
        If the disk refuses.
    """

    def __init__(self, path: str | Path, kind: str | None = None) -> None:
        if kind is not None and kind not in KINDS:
            raise InvalidInput(f"kind of ids must be one of {', '.join(KINDS)}, got {kind!r}")
        self.path = Path(path)
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._inherited: sqlite3.Connection | None = None
        self._pid = 0
        self._closed = False
        if not self.path.parent.is_dir():
            raise InvalidInput(f"documents must be in a folder that exists, got {self.path}")
        self._lay_out(kind or "str")
        self.kind: str = self.setting("kind")
        """Of the ids, one of KINDS."""
        if kind is not None and kind != self.kind:
            self.close()
            raise InvalidInput(f"kind of ids must be {self.kind}, as {path} has it, got {kind}")

    def close(self) -> None:
        """Close the file; closing twice is fine."""
        with self._lock:
            self._closed = True
            if self._db is not None and self._pid == os.getpid():
                self._db.close()
            self._db = None

    def __enter__(self) -> DocumentStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return int(self._one("SELECT count(*) FROM documents"))

    @contextmanager
    def change(self) -> Iterator[None]:
        """Make the changes of a `with` block one: all of them appear, or on an exception none.

        Raises
        ------
        VqdistillError
            If the disk refuses, or others write for longer than a minute; nothing is changed.
        """
        with self._transaction() as db:
            nested = db.in_transaction
            if not nested:
                db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if not nested:
                    self._set("revision", self.revision + 1)
                    db.execute("COMMIT")
            except BaseException:
                if not nested and db.in_transaction:
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        """See one state of all documents and settings throughout a `with` block, whatever others change."""
        with self._transaction() as db:
            nested = db.in_transaction
            if not nested:
                db.execute("BEGIN")
            try:
                yield
            finally:
                if not nested:
                    db.execute("ROLLBACK")

    # Documents.

    def put(self, documents: Iterable[Document], vectors: F32Rows | None = None) -> list[Id]:
        """Write documents, replacing those with the same ids; of two with one id, the last counts.

        Parameters
        ----------
        documents : b of them
        vectors : (b, d) float32 that an index is to take for them; None = it has them, or needs none

        Returns
        -------
        list
            Ids, each once.

        Raises
        ------
        InvalidInput
            If an id is of another kind, a text none, or metadata is no JSON object; nothing is changed.
        VqdistillError
            As `change`.
        """
        given = list(documents)
        if vectors is not None and len(vectors) != len(given):
            raise InvalidInput(f"vectors must be one for each of {len(given)} documents, got {len(vectors)}")
        last = {checked_id(document.id, self.kind): at for at, document in enumerate(given)}
        rows = [(key, checked_text(given[at]), encode_metadata(given[at])) for key, at in last.items()]
        with self.change():
            self._many(
                "INSERT INTO documents (id, text, metadata) VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " text = excluded.text, metadata = excluded.metadata",
                rows,
            )
            if vectors is not None:
                wait = ((key, vectors[at].astype("<f4").tobytes()) for key, at in last.items())
                self._many("INSERT OR REPLACE INTO waiting VALUES (?, ?)", wait)
        return list(last)

    def delete(self, ids: Iterable[Id]) -> int:
        """Delete documents, and return how many there were; other ids are passed over.

        Raises
        ------
        InvalidInput
            If an id is of another kind; nothing is changed.
        VqdistillError
            As `change`.
        """
        keys = self._keys(ids)
        with self.change():
            return self._many("DELETE FROM documents WHERE id = ?", keys)

    def get(self, ids: Iterable[Id]) -> list[Document | None]:
        """Return the documents with these ids, in their order, None where there is none."""
        keys = [checked_id(key, self.kind) for key in ids]
        found: dict[Id, Document] = {}
        for begin in range(0, len(keys), _PAGE):
            part = json.dumps(keys[begin : begin + _PAGE], ensure_ascii=False)
            sql = "SELECT id, text, metadata FROM documents WHERE id IN (SELECT value FROM json_each(?))"
            found |= {row[0]: _document(row) for row in self._all(sql, (part,))}
        return [found.get(key) for key in keys]

    def __iter__(self) -> Iterator[Document]:
        return self.select()

    def select(self, where: Any = None) -> Iterator[Document]:
        """Yield the documents that pass a filter (see `filters.as_filter`; None = all), in the order of adding."""
        condition, parameters = _condition(where)
        after = 0
        while True:
            rows = self._all(
                f"SELECT id, text, metadata, seq FROM documents WHERE seq > ? AND ({condition}) ORDER BY seq LIMIT ?",
                (after, *parameters, _PAGE),
            )
            yield from (_document(row[:3]) for row in rows)
            if len(rows) < _PAGE:
                return
            after = rows[-1][3]

    def ids(self, where: Any = None) -> npt.NDArray[Any]:
        """Return the ids of documents that pass a filter, int64 or str: what `allow` of a search takes."""
        condition, parameters = _condition(where)
        rows = self._all(f"SELECT id FROM documents WHERE {condition} ORDER BY seq", parameters)
        return np.array([row[0] for row in rows], id_dtype(self.kind))

    def count(self, where: Any = None) -> int:
        """Return how many documents pass a filter."""
        condition, parameters = _condition(where)
        return int(self._one(f"SELECT count(*) FROM documents WHERE {condition}", parameters))

    # What an index has yet to take.

    @property
    def waiting(self) -> int:
        """Rows that an index is to take or to delete."""
        return int(self._one("SELECT count(*) FROM waiting"))

    def waiting_rows(self, d: int) -> Iterator[tuple[list[Id], F32Rows]]:
        """Yield ids and vectors (b, d) float32 that an index is to take, by rising id, some at a time.

        Raises
        ------
        CorruptIndex
            If a vector has another length.
        """
        sql = "SELECT id, vector FROM waiting WHERE vector IS NOT NULL AND (?1 IS NULL OR id > ?1) ORDER BY id LIMIT ?2"
        after: Id | None = None
        while rows := self._all(sql, (after, _PAGE)):
            for key, data in rows:
                if len(data) != 4 * d:
                    raise CorruptIndex(f"{self.path}: vector of {key!r} must have {4 * d} bytes, got {len(data)}")
            vectors = np.frombuffer(b"".join(data for _, data in rows), "<f4").reshape(len(rows), d)
            yield [key for key, _ in rows], vectors.astype(np.float32, copy=False)
            after = rows[-1][0]

    def waiting_vector(self, key: Id) -> F32Rows | None:
        """Return the vector (d,) that waits under an id; None if there is none."""
        rows = self._all("SELECT vector FROM waiting WHERE id = ? AND vector IS NOT NULL", (key,))
        return np.frombuffer(rows[0][0], "<f4").astype(np.float32) if rows else None

    def waiting_deletes(self) -> list[Id]:
        """Return the ids whose rows an index is to delete."""
        return [row[0] for row in self._all("SELECT id FROM waiting WHERE vector IS NULL ORDER BY id")]

    def drop(self, ids: Iterable[Id], *, indexed: bool) -> None:
        """Forget what waits for an index under these ids; if they are `indexed`, it is to delete their rows."""
        sql = "INSERT OR REPLACE INTO waiting VALUES (?, NULL)" if indexed else "DELETE FROM waiting WHERE id = ?"
        keys = self._keys(ids)
        with self.change():
            self._many(sql, keys)

    def settle(self) -> None:
        """Note that an index has taken all that waited."""
        with self.change():
            self._many("DELETE FROM waiting WHERE ?", [(1,)])

    # Settings, and the file.

    @property
    def revision(self) -> int:
        """Number of the last change, of whichever process."""
        return int(self.setting("revision"))

    def setting(self, name: str) -> Any:
        """Return a setting, JSON; None if there is none."""
        rows = self._all("SELECT value FROM settings WHERE name = ?", (name,))
        return json.loads(rows[0][0]) if rows else None

    def configure(self, **settings: Any) -> None:
        """Write settings, JSON, under names that are not the store's own (`kind`, `revision`)."""
        with self.change():
            for name, value in settings.items():
                self._set(name, value)

    def _set(self, name: str, value: Any) -> None:
        self._many("INSERT OR REPLACE INTO settings VALUES (?, ?)", [(name, json.dumps(value))])

    def _lay_out(self, kind: str) -> None:
        """Make the tables, unless they are there."""
        if self._one("PRAGMA user_version") == VERSION:
            return
        with self.change():
            if self._one("PRAGMA user_version") == 0 and not self._all("SELECT 1 FROM sqlite_master"):
                for table in _TABLES:
                    self._all(table.format(kind="TEXT" if kind == "str" else "INTEGER"))
                self._all(f"PRAGMA user_version = {VERSION}")
                self._set("kind", kind)
                self._set("revision", 0)
            elif self._one("PRAGMA user_version") != VERSION:
                raise InvalidInput(f"{self.path} must be a document store of version {VERSION}, got another file")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._connection()
            except sqlite3.DatabaseError as error:
                if getattr(error, "sqlite_errorname", "") == "SQLITE_NOTADB" or "not a database" in str(error):
                    raise InvalidInput(f"{self.path} must be a document store, got another file") from None
                raise VqdistillError(f"documents {self.path} cannot be used: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        if self._closed:
            raise InvalidInput(f"documents {self.path} must be open, but they are closed")
        if self._db is None or self._pid != os.getpid():
            # A forked process must neither use nor close the connection of its parent.
            self._inherited = self._db
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
            self._pid = os.getpid()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
        return self._db

    def _keys(self, ids: Iterable[Id]) -> list[tuple[Id]]:
        return [(checked_id(key, self.kind),) for key in ids]

    def _many(self, sql: str, rows: Iterable[Sequence[Any]]) -> int:
        """Run a statement for each row of parameters, and return how many rows of the table it changed."""
        with self._transaction() as db:
            return db.executemany(sql, rows).rowcount

    def _all(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        with self._transaction() as db:
            return db.execute(sql, parameters).fetchall()

    def _one(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        return self._all(sql, parameters)[0][0]


def _document(row: Sequence[Any]) -> Document:
    return Document(row[0], row[1], json.loads(row[2]))


def _condition(where: Any) -> tuple[str, Sequence[Any]]:
    return ("1", ()) if where is None else to_sql(as_filter(where))
