"""External ids of documents or queries: 64-bit integers or strings, checked to be unique."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vqdistill.data.tables import IntRows
from vqdistill.errors import InvalidInput
from vqdistill.objects.store import AnyPath

_PIECE_LINES = 65536
_CANONICAL_INT = re.compile(r"0|-?[1-9][0-9]{0,18}")
_DECIMAL = re.compile(r"-?[0-9]{1,19}")

Piece = npt.NDArray[Any] | list[Any]
Lookup = Callable[[Piece], IntRows]


class IntIds:
    """Ids that are 64-bit integers.

    Parameters
    ----------
    values : (n,) int64
    name : for messages

    Raises
    ------
    InvalidInput
        If an id occurs twice, or is -1, which stands for a missing result.
    """

    kind: Literal["int64"] = "int64"

    def __init__(self, values: IntRows, name: str = "ids") -> None:
        self._values = values
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        again = order[1:][ordered[1:] == ordered[:-1]]
        if again.size:
            row = int(again.min())
            raise InvalidInput(f"{name} must be unique: {values[row]} of row {row} has occurred before")
        if (values == -1).any():
            raise InvalidInput(f"{name} row {int(np.argmax(values == -1))} is -1, which stands for a missing result")

    def __len__(self) -> int:
        return len(self._values)

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory, at most: sorting them to find repeats takes as many again twice."""
        return 3 * self._values.nbytes

    def slice(self, start: int, stop: int) -> IntRows:
        """Ids of rows start..stop."""
        return self._values[start:stop]

    def lookup(self) -> Lookup:
        """Function from ids, as integers or decimal text, to (b,) int64 rows; -1 where there is no such id."""
        order = np.argsort(self._values, kind="stable")
        ordered = self._values[order]

        def rows_of(ids: Piece) -> IntRows:
            wanted = to_ints(ids)
            if not len(ordered):
                return np.full(len(wanted), -1)
            at = np.minimum(np.searchsorted(ordered, wanted), len(ordered) - 1)
            return np.where(ordered[at] == wanted, order[at], -1)

        return rows_of

    def digest_bytes(self) -> Iterator[bytes]:
        """All ids as bytes, for a fingerprint."""
        yield self._values.astype("<i8").tobytes()


class StrIds:
    """Ids that are strings, kept as one UTF-8 text and where each begins.

    Parameters
    ----------
    offsets : (n + 1,) int64, where each id begins in `text`, and its length
    text : UTF-8 of all ids, one after the other
    name : for messages

    Raises
    ------
    InvalidInput
        If an id occurs twice, or is empty, which stands for a missing result.
    """

    kind: Literal["str"] = "str"

    def __init__(self, offsets: IntRows, text: bytes, name: str = "ids") -> None:
        self._offsets, self._text = offsets, text
        empty = np.flatnonzero(np.diff(offsets) == 0)
        if empty.size:
            raise InvalidInput(f"{name} row {int(empty[0])} is empty, which stands for a missing result")
        # 64-bit hashes find the suspects without a set of all strings in memory; only suspects are compared in full.
        hashes = np.fromiter((hash(id_) for id_ in self._encoded(0, len(self))), np.int64, len(self))
        order = np.argsort(hashes, kind="stable")
        same = hashes[order][1:] == hashes[order][:-1]
        seen: set[bytes] = set()
        for row in np.unique(np.concatenate([order[1:][same], order[:-1][same]])).tolist():
            id_ = next(self._encoded(row, row + 1))
            if id_ in seen:
                raise InvalidInput(f"{name} must be unique: {id_.decode()!r} of row {row} has occurred before")
            seen.add(id_)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @property
    def resident_bytes(self) -> int:
        """Bytes in memory, at most: hashes and their order take 24 for each while repeats are looked for."""
        return 2 * len(self._text) + 4 * self._offsets.nbytes

    def slice(self, start: int, stop: int) -> list[str]:
        """Ids of rows start..stop."""
        return [id_.decode() for id_ in self._encoded(start, min(stop, len(self)))]

    def lookup(self) -> Lookup:
        """Function from ids to (b,) int64 rows; -1 where there is no such id."""
        rows = {id_: row for row, id_ in enumerate(self._encoded(0, len(self)))}

        def rows_of(ids: Piece) -> IntRows:
            names = (id_ if isinstance(id_, bytes) else str(id_).encode("utf-8", "replace") for id_ in ids)
            return np.fromiter((rows.get(name, -1) for name in names), np.int64, len(ids))

        return rows_of

    def digest_bytes(self) -> Iterator[bytes]:
        """All ids as bytes, for a fingerprint."""
        yield self._offsets.astype("<i8").tobytes()
        yield self._text

    def _encoded(self, start: int, stop: int) -> Iterator[bytes]:
        bounds = self._offsets[start : stop + 1].tolist()
        return (self._text[a:b] for a, b in pairwise(bounds))


