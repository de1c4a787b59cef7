"""Readers of given relevance: scores of pairs, TREC runs, qrels and label arrays."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.data.files import CONTAINER_SUFFIXES, open_container, read_pieces, resolve
from vqdistill.data.ids import IdColumn, Piece, to_ints
from vqdistill.data.relevance import Relevance
from vqdistill.data.tables import IntRows
from vqdistill.errors import InvalidInput
from vqdistill.objects.store import AnyPath

_PIECE_LINES = 65536
_QUERY_NAMES = ("qids", "qid", "query_ids", "query_id", "query-id")
_DOC_NAMES = ("docids", "docid", "doc_ids", "doc_id", "corpus-id")
_SCORE_NAMES = ("scores", "score")
_LABEL_NAMES = ("labels", "label", "rels", "rel", "relevance", "scores", "score")
# Columns of a line -> (query, document, value).
_SCORE_COLUMNS = {3: (0, 1, 2), 6: (0, 2, 4)}
_LABEL_COLUMNS = {3: (0, 1, 2), 4: (0, 2, 3)}


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What queries and documents are called in a file."""

    n_queries: int
    n_docs: int
    query_ids: IdColumn | None
    doc_ids: IdColumn | None


def read_scores(
    path: str | Path,
    *,
    n_queries: int,
    n_docs: int,
    query_ids: IdColumn | None = None,
    doc_ids: IdColumn | None = None,
) -> Relevance:
    """Read scores of pairs of a query and a document.

    Parameters
    ----------
    path : .npz or .parquet with qids, docids and scores; otherwise text, `qid docid score` or a TREC run (six columns;
        the score counts, the rank does not), separated by tabs or spaces, with or without a header line
    n_queries, n_docs : how many there are
    query_ids, doc_ids : what the file calls them; None = by row number

    Raises
    ------
    InvalidInput
        If the file cannot be read as such, names an unknown query or document (the message has the first one), names a
        pair twice, or holds a score that is not finite.
    """
    names = _Names(n_queries=n_queries, n_docs=n_docs, query_ids=query_ids, doc_ids=doc_ids)
    queries, docs, scores = _read(_one_file(path), names, _SCORE_COLUMNS, _SCORE_NAMES)
    return _named(str(path), queries, docs, scores, n_queries)


def read_labels(
    labels: str | Path | npt.NDArray[Any],
    *,
    n_queries: int,
    n_docs: int,
    query_ids: IdColumn | None = None,
    doc_ids: IdColumn | None = None,
) -> Relevance:
    """Read which documents are relevant to each query.

    Parameters
    ----------
    labels : qrels as text (`qid docid grade`, or TREC's with a second column that is ignored; BEIR's header line is
        skipped); .npz or .parquet with qids, docids and labels; or a label array: (q,) or (q, L) row numbers of
        documents, padded with -1, itself or as .npy, `FILE.npz:key` or `FILE.h5:key`
    n_queries, n_docs : how many there are
    query_ids, doc_ids : what the file calls them; None = by row number, which label arrays always are

    Returns
    -------
    Relevance
        Scores are the grades, 1 for label arrays. Pairs with a grade of 0 or less are left out.

    Raises
    ------
    InvalidInput
        As for `read_scores`, or if a label array does not have one row a query.
    """
    names = _Names(n_queries=n_queries, n_docs=n_docs, query_ids=query_ids, doc_ids=doc_ids)
    if not isinstance(labels, (str, Path)):
        return _from_array(np.asarray(labels), names, "labels")
    paths, key = resolve(str(labels))
    path, suffix = paths[0], paths[0].suffix.lower()
    if suffix == ".npy" or key is not None or (suffix in CONTAINER_SUFFIXES and not _has_pairs(path)):
        pieces = [np.asarray(piece) for piece in read_pieces(path, key, ("learn_labels", "labels"))]
        return _from_array(np.concatenate(pieces), names, str(labels))
    queries, docs, grades = _read(path, names, _LABEL_COLUMNS, _LABEL_NAMES)
    kept = ~(grades <= 0)  # NaN stays, to be refused
    return _named(str(labels), queries[kept], docs[kept], grades[kept], n_queries)


def _one_file(path: str | Path) -> AnyPath:
    paths, key = resolve(str(path))
    if len(paths) > 1 or key is not None:
        raise InvalidInput(f"no such file: {path}")
    return paths[0]


Pairs = tuple[IntRows, IntRows, npt.NDArray[np.float64]]


def _read(path: AnyPath, names: _Names, columns: dict[int, tuple[int, int, int]], values: tuple[str, ...]) -> Pairs:
    """Row numbers of queries and documents, and values, of all lines or rows."""
    if not path.is_file():
        raise InvalidInput(f"no such file: {path}")
    pieces = _columns(path, values) if path.suffix.lower() in CONTAINER_SUFFIXES else _lines(path, columns)
    queries = _RowsOf("query", path, names.query_ids, names.n_queries)
    docs = _RowsOf("document", path, names.doc_ids, names.n_docs)
    parts = [(queries(q), docs(d), v) for q, d, v in pieces]
    if not parts:
        raise InvalidInput(f"{path} is empty: it has no entries")
    q, d, v = (np.concatenate(column) for column in zip(*parts, strict=True))
    return q, d, v


