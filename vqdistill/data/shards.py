"""Several files as one table: the shards of a folder or glob, in lexicographic order."""

from __future__ import annotations

import numpy as np

from vqdistill.data.tables import IntRows, Spans, Table, widest
from vqdistill.errors import InvalidInput
from vqdistill.types import F32Rows


class ShardTable:
    """Rows of all shards, one shard after the other.

    Raises
    ------
    InvalidInput
        If a shard has another dimension, or another kind of element, than the first; the message names it.
    """

    def __init__(self, name: str, shards: list[Table]) -> None:
        first = shards[0]
        for shard in shards[1:]:
            if shard.dim != first.dim or widest({first.dtype, shard.dtype}) is None:
                raise InvalidInput(
                    f"shard {shard.name} has rows of {shard.dim} {shard.dtype}, "
                    f"{first.name} of {first.dim} {first.dtype}"
                )
        self.name = name
        self.dim = first.dim
        self.dtype = widest({shard.dtype for shard in shards}) or first.dtype
        self._shards = shards
        self._starts = np.concatenate([[0], np.cumsum([shard.n for shard in shards], dtype=np.int64)])
        self.n = int(self._starts[-1])

    @property
    def resident_bytes(self) -> int:
        """See Table."""
        return sum(shard.resident_bytes for shard in self._shards)

    def spans(self, rows: int) -> Spans:
        """See Table; no span crosses from one shard to the next."""
        for shard, start in zip(self._shards, self._starts.tolist(), strict=False):
            yield from ((start + a, start + b) for a, b in shard.spans(rows))

    def read(self, start: int, stop: int) -> F32Rows:
        """See Table."""
        parts = []
        for shard, first in zip(self._shards, self._starts.tolist(), strict=False):
            a, b = max(start - first, 0), min(stop - first, shard.n)
            if a < b:
                parts.append(shard.read(a, b))
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def gather(self, rows: IntRows) -> F32Rows:
        """See Table."""
        out = np.empty((len(rows), self.dim), np.float32)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for i in np.unique(which).tolist():
            mine = np.flatnonzero(which == i)
            out[mine] = self._shards[i].gather(rows[mine] - self._starts[i])
        return out
