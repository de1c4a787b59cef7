"""Diagnoses embeddings before anything is compiled from them, on a sample of their rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vqdistill.data.exact import exact_top
from vqdistill.data.sources import TableSource, open_queries, open_source
from vqdistill.errors import InvalidInput
from vqdistill.types import F64, Block, F32Rows, Metric

SAMPLE_ROWS = 20_000
"""Rows looked at, at most; also queries."""
_ASKED = 4096
"""Rows or queries whose neighbours in the sample are looked for."""
_NEIGHBOURS = 10
_SUBSPACE = 10
"""First principal directions whose angles are compared."""
_SHARES = (0.5, 0.9, 0.99)
_LEAST_LEARN = 1000
_UNEQUAL = 0.01
_OFF_CENTRE = 0.5
_FLAT = 0.25
_APART = 0.25
_HUBS = 5.0


def diagnose(source: Any, *, queries: Any = None, metric: str | None = None, seed: int = 0) -> dict[str, Any]:
    """Measure what embeddings are like, and say what that suggests.

    Parameters
    ----------
    source : as for `open_source`
    queries : learn queries, as for `compile`; None = those of the file, if it has them
    metric : "ip", "cosine" or "l2"; None = what the file says, otherwise cosine
    seed : of the sample

    Returns
    -------
    dict
        `source`, `n`, `d`, `dtype`, `metric`; `sample`, the rows that all else was measured on; `unusable`: rows with
        NaN or infinity, and zero rows; `norms`; `isotropy`: of unit rows the `mean_norm` and the `mean_cosine` of two,
        of rows around their mean the share of the variance along the first direction, how many directions hold 50, 90
        and 99 % of it, and the effective dimension (sum of eigenvalues)^2 / sum of squares; `duplicates`; `hubness`:
        skewness of how often a row is among the 10 nearest of others (or of queries), the largest such number and the
        share of rows that never is; with queries `queries`: see `_mismatch`; `suggests`: sentences.

    Raises
    ------
    InvalidInput
        If the source or the queries cannot be opened, or no row can be used.

    References
    ----------
    Radovanović et al.: Hubs in space, JMLR 11, 2010 (skewness of k-occurrences).
    Björck and Golub: Numerical methods for computing angles between linear subspaces, 1973.
    """
    src = open_source(source, metric=metric)
    rng = np.random.default_rng([seed, 13])
    rows, unusable = _sample(src, rng)
    asked: F32Rows | None = None
    asked_unusable: dict[str, int] = {}
    opened = src.companion("learn_queries") if queries is None else open_queries(queries, src)
    if isinstance(opened, TableSource):
        asked, asked_unusable = _sample(opened, rng)
    found: dict[str, Any] = {
        "source": src.name,
        "n": src.n,
        "d": src.dim,
        "dtype": src.dtype,
        "metric": src.metric.value,
        "sample": {"rows": len(rows), "of": src.n, "seed": seed},
        "unusable": unusable,
        "norms": _norms(rows),
        "isotropy": _isotropy(rows),
        "duplicates": _duplicates(rows),
        "hubness": _hubness(rows, asked, src.metric),
    }
    if asked is not None and isinstance(opened, TableSource):
        found["queries"] = {"source": opened.name, "n": opened.n, "sample": len(asked), "unusable": asked_unusable}
        found["queries"] |= {"norms": _norms(asked)} | _mismatch(rows, asked)
    return found | {"suggests": suggestions(found)}


def _sample(src: TableSource, rng: np.random.Generator) -> tuple[F32Rows, dict[str, int]]:
    """Usable rows of a random sample, as they are stored, and the number of others."""
    picked = np.sort(rng.choice(src.n, min(src.n, SAMPLE_ROWS), replace=False)) if src.n > SAMPLE_ROWS else None
    rows = src.stored(np.arange(src.n) if picked is None else picked)
    with np.errstate(invalid="ignore", over="ignore"):
        squares = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    finite, zero = np.isfinite(squares), squares == 0
    usable = rows[finite & ~zero]
    if not len(usable):
        raise InvalidInput(f"{src.name} must have rows that are finite and not zero, got none among {len(rows)}")
    return usable, {"not_finite": int((~finite).sum()), "zero": int(zero.sum())}


def _norms(rows: F32Rows) -> dict[str, float]:
    norms = np.linalg.norm(rows.astype(np.float64), axis=1)
    return {"least": norms.min(), "mean": norms.mean(), "most": norms.max(), "deviation": norms.std() / norms.mean()}


def _isotropy(rows: F32Rows) -> dict[str, Any]:
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    s, mean = len(unit), unit.mean(axis=0, dtype=np.float64)
    pairs = (s * float(mean @ mean) - 1) / (s - 1) if s > 1 else 1.0
    values, _ = _spectrum(rows)
    total = max(float(values.sum()), np.finfo(np.float64).tiny)
    held = np.cumsum(values) / total
    return {
        "mean_norm": float(np.linalg.norm(mean)),
        "mean_cosine": pairs,
        "first_share": float(values[0] / total),
        "directions": {f"{share:.0%}": int(np.searchsorted(held, share * held[-1]) + 1) for share in _SHARES},
        "effective_dimension": total**2 / max(float((values**2).sum()), np.finfo(np.float64).tiny),
    }


def _spectrum(rows: F32Rows) -> tuple[F64, F64]:
    """Variances (d,) along the principal directions (d, d) of the rows around their mean, largest first."""
    centred = rows.astype(np.float64) - rows.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred.T @ centred / len(rows))
    return np.maximum(values[::-1], 0), vectors[:, ::-1]


def _duplicates(rows: F32Rows) -> dict[str, float]:
    """Rows that equal an earlier one of the sample, bit for bit."""
    whole = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.shape[1] * rows.itemsize))).ravel()
    repeated = len(rows) - len(np.unique(whole))
    return {"rows": repeated, "share": repeated / len(rows)}


def _hubness(rows: F32Rows, asked: F32Rows | None, metric: Metric) -> dict[str, Any]:
    docs = rows / np.linalg.norm(rows, axis=1, keepdims=True) if metric is Metric.COSINE else rows
    queries = (docs if asked is None else asked)[:_ASKED]
    own = np.arange(len(queries)) if asked is None else None
    l2 = metric is Metric.L2
    shift = docs.mean(axis=0) if l2 else None
    near = exact_top(queries, [Block(0, docs)], len(docs), _NEIGHBOURS, l2=l2, shift=shift, exclude=own)
    counts = np.bincount(near.docs, minlength=len(docs)).astype(np.float64)
    spread = counts.std()
    return {
        "asked": "rows" if asked is None else "queries",
        "skewness": float(((counts - counts.mean()) ** 3).mean() / spread**3) if spread else 0.0,
        "most": int(counts.max()),
        "mean": float(counts.mean()),
        "never": float((counts == 0).mean()),
    }


def _mismatch(rows: F32Rows, asked: F32Rows) -> dict[str, Any]:
    """How queries differ from rows, both of unit norm.

    Returns
    -------
    dict
        `mean_distance` of their means, in units of the rows' root mean square distance from theirs; `mean_cosine` of
        the means; `angles_degrees`, least, mean and largest, between their first 10 principal directions;
        `gain_db`: how unequal the directions are that queries see errors in: ratio of the arithmetic to the geometric
        mean of the eigenvalues of half their second moment, half of a uniform one; 0 if all are seen alike.
    """
    docs, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (rows, asked))
    means = [x.mean(axis=0, dtype=np.float64) for x in (docs, queries)]
    lengths = [max(float(np.linalg.norm(mean)), np.finfo(np.float64).tiny) for mean in means]
    values, directions = _spectrum(docs)
    first = min(_SUBSPACE, docs.shape[1])
    overlap = directions[:, :first].T @ _spectrum(queries)[1][:, :first]
    angles = np.degrees(np.arccos(np.clip(np.linalg.svd(overlap, compute_uv=False), 0, 1)))
    seen = np.linalg.eigvalsh(queries.T.astype(np.float64) @ queries / len(queries))
    mixed = 0.5 * np.maximum(seen, 0) / seen.mean() + 0.5
    return {
        "mean_distance": float(np.linalg.norm(means[0] - means[1]) / math.sqrt(max(values.sum(), 1e-300))),
        "mean_cosine": float(means[0] @ means[1] / (lengths[0] * lengths[1])),
        "angles_degrees": {"least": angles.min(), "mean": angles.mean(), "most": angles.max()},
        "gain_db": float(-10 * np.log10(mixed).mean()),
    }


def suggestions(found: dict[str, Any]) -> list[str]:
    """Say in sentences what the figures of `diagnose` suggest."""
    return [sentence for part in (_of_rows, _of_metric, _of_shape, _of_queries) for sentence in part(found)]


def _of_rows(found: dict[str, Any]) -> list[str]:
    said, bad, repeated = [], found["unusable"], found["duplicates"]
    if bad["not_finite"]:
        said.append(f"{bad['not_finite']} rows of the sample hold NaN or infinity; compile refuses the file: drop them")
    if bad["zero"]:
        said.append(f"{bad['zero']} rows of the sample are zero, which cosine refuses: drop them, or use ip")
    if repeated["rows"]:
        said.append(
            f"{repeated['share']:.1%} of the sample repeat an earlier row: which of them a search returns is arbitrary,"
            " and recall counts the others as lost; keep one of each"
        )
    return said


def _of_metric(found: dict[str, Any]) -> list[str]:
    norms, metric = found["norms"], found["metric"]
    if norms["deviation"] < _UNEQUAL:
        return [f"all norms are alike, so ip, cosine and l2 rank alike; {metric} is fine"]
    spread = f"norms differ by {norms['deviation']:.0%} of their mean"
    if metric == "cosine":
        return [f"{spread}, which cosine discards: use ip if the encoder was trained with plain inner products"]
    return [f"{spread}, and count under {metric}: use cosine if the encoder was trained with it"]


def _of_shape(found: dict[str, Any]) -> list[str]:
    shape, said = found["isotropy"], []
    if shape["mean_norm"] > _OFF_CENTRE:
        said.append(
            f"rows share a mean of norm {shape['mean_norm']:.2f}: residual codes, the default, take it off; additive"
            " codes choose their coordinates besides"
        )
    if shape["effective_dimension"] < _FLAT * found["d"]:
        said.append(
            f"the effective dimension is {shape['effective_dimension']:.0f} of {found['d']}: short codes go far;"
            " whitening would blow up directions that hold little, leave the choice of coordinates to compile"
        )
    else:
        said.append(
            f"the effective dimension is {shape['effective_dimension']:.0f} of {found['d']}: the variance is spread, so"
            " whitening would change little, and codes must be long for recall by code alone"
        )
    if found["hubness"]["skewness"] > _HUBS:
        said.append(
            f"some rows are near to very many {found['hubness']['asked']} (skewness {found['hubness']['skewness']:.1f},"
            f" {found['hubness']['most']} of the lists hold one): hubs of the encoder, which exact search returns too"
        )
    return said


def _of_queries(found: dict[str, Any]) -> list[str]:
    queries = found.get("queries")
    if queries is None:
        return [
            "there are no learn queries: distillation would use pseudo-queries, and its gain on real ones be unproven"
        ]
    said, many = [], queries["n"]
    if queries["unusable"]["not_finite"] or queries["unusable"]["zero"]:
        said.append("some queries hold NaN or infinity, or are zero: drop them")
    apart = queries["mean_distance"] > _APART
    alike = "differ from documents" if apart else "lie where documents lie"
    how = (
        f"queries {alike} (means {queries['mean_distance']:.2f} apart, directions {queries['gain_db']:.1f} dB unequal)"
    )
    if many < _LEAST_LEARN:
        said.append(f"{how}, but only {many} are few to learn from: more learn queries would pay")
    elif apart:
        said.append(f"{how}: codes for the documents alone would serve them badly, distillation will pay most here")
    else:
        said.append(f"{how}: distillation will pay by what {many:,} learn queries ask for")
    return said