class _RowsOf:
    """Maps what a file calls queries, or documents, to row numbers."""

    def __init__(self, what: str, path: AnyPath, ids: IdColumn | None, n: int) -> None:
        self._what, self._path, self._n = what, path, n
        self._lookup = to_ints if ids is None else ids.lookup()

    def __call__(self, values: Piece) -> IntRows:
        rows = self._lookup(values)
        unknown = np.flatnonzero((rows < 0) | (rows >= self._n))
        if unknown.size:
            value = values[int(unknown[0])]
            raise InvalidInput(
                f"{self._path} names {self._what} {str(value)!r}, which is not among the {self._n} known"
            )
        return rows


def _columns(path: AnyPath, value_names: tuple[str, ...]) -> Iterator[tuple[Piece, Piece, npt.NDArray[np.float64]]]:
    container = open_container(path)
    keys = [_first_of(container.shapes, found, path) for found in (_QUERY_NAMES, _DOC_NAMES, value_names)]
    q, d, v = ([value for piece in container.pieces(key) for value in np.atleast_1d(np.asarray(piece))] for key in keys)
    if not len(q) == len(d) == len(v):
        raise InvalidInput(f"{path} must have columns of one length, got {len(q)}, {len(d)} and {len(v)}")
    try:
        yield _plain(q), _plain(d), np.asarray(v, np.float64)
    except (TypeError, ValueError):
        raise InvalidInput(f"{path}:{keys[2]} must hold numbers, got {v[0]!r}") from None


def _lines(
    path: AnyPath, columns: dict[int, tuple[int, int, int]]
) -> Iterator[tuple[Piece, Piece, npt.NDArray[np.float64]]]:
    width, number = 0, 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            while lines := list(islice(file, _PIECE_LINES)):
                fields = [_split(line) for line in lines]
                if number == 0:
                    width = len(fields[0])
                    if width not in columns:
                        wanted = " or ".join(map(str, columns))
                        raise InvalidInput(f"{path} line 1 must have {wanted} columns, got {width}")
                    if not _is_number(fields[0][columns[width][2]]):
                        fields[0] = []
                yield _pick(fields, columns[width], width, path, number)
                number += len(lines)
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}") from None


def _pick(
    fields: list[list[str]], at: tuple[int, int, int], width: int, path: AnyPath, start: int
) -> tuple[list[str], list[str], npt.NDArray[np.float64]]:
    """Columns of parsed lines; empty lines, the header among them, are skipped."""
    for number, line in enumerate(fields, start + 1):
        if line and len(line) != width:
            raise InvalidInput(f"{path} line {number} must have {width} columns as line 1 has, got {len(line)}")
        if line and not _is_number(line[at[2]]):
            raise InvalidInput(f"{path} line {number} must have a number in column {at[2] + 1}, got {line[at[2]]!r}")
    kept = [line for line in fields if line]
    return [f[at[0]] for f in kept], [f[at[1]] for f in kept], np.array([float(f[at[2]]) for f in kept], np.float64)


def _from_array(labels: npt.NDArray[Any], names: _Names, name: str) -> Relevance:
    if labels.ndim not in (1, 2) or labels.dtype.kind not in "iu" or len(labels) != names.n_queries:
        raise InvalidInput(
            f"{name} must be ({names.n_queries},) or ({names.n_queries}, L) integers, got {labels.shape} {labels.dtype}"
        )
    wide = labels.astype(np.int64).reshape(len(labels), -1)
    bad = np.argwhere((wide < -1) | (wide >= names.n_docs))
    if bad.size:
        row, column = bad[0]
        raise InvalidInput(
            f"{name} row {row} names document {wide[row, column]}, known are 0..{names.n_docs - 1} and -1"
        )
    queries, columns = np.nonzero(wide >= 0)
    return _named(name, queries, wide[queries, columns], np.ones(len(queries)), names.n_queries)


def _named(path: str, queries: IntRows, docs: IntRows, scores: npt.NDArray[np.float64], n_queries: int) -> Relevance:
    try:
        return Relevance.from_pairs(queries, docs, scores, n_queries)
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _has_pairs(path: AnyPath) -> bool:
    return any(name in open_container(path).shapes for name in _QUERY_NAMES)


def _first_of(shapes: dict[str, tuple[int, ...]], names: tuple[str, ...], path: AnyPath) -> str:
    for name in names:
        if name in shapes:
            return name
    raise InvalidInput(f"{path} has no column {names[0]!r}; it holds {', '.join(sorted(shapes)) or 'none'}")


def _plain(values: list[Any]) -> Piece:
    """Integers as an array, which maps fast; anything else as it is."""
    array = np.array(values) if values and isinstance(values[0], (int, np.integer)) else None
    return array if array is not None and array.dtype.kind == "i" else values


def _split(line: str) -> list[str]:
    return [field.strip() for field in line.split("\t")] if "\t" in line else line.split()


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