IdColumn = IntIds | StrIds


def build_ids(pieces: Iterable[Piece], n: int, name: str) -> IdColumn:
    """Make an id column out of consecutive pieces.

    Parameters
    ----------
    pieces : arrays or lists of integers, or of strings (or UTF-8 bytes)
    n : wanted number of ids
    name : for messages

    Raises
    ------
    InvalidInput
        If there are not exactly `n`, they are of other or mixed types, or an id occurs twice.
    """
    numbers: list[IntRows] = []
    lengths: list[IntRows] = []
    texts: list[bytes] = []
    count = 0
    for piece in pieces:
        values = np.asarray(piece, dtype=object) if isinstance(piece, list) else np.asarray(piece)
        if values.ndim != 1:
            raise InvalidInput(f"{name} must have one dimension, got shape {values.shape}")
        if values.dtype.kind in "iu" or (values.size and isinstance(values[0], (int, np.integer))):
            numbers.append(_as_int64(values, count, name))
        elif values.size:
            encoded = [_as_utf8(value, count + i, name) for i, value in enumerate(values.tolist())]
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            texts.append(b"".join(encoded))
        count += len(values)
    if numbers and lengths:
        raise InvalidInput(f"{name} must be all integers or all strings, got both")
    if count != n:
        raise InvalidInput(f"{name} must be as many as there are rows, {n}, got {count}")
    if lengths:
        return StrIds(np.concatenate([[0], np.cumsum(np.concatenate(lengths))]), b"".join(texts), name)
    return IntIds(np.concatenate(numbers) if numbers else np.empty(0, np.int64), name)


def read_lines(path: AnyPath) -> Iterator[Piece]:
    """Yield the lines of a text file in pieces: integers if every line is a plain decimal int64, else strings.

    Raises
    ------
    InvalidInput
        If the file is not UTF-8.
    """
    kind = np.int64 if all(map(_is_plain_int, _lines(path))) else None
    piece: list[Any] = []
    for line in _lines(path):
        piece.append(line)
        if len(piece) == _PIECE_LINES:
            yield np.array(piece, dtype=kind) if kind else piece
            piece = []
    yield np.array(piece, dtype=kind) if kind else piece


def _lines(path: AnyPath) -> Iterator[str]:
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from None


def _is_plain_int(line: str) -> bool:
    return _CANONICAL_INT.fullmatch(line) is not None and -(2**63) <= int(line) < 2**63


def _as_int64(values: npt.NDArray[Any], start: int, name: str) -> IntRows:
    if values.dtype.kind == "O":
        wrong = next(
            (i for i, v in enumerate(values) if not isinstance(v, (int, np.integer)) or isinstance(v, bool)), None
        )
        if wrong is not None:
            raise InvalidInput(
                f"{name} must be all integers or all strings, got {values[wrong]!r} in row {start + wrong}"
            )
    if values.size and not -(2**63) <= int(values.min()) <= int(values.max()) < 2**63:
        raise InvalidInput(f"{name} must fit int64, got {int(values.max())}")
    return values.astype(np.int64)


def _as_utf8(value: Any, row: int, name: str) -> bytes:
    try:
        if isinstance(value, str):
            return value.encode("utf-8")
        if isinstance(value, bytes):
            value.decode("utf-8")
            return value
    except UnicodeError:
        raise InvalidInput(f"{name} row {row} is not valid UTF-8: {value!r}") from None
    raise InvalidInput(f"{name} must be integers or strings, got {value!r} in row {row}")


def to_ints(values: Piece) -> IntRows:
    """Int64 that each value is, or spells in decimal; -1, which is never an id, for anything else."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "i":
        return values.astype(np.int64)
    return np.fromiter(map(_to_int, values), np.int64, len(values))


def _to_int(value: Any) -> int:
    if not isinstance(value, (int, np.integer)) and not (isinstance(value, str) and _DECIMAL.fullmatch(value)):
        return -1
    number = int(value)
    return number if -(2**63) <= number < 2**63 else -1
