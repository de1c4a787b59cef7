"""Embedding sources: rows of a file, folder, array or tensor, prepared for one metric."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, overload

import numpy as np
import numpy.typing as npt

from vqdistill.data.containers import Container
from vqdistill.data.files import files_of, open_files, open_path, read_pieces, resolve
from vqdistill.data.ids import IdColumn, IntIds, Piece, StrIds, build_ids, read_lines
from vqdistill.data.tables import DOCUMENT_KEYS, ELEMENT_BYTES, ArrayTable, IntRows, Table, TensorTable
from vqdistill.errors import InvalidInput
from vqdistill.types import Block, F32Rows, Facts, Metric, as_f32_rows

QUERY_KEYS = ("queries", "query", "learn_queries", "learn")
"""Names under which a container's queries are looked for, in this order, when no key is given."""

_BLOCK_BYTES = 32 << 20
_HASH_SPANS, _HASH_SPAN_BYTES = 256, 1 << 20

QueryCompanion = Literal["learn_queries", "test"]
ArrayCompanion = Literal["learn_labels", "test_labels", "neighbors", "distances"]


class EmbeddingSource(Protocol):
    """Rows of one embedding space. What it hands out is prepared: float32, finite, unit norm under cosine."""

    name: str
    """What messages call it."""
    n: int
    dim: int
    dtype: str
    """Stored element type."""
    metric: Metric

    @property
    def ids(self) -> IdColumn | None:
        """External ids; None = row numbers."""

    @property
    def facts(self) -> Facts:
        """What planning needs; reads no rows."""

    def blocks(self, rows: int | None = None, start: int = 0) -> Iterator[Block]:
        """Yield all rows in order, at most `rows` at a time (None = about 32 MiB as float32), from row `start` on.

        Blocks have the same borders whatever `start`, which is one of them.

        Raises
        ------
        InvalidInput
            If a row holds NaN or infinity, or is zero under cosine, the message names its number; or no block begins at
            `start`.
        """

    def take(self, rows: IntRows) -> F32Rows:
        """Return the given rows, (b, dim) float32, in the given order.

        Raises
        ------
        InvalidInput
            If a number is outside 0..n, or for a row as in `blocks`.
        """

    @property
    def resident_bytes(self) -> int:
        """Bytes that an open source holds in memory: ids, and what it keeps of the rows."""

    def fingerprint(self) -> str:
        """Hex digest of the content: equal data give equal digests wherever and whenever they are stored."""

    @overload
    def companion(self, name: QueryCompanion) -> EmbeddingSource | None: ...
    @overload
    def companion(self, name: ArrayCompanion) -> npt.NDArray[Any] | None: ...
    def companion(self, name: QueryCompanion | ArrayCompanion) -> EmbeddingSource | npt.NDArray[Any] | None:
        """Queries, labels or exact neighbours that lie beside the rows in the same file; None if there are none."""


