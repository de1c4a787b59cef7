"""QueryAdapter: a small residual network that queries go through, so that documents need not change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqdistill.errors import InvalidInput
from vqdistill.kernels.reference import adapt
from vqdistill.types import F32Rows

_F16Rows = npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True)
class QueryAdapter:
    """q' = q + up z, z = down q + bias, of which all but the first `rank` are cut off below 0.

    The first `rank` units are a linear map of this rank, the others a residual network with one hidden layer. It costs
    2 d multiplications a unit and query, and no byte a document. Arrays are float32 and C-contiguous.

    References
    ----------
    Zhang et al.: BiDR, WWW 2022, section 3.2: separate encoders for both stages of a search; here the encoder is fixed,
    and what can be separate is a map of its queries.
    """

    down: F32Rows
    """(units, d)"""
    bias: F32Rows
    """(units,)"""
    up: F32Rows
    """(d, units)"""
    rank: int
    """Linear units, 0..units; they come first."""
    unit: bool
    """Whether q' is scaled to unit norm, as queries are under cosine."""

    def __post_init__(self) -> None:
        shapes = self.down.shape, self.bias.shape, self.up.shape
        wanted = (self.units, self.d), (self.units,), (self.d, self.units)
        if shapes != wanted or self.units < 1 or not 0 <= self.rank <= self.units:
            raise InvalidInput(
                f"adapter arrays must be (units, d), (units,), (d, units) with a rank of 0..units, got {shapes} and"
                f" {self.rank}"
            )

    @property
    def units(self) -> int:
        """Units, linear ones included."""
        return len(self.bias)

    @property
    def d(self) -> int:
        """Dimensions of a query."""
        return len(self.up)

    def __call__(self, queries: F32Rows) -> F32Rows:
        """Adapt prepared queries (q, d) float32; one that would vanish under cosine stays as it is."""
        return adapt(queries, self.down, self.bias, self.up, self.rank, self.unit)

    def for_engine(self, dtype: str = "f4") -> tuple[F32Rows | _F16Rows, F32Rows, F32Rows | _F16Rows, int, bool]:
        """Return it as the native engine takes it, both matrices as NumPy type `dtype`."""
        down, up = (np.ascontiguousarray(matrix, dtype=dtype) for matrix in (self.down, self.up))
        return down, self.bias, up, self.rank, self.unit
