"""When a search stops to read candidates."""

from __future__ import annotations

import itertools
import os

import numpy as np
import pytest

from tests.kernels.support import Shape, allowed_rows, both_engines, small_integers
from vqdistill.kernels import Engine, pack_codes
from vqdistill.kernels.reference import ReferenceEngine

K, REFINE = 10, 150


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Return queries, an engine and its reference over rows whose codes tell most of their scores."""
    rng = np.random.default_rng(4)
    n, d, m, nlist = 4000, 12, 12, 12
    rows = rng.standard_normal((n, d)).astype(np.float32)
    words = np.zeros((m, 16, d), np.float32)
    rest, codes = rows.copy(), np.zeros((n, m), np.uint8)
    for j in range(m):
        words[j] = rest[rng.choice(n, 16, replace=False)]
        for _ in range(4):
            codes[:, j] = ((rest[:, None] - words[j]) ** 2).sum(axis=2).argmin(axis=1)
            for c in range(16):
                words[j, c] = rest[codes[:, j] == c].mean(axis=0) if (codes[:, j] == c).any() else 0
        rest -= words[j, codes[:, j]]
    arrays = {
        "metric": "ip",
        "residual": False,
        "list_offsets": np.linspace(0, n, nlist + 1).astype(np.int64),
        "router": rng.standard_normal((nlist, d)).astype(np.float32),
        "coarse": np.zeros((nlist, d), np.float32),
        "mean": np.zeros(d, np.float32),
        "rotation": np.zeros((0, d), np.float32),
        "codewords": words,
        "packed": pack_codes(codes),
    }
    path = tmp_path_factory.mktemp("coded") / "dense"
    path.write_bytes(rows.tobytes())
    fd = os.open(path, os.O_RDONLY)
    dense = rows.view(np.uint8).reshape(n, -1)
    queries = rng.standard_normal((129, d)).astype(np.float32)
    error = float((queries @ (rows - words[np.arange(m), codes].sum(axis=1)).T).std())
    yield (
        queries,
        error,
        Engine(**arrays, dense_fd=fd, dense_dtype="f32"),
        ReferenceEngine(**arrays, dense_dtype="f32", dense=dense),
    )
    os.close(fd)


@pytest.mark.parametrize("misses", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("k", [1, 10, 40])
def test_reading_stops_where_the_reference_stops(coded, misses, k):
    queries, error, native, wanted = coded
    options = {"k": k, "nprobe": 12, "refine": REFINE, "misses": misses, "error": error}
    scores, positions, stats = native.search(queries[:40], threads=1, **options)
    wanted_scores, wanted_positions, wanted_stats = wanted.search(queries[:40], **options)
    # Expected misses come from a table, and scores are float32: a decision may fall on the other side of the bound.
    same = stats[:, 3] == wanted_stats[:, 3]
    assert same.mean() >= 0.9 and (np.abs(stats[:, 3] - wanted_stats[:, 3]) <= 32).all()
    assert np.array_equal(positions[same], wanted_positions[same])
    assert np.allclose(scores[same], wanted_scores[same], rtol=1e-5, atol=1e-5)
    assert (stats[:, 2] == REFINE).all()


def test_fewer_misses_read_more_and_lose_less(coded):
    queries, error, native, _ = coded
    options = {"k": K, "nprobe": 12, "refine": REFINE, "threads": 1}
    everything = native.search(queries, **options)
    assert (everything[2][:, 3] == REFINE).all()
    reads = []
    for misses in (1e-6, 0.1, 0.5, 3.0):
        _, positions, stats = native.search(queries, misses=misses, error=error, **options)
        reads.append(stats[:, 3])
        assert (stats[:, 3] <= REFINE).all() and (stats[:, 3] >= 16).all()
        lost = K - (positions[:, :, None] == everything[1][:, None]).any(axis=1).sum(axis=1)
        assert lost.mean() <= misses + 0.15, "the errors here have longer tails than the normal distribution"
    assert all((more >= fewer).all() for more, fewer in itertools.pairwise(reads))
    assert reads[1].mean() < 0.7 * REFINE, "the rule pays"
    assert reads[-1].mean() < reads[0].mean()


def test_an_error_that_is_large_reads_everything_and_one_that_is_small_the_first_chunk(coded):
    queries, _, native, _ = coded
    options = {"k": K, "nprobe": 12, "refine": REFINE, "threads": 1, "misses": 0.1}
    assert (native.search(queries, error=1e6, **options)[2][:, 3] == REFINE).all()
    small = native.search(queries, error=1e-9, **options)[2][:, 3]
    assert (small % 16 == 0).all() and small.mean() < 0.5 * REFINE
    wide = native.search(queries, error=1e-9, **options | {"k": 100, "misses": 100.0})[2][:, 3]
    assert (wide == 100).all(), "the first chunk holds at least k rows"


@pytest.mark.parametrize("batch", [1, 3, 33, 129])
def test_reads_do_not_depend_on_the_batch(coded, batch):
    queries, error, native, _ = coded
    options = {"k": K, "nprobe": 5, "refine": REFINE, "misses": 0.2, "error": error}
    whole = native.search(queries, threads=3, **options)
    parts = [native.search(queries[at : at + batch], threads=1, **options) for at in range(0, len(queries), batch)]
    for i in (0, 1):
        assert np.array_equal(np.concatenate([part[i] for part in parts]), whole[i])
    assert np.array_equal(np.concatenate([part[2] for part in parts])[:, :4], whole[2][:, :4])


def test_stopping_with_fewer_candidates_than_results(tmp_path):
    shape = Shape(n=40, nlist=3, dense_dtype="f32")
    queries = small_integers(np.random.default_rng(5), 7, shape.d)
    with both_engines(shape, tmp_path) as (native, wanted):
        allow = np.arange(40) < 5
        options = {"k": 12, "nprobe": 3, "refine": 30, "misses": 0.5, "error": 1.0}
        _, positions, stats = native.search(queries, threads=1, allow=allowed_rows(wanted, allow), **options)
        assert (stats[:, 3] == 5).all() and ((positions >= 0).sum(axis=1) == 5).all()