class TableSource:
    """An embedding source over a table.

    Parameters
    ----------
    table : stored rows
    metric : decides how rows are prepared
    ids : external ids, one a row; None = row numbers
    container : file that the table is from, and where companions are looked for
    """

    def __init__(
        self, table: Table, metric: Metric, ids: IdColumn | None = None, container: Container | None = None
    ) -> None:
        self.name = table.name
        self.n, self.dim, self.dtype = table.n, table.dim, table.dtype
        self.metric = metric
        self._table, self._ids, self._container = table, ids, container

    @property
    def ids(self) -> IdColumn | None:
        """See EmbeddingSource."""
        return self._ids

    @property
    def facts(self) -> Facts:
        """See EmbeddingSource."""
        return Facts(n=self.n, dim=self.dim, dtype=self.dtype, metric=self.metric)

    def blocks(self, rows: int | None = None, start: int = 0) -> Iterator[Block]:
        """See EmbeddingSource."""
        if rows is not None and rows < 1:
            raise InvalidInput(f"rows of a block must be at least 1, got {rows}")
        for first, stop in self._table.spans(rows or max(1, _BLOCK_BYTES // (4 * self.dim))):
            if first < start < stop:
                raise InvalidInput(f"blocks must start where one begins, at row {first} or {stop}, got {start}")
            if first >= start:
                yield Block(first, self._prepare(self._table.read(first, stop), range(first, stop)))

    def take(self, rows: IntRows) -> F32Rows:
        """See EmbeddingSource."""
        wanted = self._checked_rows(rows)
        return self._prepare(self._table.gather(wanted), wanted)

    def stored(self, rows: IntRows) -> F32Rows:
        """Return the given rows, (b, dim) float32, as they are stored: NaN, infinity and zero rows included."""
        return self._table.gather(self._checked_rows(rows))

    def _checked_rows(self, rows: IntRows) -> IntRows:
        wanted = np.asarray(rows)
        if wanted.ndim != 1 or wanted.dtype.kind not in "iu":
            raise InvalidInput(f"row numbers must be (b,) integers, got {wanted.shape} {wanted.dtype}")
        outside = (wanted < 0) | (wanted >= self.n)
        if outside.any():
            raise InvalidInput(f"{self.name} has rows 0..{self.n - 1}, got row number {wanted[outside][0]}")
        return wanted.astype(np.int64)

    @property
    def resident_bytes(self) -> int:
        """See EmbeddingSource."""
        return self._table.resident_bytes + (self._ids.resident_bytes if self._ids else 0)

    def fingerprint(self) -> str:
        """See EmbeddingSource.

        Notes
        -----
        BLAKE2b of shape, element type, metric, ids and the rows as float32 before preparation: all of them up to 256
        MiB, otherwise 256 spans of about 1 MiB, evenly spaced, the first and the last rows among them.
        """
        digest = hashlib.blake2b(f"{self.n} {self.dim} {self.dtype} {self.metric.value}".encode(), digest_size=16)
        span = max(1, _HASH_SPAN_BYTES // (4 * self.dim))
        if span * _HASH_SPANS >= self.n:
            spans: Any = self._table.spans(span)
        else:
            spans = ((int(a), int(a) + span) for a in np.linspace(0, self.n - span, _HASH_SPANS).astype(np.int64))
        for start, stop in spans:
            digest.update(self._table.read(start, stop).astype("<f4", copy=False).data)
        for part in self._ids.digest_bytes() if self._ids else ():
            digest.update(part)
        return digest.hexdigest()

    @overload
    def companion(self, name: QueryCompanion) -> EmbeddingSource | None: ...
    @overload
    def companion(self, name: ArrayCompanion) -> npt.NDArray[Any] | None: ...
    def companion(self, name: QueryCompanion | ArrayCompanion) -> EmbeddingSource | npt.NDArray[Any] | None:
        """See EmbeddingSource. `learn` stands in for learn_queries; companions lie in the HDF5 group of the rows.

        Raises
        ------
        InvalidInput
            If queries have another dimension than the rows.
        """
        if self._container is None:
            return None
        group = self.name.removeprefix(self._container.name + ":").rpartition("/")[0]
        keys = [f"{group}/{key}".lstrip("/") for key in ((name, "learn") if name == "learn_queries" else (name,))]
        key = next((key for key in keys if key in self._container.shapes), None)
        if key is None:
            return None
        if name in ("learn_queries", "test"):
            return _same_dim(TableSource(self._container.table(key), self.metric, container=self._container), self)
        return np.concatenate([np.asarray(piece) for piece in self._container.pieces(key)])

    def _prepare(self, rows: F32Rows, numbers: range | IntRows) -> F32Rows:
        """Check fresh rows and, under cosine, scale them in place."""
        with np.errstate(invalid="ignore", over="ignore"):
            squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        if not np.isfinite(squares).all():
            bad = np.flatnonzero(~np.isfinite(squares))
            raise InvalidInput(
                f"{self.name} row {numbers[bad[0]]} holds NaN or infinity ({bad.size} such rows in its block)"
            )
        if self.metric is Metric.COSINE:
            zero = np.flatnonzero(squares == 0)
            if zero.size:
                row = numbers[zero[0]]
                raise InvalidInput(
                    f"{self.name} row {row} is a zero vector, which has no direction under metric cosine"
                )
            # In float64 and back, buffered: the factor of a tiny vector overflows float32.
            np.multiply(rows, (1 / np.sqrt(squares))[:, None], out=rows, casting="same_kind")
        return rows


def row_bytes(src: EmbeddingSource) -> int:
    """Return the bytes of a row as it is stored, uncompressed."""
    return src.dim * ELEMENT_BYTES[src.dtype]


def open_source(x: Any, *, metric: str | Metric | None = None, ids: Any = None) -> TableSource:
    """Open embeddings, one row a document.

    Parameters
    ----------
    x : path of a file, `FILE:key` for one array or column of it, a folder or glob pattern of shards (taken in
        lexicographic order), a list of such paths, a NumPy array or a torch tensor. Without a key, a container's array
        is the first of DOCUMENT_KEYS that exists, otherwise its only two-dimensional one.
    metric : "ip", "cosine" or "l2"; None = what an HDF5 file says, otherwise cosine
    ids : None for row numbers; integers or strings; the name of an array or column in the same file; or the path of a
        sidecar: .npy, .txt (one a line) or `FILE:key`

    Raises
    ------
    InvalidInput
        If there is no such file, array or column, it is damaged or empty, it is no table of numbers, or ids are not
        unique or not as many as rows. Rows are checked when they are read.
    MissingDependency
        If the file needs a library that is not installed.
    """
    return _open(x, DOCUMENT_KEYS, None if metric is None else Metric.parse(metric), ids)


def has_column(x: Any, key: str) -> bool:
    """Whether every file of embeddings, as for `open_source`, holds an array or column of this name."""
    return _all_hold(key, _open_any(x, DOCUMENT_KEYS)[1])


def open_shard(x: str, start: int, *, metric: Metric | None, ids: str | None, sidecar: bool) -> TableSource:
    """Open one of several files as the part of their source that it is; no other file of rows is looked at.

    Parameters
    ----------
    x : path of the file, with `:key` where it needs one
    start : row number of its first row in the source
    metric, ids : as for `open_source`
    sidecar : whether `ids` is a file with the ids of all rows, rather than a column (`has_column`)

    Raises
    ------
    InvalidInput
        As `open_source`.
    """
    if ids is None or not sidecar:
        return open_source(x, metric=metric, ids=ids)
    table, containers = _open_any(x, DOCUMENT_KEYS)
    pieces = _cut(_sidecar(ids, containers), start, start + table.n)
    return open_source(x, metric=metric, ids=build_ids(pieces, table.n, f"ids {ids} of {x}"))


def open_queries(
    x: Any, src: EmbeddingSource, keys: tuple[str, ...] = QUERY_KEYS, *, ids: Any = None
) -> EmbeddingSource:
    """Open queries to be compared with the rows of `src`, under its metric.

    Parameters
    ----------
    x : as for `open_source`; also one query of shape (dim,), or a source, which is only checked
    src : documents
    keys : names to look for when `x` is a container and names no array
    ids : what queries are called, as for `open_source`

    Raises
    ------
    InvalidInput
        As `open_source`, and if the dimension or metric is not that of `src`.
    """
    if hasattr(x, "blocks"):
        if x.metric is not src.metric:
            raise InvalidInput(f"queries {x.name} have metric {x.metric.value}, {src.name} has {src.metric.value}")
        return _same_dim(x, src)
    if hasattr(x, "shape") and len(x.shape) == 1:
        x = as_f32_rows(x, "queries", src.dim)
    return _same_dim(_open(x, keys, src.metric, ids), src)


def _same_dim(queries: EmbeddingSource, src: EmbeddingSource) -> EmbeddingSource:
    if queries.dim != src.dim:
        raise InvalidInput(f"queries {queries.name} must have dimension {src.dim} as {src.name} has, got {queries.dim}")
    return queries


def _open(x: Any, keys: tuple[str, ...], metric: Metric | None, ids: Any) -> TableSource:
    table, containers = _open_any(x, keys)
    if metric is None:
        metric = (containers[0].metric if containers else None) or Metric.COSINE
    column = None if ids is None else _open_ids(ids, table.n, containers)
    return TableSource(table, metric, column, containers[0] if len(containers) == 1 else None)


def _open_any(x: Any, prefer: tuple[str, ...]) -> tuple[Table, list[Container]]:
    """Table of `x`, and the containers it is in: none for arrays and flat files, one for each shard."""
    if isinstance(x, (str, Path)):
        return open_path(str(x), prefer)
    if _are_paths(x):
        files = [file for path in x for file in files_of(str(path))]
        return open_files(f"{x[0]} and {len(x) - 1} more", files, prefer)
    if hasattr(x, "detach") and hasattr(x, "numpy"):
        return TensorTable("tensor", x), []
    if hasattr(x, "__array__"):
        return ArrayTable("array", np.asarray(x)), []
    raise InvalidInput(f"embeddings must be a path, a NumPy array or a torch tensor, got {type(x).__name__}")


def _are_paths(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(isinstance(path, (str, Path)) for path in x)


def _open_ids(ids: Any, n: int, containers: list[Container]) -> IdColumn:
    if isinstance(ids, (IntIds, StrIds)):
        if len(ids) != n:
            raise InvalidInput(f"ids must be as many as there are rows, {n}, got {len(ids)}")
        return ids
    if not isinstance(ids, (str, Path)):
        return build_ids([list(ids) if isinstance(ids, tuple) else ids], n, "ids")
    text = str(ids)
    if _all_hold(text, containers):
        pieces = (piece for container in containers for piece in container.pieces(text))
        return build_ids(pieces, n, f"ids {text}")
    return build_ids(_sidecar(text, containers), n, f"ids {text}")


def _all_hold(key: str, containers: list[Container]) -> bool:
    return bool(containers) and all(key in container.shapes for container in containers)


def _cut(pieces: Iterable[Piece], start: int, stop: int) -> Iterator[Piece]:
    """Of consecutive pieces, what lies in start..stop."""
    at = 0
    for piece in pieces:
        part = piece[max(0, start - at) : max(0, stop - at)]
        at += len(piece)
        if len(part):
            yield part


def _sidecar(text: str, containers: list[Container]) -> Iterable[Piece]:
    try:
        paths, key = resolve(text)
    except InvalidInput:
        held = f" and {containers[0].name} holds only {', '.join(sorted(containers[0].shapes))}" if containers else ""
        raise InvalidInput(f"ids {text!r} must name an array, column or file: no such file exists{held}") from None
    if len(paths) > 1 or not paths[0].is_file():
        raise InvalidInput(f"ids {text} must be one file")
    if paths[0].suffix.lower() == ".txt":
        return read_lines(paths[0])
    return read_pieces(paths[0], key, ("ids", "id", "_id"))
