"""The whole search against its NumPy definition: small integers make all scores exact, so results are equal."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.kernels.support import Shape, both_engines, random_arrays, small_integers
from vqdistill.kernels import Engine, pack_codes
from vqdistill.kernels.reference import ReferenceEngine, adapt

KINDS = [("ip", False), ("ip", True), ("l2", False)]
SEARCH = {"k": 20, "nprobe": 3, "refine": 0, "threads": 1}


def queries_of(shape, count=7, seed=5):
    return small_integers(np.random.default_rng(seed), count, shape.d)


def check(shape, folder, *, k=10, nprobe=None, refine=0, seed=0):
    queries = queries_of(shape)
    nprobe = nprobe or shape.nlist
    with both_engines(shape, folder, seed) as (native, wanted):
        scores, positions, stats = native.search(queries, k=k, nprobe=nprobe, refine=refine, threads=1)
        wanted_scores, wanted_positions, wanted_stats = wanted.search(queries, k=k, nprobe=nprobe, refine=refine)
    assert np.array_equal(positions, wanted_positions)
    assert np.array_equal(scores, wanted_scores)
    assert np.array_equal(stats[:, :4], wanted_stats)
    return stats


@pytest.mark.parametrize(("metric", "residual"), KINDS)
@pytest.mark.parametrize("nprobe", [1, 3, 6])
@pytest.mark.parametrize("refine", [0, 40])
def test_equals_reference(tmp_path, metric, residual, nprobe, refine):
    for seed in range(3):
        shape = Shape(metric=metric, residual=residual, dense_dtype="f32" if refine else "none")
        check(shape, tmp_path, nprobe=nprobe, refine=refine, seed=seed)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("m", [2, 8, 256])
@pytest.mark.parametrize("nprobe", [2, 6])
def test_additive_codes(tmp_path, residual, m, nprobe):
    check(Shape(additive=True, residual=residual, m=m), tmp_path, nprobe=nprobe)


def random_adapter(shape: Shape, units: int, rank: int, seed: int, unit: bool = False):
    rng = np.random.default_rng(seed)
    down, up = (rng.choice([-1, 0, 1], size, p=[0.05, 0.9, 0.05]) for size in ((units, shape.d), (shape.d, units)))
    return down.astype(np.float32), small_integers(rng, units), up.astype(np.float32), rank, unit


@pytest.mark.parametrize(("metric", "residual"), KINDS)
@pytest.mark.parametrize(("units", "rank"), [(1, 0), (1, 1), (7, 3), (16, 16), (33, 0)])
@pytest.mark.parametrize("half", [False, True])
def test_adapters_equal_the_reference(tmp_path, metric, residual, units, rank, half):
    """Of queries alone, of verification alone, of both; integers keep every score exact."""
    shape = Shape(metric=metric, residual=residual, dense_dtype="f32")
    first, second = (random_adapter(shape, units, rank, seed) for seed in (1, 2))
    if half:
        first = (first[0].astype(np.float16), first[1], first[2].astype(np.float16), *first[3:])
    for adapters in (
        {"query_adapter": first},
        {"verify_adapter": second},
        {"query_adapter": first, "verify_adapter": second},
    ):
        for refine in (0, 40):
            with both_engines(shape, tmp_path, **adapters) as (native, wanted):
                found = native.search(queries_of(shape), k=10, nprobe=3, refine=refine, threads=1)
                expected = wanted.search(queries_of(shape), k=10, nprobe=3, refine=refine)
                ranged = native.range_search(
                    queries_of(shape), threshold=20.0, margin=5.0, verify=refine > 0, nprobe=3, threads=1
                )
                expected_ranged = wanted.range_search(
                    queries_of(shape), threshold=20.0, margin=5.0, verify=refine > 0, nprobe=3
                )
            for a, b in zip(found[:2], expected[:2], strict=True):
                assert np.array_equal(a, b)
            for a, b in zip(ranged[:3], expected_ranged, strict=True):
                assert np.array_equal(a, b)


def test_an_adapted_query_is_searched_as_if_it_had_been_adapted_before():
    """Floats, and scaled to unit norm: the engine with the adapter against one without, given adapted queries."""
    arrays, queries = float_arrays()
    rng = np.random.default_rng(3)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    down, up = (rng.standard_normal(size).astype(np.float32) / 7 for size in ((20, 48), (48, 20)))
    adapter = (down, rng.standard_normal(20).astype(np.float32) / 7, up, 12, True)
    adapted = adapt(queries, *adapter)
    assert np.allclose(np.linalg.norm(adapted, axis=1), 1, atol=1e-6) and np.abs(adapted - queries).max() > 0.1
    found = Engine(**arrays, query_adapter=adapter).search(queries, k=10, nprobe=5, refine=0, threads=1)
    wanted = Engine(**arrays).search(adapted, k=10, nprobe=5, refine=0, threads=1)
    assert (found[1] == wanted[1]).mean() > 0.99
    assert np.allclose(found[0], wanted[0], rtol=0, atol=1e-3)


def test_results_of_adapted_queries_depend_on_nothing_else_in_the_call():
    arrays, queries = float_arrays()
    shape = Shape(d=48)
    adapter = random_adapter(shape, 21, 9, 4, unit=True)
    engine = Engine(**arrays, query_adapter=adapter, verify_adapter=adapter)
    whole = engine.search(queries, k=10, nprobe=5, refine=0, threads=3)
    for i, query in enumerate(queries):
        alone = engine.search(query[None], k=10, nprobe=5, refine=0, threads=1)
        assert np.array_equal(alone[0][0], whole[0][i]) and np.array_equal(alone[1][0], whole[1][i])


def test_a_query_that_would_vanish_stays_as_it_is():
    arrays, queries = float_arrays()
    identity = np.eye(48, dtype=np.float32)
    vanishing = (identity, np.zeros(48, np.float32), -identity, 48, True)
    found = Engine(**arrays, query_adapter=vanishing).search(queries, k=10, nprobe=5, refine=0, threads=1)
    wanted = Engine(**arrays).search(queries, k=10, nprobe=5, refine=0, threads=1)
    assert all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_additive_codes_with_disjoint_supports_are_product_codes():
    shape = Shape(m=4, dsub=3, d=12)
    product = random_arrays(shape) | {"rotation": np.eye(12, dtype=np.float32)}
    full = np.zeros((4, 16, 12), np.float32)
    for j in range(4):
        full[j, :, 3 * j : 3 * j + 3] = product["codewords"][j]
    additive = product | {"rotation": np.zeros((0, 12), np.float32), "codewords": full}
    found = [Engine(**arrays).search(queries_of(shape), **SEARCH) for arrays in (product, additive)]
    assert all(np.array_equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("metric", ["ip", "l2"])
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "i8"])
@pytest.mark.parametrize("d", [1, 7, 12, 33])
def test_dense_dtypes(tmp_path, metric, dtype, d):
    check(Shape(metric=metric, dense_dtype=dtype, d=d), tmp_path, refine=40, nprobe=4)


@pytest.mark.parametrize("n", [1, 31, 32, 33, 64, 97, 3000])
@pytest.mark.parametrize("residual", [False, True])
def test_row_counts(tmp_path, n, residual):
    for nlist in (1, 4, 40):
        check(Shape(n=n, nlist=nlist, residual=residual), tmp_path, nprobe=min(nlist, 3))


@pytest.mark.parametrize(("m", "dsub"), [(2, 1), (2, 6), (4, 3), (64, 1), (256, 1)])
@pytest.mark.parametrize(("metric", "residual"), KINDS)
def test_subspaces(tmp_path, m, dsub, metric, residual):
    check(Shape(m=m, dsub=dsub, metric=metric, residual=residual), tmp_path, nprobe=3)


@pytest.mark.parametrize("k", [1, 2, 100, 499])
def test_k_with_pruning(tmp_path, k):
    check(Shape(n=5000, m=2), tmp_path, k=k)
    check(Shape(n=5000, m=2, residual=True), tmp_path, k=k)


@pytest.mark.parametrize("refine", [0, 1, 50])
def test_more_results_than_rows(tmp_path, refine):
    shape = Shape(n=20, nlist=3, dense_dtype="f16")
    check(shape, tmp_path, k=30, refine=refine)
    with both_engines(shape, tmp_path) as (native, _):
        scores, positions, _ = native.search(queries_of(shape), k=30, nprobe=3, refine=refine, threads=1)
    assert (np.sort(positions[:, :20], axis=1) == np.arange(20)).all()
    assert (positions[:, 20:] == -1).all() and (scores[:, 20:] == -np.inf).all()


def test_index_without_rows(tmp_path):
    for nprobe in (1, 4):
        stats = check(Shape(n=0, nlist=4), tmp_path, nprobe=nprobe)
        assert stats.tolist() == [[nprobe, 0, 0, 0, 0, 0, 0]] * 7


def test_ties_go_to_the_lower_position_whatever_list_comes_first():
    shape = Shape(n=4096, nlist=16)
    for residual in (False, True):
        arrays = random_arrays(shape)
        arrays.update(codewords=np.zeros_like(arrays["codewords"]), residual=residual)
        arrays["coarse"][:] = arrays["coarse"][0]
        for nprobe in (5, 16):
            native, wanted = Engine(**arrays), ReferenceEngine(**arrays)
            found = native.search(queries_of(shape), k=50, nprobe=nprobe, refine=0, threads=1)
            wanted_scores, wanted_positions, _ = wanted.search(queries_of(shape), k=50, nprobe=nprobe, refine=0)
            assert np.array_equal(found[1], wanted_positions) and np.array_equal(found[0], wanted_scores)
            assert (np.diff(found[1], axis=1) > 0).all()


def float_arrays(metric="ip", residual=False, n=4000, nlist=20, m=32, d=48):
    """Random floats: sums differ from the reference in the last bits, so only invariants are exact."""
    rng = np.random.default_rng(11)
    arrays = random_arrays(Shape(n=n, nlist=nlist, m=m, d=d, dsub=2, metric=metric, residual=residual))
    for name in ("router", "coarse", "mean", "rotation", "codewords"):
        arrays[name] = rng.standard_normal(arrays[name].shape).astype(np.float32)
    return arrays, rng.standard_normal((70, d)).astype(np.float32)


@pytest.mark.parametrize(("metric", "residual"), KINDS)
def test_float_scores_and_recall_of_codes(metric, residual):
    """All probed and codes only: scores are those of the float tables, and 8-bit tables lose hardly any of the best."""
    arrays, queries = float_arrays(metric, residual)
    native, wanted = Engine(**arrays), ReferenceEngine(**arrays)
    scores, positions, _ = native.search(queries, k=100, nprobe=20, refine=0, threads=1)
    shared = 0
    for query, found, score in zip(queries, positions, scores, strict=True):
        exact = wanted.code_scores(query)
        assert score == pytest.approx(exact[found], rel=1e-5, abs=1e-4)
        assert (np.diff(score) <= 0).all()
        shared += len(np.intersect1d(found, np.argsort(-exact)[:100]))
    assert shared >= 0.999 * 100 * len(queries)


@pytest.mark.parametrize(("metric", "residual"), KINDS)
def test_all_lists_equal_one_list(metric, residual):
    """Visiting every list is the exhaustive scan; the lists of a plain index do not matter then."""
    arrays, queries = float_arrays(metric, residual)
    arrays["coarse"][:] = arrays["coarse"][0]
    first = {name: arrays[name][:1] for name in ("router", "coarse")}
    single = arrays | first | {"list_offsets": arrays["list_offsets"][[0, -1]]}
    options = {"k": 40, "refine": 0, "threads": 1}
    many = Engine(**arrays).search(queries, nprobe=20, **options)
    one = Engine(**single).search(queries, nprobe=1, **options)
    assert np.array_equal(many[1], one[1]) and np.array_equal(many[0], one[0])


@pytest.mark.parametrize(("metric", "residual"), KINDS)
@pytest.mark.parametrize("nprobe", [1, 7, 20])
def test_results_do_not_depend_on_threads_or_batches(metric, residual, nprobe):
    arrays, queries = float_arrays(metric, residual)
    native = Engine(**arrays)
    options = {"k": 25, "nprobe": nprobe, "refine": 0}
    one = native.search(queries, threads=1, **options)
    for threads in (2, 4, 200):
        many = native.search(queries, threads=threads, **options)
        assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))
    for size in (1, 3, 33):
        parts = [native.search(queries[at : at + size], threads=1, **options) for at in range(0, len(queries), size)]
        assert np.array_equal(np.concatenate([part[0] for part in parts]), one[0])
        assert np.array_equal(np.concatenate([part[1] for part in parts]), one[1])
        assert np.array_equal(np.concatenate([part[2] for part in parts]), one[2])


def test_concurrent_searches_of_one_engine(tmp_path):
    shape = Shape(n=3000, dense_dtype="f16", d=33)
    queries = queries_of(shape, 40)

    def run(native, number):
        k = 1 + number % 7
        return k, native.search(queries, k=k, nprobe=1 + number % 6, refine=50 * (number % 2), threads=1 + number % 3)

    with both_engines(shape, tmp_path) as (native, _):
        alone = [run(native, number) for number in range(12)]
        with ThreadPoolExecutor(6) as pool:
            together = list(pool.map(lambda number: run(native, number), list(range(12)) * 4))
    for (k, found), (wanted_k, wanted) in zip(together, alone * 4, strict=True):
        assert k == wanted_k and all(np.array_equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_stats_count_the_work_of_each_query(tmp_path):
    shape = Shape(n=640, nlist=4, dense_dtype="f16", d=16)
    with both_engines(shape, tmp_path) as (native, _):
        *_, stats = native.search(queries_of(shape, 3), k=5, nprobe=4, refine=64, threads=1)
        assert stats[:, :4].tolist() == [[4, 640, 64, 64]] * 3
        pages, size = stats[:, 4].sum(), stats[:, 5].sum()
        assert 1 <= pages <= 3 * 6 and 64 * 32 <= size <= 3 * 640 * 32 and (stats[:, 6] >= 0).all()
        *_, stats = native.search(queries_of(shape, 3), k=8, nprobe=4, refine=0, threads=1)
        assert stats.tolist() == [[4, 640, 8 + 1 + 16, 0, 0, 0, 0]] * 3
        *_, stats = native.search(queries_of(shape, 1), k=8, nprobe=2, refine=0, threads=1)
        assert stats[0, 0] == 2 and stats[0, 1] <= 640
        assert native.search(queries_of(shape, 0), k=8, nprobe=2, refine=0, threads=1)[2].shape == (0, 7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
@pytest.mark.parametrize(("metric", "residual"), KINDS)
def test_queries_that_overflow_find_nothing_false(tmp_path, value, metric, residual):
    """Python refuses such queries; the engine must still end, and not touch its neighbours."""
    shape = Shape(metric=metric, residual=residual, dense_dtype="f16")
    queries = queries_of(shape)
    with both_engines(shape, tmp_path) as (native, _):
        for refine in (0, 30):
            for nprobe in (2, 6):
                options = {"k": 5, "nprobe": nprobe, "refine": refine, "threads": 1}
                clean = native.search(queries, **options)
                dirty = queries.copy()
                dirty[3] = value
                scores, positions, _ = native.search(dirty, **options)
                others = np.arange(7) != 3
                assert np.array_equal(positions[others], clean[1][others])
                assert not np.isnan(scores).any() and ((positions == -1) == (scores == -np.inf)).all()


def test_dense_rows_that_are_not_numbers_come_last(tmp_path):
    arrays = random_arrays(Shape(n=40, nlist=1))
    rows = np.ones((40, 12), "<f2")
    rows[7:11, 3] = np.nan
    rows[11, 0] = -np.inf
    path = tmp_path / "dense"
    path.write_bytes(rows.tobytes())
    with path.open("rb") as file:
        native = Engine(**arrays, dense_fd=file.fileno(), dense_dtype="f16")
        scores, positions, _ = native.search(np.ones((1, 12), np.float32), k=40, nprobe=1, refine=40, threads=1)
    assert positions[0, :35].tolist() == [*range(7), *range(12, 40)]
    assert (scores[0, :35] == 12).all() and (positions[0, 35:] == -1).all()


def test_engine_keeps_its_arrays_alive():
    shape = Shape(n=3000)
    queries = queries_of(shape)
    wanted = Engine(**random_arrays(shape)).search(queries, k=9, nprobe=3, refine=0, threads=1)
    native = Engine(**random_arrays(shape))
    rubbish = [np.full(size, 0xFF, np.uint8) for size in (12_032, 48_000, 96, 3_072, 288) for _ in range(20)]
    found = native.search(queries, k=9, nprobe=3, refine=0, threads=1)
    assert np.array_equal(found[1], wanted[1]) and rubbish


def test_pruning_keeps_the_best_of_adversarial_orders():
    """Scores that rise, fall, or repeat in scan order: the bar moves at each step, or never."""
    n, m = 20_000, 4
    codewords = np.zeros((m, 16, 1), np.float32)
    codewords[0, :, 0], codewords[2, :, 0] = np.arange(16) * 8, np.arange(16) / 2
    base = random_arrays(Shape(n=n, m=m, d=1, dsub=1, nlist=1)) | {
        "codewords": codewords,
        "rotation": np.ones((m, 1), np.float32),
        "mean": np.zeros(1, np.float32),
    }
    rising = np.sort(np.random.default_rng(0).integers(0, 256, n))
    for order in (rising, rising[::-1], np.tile([255, 0], n // 2), np.zeros(n, np.int64), np.arange(n) % 256):
        codes = np.zeros((n, m), np.uint8)
        codes[:, 0], codes[:, 2] = order >> 4, order & 15
        arrays = base | {"packed": pack_codes(codes)}
        for k in (1, 10, 300):
            query = np.ones((1, 1), np.float32)
            scores, positions, _ = Engine(**arrays).search(query, k=k, nprobe=1, refine=0, threads=1)
            wanted = np.lexsort((np.arange(n), -order))[:k]
            assert np.array_equal(positions[0], wanted)
            assert np.array_equal(scores[0], (order[wanted] >> 4) * 8 + (order[wanted] & 15) / 2)
