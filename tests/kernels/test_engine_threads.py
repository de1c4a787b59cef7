"""Threads that share the lists of one query: what they find and count is what one thread does."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.support import Shape, encode_dense, random_arrays, small_integers
from vqdistill.kernels import Engine

N, NLIST = 800_000, 500
SHAPE = Shape(n=N, nlist=NLIST, m=8, d=8, dsub=1, dense_dtype="i8")
"""Its last epochs have rows for four threads."""


def arrays_of(shape, seed=3):
    """Random arrays with lists of about equal length."""
    return random_arrays(shape, seed) | {"list_offsets": np.linspace(0, shape.n, shape.nlist + 1).astype(np.int64)}


@pytest.fixture(scope="module")
def queries():
    return small_integers(np.random.default_rng(4), 2, SHAPE.d)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "residual"])
def engine(request, tmp_path_factory):
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("heavy") / "dense"
    path.write_bytes(encode_dense("i8", small_integers(rng, N, SHAPE.d).astype(np.float64), rng).tobytes())
    arrays = arrays_of(SHAPE) | {"residual": request.param}
    with path.open("rb") as file:
        yield Engine(**arrays, dense_fd=file.fileno(), dense_dtype="i8")


def allowed(share, seed=6):
    """Return a random mask of rows as the engine takes it."""
    mask = np.random.default_rng(seed).random(N) < share
    per_list = np.add.reduceat(mask, np.linspace(0, N, NLIST + 1).astype(np.int64)[:-1], dtype=np.int64)
    return np.packbits(mask, bitorder="little").view("<u4"), per_list


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {"nprobe": NLIST, "refine": 0},
        {"nprobe": NLIST - 50, "refine": 0},
        {"nprobe": NLIST, "lift": 1e-9, "temperature": 50.0, "refine": 0},
        {"nprobe": NLIST, "refine": 0, "allow": allowed(0.3)},
        {"nprobe": NLIST, "refine": 900},
        {"nprobe": NLIST, "refine": 900, "misses": 0.5, "error": 1.0, "allow": allowed(0.3)},
    ],
    ids=["flat", "lists", "lifts", "allow", "refine", "refine allowed"],
)
def test_search(engine, queries, count, options):
    one = engine.search(queries[:count], k=100, threads=1, **options)
    assert (one[2][:, 1] > 400_000).all()
    for threads in (2, 3, 8):
        many = engine.search(queries[:count], k=100, threads=threads, **options)
        assert all(np.array_equal(a, b) for a, b in zip(one[:2], many[:2], strict=True))
        # Pages, bytes and waits belong to the reads, which queries of one block share.
        assert np.array_equal(one[2][:, :4], many[2][:, :4])


@pytest.mark.parametrize("nprobe", [NLIST - 50, NLIST])
def test_search_of_batches(engine, nprobe):
    """Long scans, whose bars rise with the queries that share them, find what those of each query alone do."""
    queries = small_integers(np.random.default_rng(7), 13, SHAPE.d)
    whole = engine.search(queries, k=100, refine=0, nprobe=nprobe, threads=1)
    for size in (1, 5):
        parts = [
            engine.search(queries[at : at + size], k=100, refine=0, nprobe=nprobe, threads=1)
            for at in range(0, len(queries), size)
        ]
        for i in range(3):
            assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])


@pytest.mark.parametrize("verify", [False, True])
def test_range_search(engine, queries, verify):
    options = {"threshold": 40.0, "margin": 5.0, "verify": verify, "nprobe": NLIST}
    one = engine.range_search(queries[:1], threads=1, **options)
    assert one[0].sum() > 100
    for threads in (2, 3, 8):
        many = engine.range_search(queries[:1], threads=threads, **options)
        assert all(np.array_equal(a, b) for a, b in zip(one, many, strict=True))


def test_ties_go_to_the_lower_position():
    """All codes score alike: the best are the first rows, whichever thread meets them."""
    arrays = arrays_of(SHAPE)
    arrays["codewords"] = np.zeros_like(arrays["codewords"])
    _, positions, _ = Engine(**arrays).search(
        np.ones((1, SHAPE.d), np.float32), k=70, nprobe=NLIST, refine=0, threads=4
    )
    assert positions[0].tolist() == list(range(70))


def test_a_timeout_ends_all_threads():
    """A scan of ten milliseconds is given up after two, and the engine still answers."""
    n, m = 1_600_000, 256
    shape = Shape(n=n, nlist=NLIST, m=m, d=8, dsub=1)
    native = Engine(**arrays_of(shape))
    query, options = np.ones((1, 8), np.float32), {"k": 10, "nprobe": NLIST, "refine": 0}
    wanted = native.search(query, threads=1, **options)
    with pytest.raises(TimeoutError):
        native.search(query, threads=3, timeout_s=0.002, **options)
    found = native.search(query, threads=3, **options)
    assert all(np.array_equal(a, b) for a, b in zip(wanted, found, strict=True))
