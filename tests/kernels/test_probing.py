"""Which lists a query visits and which rows it may find, by the engine and by its NumPy definition."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.support import Shape, allowed_rows, both_engines, random_arrays, small_integers
from vqdistill.index.byte_rows import to_bytes
from vqdistill.kernels import Engine
from vqdistill.kernels.reference import ReferenceEngine

KINDS = [("ip", False), ("ip", True), ("l2", False)]
BATCHES = [1, 3, 33, 129]


def queries_of(shape, count=9, seed=5):
    return small_integers(np.random.default_rng(seed), count, shape.d)


def clear_lift(reference, queries, temperature, allow=None, rank=0.5):
    """Return a lift that no list of these queries comes near, so that rounding decides nothing."""
    rows = np.diff(reference.list_offsets)
    lifts = [1e-6]
    for query in queries.astype(np.float64):
        scores = reference.router.astype(np.float64) @ query
        if reference.metric == "l2":
            scores = 2 * scores - (reference.router.astype(np.float64) ** 2).sum(axis=1)
        weights = np.exp((scores - scores.max()) / temperature)
        lifts += (weights / weights.sum() / np.maximum(rows / rows.sum(), 1e-12))[rows > 0].tolist()
    values = np.log(np.unique(np.maximum(lifts, 1e-6)))
    middle = np.quantile(values, rank)
    gaps = np.flatnonzero(np.diff(values) > 1e-2)
    at = gaps[np.abs(values[gaps] - middle).argmin()]
    share = 1.0 if allow is None else max(allow.mean(), 1e-9)
    return float(np.exp((values[at] + values[at + 1]) / 2) / share)


def same_search(native, reference, queries, *, allow=None, **options):
    scores, positions, stats = native.search(queries, threads=1, allow=allowed_rows(reference, allow), **options)
    wanted_scores, wanted_positions, wanted_stats = reference.search(queries, allow=allow, **options)
    assert np.array_equal(positions, wanted_positions)
    assert np.array_equal(scores, wanted_scores)
    assert np.array_equal(stats[:, :4], wanted_stats)
    return stats


@pytest.mark.parametrize(("metric", "residual"), KINDS)
@pytest.mark.parametrize("rank", [0.0, 0.5, 0.8])
def test_lift_equals_reference(tmp_path, metric, residual, rank):
    for seed, temperature in enumerate([0.5, 20.0, 300.0]):
        shape = Shape(metric=metric, residual=residual, nlist=37, n=2000)
        queries = queries_of(shape, 17)
        with both_engines(shape, tmp_path, seed) as (native, wanted):
            lift = clear_lift(wanted, queries, temperature, rank=rank)
            for nprobe in (3, 37):
                options = {"k": 10, "nprobe": nprobe, "refine": 0, "lift": lift, "temperature": temperature}
                same_search(native, wanted, queries, **options)


def test_lift_visits_few_lists_where_the_query_is_sure():
    """A query that is the centroid of one list, apart from all others, visits it alone; one between all visits all."""
    arrays = random_arrays(Shape(nlist=8, d=8, n=800)) | {
        "router": np.eye(8, dtype=np.float32) * 4,
        "list_offsets": np.arange(9, dtype=np.int64) * 100,
    }
    queries = np.stack([np.eye(8)[3] * 4, np.full(8, 0.5)]).astype(np.float32)
    *_, stats = Engine(**arrays).search(queries, k=1, nprobe=8, refine=0, lift=0.5, temperature=1.0, threads=1)
    assert stats[:, 0].tolist() == [1, 8]
    *_, stats = Engine(**arrays).search(queries, k=1, nprobe=8, refine=0, lift=1e9, temperature=1.0, threads=1)
    assert stats[:, 0].tolist() == [1, 1], "at least one list"


def test_lift_prefers_short_lists():
    """Of lists with the same score, the shortest promises most per row; ties of both go to the lowest number."""
    offsets = np.array([0, 400, 500, 600, 900], np.int64)
    arrays = random_arrays(Shape(nlist=4, n=900)) | {"router": np.ones((4, 12), np.float32), "list_offsets": offsets}
    query, options = np.ones((1, 12), np.float32), {"k": 900, "refine": 0, "temperature": 1.0, "threads": 1}
    for nprobe in (1, 2, 3):
        _, positions, stats = Engine(**arrays).search(query, nprobe=nprobe, lift=1e-3, **options)
        wanted = np.concatenate([np.arange(offsets[i], offsets[i + 1]) for i in [1, 2, 3, 0][:nprobe]])
        assert np.array_equal(np.sort(positions[0][positions[0] >= 0]), np.sort(wanted))
        assert stats[0, :2].tolist() == [nprobe, len(wanted)]


MASKS = {
    "half": lambda n, offsets, rng: rng.random(n) < 0.5,
    "few": lambda n, offsets, rng: rng.random(n) < 0.02,
    "none": lambda n, offsets, rng: np.zeros(n, bool),
    "all": lambda n, offsets, rng: np.ones(n, bool),
    "one": lambda n, offsets, rng: np.arange(n) == n // 2,
    "whole lists": lambda n, offsets, rng: np.repeat(np.arange(len(offsets) - 1) % 3 == 1, np.diff(offsets)),
    "last row": lambda n, offsets, rng: np.arange(n) == n - 1,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("metric", "residual"), KINDS)
@pytest.mark.parametrize("refine", [0, 40])
def test_allow_equals_reference(tmp_path, mask, metric, residual, refine):
    shape = Shape(
        metric=metric, residual=residual, nlist=20, n=1500, dense_dtype="f16" if refine else "none", additive=residual
    )
    queries = queries_of(shape)
    with both_engines(shape, tmp_path) as (native, wanted):
        allow = MASKS[mask](shape.n, wanted.list_offsets, np.random.default_rng(3))
        for nprobe in (4, 20):
            same_search(native, wanted, queries, k=10, nprobe=nprobe, refine=refine, allow=allow)
        if allow.any():
            lift = clear_lift(wanted, queries, 50.0, allow)
            same_search(
                native, wanted, queries, k=10, nprobe=20, refine=refine, allow=allow, lift=lift, temperature=50.0
            )
        _, positions, _ = native.search(
            queries, k=10, nprobe=20, refine=refine, threads=1, allow=allowed_rows(wanted, allow)
        )
        assert allow[positions[positions >= 0]].all()
        assert ((positions >= 0).sum(axis=1) == min(10, allow.sum())).all(), "all lists visited: nothing is missed"


@pytest.mark.parametrize("batch", BATCHES)
def test_batches_with_filters_and_lifts(tmp_path, batch):
    shape = Shape(nlist=23, n=3000, residual=True, dense_dtype="f16")
    queries = queries_of(shape, batch)
    with both_engines(shape, tmp_path) as (native, wanted):
        allow = np.random.default_rng(1).random(shape.n) < 0.3
        lift = clear_lift(wanted, queries, 30.0, allow)
        options = {"k": 7, "nprobe": 23, "refine": 30, "lift": lift, "temperature": 30.0, "allow": allow}
        same_search(native, wanted, queries, **options)
        one = native.search(queries, threads=1, **options | {"allow": allowed_rows(wanted, allow)})
        for threads in (2, 5):
            many = native.search(queries, threads=threads, **options | {"allow": allowed_rows(wanted, allow)})
            assert np.array_equal(many[0], one[0]) and np.array_equal(many[1], one[1])
            assert np.array_equal(many[2][:, :4], one[2][:, :4])


@pytest.mark.parametrize(("metric", "residual"), KINDS)
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("margin", [0.0, 25.0, 1e6])
def test_range_search_equals_reference(tmp_path, metric, residual, verify, margin):
    shape = Shape(metric=metric, residual=residual, nlist=9, n=1200, dense_dtype="f16" if verify else "none")
    queries = queries_of(shape, 7)
    with both_engines(shape, tmp_path) as (native, wanted):
        best, *_ = wanted.search(queries, k=60, nprobe=9, refine=shape.n if verify else 0)
        for threshold in (float(np.median(best[:, -1])), float(best.max()), float(best.max()) + 1):
            for nprobe, allow in [(9, None), (2, None), (9, np.arange(shape.n) % 3 == 0)]:
                options = {"threshold": threshold, "margin": margin, "verify": verify, "nprobe": nprobe}
                limits = {"allow": allowed_rows(wanted, allow)}
                counts, scores, positions, stats = native.range_search(queries, threads=2, **options, **limits)
                wanted_counts, wanted_scores, wanted_positions = wanted.range_search(queries, allow=allow, **options)
                assert np.array_equal(counts, wanted_counts)
                assert np.array_equal(positions, wanted_positions) and np.array_equal(scores, wanted_scores)
                assert (stats[:, 3] == (stats[:, 2] if verify else 0)).all() and (stats[:, 2] >= counts).all()


@pytest.mark.parametrize("verify", [False, True])
def test_range_search_of_everything_and_of_nothing(tmp_path, verify):
    shape = Shape(n=3000, nlist=4, dense_dtype="f32")
    queries = queries_of(shape, 5)
    options = {"margin": 0.0, "verify": verify, "nprobe": 4, "threads": 1}
    with both_engines(shape, tmp_path) as (native, _):
        counts, scores, positions, _ = native.range_search(queries, threshold=-1e6, **options)
        assert counts.tolist() == [3000] * 5
        assert (np.sort(positions.reshape(5, -1), axis=1) == np.arange(3000)).all()
        assert (np.diff(scores.reshape(5, -1), axis=1) <= 0).all()
        for part in native.range_search(queries, threshold=1e6, **options)[1:3]:
            assert part.shape == (0,)
        for part in native.range_search(queries[:0], threshold=0.0, **options)[:3]:
            assert part.shape == (0,)


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("batch", BATCHES)
def test_half_tables_are_their_values(additive, residual, batch):
    """Tables of float16 give what the same values give in float32: bit for bit with the order of operations."""
    rng = np.random.default_rng(7)
    arrays = random_arrays(Shape(n=2000, nlist=15, d=33, m=16, dsub=3, residual=residual, additive=additive))
    names = ["router", "coarse", *(["codewords"] if additive else [])]
    halves = {name: rng.standard_normal(arrays[name].shape).astype(np.float16) for name in names}
    rounded = {name: half.astype(np.float32) for name, half in halves.items()}
    queries = rng.standard_normal((batch, 33)).astype(np.float32)
    for options in ({"nprobe": 4}, {"nprobe": 15}, {"nprobe": 15, "lift": 0.5, "temperature": 3.0}):
        half, full = (
            Engine(**arrays | tables).search(queries, k=20, refine=0, threads=1, **options)
            for tables in (halves, rounded)
        )
        assert np.allclose(half[0], full[0], rtol=1e-5, atol=1e-4)
        assert (half[1] == full[1]).mean() > 0.995 and np.array_equal(half[2][:, 0], full[2][:, 0])


def test_half_tables_equal_the_reference():
    arrays = random_arrays(Shape(n=2000, nlist=15, m=16, residual=True, additive=True))
    arrays |= {name: arrays[name].astype(np.float16) for name in ("router", "coarse", "codewords")}
    queries = queries_of(Shape(), 33)
    native, wanted = Engine(**arrays), ReferenceEngine(**arrays)
    lift = clear_lift(wanted, queries, 20.0)
    same_search(native, wanted, queries, k=10, nprobe=15, refine=0, lift=lift, temperature=20.0)
    same_search(native, wanted, queries, k=10, nprobe=3, refine=0)


@pytest.mark.parametrize("batch", BATCHES)
def test_tables_of_bytes_equal_the_reference(batch):
    """Integers with 127 in each row have a scale of 1, and so does no rounding."""
    arrays = random_arrays(Shape(n=2000, nlist=15, d=33, m=16, dsub=33, residual=True, additive=True))
    queries = queries_of(Shape(d=33), batch)
    for array in (queries, *(arrays[name] for name in ("router", "coarse", "codewords"))):
        array[..., 0] = 127
    native = Engine(**arrays | {name: to_bytes(arrays[name]) for name in ("router", "coarse", "codewords")})
    wanted = ReferenceEngine(**arrays)
    lift = clear_lift(wanted, queries, 20.0)
    same_search(native, wanted, queries, k=10, nprobe=15, refine=0, lift=lift, temperature=20.0)
    same_search(native, wanted, queries, k=10, nprobe=3, refine=0)


@pytest.mark.parametrize("shape", [(15, 4), (15, 3), (15, 14)])
def test_tables_of_bytes_of_another_shape(shape):
    arrays = random_arrays(Shape(nlist=15, residual=True, additive=True))
    with pytest.raises(ValueError, match=r"router must be \(nlist, d\) float32 or float16, or uint8 with a scale"):
        Engine(**arrays | {"router": np.zeros(shape, np.uint8)})
