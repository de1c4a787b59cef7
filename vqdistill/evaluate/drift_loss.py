"""What searches lose among added rows, told by the learn queries that the index has stored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vqdistill.searcher import Searcher

K = 10
"""Neighbours that count."""
CANDIDATES = 1000
"""Rows that are verified to learn what the neighbours are: those that codes of the whole index put first."""
CODES = 4_000_000_000
"""Codes that are scanned for it, which limits the queries."""
QUERIES = (128, 1024)
"""The fewest and the most queries."""
FEWEST = 100
"""Added neighbours from which on something is said of them."""
LIMIT = 0.02
"""Estimated loss from which on it is worth a warning."""


@dataclass(frozen=True, kw_only=True)
class DriftLoss:
    """How often the usual search finds neighbours among compiled and among added rows."""

    k: int
    queries: int
    added_share: float
    """Of the neighbours, those that are added rows."""
    compiled_recall: float
    added_recall: float

    @property
    def lost(self) -> float:
        """Recall that is lost because added rows are found less often than compiled ones."""
        return self.added_share * max(0.0, self.compiled_recall - self.added_recall)

    @property
    def warnings(self) -> list[str]:
        """A sentence, where the loss is worth one."""
        if self.lost < LIMIT:
            return []
        return [
            f"about {self.lost:.3f} of recall@{self.k} is lost: of the neighbours among added rows"
            f" {self.added_recall:.3f} are found, of those compiled {self.compiled_recall:.3f}; compile again with"
            " --warm-start"
        ]

    def to_json(self) -> dict[str, Any]:
        """Return all figures."""
        return asdict(self) | {"lost": self.lost}


def estimate_loss(searcher: Searcher, seed: int = 0) -> DriftLoss | None:
    """Compare the usual search for stored learn queries with one of all lists that verifies many candidates.

    Codes of compiled rows were learned for these very queries, so that the estimate is high: with half of pypi200k
    added to the other half 0.012, where other queries lose 0.006. What neither search finds goes unnoticed.

    Parameters
    ----------
    searcher : of the index
    seed : draws the queries

    Returns
    -------
    None where nothing can be said: no rows were added, no queries or dense rows are stored, or fewer than FEWEST
    neighbours are added rows.
    """
    reader = searcher.reader
    manifest = reader.manifest
    drift = manifest.drift
    if drift is None or drift.total is None or manifest.learned is None or manifest.dense == "none":
        return None
    fewest, most = QUERIES
    count = min(max(fewest, CODES // manifest.n), most)
    stored = reader.payload("learn_queries")
    queries = stored[np.sort(np.random.default_rng(seed).permutation(len(stored))[:count])].astype(np.float32)
    k = min(K, manifest.live)
    usual = searcher.search(queries, k).rows
    wanted = searcher.search(queries, k, nprobe=manifest.nlist, refine=max(k, min(CANDIDATES, manifest.live))).rows
    found = (wanted[:, :, None] == usual[:, None, :]).any(axis=2)
    added = wanted >= drift.compiled.rows
    compiled = (wanted >= 0) & ~added
    if added.sum() < FEWEST or not compiled.any():
        return None
    return DriftLoss(
        k=k,
        queries=len(queries),
        added_share=float(added.sum() / (added.sum() + compiled.sum())),
        compiled_recall=float(found[compiled].mean()),
        added_recall=float(found[added].mean()),
    )
