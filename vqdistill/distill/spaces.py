"""Choice of the coordinates that codes are learned in, by what held-out queries miss with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from vqdistill.distill.held_out import TOP, HeldOut
from vqdistill.kernels import additive
from vqdistill.model.additive import directions, encode_additive, row_metric
from vqdistill.model.euclidean import train_euclidean
from vqdistill.model.space import Space, isotropy, sphering
from vqdistill.types import F32Rows

SHARES = (0.1, 0.3)
"""Shares of the query second moment that are tried. With more, recall at 100 falls where queries are like documents;
encoders with a common mean gain up to 0.5, most of it by 0.1."""
_READS = (10, 20, 40, 80)
"""Candidates among which the teacher's first documents are looked for. Errors of scores would not do:
among a query's first documents they are no larger than the scores differ, however bad the codes."""
_QUERIES_AT_ONCE = 256
MOST_CODEBOOKS = 32
"""Codebooks that each candidate is tried with: more take longer to say the same."""
_ROWS = 8_192
"""Rows that each candidate is tried on."""
_ROUNDS = 6
"""Rounds of its codebooks: the same for all, which is what counts."""


def choose_space(
    judge: HeldOut, queries: F32Rows, m: int, seed: int, advance: Callable[[int], None] = lambda _: None
) -> tuple[Space | None, dict[str, float]]:
    """Code a sample of the rows in several spaces, and take the one in which held-out queries miss least.

    Parameters
    ----------
    judge : held-out queries, over rows in their own coordinates
    queries : (q, d) training queries
    m : codebooks
    advance : called with 1 after each space

    Returns
    -------
    The best space, None = the rows' own coordinates; and by name what each misses: the share of the teacher's first TOP
    documents that are not among the best _READS rows of the sample by code.
    """
    spaces: dict[str, Space | None] = {"own": None}
    spaces |= {f"sphering {share}": sphering(queries, share) for share in SHARES}
    spaces["isotropy"] = isotropy(judge.corpus.x)
    rows = _sample(judge, np.random.default_rng([seed, 6]))
    misses = {}
    for name, space in spaces.items():
        misses[name] = _missed(judge, rows, _coded(judge.corpus.x[rows], space, min(m, MOST_CODEBOOKS), seed))
        advance(1)
    best = min(misses, key=lambda name: misses[name])
    return spaces[best], misses


def _sample(judge: HeldOut, rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Sorted rows: documents of held-out queries, and others at random, half of each if there are enough."""
    docs = np.unique(judge.lists.docs[:, :TOP])
    docs = rng.permutation(docs[docs >= 0])[: _ROWS // 2]
    others = rng.permutation(len(judge.corpus.x))[: _ROWS - len(docs)]
    return np.unique(np.concatenate([docs, others]))


def _coded(x: F32Rows, space: Space | None, m: int, seed: int) -> F32Rows:
    """What codes make of rows (r, d) in a space, in the rows' own coordinates."""
    docs = x if space is None else space.docs(x)
    mean = docs.mean(axis=0, dtype=np.float64).astype(np.float32)
    y = docs - mean
    codewords = train_euclidean(y, m, np.random.default_rng([seed, 7]), _ROUNDS)
    left = y - additive.decode(encode_additive(y, row_metric(directions(y), None), codewords), codewords)
    return np.asarray(x - (left if space is None else space.queries(left)))


def _missed(judge: HeldOut, rows: npt.NDArray[np.int64], coded: F32Rows) -> float:
    """Share of the teacher's first documents among the sorted `rows` (r,) that are not among the best by code."""
    missed, known = 0.0, 0
    lasts = [min(reads, len(rows)) - 1 for reads in _READS]
    for first in range(0, len(judge.lists.queries), _QUERIES_AT_ONCE):
        part = slice(first, first + _QUERIES_AT_ONCE)
        scores, wanted = judge.lists.queries[part] @ coded.T, judge.lists.docs[part, :TOP]
        places = np.minimum(np.searchsorted(rows, wanted), len(rows) - 1)
        real = rows[places] == wanted
        own = np.take_along_axis(scores, places, axis=1)
        bars = -np.partition(-scores, lasts, axis=1)[:, lasts]
        missed += float((own[:, None, :] < bars[:, :, None]).mean(axis=1)[real].sum())
        known += int(real.sum())
    return missed / max(1, known)
