"""NumPy definition of every search kernel and of the whole search: slow, obvious, and what the tests compare with.

Integer kernels and quantization equal the native ones bit for bit. Float kernels are computed in float64 here, so that
the native ones can be held to an error budget; where all intermediate results are exact (small integers), the search is
equal bit for bit, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vqdistill.config import BLOCK_ROWS, KSUB
from vqdistill.types import F64

F32 = npt.NDArray[np.float32]
F16 = npt.NDArray[np.float16]
U8 = npt.NDArray[np.uint8]
U32 = npt.NDArray[np.uint32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
B = npt.NDArray[np.bool_]

MAX_PAIR_SUM = 255
"""Bound of tables[2p].max() + tables[2p + 1].max(), which the scan adds in one byte."""
_READ_CHUNK = 16
"""Rows read between two decisions to stop."""
_PRIOR_ROWS = 20
"""What the error of held-out queries counts as, beside the rows read."""
_FLIPS = 4
"""Codes that a round of the search for additive codes changes."""


def pack_codes(codes: U8) -> U8:
    """Interleave codes (n, m) uint8 in blocks of 32 rows -> (ceil(n / 32), m // 2, 32) uint8."""
    n, m = codes.shape
    padded = np.zeros((-(-n // BLOCK_ROWS) * BLOCK_ROWS, m), np.uint8)
    padded[:n] = codes
    pairs = padded[:, 0::2] | padded[:, 1::2] << 4
    return np.ascontiguousarray(pairs.reshape(-1, BLOCK_ROWS, m // 2).transpose(0, 2, 1))


def unpack_codes(packed: U8, n: int) -> U8:
    """Undo `pack_codes` for the first `n` rows -> (n, m) uint8."""
    nblocks, half_m, _ = packed.shape
    pairs = packed.transpose(0, 2, 1).reshape(nblocks * BLOCK_ROWS, half_m)
    return np.stack([pairs & 15, pairs >> 4], axis=2).reshape(len(pairs), 2 * half_m)[:n]


def scan_sums(packed: U8, tables: U8) -> I64:
    """Sum of table entries (m, 16) of each row, padding rows included -> (nblocks * 32,) int64."""
    codes = unpack_codes(packed, len(packed) * BLOCK_ROWS)
    return np.asarray(tables[np.arange(codes.shape[1]), codes].sum(axis=1, dtype=np.int64))


def scan(
    packed: U8,
    tables: U8,
    thresholds: Sequence[int],
    *,
    allow: U32 | None = None,
    places: int | None = None,
) -> tuple[list[tuple[I64, I64]], int]:
    """Find the rows of packed (nblocks, m // 2, 32) whose sums reach the thresholds of up to four queries.

    Parameters
    ----------
    tables : (nq, m, 16) uint8
    thresholds : of the sums, one for each query
    allow : (nblocks,) uint32; bit r = row r of the block may be found; None = all rows
    places : hits that a query has room for; None = no limit

    Returns
    -------
    found : for each query its rows and sums, (h,) int64 each, by row
    scanned : blocks scanned: all, or those before the first one for which some query had fewer than 32 places left
    """
    nblocks = len(packed)
    allow = np.full(nblocks, 0xFFFFFFFF, np.uint32) if allow is None else allow
    hits = np.tile((allow[:, None] >> np.arange(BLOCK_ROWS, dtype=np.uint32) & 1).astype(bool), (len(tables), 1, 1))
    sums = np.stack([scan_sums(packed, lut).reshape(-1, BLOCK_ROWS) for lut in tables])
    for i in range(len(tables)):
        hits[i] &= sums[i] >= thresholds[i]
    scanned = nblocks
    if places is not None:
        by_block = hits.sum(axis=2)
        full = (by_block.cumsum(axis=1) - by_block + BLOCK_ROWS > places).any(axis=0)
        scanned = int(full.argmax()) if full.any() else nblocks
    hits[:, scanned:] = False
    return [(np.flatnonzero(hits[i]), sums[i][hits[i]]) for i in range(len(tables))], scanned


def quantize_tables(lut: F32) -> tuple[U8, float, float]:
    """Turn float tables (m, 16) into bytes, with one step for all subspaces and one offset each.

    Returns
    -------
    tables : (m, 16) uint8; neighbouring subspaces add up to 255 at most
    bias : sum of the offsets
    step : what one unit of a table is worth; lut differs from offset + step * table by at most step / 2
    """
    low = lut.min(axis=1)
    span = lut.max(axis=1) - low
    widest = (span[0::2] + span[1::2]).max()
    if not np.isfinite(widest):
        return np.zeros(lut.shape, np.uint8), np.nan, 0.0
    top = np.float32(MAX_PAIR_SUM - 1)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = top / widest
    if not np.isfinite(inverse):
        return np.zeros(lut.shape, np.uint8), float(low.sum(dtype=np.float64)), 0.0
    tables = np.rint((lut - low[:, None]) * inverse).astype(np.uint8)
    return tables, float(low.sum(dtype=np.float64)), float(widest / top)


def pq_tables(rotated: F32, codewords: F32 | F16, init: F32) -> F64:
    """Products of rotated (m * dsub,) with codewords (m, 16, dsub), on top of init (m, 16) -> (m, 16) float64."""
    m, _, dsub = codewords.shape
    products = np.einsum("jt,jkt->jk", rotated.reshape(m, dsub).astype(np.float64), codewords.astype(np.float64))
    return np.asarray(init + products)


def gemm_nt(a: F32, b: F32 | F16) -> F64:
    """Product of a (na, d) with the transpose of b (nb, d) -> (na, nb) float64."""
    return np.asarray(a.astype(np.float64) @ b.astype(np.float64).T)


def adapt(queries: F32, down: F32 | F16, bias: F32, up: F32 | F16, rank: int, unit: bool) -> F32:
    """Return q + up z for queries (q, d), z = down q + bias, of which all but the first `rank` are cut off below 0.

    Parameters
    ----------
    down, bias, up : (units, d), (units,), (d, units)
    unit : whether results are scaled to unit norm; where that is impossible they are the query itself
    """
    z = gemm_nt(queries, down) + bias
    z[:, rank:] = np.maximum(z[:, rank:], 0)
    adapted = queries + z @ up.astype(np.float64).T
    if not unit:
        return np.asarray(adapted, dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(adapted, axis=1, keepdims=True)
        return np.where((norms > 0) & np.isfinite(norms), adapted / norms, queries).astype(np.float32)


def decode_dense(dtype: str, rows: U8) -> F64:
    """Read stored dense rows (b, stride) uint8 of dtype f32, f16, bf16 or i8 -> (b, d) float64."""
    if dtype == "i8":
        scales = np.ascontiguousarray(rows[:, :4]).view("<f4")
        return np.asarray(scales * rows[:, 4:].view(np.int8), dtype=np.float64)
    if dtype == "bf16":
        return (rows.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return rows.view({"f32": "<f4", "f16": "<f2"}[dtype]).astype(np.float64)


def dense_scores(metric: str, dtype: str, query: F32, rows: U8) -> F64:
    """Exact scores of stored dense rows (b, stride) uint8 -> (b,) float64: <q, x>, or -|q - x|^2."""
    x, q = decode_dense(dtype, rows), query.astype(np.float64)
    return np.asarray(x @ q if metric == "ip" else -((q - x) ** 2).sum(axis=1))


def encode_additive(
    y: F32,
    x: F32,
    eta: float,
    lists: I32,
    weights: F32,
    queries: F32,
    codewords: F32,
    codes: U8 | None = None,
    *,
    sweeps: int,
    rounds: int,
) -> U8:
    """Additive codes of each row, as `vqdistill._native.encode_additive` has them, one row after the other."""
    out = np.empty((len(y), len(codewords)), np.uint8)
    for i, row in enumerate(y.astype(np.float64)):
        metric = np.eye(len(row)) + eta * np.outer(x[i].astype(np.float64), x[i])
        for query, weight in zip(lists[i], weights[i], strict=True):
            if query < 0:
                break
            metric += weight * np.outer(queries[query].astype(np.float64), queries[query])
        search = _CodeSearch(row, metric, codewords.astype(np.float64))
        out[i] = search.run(None if codes is None else codes[i], sweeps, rounds)
    return out


@dataclass(frozen=True)
class _CodeSearch:
    """Iterated conditional modes from a start, then from the best codes so far with a few changed at random."""

    y: F64
    """(d,)"""
    metric: F64
    """(d, d)"""
    words: F64
    """(m, 16, d)"""

    def run(self, start: U8 | None, sweeps: int, rounds: int) -> U8:
        best = self._greedy() if start is None else start
        state = 0x9E3779B97F4A7C15
        for code in best:
            state = _next_random(state ^ int(code))
        best = self._descend(best, 0, sweeps)
        for _ in range(rounds):
            trial, j = best.copy(), 0
            for _ in range(_FLIPS):
                state = _next_random(state)
                j = (state >> 32) % len(trial)
                trial[j] = (state >> 16) % KSUB
            trial = self._descend(trial, j + 1, sweeps)
            best = trial if self._cost(trial) < self._cost(best) else best
        return best

    def _greedy(self) -> U8:
        left, codes = self.y.copy(), np.empty(len(self.words), np.uint8)
        for j, book in enumerate(self.words):
            codes[j] = ((left - book) ** 2).sum(axis=1).argmin()
            left -= book[codes[j]]
        return codes

    def _descend(self, start: U8, j: int, sweeps: int) -> U8:
        codes, m, settled = start.copy(), len(start), 0
        for step in range(sweeps * m):
            at, trial, costs = (j + step) % m, codes.copy(), np.empty(KSUB)
            for k in range(KSUB):
                trial[at] = k
                costs[k] = self._cost(trial)
            better = costs.min() < costs[codes[at]]
            settled = 0 if better else settled + 1
            if better:
                codes[at] = costs.argmin()
            if settled == m:
                break
        return codes

    def _cost(self, codes: U8) -> float:
        e = self.y - self.words[np.arange(len(codes)), codes].sum(axis=0)
        return float(e @ self.metric @ e)


def _next_random(state: int) -> int:
    """Xorshift64."""
    state ^= state << 13 & 0xFFFFFFFFFFFFFFFF
    state ^= state >> 7
    return state ^ (state << 17 & 0xFFFFFFFFFFFFFFFF)


def order_of(scores: npt.NDArray[np.floating], ids: I64) -> npt.NDArray[np.intp]:
    """Order of results: higher score first, then lower id; what is NaN or -inf is left out."""
    order = np.lexsort((ids, -scores))
    return order[scores[order] > -np.inf]


@dataclass(frozen=True, kw_only=True)
class ReferenceEngine:
    """What `vqdistill._native.Engine` computes, one query after the other; same arrays, dense rows as an array."""

    metric: str
    residual: bool
    list_offsets: I64
    router: F32 | F16
    coarse: F32 | F16
    mean: F32
    rotation: F32
    """(m * dsub, d); (0, d) for additive codes"""
    codewords: F32 | F16
    """(m, 16, dsub); dsub = d for additive codes"""
    packed: U8
    dense_dtype: str = "none"
    dense: U8 | None = None
    """(n, stride) uint8, as stored."""
    query_adapter: tuple[F32 | F16, F32, F32 | F16, int, bool] | None = None
    """Arguments of `adapt`, for what every stage sees."""
    verify_adapter: tuple[F32 | F16, F32, F32 | F16, int, bool] | None = None
    """The same, on top of it, for the scores of dense rows."""

    def route(
        self, query: F32, nprobe: int, lift: float = 0.0, temperature: float = 1.0, allowed: I64 | None = None
    ) -> I64:
        """Return the lists that query (d,) visits, best first: without a lift the nprobe best by routing score.

        Otherwise those in which p / share, p = softmax(scores / temperature) over all lists and share of all rows, is
        at least `lift` times the share of rows that are allowed, and at least one; nprobe at most. `allowed` (nlist,)
        counts the allowed rows of each list; None = all.
        """
        scores = gemm_nt(query[None], self.router)[0]
        if self.metric == "l2":
            scores = 2 * scores - (self.router.astype(np.float64) ** 2).sum(axis=1)
        rows = np.diff(self.list_offsets)
        if lift == 0:
            ranks = scores.astype(np.float32)
            ranks = ranks if allowed is None else np.where(allowed > 0, ranks, np.float32(-np.inf))
            return order_of(ranks, np.arange(len(ranks)))[:nprobe]
        weights = np.exp((scores - scores.max()) / temperature)
        allowed = rows if allowed is None else allowed
        wanted = np.flatnonzero(allowed > 0)
        lifts = weights[wanted] / weights.sum() / (rows[wanted] / rows.sum())
        needed = lift * allowed.sum() / rows.sum()
        best = wanted[np.lexsort((wanted, -lifts))]
        return best[: min(nprobe, max(1, int((lifts >= needed).sum())))]

    def lut(self, query: F32) -> F32:
        """Return the float tables (m, 16) of query (d,)."""
        words = self.codewords.astype(np.float64)
        init = np.zeros((len(words), KSUB), np.float32)
        x = query
        if self.metric == "l2":
            x, init = 2 * (query - self.mean), -(words**2).sum(axis=2).astype(np.float32)
        if len(self.rotation) == 0:
            return np.asarray(words @ query, dtype=np.float32)
        return pq_tables(gemm_nt(x[None], self.rotation)[0].astype(np.float32), self.codewords, init).astype(np.float32)

    def terms(self, query: F32, lists: I64) -> F64:
        """Return what all rows of a list have in common, for each of `lists`."""
        if self.residual:
            return np.asarray(gemm_nt(query[None], self.coarse[lists])[0])
        q = query.astype(np.float64)
        term = q @ self.mean if self.metric == "ip" else -((q - self.mean) ** 2).sum()
        return np.full(len(lists), term)

    def code_scores(self, query: F32) -> F64:
        """Return the score of every position by its code and the float tables -> (n,) float64."""
        n, nlist = int(self.list_offsets[-1]), len(self.router)
        codes = unpack_codes(self.packed, n)
        sums = self.lut(query).astype(np.float64)[np.arange(codes.shape[1]), codes].sum(axis=1)
        return np.asarray(sums + np.repeat(self.terms(query, np.arange(nlist)), np.diff(self.list_offsets)))

    def candidates(
        self, query: F32, lists: I64, count: int | None = None, lowest: float = -np.inf, allow: B | None = None
    ) -> tuple[I64, F32]:
        """Return the best positions of `lists` by 8-bit tables, best first, and these scores.

        `count` of them at most (None = all), none below `lowest`, and only where `allow` (n,) says so.
        """
        tables, bias, step = quantize_tables(self.lut(query))
        sums = scan_sums(self.packed, tables).astype(np.float32)
        spans = [np.arange(self.list_offsets[i], self.list_offsets[i + 1]) for i in lists]
        positions = np.concatenate([*spans, np.zeros(0, np.int64)])
        bases = (bias + self.terms(query, lists).astype(np.float32)).astype(np.float32)
        scores = np.repeat(bases, [len(span) for span in spans]) + np.float32(step) * sums[positions]
        kept = np.flatnonzero((scores >= lowest) & (True if allow is None else allow[positions]))
        best = kept[order_of(scores[kept], positions[kept])[:count]]
        return positions[best], scores[best]

    def search(
        self,
        queries: F32,
        *,
        k: int,
        nprobe: int,
        refine: int,
        lift: float = 0.0,
        temperature: float = 1.0,
        misses: float = 0.0,
        error: float = 0.0,
        allow: B | None = None,
    ) -> tuple[F32, I64, I64]:
        """Return scores (q, k), positions (q, k) and the first four stats (q, 4), as `Engine.search` does.

        `allow` is (n,) bool.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        positions = np.full((len(queries), k), -1, np.int64)
        stats = np.zeros((len(queries), 4), np.int64)
        for i, query in enumerate(_adapted(queries, self.query_adapter)):
            lists = self.route(query, nprobe, lift, temperature, self._by_list(allow))
            count = max(refine, k) if refine else k + k // 8 + 16
            found, by_code = self.candidates(query, lists, count, allow=allow)
            read = self._read_until_settled(query, found, by_code, k, misses, error) if refine else 0
            visited = int(np.diff(self.list_offsets)[lists].sum())
            stats[i] = len(lists), visited, len(found), read
            found = found[:read] if refine else found
            exact = self._final_scores(query, found, verify=refine > 0)
            best = order_of(exact, found)[:k]
            scores[i, : len(best)], positions[i, : len(best)] = exact[best], found[best]
        return scores, positions, stats

    def range_search(
        self,
        queries: F32,
        *,
        threshold: float,
        margin: float,
        verify: bool,
        nprobe: int,
        lift: float = 0.0,
        temperature: float = 1.0,
        allow: B | None = None,
    ) -> tuple[I64, F32, I64]:
        """Return counts (q,), scores (h,) and positions (h,), as `Engine.range_search` does; `allow` is (n,) bool."""
        counts, scores, positions = [], [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
        lowest = float(np.float32(threshold) - np.float32(margin))
        for query in _adapted(queries, self.query_adapter):
            lists = self.route(query, nprobe, lift, temperature, self._by_list(allow))
            found, _ = self.candidates(query, lists, lowest=lowest, allow=allow)
            exact = self._final_scores(query, found, verify=verify)
            order = order_of(exact, found)
            best = order[exact[order] >= np.float32(threshold)]
            counts.append(len(best))
            scores.append(exact[best])
            positions.append(found[best])
        return np.array(counts, np.int64), np.concatenate(scores), np.concatenate(positions)

    def _read_until_settled(self, query: F32, found: I64, by_code: F32, k: int, misses: float, error: float) -> int:
        """Return how many of the candidates are read before those left are expected to hold `misses` results or less.

        The exact score of a row is normal around its code score + the mean of exact - code score over the rows read so
        far, with their variance, `error`^2 counted as that of _PRIOR_ROWS further rows.
        """
        read, chunk = 0, max(k, _READ_CHUNK)
        while misses > 0 and read + chunk < len(found):
            read, chunk = read + chunk, _READ_CHUNK
            exact = self._dense_scores(query, found[:read])
            worst = np.sort(exact)[-k]
            errors = (exact - by_code[:read]).astype(np.float64)
            variance = (read * errors.var() + _PRIOR_ROWS * error**2) / (read + _PRIOR_ROWS)
            t = (worst - errors.mean() - by_code[read:]) / math.sqrt(variance)
            if sum(0.5 * math.erfc(x / math.sqrt(2)) for x in t.tolist()) <= misses:
                return read
        return len(found)

    def _by_list(self, allow: B | None) -> I64 | None:
        if allow is None:
            return None
        before = np.concatenate([[0], np.cumsum(allow)])
        return np.diff(before[self.list_offsets])

    def _final_scores(self, query: F32, positions: I64, *, verify: bool) -> F32:
        scores = self._dense_scores(query, positions) if verify else self.code_scores(query)[positions]
        return scores.astype(np.float32)

    def _dense_scores(self, query: F32, positions: I64) -> F64:
        assert self.dense is not None
        exact = _adapted(query[None], self.verify_adapter)[0]
        return dense_scores(self.metric, self.dense_dtype, exact, self.dense[positions])


def _adapted(queries: F32, adapter: tuple[F32 | F16, F32, F32 | F16, int, bool] | None) -> F32:
    return queries if adapter is None else adapt(queries, *adapter)
