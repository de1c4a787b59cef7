"""Values that cross module borders: metrics, facts of a source, blocks of rows, codes and hits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput

F32Rows = npt.NDArray[np.float32]
"""(b, d) float32, C-contiguous."""
F64 = npt.NDArray[np.float64]


class Metric(str, Enum):
    """Similarity between a query and a document; larger is better. The values are stored in manifests: never rename."""

    IP = "ip"
    """Inner product <q, x>."""
    COSINE = "cosine"
    """Inner product of the vectors scaled to unit norm; zero vectors are refused."""
    L2 = "l2"
    """-||q - x||^2, the negative squared Euclidean distance."""

    @classmethod
    def parse(cls, value: str | Metric) -> Metric:
        """Turn user input into a Metric.

        Raises
        ------
        InvalidInput
            If `value` is none of "ip", "cosine", "l2".
        """
        try:
            return cls(value)
        except ValueError:
            raise InvalidInput(f"metric must be one of ip, cosine, l2, got {value!r}") from None


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What planning knows of an embedding source; no rows are read for it."""

    n: int
    """Rows."""
    dim: int
    """Dimensions of a row."""
    dtype: str
    """NumPy name of the stored element type (also "bfloat16")."""
    metric: Metric


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a source."""

    start: int
    """Row number of `rows[0]` in the source."""
    rows: F32Rows


@dataclass(frozen=True)
class Codes:
    """Quantized rows, in the order of the rows."""

    lists: npt.NDArray[np.int32]
    """(b,) list of each row, in [0, nlist)."""
    codes: npt.NDArray[np.uint8]
    """(b, m) one 4-bit code a byte, in [0, ksub)."""


WORK = ("lists_probed", "codes_scanned", "candidates", "dense_rows", "dense_pages", "dense_bytes", "wait_ns")
"""Columns of `Found.work`: lists visited and the rows in them, candidates, rows of these read from disk, pages of 4 KiB
and bytes read for them, and ns without anything to score."""


@dataclass(frozen=True)
class Found:
    """What every kind of search tells beside its results."""

    scores: npt.NDArray[np.float32]
    """Similarities, best first; (q, k), or (h,) of a range search."""
    ids: npt.NDArray[Any]
    """External ids, of the same shape: int64 with -1 for missing, or str with "" for missing."""
    rows: npt.NDArray[np.int64]
    """Row numbers in the compiled source; -1 for missing."""
    work: npt.NDArray[np.int64]
    """(q, 7) the work of each query, see WORK. What several queries of a call read together counts for the first."""

    @cached_property
    def stats(self) -> dict[str, int]:
        """Work of the whole call by its names in WORK."""
        return dict(zip(WORK, self.work.sum(axis=0).tolist(), strict=True))

    @property
    def query_stats(self) -> dict[str, npt.NDArray[np.int64]]:
        """Work of each query, (q,), by its names in WORK."""
        return dict(zip(WORK, self.work.T, strict=True))


@dataclass(frozen=True)
class Hits(Found):
    """Result of a search; unpacks as `scores, ids`, both (q, k). Where nothing was found the score is -inf."""

    searched: float = 1.0
    """Share of the rows that took part; less where shards were lost."""

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        yield self.scores
        yield self.ids


@dataclass(frozen=True)
class RangeHits(Found):
    """Result of a range search; unpacks as `lims, scores, ids`. Those of query i are lims[i] .. lims[i + 1]."""

    lims: npt.NDArray[np.int64]
    """(q + 1,), rising from 0 to h"""

    def __iter__(self) -> Iterator[npt.NDArray[Any]]:
        yield self.lims
        yield self.scores
        yield self.ids


def as_f32_rows(x: Any, name: str, dim: int | None = None, *, finite: bool = True) -> F32Rows:
    """Return `x` as finite (b, d) float32 rows, copying only when it must.

    Parameters
    ----------
    x : (b, d) array-like of any real dtype (NumPy array, torch tensor on the CPU, nested list), or (d,) for one row
    name : what messages call it
    dim : wanted d, if known
    finite : False leaves NaN and infinity to `kernels.units.unit_rows`, which refuses them as well

    Raises
    ------
    InvalidInput
        If `x` is not two-dimensional, has no or another dimension than `dim`, is not real, or holds NaN or infinity.
    """
    if hasattr(x, "detach") and hasattr(x, "numpy"):
        x = x.detach().float().numpy()
    try:
        rows = np.asarray(x)
        if rows.ndim == 1 and dim is not None and rows.shape[0] == dim:
            rows = rows[None]
        flags = rows.flags
        out = rows if rows.dtype == np.float32 and flags.c_contiguous and flags.aligned else _converted(rows)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} must be real numbers of shape (rows, {dim or 'd'}), got {_shape_of(x)}") from None
    if out.ndim != 2 or out.shape[1] == 0 or (dim is not None and out.shape[1] != dim):
        raise InvalidInput(f"{name} must be of shape (rows, {dim or 'd'}), got {_shape_of(rows)}")
    if finite:
        require_finite(out, name)
    return out


def _converted(rows: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    if rows.dtype.kind not in "fiuV":
        raise TypeError
    with np.errstate(over="ignore"):  # becomes infinity, which is refused later
        return np.require(rows, np.float32, ["C", "A"])


def require_finite(rows: F32Rows, name: str, start: int = 0) -> None:
    """Refuse NaN and infinity, naming the first row (counted from `start`) that holds one."""
    # A sum is finite whenever all addends are small enough, so most blocks pass in one cheap reduction.
    with np.errstate(invalid="ignore"):
        if np.isfinite(rows.sum(dtype=np.float64)):
            return
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise InvalidInput(
            f"{name} row {start + int(bad[0])} holds NaN or infinity ({bad.size} such rows in this block)"
        )


def _shape_of(x: Any) -> str:
    return f"{getattr(x, 'shape', type(x).__name__)} {getattr(x, 'dtype', '')}".rstrip()
